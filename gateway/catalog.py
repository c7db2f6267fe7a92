"""Reads one upstream's catalog into a `policy.catalog.Catalog`, and tells cheaply whether it has changed.

Every name in these queries is qualified: they also run inside clients' sessions, under their search path.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from gateway import stored_code
from gateway.sheets import Row, Rows, Sheet, Sheets
from gateway.stored_code import StoredCode, numbers, reached
from gateway.upstream import Upstream, UpstreamError
from policy.catalog import Catalog, Column, Domain, Function, Relation, RelationKind, Volatility
from policy.forms import form_of
from policy.functions import HELD_COLUMNS, PG_CLASS, TELLS_BOUNDS
from policy.memory import without_collector
from policy.tied import words_of_condition

# FirstNormalObjectId (access/transam.h): objects below it come with the server and do not change.
_FIRST_USER_OID = 16384
_HOLDERS = ", ".join(map(str, HELD_COLUMNS))

_LASTING = "{} NOT IN (SELECT t.oid FROM pg_catalog.pg_class t WHERE t.relpersistence = 't')"

_COMMITTED = "SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_current_snapshot() END"

# One number per catalog that changes when any row of it does. `xmin` is the row's last writer.
_VERSION_PROBE = "SELECT " + " || ' ' || ".join(  # noqa: S608 - constants only
    f"(SELECT pg_catalog.count(*)::pg_catalog.text || ':' || coalesce(pg_catalog.sum("  # noqa: S608 - constants only
    f"pg_catalog.hashtextextended({key}::pg_catalog.text || ':' || xmin::pg_catalog.text, 0)), 0)::pg_catalog.text"
    f" FROM pg_catalog.{table} WHERE {filtered})"
    for table, key, filtered in (
        # Temporary relations come and go, and are nobody's but their session's.
        ("pg_class", "oid", f"oid >= {_FIRST_USER_OID} AND relpersistence <> 't'"),
        (
            "pg_attribute",
            "attrelid || '.' || attnum",
            f"attrelid >= {_FIRST_USER_OID} AND attnum > 0 AND {_LASTING.format('attrelid')}",
        ),
        ("pg_attrdef", "oid", f"oid >= {_FIRST_USER_OID} AND {_LASTING.format('adrelid')}"),
        ("pg_rewrite", "oid", f"ev_class >= {_FIRST_USER_OID} AND {_LASTING.format('ev_class')}"),
        ("pg_inherits", "inhrelid", f"inhrelid >= {_FIRST_USER_OID}"),
        ("pg_proc", "oid", f"oid >= {_FIRST_USER_OID}"),
        ("pg_namespace", "oid", f"oid >= {_FIRST_USER_OID} AND nspname !~ '^pg_(toast_)?temp_'"),
        ("pg_operator", "oid", f"oid >= {_FIRST_USER_OID}"),
        ("pg_trigger", "oid", f"tgrelid >= {_FIRST_USER_OID} AND {_LASTING.format('tgrelid')}"),
        ("pg_policy", "oid", "true"),
        ("pg_cast", "oid", f"oid >= {_FIRST_USER_OID}"),
        # Row types and arrays come and go with what they belong to.
        ("pg_type", "oid", f"oid >= {_FIRST_USER_OID} AND typrelid = 0 AND typelem = 0"),
        ("pg_constraint", "oid", "contypid <> 0"),
    )
)

_RELATIONS = f"""
SELECT c.oid, n.nspname, c.relname, c.relkind, c.relhastriggers,
       EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_type <> '1'), d.description
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_description d ON d.objoid = c.oid AND d.objoid >= {_FIRST_USER_OID} AND d.objsubid = 0
   AND d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c') AND n.nspname !~ '^pg_(toast|temp)'
 ORDER BY c.oid"""  # noqa: S608 - constants only

# The columns that a generated column is computed from. Its expression cannot hold whole rows, so that the
# dependencies of columns are complete here. Before PostgreSQL 15 the column has them, since then its expression.
_READ_BY_GENERATED = """
SELECT pg_catalog.string_agg(DISTINCT d.refobjsubid::pg_catalog.text, ' ')
  FROM pg_catalog.pg_depend d
 WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = a.attrelid
   AND d.refobjsubid > 0 AND d.refobjsubid <> a.attnum
   AND (d.classid = d.refclassid AND d.objid = a.attrelid AND d.objsubid = a.attnum
     OR d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND d.objid = (
          SELECT e.oid FROM pg_catalog.pg_attrdef e WHERE e.adrelid = a.attrelid AND e.adnum = a.attnum))"""

_COLUMNS_OF = """
  FROM pg_catalog.pg_attribute a
  JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
 WHERE a.attnum > 0 AND NOT a.attisdropped AND {}"""


def columns_of(relations: str) -> tuple[Sheet, Sheet]:
    """The sheets of the columns (`a`) that a condition picks, relation by relation, and of what their types are.

    Many columns have few types.
    """
    return (
        Sheet(
            "columns",
            "nntnnnt",
            f"""
