"""What a database runs unseen: the functions behind its triggers, expressions, types, casts and operators.

PostgreSQL stores expressions as trees (pg_node_tree) that name functions, operators and types by OID; so these
queries see what pg_depend does not record, the functions that come with the server. What only a superuser can
install (base types, operator classes, event triggers, languages) counts as part of the server, and so do the
operators and casts that an extension brought, unless the function behind them is volatile.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeVar

from gateway.sheets import Row, Rows, Sheet
from policy.catalog import Body, Cast, Code, Event, ForeignKey, Function, Type
from policy.functions import FIRST_USER_OID, is_harmless

Functions = Mapping[tuple[str, str], Sequence[Function]]
_K = TypeVar("_K")
_V = TypeVar("_V")

# 16384 is FIRST_USER_OID: what the server brings along does not change.
OPERATORS: Final = Sheet(
    "operators",
    "ttnn",
    """
SELECT n.nspname, o.oprname, o.oid, f.oid
  FROM pg_catalog.pg_operator o
  JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
  JOIN pg_catalog.pg_proc f ON f.oid IN (o.oprcode, o.oprrest, o.oprjoin)
 WHERE o.oid >= 16384
   AND NOT (f.provolatile <> 'v' AND EXISTS (
     SELECT FROM pg_catalog.pg_depend e
      WHERE e.classid = 'pg_catalog.pg_operator'::pg_catalog.regclass AND e.objid = o.oid AND e.deptype = 'e'))
 ORDER BY 1, 2, 3, 4""",
)

# Without the casts that CREATE TYPE … AS RANGE makes: from a range to its multirange, by code of the server.
CASTS: Final = Sheet(
    "casts",
    "nnn",
    """
SELECT c.castsource, c.casttarget, c.castfunc
  FROM pg_catalog.pg_cast c
  JOIN pg_catalog.pg_proc f ON f.oid = c.castfunc
  JOIN pg_catalog.pg_language l ON l.oid = f.prolang
 WHERE c.oid >= 16384
   AND NOT (f.provolatile <> 'v' AND l.lanname = 'internal')
   AND NOT (f.provolatile <> 'v' AND EXISTS (
     SELECT FROM pg_catalog.pg_depend e
      WHERE e.classid = 'pg_catalog.pg_cast'::pg_catalog.regclass AND e.objid = c.oid AND e.deptype = 'e'))
 ORDER BY 1, 2""",
)

# Per user type: what it is made of, and the functions that a range calls.
TYPES: Final = Sheet(
    "types",
    "ntttnt",
    """
SELECT t.oid, n.nspname, t.typname,
       pg_catalog.concat_ws(' ', nullif(t.typbasetype, 0), nullif(t.typelem, 0), r.rngsubtype, m.rngtypid),
       t.typrelid,
       pg_catalog.concat_ws(' ', nullif(r.rngcanonical, 0), nullif(r.rngsubdiff, 0))
  FROM pg_catalog.pg_type t
  JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
  LEFT JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid
  LEFT JOIN pg_catalog.pg_range m ON m.rngmultitypid = t.oid
 WHERE t.oid >= 16384 ORDER BY t.oid""",
)

# The attributes of composite types that are no relations.
ATTRIBUTES: Final = Sheet(
    "attributes",
    "nn",
    """
SELECT a.attrelid, a.atttypid
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind = 'c'
 WHERE a.attrelid >= 16384 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, 2""",
)

TRIGGERS: Final = Sheet(
    "triggers",
    "nnnt",
    """
SELECT t.tgrelid, t.tgfoid, t.tgtype, t.tgname
  FROM pg_catalog.pg_trigger t
 WHERE NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') ORDER BY 1, 4""",
)


def foreign_keys_of(relations: str = "true") -> Sheet:
    """The sheet of the foreign keys (`c`) that a condition picks."""
    return Sheet(
        "foreign keys",
        "nntttt",
        f"""
SELECT c.confrelid, c.conrelid, pg_catalog.array_to_string(c.confkey, ' '), c.confupdtype, c.confdeltype,
       pg_catalog.array_to_string(c.conkey, ' ')
  FROM pg_catalog.pg_constraint c WHERE c.contype = 'f' AND {relations} ORDER BY c.oid""",  # noqa: S608 - our own
    )


