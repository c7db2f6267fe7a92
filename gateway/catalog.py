"""Reads one upstream's catalog into a `policy.catalog.Catalog`, and tells cheaply whether it has changed.

Every name in these queries is qualified: they also run inside clients' sessions, under their search path.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Final

from gateway import stored_code
from gateway.stored_code import Row, StoredCode
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
       EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_type <> '1'),
       CASE WHEN c.oid >= {_FIRST_USER_OID} THEN pg_catalog.obj_description(c.oid, 'pg_class') END
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
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

# Columns of user relations, and of the server's own that hold some of their values (policy/held.py). Relation by
# relation, each in its order.
COLUMNS = f"""
SELECT a.attrelid, a.attnum, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypid,
       CASE WHEN a.attcollation <> 0 AND (a.attcollation <> t.typcollation OR a.attcollation <> 100)
            THEN pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname) END,
       CASE WHEN t.typcategory = 'A' THEN t.typelem ELSE 0 END, a.atttypmod,
       CASE WHEN a.attgenerated <> '' THEN ({_READ_BY_GENERATED}) END
  FROM pg_catalog.pg_attribute a
  JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
  JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation
  LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
 WHERE (a.attrelid >= {_FIRST_USER_OID} OR a.attrelid IN ({_HOLDERS})) AND a.attnum > 0 AND NOT a.attisdropped"""  # noqa: S608 - constants only

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
 WHERE r.ev_type = '1' AND r.ev_class >= {_FIRST_USER_OID} AND r.ev_action::pg_catalog.text LIKE
       '%:funcid ' || 'pg_catalog.{TELLS_BOUNDS}(oid)'::pg_catalog.regprocedure::pg_catalog.oid || ' %'
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
SELECT p.prosrc, pg_catalog.string_agg(t.oid::pg_catalog.text, ' ' ORDER BY t.oid)
  FROM pg_catalog.pg_type t JOIN pg_catalog.pg_proc p ON p.oid = t.typsend
 WHERE t.typisdefined GROUP BY 1 ORDER BY 1"""

_SUBTYPES = "SELECT rngtypid, rngmultitypid, rngsubtype FROM pg_catalog.pg_range ORDER BY 1"

# What a snapshot is made of: the name of the sheet, its number of columns, its query.
_SHEETS: Final = (
    (
        "version",
        2,
        "SELECT pg_catalog.current_setting('server_version_num'),"
        " pg_catalog.array_to_json(pg_catalog.current_schemas(true))",
    ),
    ("relations", 7, _RELATIONS),
    ("columns", 9, f"{COLUMNS} ORDER BY a.attrelid, a.attnum"),
    ("domains", 6, _DOMAINS),
    ("inherits", 2, _INHERITS),
    ("reads", 2, _READS),
    ("partition keys", 2, _BOUND_BY),
    ("ties", 2, _TIES),
    ("views", 2, _VIEW_QUERIES),
    ("checked views", 1, _CHECKED_VIEWS),
    ("functions", 11, _FUNCTIONS),
    ("schemas", 1, _SCHEMAS),
    ("server types", 1, _SERVER_TYPES),
    ("operators", 4, stored_code.OPERATORS),
    ("casts", 3, stored_code.CASTS),
    ("types", 6, stored_code.TYPES),
    ("attributes", 2, stored_code.ATTRIBUTES),
    ("triggers", 4, stored_code.TRIGGERS),
    ("foreign keys", 6, f"{stored_code.FOREIGN_KEYS} ORDER BY c.oid"),
    ("support", 2, stored_code.SUPPORT),
    ("bodies", 7, stored_code.BODIES),
    ("forms", 2, _FORMS),
    ("subtypes", 3, _SUBTYPES),
)


async def version(upstream: Upstream) -> str:
    """A text that differs whenever the user part of the catalog does. About 1 ms for 1,000 relations."""
    return (await upstream.probe(_VERSION_PROBE))[0][0] or ""