SELECT a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation,
       CASE WHEN a.attgenerated <> '' THEN ({_READ_BY_GENERATED}) END
{_COLUMNS_OF.format(relations)} ORDER BY a.attrelid, a.attnum""",
        ),
        Sheet(
            "column types",
            "nnnttn",
            f"""
SELECT a.atttypid, a.atttypmod, a.attcollation, pg_catalog.format_type(a.atttypid, a.atttypmod),
       CASE WHEN a.attcollation <> 0 AND (a.attcollation <> t.typcollation OR a.attcollation <> 100)
            THEN pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname) END,
       CASE WHEN t.typcategory = 'A' THEN t.typelem ELSE 0 END
  FROM (SELECT DISTINCT a.atttypid, a.atttypmod, a.attcollation {_COLUMNS_OF.format(relations)}) a
  JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation
  LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
 ORDER BY 1, 2, 3""",  # noqa: S608 - our own queries
        ),
    )


# Besides those of users, the server's own that hold some of their values (policy/held.py).
_COLUMNS, _COLUMN_TYPES = columns_of(f"(a.attrelid >= {_FIRST_USER_OID} OR a.attrelid IN ({_HOLDERS}))")

# What stands behind each domain: down to the type that is none, with what any domain on the way refuses.
# The type `citext` of the extension is text (oid 25) that compares in another way, and is cast as a domain of it is.
_DOMAINS = """
WITH RECURSIVE way (oid, base, modifier, not_null, checked) AS (
    SELECT t.oid, t.oid, -1, false, false FROM pg_catalog.pg_type t WHERE t.typtype = 'd'
    UNION ALL
    SELECT way.oid, t.typbasetype, GREATEST(way.modifier, t.typtypmod), way.not_null OR t.typnotnull,
           way.checked OR EXISTS (SELECT FROM pg_catalog.pg_constraint k
                                   WHERE k.contypid = t.oid AND k.contype = 'c')
      FROM way JOIN pg_catalog.pg_type t ON t.oid = way.base AND t.typtype = 'd')
SELECT way.oid, way.base, CASE WHEN t.typcategory = 'A' THEN t.typelem ELSE 0 END,
       way.modifier, way.not_null, way.checked
  FROM way JOIN pg_catalog.pg_type t ON t.oid = way.base AND t.typtype <> 'd'
UNION ALL
SELECT e.objid, 25, 0, -1, false, false
  FROM pg_catalog.pg_depend e
  JOIN pg_catalog.pg_extension x ON x.oid = e.refobjid AND x.extname = 'citext'
  JOIN pg_catalog.pg_type t ON t.oid = e.objid AND t.typname = 'citext'
 WHERE e.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND e.deptype = 'e'
 ORDER BY 1"""

_INHERITS = "SELECT i.inhrelid, i.inhparent FROM pg_catalog.pg_inherits i ORDER BY 1, 2"

_SHOWS_NOTHING = "(t.oid = {} AND pg_catalog.pg_get_viewdef(v.oid) !~ '{}|[.][*]')"

# What a view's or rule's query depends on. Column-level pg_depend is unsound (it misses whole rows);
# relation level is not, but leaves out the server's own tables: those are in the query's tree. Of the catalogs that
# hold values of user tables a view reads what its text could show.
_READS = f"""
SELECT DISTINCT r.ev_class, d.refobjid
  FROM pg_catalog.pg_rewrite r
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
   AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid <> r.ev_class