SUPPORT: Final = Sheet(
    "support",
    "nt",
    """
SELECT a.aggfnoid::pg_catalog.oid, pg_catalog.concat_ws(' ', VARIADIC ARRAY(
         SELECT DISTINCT nullif(s, 0) FROM pg_catalog.unnest(ARRAY[
           a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggmtransfn,
           a.aggminvtransfn, a.aggmfinalfn]::pg_catalog.oid[]) s ORDER BY 1)::pg_catalog.text[])
  FROM pg_catalog.pg_aggregate a WHERE a.aggfnoid::pg_catalog.oid >= 16384 ORDER BY 1""",
)

# Functions in the language SQL (oid 14): parsed bodies and defaults as the server prints them.
BODIES: Final = Sheet(
    "bodies",
    "nbtbttt",
    """
SELECT p.oid, p.prosqlbody IS NOT NULL, coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc), p.prosecdef,
       pg_catalog.array_to_json(p.proconfig), pg_catalog.pg_get_expr(p.proargdefaults, 0),
       pg_catalog.array_to_string(p.proargtypes::pg_catalog.oid[], ' ')
  FROM pg_catalog.pg_proc p WHERE p.prolang = 14 AND p.oid >= 16384 ORDER BY p.oid""",
)

_DEFAULT: Final = "the default of"
# Stored expressions: whose they are, the events they run on (the letters of _EVENTS), what they are, the tree.
_TREES: Final = """
SELECT r.ev_class AS relation, CASE c.relkind WHEN 'm' THEN 'b' ELSE 'r' END AS events, 'the query' AS by,
       r.ev_action::pg_catalog.text AS tree
  FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
 WHERE r.ev_type = '1' AND r.ev_class >= 16384
UNION ALL
SELECT d.adrelid, CASE a.attgenerated WHEN 'v' THEN 'riub' ELSE 'iub' END,
       'the default of `' || a.attname || '`', d.adbin::pg_catalog.text
  FROM pg_catalog.pg_attrdef d
  JOIN pg_catalog.pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
 WHERE d.adrelid >= 16384
UNION ALL
SELECT c.conrelid, 'iub', 'the constraint `' || c.conname || '`', c.conbin::pg_catalog.text
  FROM pg_catalog.pg_constraint c WHERE c.conbin IS NOT NULL AND c.conrelid >= 16384
UNION ALL
SELECT i.indrelid, 'iub', 'the index `' || c.relname || '`',
       coalesce(i.indexprs::pg_catalog.text, '') || coalesce(i.indpred::pg_catalog.text, '')
  FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid >= 16384 AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)
UNION ALL
SELECT p.partrelid, 'p', 'the partition key', p.partexprs::pg_catalog.text
  FROM pg_catalog.pg_partitioned_table p WHERE p.partexprs IS NOT NULL
UNION ALL
SELECT p.polrelid, pg_catalog.translate(p.polcmd::pg_catalog.text, 'raw*', 'riu*'),
       'the policy `' || p.polname || '`',
       coalesce(p.polqual::pg_catalog.text, '') || coalesce(p.polwithcheck::pg_catalog.text, '')
  FROM pg_catalog.pg_policy p
UNION ALL
SELECT t.tgrelid, pg_catalog.concat(
         CASE WHEN t.tgtype & 4 <> 0 THEN 'i' END, CASE WHEN t.tgtype & 8 <> 0 THEN 'd' END,
         CASE WHEN t.tgtype & 16 <> 0 THEN 'u' END, CASE WHEN t.tgtype & 32 <> 0 THEN 't' END),
       'the trigger `' || t.tgname || '`', t.tgqual::pg_catalog.text
  FROM pg_catalog.pg_trigger t WHERE t.tgqual IS NOT NULL AND t.tgenabled IN ('O', 'A')
UNION ALL
SELECT s.stxrelid, 'b', 'the statistics `' || s.stxname || '`', s.stxexprs::pg_catalog.text
  FROM pg_catalog.pg_statistic_ext s WHERE s.stxexprs IS NOT NULL"""

_DOMAIN_TREES: Final = """
SELECT c.contypid AS relation, '' AS events, '' AS by, c.conbin::pg_catalog.text AS tree
  FROM pg_catalog.pg_constraint c WHERE c.conbin IS NOT NULL AND c.contypid <> 0"""