async def load(upstream: Upstream) -> Catalog:
    """Take a snapshot. Raises UpstreamError or UpstreamLostError."""
    sheets: dict[str, list[Row]] = {}
    digest = hashlib.sha256()

    async def read(name: str, width: int, query: str) -> None:
        text = await as_json(upstream, width, query)
        digest.update(f"{name} {len(text)} {text}".encode())
        with without_collector():
            sheets[name] = json.loads(text)

    for name, width, query in _SHEETS:
        await read(name, width, query)
    functions = _as_functions(sheets)
    await read("trees", 5, stored_code.trees(functions))
    await read("domain trees", 5, stored_code.trees(functions, of_domains=True))
    origins = await _origins(upstream, sheets["views"])
    digest.update(repr(sorted(origins.items())).encode())
    with without_collector():
        code = StoredCode(sheets)
        return Catalog(
            epoch=digest.hexdigest(),
            server_version=int(sheets["version"][0][0] or 0),
            relations=_as_relations(sheets, origins, code),
            functions=functions,
            schemas=frozenset(row[0] or "" for row in sheets["schemas"]),
            operators=code.operators,
            casts=code.casts,
            types=code.types(sheets["types"]),
            server_types=frozenset(row[0] or "" for row in sheets["server types"]),
            printed_under=tuple(json.loads(sheets["version"][0][1] or "[]")),
            forms={int(oid): form_of(send or "") for send, oids in sheets["forms"] for oid in (oids or "").split()},
            subtypes={int(of or 0): int(subtype or 0) for *ranges, subtype in sheets["subtypes"] for of in ranges},
        )


async def as_json(upstream: Upstream, width: int, query: str) -> str:
    """A query's rows as JSON, all values as text: one value is read many times faster than 100,000 rows."""
    names = [f"c{number}" for number in range(width)]
    values = ", ".join(f"s.{name}::pg_catalog.text" for name in names)
    [(text,)] = await upstream.probe(
        f"SELECT pg_catalog.json_agg(pg_catalog.json_build_array({values}))"  # noqa: S608 - our own queries
        f" FROM ({query}) AS s({', '.join(names)})"
    )
    return text or "[]"


async def search_path(upstream: Upstream, *first: str) -> tuple[str, ...]:
    """The upstream's own answer to where unqualified names are looked up, implicit schemas included.

    Statements of our own may go `first`, in the same round trip.
    """
    rows = await upstream.probe(*first, "SELECT pg_catalog.unnest(pg_catalog.current_schemas(true))")
    return tuple(row[0] or "" for row in rows)


async def _origins(upstream: Upstream, views: list[Row]) -> dict[int, tuple[tuple[int, int] | None, ...]]:
    """Where each output column of the views' queries comes from, by the server's own resolution.

    A view whose query cannot be described (its owner may read what we may not) has no known origins:
    all of its columns then count as derived. Inside a client's transaction the failure is not ours to swallow.
    """
    described = await upstream.describe([(query or "").rstrip().rstrip(";") for _, query in views])
    return {
        int(oid or 0): ()
        if isinstance(columns, UpstreamError)
        else tuple((c.table, c.attribute) if c.table and c.attribute else None for c in columns)
        for (oid, _), columns in zip(views, described, strict=True)
    }


def _as_relations(
    sheets: Mapping[str, list[Row]], origins: Mapping[int, tuple[tuple[int, int] | None, ...]], code: StoredCode
) -> dict[int, Relation]:
    columns = as_columns(sheets["columns"], origins, _as_domains(sheets["domains"]))
    families = _families((int(child or 0), int(parent or 0)) for child, parent in sheets["inherits"])
    children: dict[int, set[int]] = {}
    for child, parent in sheets["inherits"]:
        children.setdefault(int(parent or 0), set()).add(int(child or 0))
    reads: dict[int, set[int]] = {}
    for view, read in sheets["reads"]:
        reads.setdefault(int(view or 0), set()).add(int(read or 0))
    bound_by = {int(oid or 0): frozenset(map(int, (key or "").split())) for oid, key in sheets["partition keys"]}
    ties: dict[int, list[frozenset[int]]] = {}
    for relation, tied in sheets["ties"]:
        ties.setdefault(int(relation or 0), []).append(frozenset(map(int, (tied or "").split())))
    checked = _conditions_of({int(oid or 0) for (oid,) in sheets["checked views"]}, sheets["views"], reads)
    relations = {}
    for oid_text, schema, name, kind, triggers, rules, comment in sheets["relations"]:
        oid = int(oid_text or 0)
        relations[oid] = Relation(
            oid=oid,
            schema=schema or "",
            name=name or "",
            kind=kind_of(kind),
            columns=tuple(columns.get(oid, ())),
            family=families.get(oid, frozenset((oid,))),
            reads=frozenset(reads.get(oid, ())),
            rules=rules == "true",
            triggers=triggers == "true",
            comment=comment,
            children=frozenset(children.get(oid, ())),
            code=code.of_relation(oid),
            row_type=code.row_types.get(oid, 0),
            referenced_by=tuple(code.referenced_by.get(oid, ())),
            refers_by=tuple(code.refers_by.get(oid, ())),
            ties=tuple(ties.get(oid, ())),
            checked=checked.get(oid, frozenset()),
            bound_by=bound_by.get(oid, frozenset()),
        )
    return relations


