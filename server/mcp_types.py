"""The types of each connection, as values need them: read from `pg_type` once per catalog snapshot."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.upstream import Upstream
from server.values import TypeFacts

# An array's own typdelim is its element's. int2vector and oidvector have elements but another text format.
_TYPES = """
SELECT t.oid, pg_catalog.format_type(t.oid, NULL),
       CASE WHEN t.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc THEN t.typelem ELSE 0 END,
       t.typdelim, t.typbasetype
  FROM pg_catalog.pg_type t"""


class TypeBook:
    """Type facts by connection. A changed catalog replaces them."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Mapping[int, TypeFacts]]] = {}

    async def of(self, connection: str, epoch: str, upstream: Upstream) -> Mapping[int, TypeFacts]:
        """All types of a connection at a catalog epoch. Asks `upstream`, which must be idle, when new."""
        known = self._known.get(connection)
        if known is None or known[0] != epoch:
            known = self._known[connection] = (epoch, await _load(upstream))
        return known[1]


async def _load(upstream: Upstream) -> Mapping[int, TypeFacts]:
    rows = [
        (int(oid or 0), name or "", int(element or 0), delimiter or ",", int(base or 0))
        for oid, name, element, delimiter, base in await upstream.probe(_TYPES)
    ]
    bases = {oid: base for oid, _, _, _, base in rows if base}

    def undomained(oid: int) -> int:
        while oid in bases:
            oid = bases[oid]
        return oid

    return {oid: TypeFacts(name, undomained(element), delimiter) for oid, name, element, delimiter, _ in rows}