_EVENTS: Final = {
    "r": Event.READ,
    "i": Event.INSERT,
    "u": Event.UPDATE,
    "d": Event.DELETE,
    "t": Event.TRUNCATE,
    "b": Event.BUILD,
    "*": Event.READ | Event.INSERT | Event.UPDATE | Event.DELETE,
    "p": Event.INSERT | Event.UPDATE,  # of the partitioned table and of all its partitions
}
# pg_trigger.tgtype (catalog/pg_trigger.h).
_TRIGGER_BITS: Final = ((4, Event.INSERT), (8, Event.DELETE), (16, Event.UPDATE), (32, Event.TRUNCATE))
# The fields of an expression tree (nodes/primnodes.h) that name functions, an operator or a type to make.
FUNCTION_FIELDS: Final = ("funcid", "aggfnoid", "winfnoid")
_FIELDS: Final = f"{'|'.join(FUNCTION_FIELDS)}|opno|resulttype|typid"
# What a default draws from a sequence belongs to the INSERT.
_NEXTVAL: Final = "nextval"


def trees(functions: Functions) -> Sheet:
    """The sheet of what the stored expressions of relations call.

    It has (relation OID, events, by, field of the tree, OID that it names), only for OIDs that a policy has to
    judge: user objects, and built-in functions that are not harmless.
    """
    return Sheet("trees", "ntttn", _named_in(_TREES, functions))


def domain_trees(functions: Functions) -> Sheet:
    """The same of the checks of domains, by the type's OID."""
    return Sheet("domain trees", "ntttn", _named_in(_DOMAIN_TREES, functions))


def _named_in(source: str, functions: Functions) -> str:
    judged = sorted(
        f.oid for overloads in functions.values() for f in overloads if f.oid < FIRST_USER_OID and not is_harmless(f)
    )
    drawn = [f.oid for f in functions.get(("pg_catalog", _NEXTVAL), ())]
    return f"""
SELECT DISTINCT x.relation, x.events, x.by, m[1], m[2]
  FROM ({source}) x, LATERAL pg_catalog.regexp_matches(x.tree, ':({_FIELDS}) ([0-9]+)', 'g') m
 WHERE m[2]::pg_catalog.int8 >= {FIRST_USER_OID}
    OR (m[1] IN ('{"', '".join(FUNCTION_FIELDS)}') AND m[2] = ANY ('{{{",".join(map(str, judged))}}}')
        AND NOT (x.by LIKE '{_DEFAULT}%' AND m[2] = ANY ('{{{",".join(map(str, drawn))}}}')))
 ORDER BY 1, 3, 4, 5"""  # noqa: S608 - constants and numbers only


def bodies(sheet: Iterable[Row]) -> dict[int, Body]:
    """What functions in the language SQL run, by their OIDs."""
    return {
        oid: Body(
            text=text or "",
            atomic=atomic,
            definer=definer,
            settings=tuple(json.loads(settings or "[]")),
            defaults=defaults or "",
            types=numbers(types),
        )
        for oid, atomic, text, definer, settings, defaults, types in sheet
    }


def foreign_keys(sheet: Iterable[Row]) -> list[ForeignKey]:
    """The foreign keys of a sheet."""
    return [
        ForeignKey(referencing, frozenset(numbers(columns)), to, frozenset(numbers(key)), on_update, on_delete)
        for to, referencing, key, on_update, on_delete, columns in sheet
    ]


def referenced(keys: Iterable[ForeignKey]) -> dict[int, list[ForeignKey]]:
    """The foreign keys that point to each relation, by its OID."""
    return _lists((key.referenced, key) for key in keys)


def events(letters: str) -> Event:
    """The events that the letters of a sheet of trees stand for."""
    found = Event(0)
    for letter in letters:
        found |= _EVENTS[letter]
    return found


def numbers(text: str | None) -> tuple[int, ...]:
    """The numbers of a list with spaces between."""
    return tuple(map(int, text.split())) if text else ()