def _conditions_of(
    checked: set[int], queries: Iterable[Row], reads: Mapping[int, set[int]]
) -> dict[int, frozenset[str]]:
    """The words of what the rows of each view WITH CHECK OPTION must meet: its own condition, and those below it."""
    texts = {int(oid or 0): query or "" for oid, query in queries} if checked else {}
    found: dict[int, frozenset[str]] = {}
    for view in checked:
        below = [view]
        for oid in below:
            below += sorted(reads.get(oid, set()) - set(below))
        found[view] = frozenset().union(*(words_of_condition(texts[oid]) for oid in below if oid in texts))
    return found


def as_columns(
    rows: Iterable[Row], origins: Mapping[int, tuple[tuple[int, int] | None, ...]], domains: Mapping[int, Domain]
) -> dict[int, list[Column]]:
    """The columns of each relation, by its OID; those of views with their origins."""
    columns: dict[int, list[Column]] = {}
    for relation, number, name, type_name, type_oid, collation, item, modifier, read in rows:
        of = columns.setdefault(int(relation or 0), [])
        known = origins.get(int(relation or 0), ())
        of.append(
            Column(
                number=int(number or 0),
                name=sys.intern(name or ""),
                type=sys.intern(type_name or ""),
                type_oid=int(type_oid or 0),
                collation=collation,
                origin=known[len(of)] if len(of) < len(known) else None,
                item=int(item or 0),
                modifier=int(modifier or -1),
                domain=domains.get(int(type_oid or 0)),
                computed_from=frozenset(map(int, (read or "").split())),
            )
        )
    return columns


def _as_domains(rows: list[Row]) -> dict[int, Domain]:
    return {
        int(oid or 0): Domain(
            int(base or 0), int(element or 0), int(modifier or -1), not_null == "true", checked == "true"
        )
        for oid, base, element, modifier, not_null, checked in rows
    }


def kind_of(relkind: str | None) -> RelationKind:
    """`pg_class.relkind` of a relation that statements can name."""
    return RelationKind(relkind or "")


def _families(pairs: Iterable[tuple[int, int]]) -> dict[int, frozenset[int]]:
    """Connected components of the inheritance graph."""
    component: dict[int, set[int]] = {}
    for child, parent in pairs:
        merged = component.get(child, {child}) | component.get(parent, {parent})
        for member in merged:
            component[member] = merged
    frozen = {id(members): frozenset(members) for members in component.values()}
    return {oid: frozen[id(members)] for oid, members in component.items()}


def _as_functions(sheets: Mapping[str, list[Row]]) -> dict[tuple[str, str], tuple[Function, ...]]:
    behind = {aggregate: tuple(map(int, (oids or "").split())) for aggregate, oids in sheets["support"]}
    bodies = stored_code.bodies(sheets["bodies"])
    functions: dict[tuple[str, str], list[Function]] = {}
    for row in sheets["functions"]:
        oid, schema, name, kind, volatility, language, arguments, least, most, extension, results = row
        functions.setdefault((schema or "", name or ""), []).append(
            Function(
                oid=int(oid or 0),
                schema=schema or "",
                name=name or "",
                kind=kind or "f",
                volatility=Volatility(volatility or "v"),
                language=language or "",
                arguments=arguments or "",
                extension=sys.intern(extension or ""),
                least=max(0, int(least or 0) - (most is None)),  # VARIADIC may be given nothing
                most=int(most) if most is not None else None,
                results=tuple(map(int, (results or "").split())),
                support=() if extension else behind.get(oid, ()),
                body=bodies.get(oid or ""),
            )
        )
    return {key: tuple(overloads) for key, overloads in functions.items()}
