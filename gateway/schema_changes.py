"""What a statement of a migration does, asked of PostgreSQL inside its transaction: locks taken, tables rewritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.upstream import Upstream

_FIRST_OWN_OID = 16_384  # FirstNormalObjectId: below are PostgreSQL's own objects

_FILES = f"""
SELECT c.oid, n.nspname || '.' || c.relname, c.relfilenode FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid >= {_FIRST_OWN_OID} AND c.relkind IN ('r', 'p', 'm', 'v', 'i', 'I', 'S')"""  # noqa: S608 - constants
_LOCKS = """
SELECT relation, mode FROM pg_catalog.pg_locks
 WHERE pid = pg_catalog.pg_backend_pid() AND locktype = 'relation' AND granted AND mode <> 'AccessShareLock'
   AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"""


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