UNION
SELECT v.oid, t.oid
  FROM (SELECT r.ev_class AS oid, r.ev_action::pg_catalog.text AS tree
          FROM pg_catalog.pg_rewrite r WHERE r.ev_type = '1' AND r.ev_class >= {_FIRST_USER_OID}) v,
       LATERAL (SELECT pg_catalog.substring(p.piece, '^[0-9]+')::pg_catalog.oid
                  FROM pg_catalog.unnest(pg_catalog.string_to_array(v.tree, ':relid ')) WITH ORDINALITY p (piece, n)
                 WHERE p.n > 1) t (oid)
 WHERE t.oid BETWEEN 1 AND {_FIRST_USER_OID - 1}
   AND NOT {" AND NOT ".join(_SHOWS_NOTHING.format(oid, name) for oid, name in HELD_COLUMNS.items())}
UNION
SELECT r.ev_class, {PG_CLASS} FROM pg_catalog.pg_rewrite r
 WHERE r.ev_type = '1' AND r.ev_class >= {_FIRST_USER_OID} AND pg_catalog.strpos(r.ev_action::pg_catalog.text,
       ':funcid ' || 'pg_catalog.{TELLS_BOUNDS}(oid)'::pg_catalog.regprocedure::pg_catalog.oid || ' ') > 0
 ORDER BY 1, 2"""  # noqa: S608 - constants only

# Columns that a constraint, a unique index or a row security policy looks at together: whether a row may be written
# tells of each of them.
_TIES = f"""
SELECT conrelid, pg_catalog.array_to_string(conkey, ' ') FROM pg_catalog.pg_constraint
 WHERE conrelid >= {_FIRST_USER_OID} AND (0 = ANY (conkey) OR pg_catalog.cardinality(conkey) > 1)
UNION
SELECT i.indrelid, pg_catalog.string_agg(DISTINCT k.number::pg_catalog.text, ' ')
  FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid AND c.relkind <> 't',
       LATERAL (SELECT pg_catalog.unnest(i.indkey::pg_catalog.int2[])::pg_catalog.int4
                UNION SELECT d.refobjsubid FROM pg_catalog.pg_depend d
                 WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = i.indexrelid
                   AND d.refclassid = d.classid AND d.refobjid = i.indrelid) k (number)
 WHERE i.indrelid >= {_FIRST_USER_OID} AND i.indisunique
   AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL OR i.indnatts > 1) AND k.number > 0
 GROUP BY i.indexrelid, i.indrelid