class StoredCode:
    """The sheets of one snapshot, joined: `of_relation`, `types`, `casts`, `operators`, and the foreign keys."""

    def __init__(self, sheets: Mapping[str, Rows]) -> None:
        # Trees name operators by OID, statements by name.
        self._operators = _lists((oid, function) for _, _, oid, function in sheets["operators"])
        by_name = _lists(((schema, name), function) for schema, name, _, function in sheets["operators"])
        self.operators = {key: tuple(behind) for key, behind in by_name.items()}
        self.casts = tuple(Cast(*row) for row in sheets["casts"])
        keys = foreign_keys(sheets["foreign keys"])
        self.referenced_by = referenced(keys)
        self.refers_by = _lists((key.referencing, key) for key in keys)
        # Of a large catalog few columns are of users' types.
        made = [row for row in sheets["columns"].only(0, 2, 3) if row[2] >= FIRST_USER_OID]
        self._closures = _Closures(sheets, ((relation, type_oid) for relation, _, type_oid in made))
        for oid, _, _, field, named in sheets["domain trees"]:
            self._closures.own.setdefault(oid, set()).update(self._behind(field, named))
        self.row_types = self._closures.row_types
        self._code: dict[int, dict[tuple[int, str], Event]] = {}
        self._read_trees(sheets)
        for relation, function, bits, name in sheets["triggers"]:
            on = Event(0)
            for bit, event in _TRIGGER_BITS:
                on |= event if bits & bit else Event(0)
            self._add(relation, (function,), on, f"the trigger `{name}`")
        for relation, name, type_oid in made:
            if code := self._closures.code(type_oid):
                self._add(relation, code, ~Event(0), f"the type of `{name}`")

    def types(self, sheet: Iterable[Row]) -> dict[tuple[str, str], Type]:
        """The types that run code or have casts."""
        ends = {end for cast in self.casts for end in (cast.source, cast.target)}
        held = self._closures.holding({*self._closures.own, *ends})
        found = {}
        for oid, schema, name, *_ in sheet:
            if oid in held:
                found[schema, name] = Type(oid, self._closures.parts(oid), self._closures.code(oid))
        return found

    def of_relation(self, oid: int) -> tuple[Code, ...]:
        """What runs unseen with this relation."""
        return tuple(Code(function, events, by) for (function, by), events in self._code.get(oid, {}).items())

    def _read_trees(self, sheets: Mapping[str, Rows]) -> None:
        children = _lists((parent, child) for child, parent in sheets["inherits"])
        for relation, letters, by, field, named in sheets["trees"]:
            functions, on = self._behind(field, named), events(letters)
            self._add(relation, functions, on, by)
            if letters == "p":
                heirs = list(children.get(relation, ()))
                for heir in heirs:
                    self._add(heir, functions, on, by)
                    heirs += children.get(heir, ())

    def _behind(self, field: str, oid: int) -> Sequence[int]:
        """The functions behind what a tree names."""
        if field == "opno":
            return self._operators.get(oid, ())
        if field in ("resulttype", "typid"):
            return self._closures.code(oid)
        return (oid,)

    def _add(self, relation: int, functions: Iterable[int], events: Event, by: str) -> None:
        code = self._code.setdefault(relation, {})
        for function in functions:
            code[function, by] = code.get((function, by), Event(0)) | events


class _Closures:
    """Types and what they are made of. `columns` are the (relation, type) of those that are of users' types."""

    def __init__(self, sheets: Mapping[str, Rows], columns: Iterable[tuple[int, int]]) -> None:
        self.own: dict[int, set[int]] = {}
        self.row_types: dict[int, int] = {}
        self._direct: dict[int, set[int]] = {}
        attributes: dict[int, list[int]] = _lists((relation, type_oid) for relation, type_oid in sheets["attributes"])
        for relation, type_oid in columns:
            attributes.setdefault(relation, []).append(type_oid)
        for oid, _, _, made_of, relation, functions in sheets["types"]:
            if relation:
                self.row_types[relation] = oid
            if direct := {*numbers(made_of), *attributes.get(relation, ())}:
                self._direct[oid] = direct
            if functions:
                self.own[oid] = set(numbers(functions))

    def parts(self, oid: int) -> frozenset[int]:
        """The type and all that it is made of."""
        return reached((oid,), self._direct)

    def holding(self, parts: Iterable[int]) -> frozenset[int]:
        """These types and all that are made of one of them."""
        return reached(parts, _lists((part, oid) for oid, direct in self._direct.items() for part in direct))

    def code(self, oid: int) -> tuple[int, ...]:
        """The functions that making a value of the type calls."""
        if not self.own:
            return ()
        return tuple(sorted({function for part in self.parts(oid) for function in self.own.get(part, ())}))


def reached(first: Iterable[int], ways: Mapping[int, Iterable[int]]) -> frozenset[int]:
    """What the ways lead to from here, these included."""
    todo = list(first)
    seen = set(todo)
    for one in todo:
        for next_one in ways.get(one, ()):
            if next_one not in seen:
                seen.add(next_one)
                todo.append(next_one)
    return frozenset(seen)


def _lists(pairs: Iterable[tuple[_K, _V]]) -> dict[_K, list[_V]]:
    found: dict[_K, list[_V]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found
