"""What a migration does, asked of PostgreSQL inside the rehearsing transaction: locks, rewrites, changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.upstream import Upstream

_FIRST_OWN_OID = 16_384  # FirstNormalObjectId: below are PostgreSQL's own objects
_CHANGES_AT_MOST = 200

_OURS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
_FILES = f"""
SELECT c.oid, n.nspname || '.' || c.relname, c.relfilenode FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid >= {_FIRST_OWN_OID} AND c.relkind IN ('r', 'p', 'm', 'v', 'i', 'I', 'S')"""  # noqa: S608 - constants
_LOCKS = """
SELECT relation, mode FROM pg_catalog.pg_locks
 WHERE pid = pg_catalog.pg_backend_pid() AND locktype = 'relation' AND granted AND mode <> 'AccessShareLock'
   AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"""
_INVENTORY = f"""
SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence'
            WHEN 'f' THEN 'foreign table' ELSE 'table' END,
       n.nspname || '.' || c.relname,
       CASE WHEN c.relkind IN ('v', 'm') THEN pg_catalog.pg_get_viewdef(c.oid) ELSE '' END
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE {_OURS} AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
UNION ALL
SELECT 'grants', n.nspname || '.' || c.relname, c.relacl::pg_catalog.text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE {_OURS} AND c.relacl IS NOT NULL
UNION ALL
SELECT 'column', n.nspname || '.' || c.relname || '.' || a.attname,
       pg_catalog.format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
       || coalesce(' default ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid), '')
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE {_OURS} AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f')
UNION ALL
SELECT 'index', n.nspname || '.' || c.relname, pg_catalog.pg_get_indexdef(c.oid)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE {_OURS} AND c.relkind IN ('i', 'I')
UNION ALL
SELECT 'constraint', n.nspname || '.' || c.relname || '.' || k.conname, pg_catalog.pg_get_constraintdef(k.oid)
  FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE {_OURS}
UNION ALL
SELECT 'trigger', n.nspname || '.' || c.relname || '.' || t.tgname, pg_catalog.pg_get_triggerdef(t.oid)
  FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE {_OURS} AND NOT t.tgisinternal
UNION ALL
SELECT 'function', p.oid::pg_catalog.regprocedure::pg_catalog.text, 'md5 ' || pg_catalog.md5(p.prosrc)
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE {_OURS}
UNION ALL
SELECT 'type', n.nspname || '.' || t.typname,
       coalesce((SELECT pg_catalog.string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder)
                   FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid), '')
  FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
 WHERE {_OURS} AND t.typtype IN ('e', 'd', 'r')"""  # noqa: S608 - constants

Inventory = Mapping[tuple[str, str], str]


@dataclass(frozen=True, slots=True)
class Files:
    """The relations that were there before, by OID: their names, and where their rows lie."""

    names: Mapping[int, str]
    places: Mapping[int, str]


async def files(upstream: Upstream) -> Files:
    """The relations as they are now, in this transaction."""
    rows = await upstream.probe(_FILES)
    return Files(
        {int(oid or 0): name or "" for oid, name, _ in rows}, {int(oid or 0): place or "" for oid, _, place in rows}
    )


async def locks(upstream: Upstream, before: Files) -> set[tuple[str, str]]:
    """(relation, mode) of the locks that this transaction holds on relations that were there before it."""
    rows = await upstream.probe(_LOCKS)
    return {(before.names[oid], mode or "") for oid, mode in ((int(o or 0), m) for o, m in rows) if oid in before.names}


def rewritten(before: Files, after: Files) -> list[str]:
    """The relations whose rows lie elsewhere now: all of them were written again."""
    moved = (oid for oid, place in before.places.items() if after.places.get(oid, place) != place)
    return sorted(before.names[oid] for oid in moved)


async def inventory(upstream: Upstream) -> Inventory:
    """Definitions by (kind, name), as this transaction sees them."""
    return {(kind or "", name or ""): said or "" for kind, name, said in await upstream.probe(_INVENTORY)}


def changes(before: Inventory, after: Inventory) -> list[dict[str, str | None]]:
    """What is new, gone or different, by kind and name; at most 200."""
    found: list[dict[str, str | None]] = []
    for kind, name in sorted(before.keys() | after.keys()):
        old, new = before.get((kind, name)), after.get((kind, name))
        if old != new:
            what = "created" if old is None else "dropped" if new is None else "changed"
            found.append({"what": what, "kind": kind, "name": name, "before": old, "after": new})
    return found[:_CHANGES_AT_MOST]