UNION
SELECT p.polrelid, pg_catalog.concat_ws(' ', pg_catalog.string_agg(DISTINCT d.refobjsubid::pg_catalog.text, ' '),
         CASE WHEN pg_catalog.concat(p.polqual, p.polwithcheck) LIKE '%:varattno 0 %' THEN '0' END)
  FROM pg_catalog.pg_policy p
  JOIN pg_catalog.pg_class c ON c.oid = p.polrelid AND c.relrowsecurity
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND d.objid = p.oid
   AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = p.polrelid AND d.refobjsubid > 0
 WHERE p.polcmd NOT IN ('a', 'd') GROUP BY p.oid, p.polrelid, p.polqual, p.polwithcheck
 ORDER BY 1, 2"""  # noqa: S608 - constants only

# The columns of the keys by which tables have partitions, those of expressions included: each depends on its table.
_BOUND_BY = """
SELECT p.partrelid, pg_catalog.string_agg(DISTINCT d.objsubid::pg_catalog.text, ' ')
  FROM pg_catalog.pg_partitioned_table p
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = p.partrelid
   AND d.objsubid > 0 AND d.refclassid = d.classid AND d.refobjid = d.objid AND d.refobjsubid = 0
 WHERE p.partstrat <> 'h' GROUP BY 1 ORDER BY 1"""

_VIEW_QUERIES = f"""
SELECT c.oid, pg_catalog.pg_get_viewdef(c.oid)
  FROM pg_catalog.pg_class c
 WHERE c.relkind IN ('v', 'm') AND c.oid >= {_FIRST_USER_OID} ORDER BY c.oid"""  # noqa: S608 - constants only

_CHECKED_VIEWS = """
SELECT c.oid FROM pg_catalog.pg_class c
 WHERE c.relkind = 'v' AND pg_catalog.array_to_string(c.reloptions, ' ') LIKE '%check_option=%' ORDER BY 1"""

_FUNCTIONS = """
SELECT p.oid, n.nspname, p.proname, p.prokind, p.provolatile, l.lanname,
       CASE WHEN p.oid >= 16384 THEN pg_catalog.pg_get_function_identity_arguments(p.oid) ELSE '' END,
       p.pronargs - p.pronargdefaults, CASE WHEN p.provariadic = 0 THEN p.pronargs END,
       CASE WHEN p.oid >= 16384 THEN (
         SELECT x.extname FROM pg_catalog.pg_depend e JOIN pg_catalog.pg_extension x ON x.oid = e.refobjid
          WHERE e.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND e.objid = p.oid AND e.deptype = 'e') END,
       CASE WHEN p.oid < 16384 THEN ''
            WHEN p.proallargtypes IS NULL THEN p.prorettype::pg_catalog.text
            ELSE pg_catalog.array_to_string(p.proallargtypes, ' ') END
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
 ORDER BY p.oid"""

_SERVER_TYPES = """
SELECT DISTINCT t.typname FROM pg_catalog.pg_type t
 WHERE t.typnamespace = 'pg_catalog'::pg_catalog.regnamespace ORDER BY 1"""

_SCHEMAS = "SELECT n.nspname FROM pg_catalog.pg_namespace n WHERE n.nspname !~ '^pg_(toast|temp)' ORDER BY 1"

# Which function sends each type's values; one text for each function, since every table has two types.
_FORMS = """
SELECT p.prosrc, t.types
  FROM (SELECT t.typsend, pg_catalog.string_agg(t.oid::pg_catalog.text, ' ' ORDER BY t.oid)
          FROM pg_catalog.pg_type t WHERE t.typisdefined GROUP BY 1) t (send, types)
  JOIN pg_catalog.pg_proc p ON p.oid = t.send
 ORDER BY p.oid"""

_SUBTYPES = "SELECT rngtypid, rngmultitypid, rngsubtype FROM pg_catalog.pg_range ORDER BY 1"

# What a snapshot is made of. The sheet of functions is read before the last but one: what trees are asked for is
# made from it.
_SHEETS: Final = (
    Sheet("functions", "nttttttnntt", _FUNCTIONS),
    Sheet("views", "nt", _VIEW_QUERIES),
    Sheet("checked views", "n", _CHECKED_VIEWS),
    _COLUMNS,
    _COLUMN_TYPES,
    Sheet("domains", "nnnnbb", _DOMAINS),
    Sheet("relations", "ntttbbt", _RELATIONS),
    Sheet("inherits", "nn", _INHERITS),
    Sheet("reads", "nn", _READS),
    Sheet("partition keys", "nt", _BOUND_BY),
    Sheet("ties", "nt", _TIES),
    Sheet("schemas", "t", _SCHEMAS),
    Sheet("server types", "t", _SERVER_TYPES),
    stored_code.OPERATORS,
    stored_code.CASTS,
    stored_code.TYPES,
    stored_code.ATTRIBUTES,
    stored_code.TRIGGERS,
    stored_code.foreign_keys_of(),
    stored_code.SUPPORT,
    stored_code.BODIES,
    Sheet("forms", "tt", _FORMS),
    Sheet("subtypes", "nnn", _SUBTYPES),
    Sheet(
        "session",
        "nt",
        "SELECT pg_catalog.current_setting('server_version_num'),"
        " pg_catalog.array_to_json(pg_catalog.current_schemas(true))",
    ),
)


async def committed(upstream: Upstream) -> str | None:
    """A text that differs when any transaction has ended since; None on a standby, where it would not need to.

    Whoever sees the same transactions as ended sees the same catalog: `pg_snapshot`, and nothing else, says what a
    statement sees. A standby replays commits whose number it took for ended before.
    """
    return (await upstream.probe(_COMMITTED))[0][0]


async def version(upstream: Upstream) -> str:
    """A text that differs whenever the user part of the catalog does. Reads all of that: 15 ms for 1,000 relations."""
    return (await upstream.probe(_VERSION_PROBE))[0][0] or ""


async def load(upstream: Upstream) -> Catalog:
    """Take a snapshot. Raises UpstreamError or UpstreamLostError."""
    sheets = Sheets(upstream)
    functions: dict[tuple[str, str], tuple[Function, ...]] = {}

    def wanted() -> Iterator[Sheet]:
        yield from _SHEETS
        functions.update(_as_functions(sheets))
        yield stored_code.trees(functions)
        yield stored_code.domain_trees(functions)

    await sheets.read(wanted())
    origins = await _origins(upstream, sheets["views"])
    with without_collector():
        code = StoredCode(sheets)
        [(number, path)] = sheets["session"]
        return Catalog(
            epoch=hashlib.sha256(f"{sheets.digest} {sorted(origins.items())}".encode()).hexdigest(),
            server_version=number,
            relations=_as_relations(sheets, origins, code),
            functions=functions,
            schemas=frozenset(name for (name,) in sheets["schemas"]),
            operators=code.operators,
            casts=code.casts,
            types=code.types(sheets["types"]),
            server_types=frozenset(name for (name,) in sheets["server types"]),
            printed_under=tuple(json.loads(path)),
            forms={oid: form_of(send) for send, oids in sheets["forms"] for oid in numbers(oids)},
            subtypes={of: subtype for *ranges, subtype in sheets["subtypes"] for of in ranges},
        )


async def search_path(upstream: Upstream, *first: str) -> tuple[str, ...]:
    """The upstream's own answer to where unqualified names are looked up, implicit schemas included.

    Statements of our own may go `first`, in the same round trip.
    """
    rows = await upstream.probe(*first, "SELECT pg_catalog.unnest(pg_catalog.current_schemas(true))")
    return tuple(row[0] or "" for row in rows)


async def _origins(upstream: Upstream, views: Rows) -> dict[int, tuple[tuple[int, int] | None, ...]]:
    """Where each output column of the views' queries comes from, by the server's own resolution.

    A view whose query cannot be described (its owner may read what we may not) has no known origins:
    all of its columns then count as derived. Inside a client's transaction the failure is not ours to swallow.
    """
    described = await upstream.describe([query.rstrip().rstrip(";") for (query,) in views.only(1)])
    return {
        oid: ()
        if isinstance(columns, UpstreamError)
        else tuple([(c.table, c.attribute) if c.table and c.attribute else None for c in columns])
        for (oid,), columns in zip(views.only(0), described, strict=True)
    }


def _as_relations(
    sheets: Mapping[str, Rows], origins: Mapping[int, tuple[tuple[int, int] | None, ...]], code: StoredCode
) -> dict[int, Relation]:
    columns = as_columns(sheets, origins, _as_domains(sheets["domains"]))
    families = _families(sheets["inherits"])
    children: dict[int, set[int]] = {}
    for child, parent in sheets["inherits"]:
        children.setdefault(parent, set()).add(child)
    reads: dict[int, set[int]] = {}
    for view, read in sheets["reads"]:
        reads.setdefault(view, set()).add(read)
    bound_by = {oid: frozenset(numbers(key)) for oid, key in sheets["partition keys"]}
    ties: dict[int, list[frozenset[int]]] = {}
    for relation, tied in sheets["ties"]:
        ties.setdefault(relation, []).append(frozenset(numbers(tied)))
    checked = _conditions_of({oid for (oid,) in sheets["checked views"]}, sheets["views"], reads)
    none: frozenset[int] = frozenset()
    return {
        oid: Relation(
            oid=oid,
            schema=sys.intern(schema),
            name=name,
            kind=kind_of(kind),
            columns=tuple(columns.get(oid, ())),
            family=families[oid] if oid in families else frozenset((oid,)),
            reads=frozenset(reads[oid]) if oid in reads else none,
            rules=rules,
            triggers=triggers,
            comment=comment,
            children=frozenset(children[oid]) if oid in children else none,
            code=code.of_relation(oid),
            row_type=code.row_types.get(oid, 0),
            referenced_by=tuple(code.referenced_by.get(oid, ())),
            refers_by=tuple(code.refers_by.get(oid, ())),
            ties=tuple(ties.get(oid, ())),
            checked=checked.get(oid, frozenset()),
            bound_by=bound_by.get(oid, none),
        )
        for oid, schema, name, kind, triggers, rules, comment in sheets["relations"]
    }


def _conditions_of(
    checked: set[int], queries: Iterable[Row], reads: Mapping[int, set[int]]
) -> dict[int, frozenset[str]]:
    """The words of what the rows of each view WITH CHECK OPTION must meet: its own condition, and those below it."""
    texts: dict[int, str] = dict(queries) if checked else {}
    return {
        view: frozenset().union(*(words_of_condition(texts[oid]) for oid in reached((view,), reads) if oid in texts))
        for view in checked
    }


def as_columns(
    sheets: Mapping[str, Rows],
    origins: Mapping[int, tuple[tuple[int, int] | None, ...]],
    domains: Mapping[int, Domain],
) -> dict[int, list[Column]]:
    """The columns of each relation, by its OID; those of views with their origins.

    Equal ones are one value: partitions, and the tables of many tenants, repeat each other's.
    """
    types = {row[:3]: row[3:] for row in sheets["column types"]}
    made: dict[tuple[object, ...], Column] = {}
    columns: dict[int, list[Column]] = {}
    for relation, number, name, type_oid, modifier, collation, read in sheets["columns"]:
        of = columns.setdefault(relation, [])
        known = origins.get(relation, ())
        origin = known[len(of)] if len(of) < len(known) else None
        key = number, name, type_oid, modifier, collation, read, origin
        column = made.get(key)
        if column is None:
            type_name, collation_name, item = types[type_oid, modifier, collation]
            column = made[key] = Column(
                number=number,
                name=sys.intern(name),
                type=type_name,
                type_oid=type_oid,
                collation=collation_name,
                origin=origin,
                item=item,
                modifier=modifier,
                domain=domains.get(type_oid),
                computed_from=frozenset(numbers(read)),
            )
        of.append(column)
    return columns


def _as_domains(rows: Rows) -> dict[int, Domain]:
    return {oid: Domain(*rest) for oid, *rest in rows}


def kind_of(relkind: str) -> RelationKind:
    """`pg_class.relkind` of a relation that statements can name."""
    return RelationKind(relkind)


def _families(pairs: Iterable[Row]) -> dict[int, frozenset[int]]:
    """Connected components of the inheritance graph."""
    component: dict[int, set[int]] = {}
    for child, parent in pairs:
        merged = component.get(child, {child}) | component.get(parent, {parent})
        for member in merged:
            component[member] = merged
    frozen = {id(members): frozenset(members) for members in component.values()}
    return {oid: frozen[id(members)] for oid, members in component.items()}


def _as_functions(sheets: Mapping[str, Rows]) -> dict[tuple[str, str], tuple[Function, ...]]:
    behind = {aggregate: numbers(oids) for aggregate, oids in sheets["support"]}
    bodies = stored_code.bodies(sheets["bodies"])
    functions: dict[tuple[str, str], list[Function]] = {}
    for row in sheets["functions"]:
        oid, schema, name, kind, volatility, language, arguments, least, most, extension, results = row
        functions.setdefault((schema, name), []).append(
            Function(
                oid=oid,
                schema=sys.intern(schema),
                name=name,
                kind=kind,
                volatility=Volatility(volatility),
                language=sys.intern(language),
                arguments=arguments,
                extension=sys.intern(extension or ""),
                least=max(0, least - (most is None)),  # VARIADIC may be given nothing
                most=most,
                results=numbers(results),
                support=() if extension else behind.get(oid, ()),
                body=bodies.get(oid),
            )
        )
    return {key: tuple(overloads) for key, overloads in functions.items()}
