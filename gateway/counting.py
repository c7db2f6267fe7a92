"""How many rows a write changes: the planner's estimate before it runs.

The estimate only decides early. What binds is the count in the command tag: whoever runs a counted statement
keeps its transaction open until `Gateway.too_many` has said nothing against it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gateway.upstream import Upstream, UpstreamError

_EXPLAIN = b"EXPLAIN (FORMAT JSON) "


async def estimate(
    upstream: Upstream, search_path: Sequence[str], sql: bytes, parameters: Sequence[bytes | None]
) -> int:
    """The rows that the planner expects `sql` to change; 0 where it cannot tell. Leaves a transaction open.

    Nothing runs but the planner, read only and for two seconds. Raises UpstreamLostError.
    """
    path = ", ".join('"' + schema.replace('"', '""') + '"' for schema in search_path)
    try:
        await upstream.probe("BEGIN READ ONLY")
        await upstream.probe(f"SET LOCAL search_path TO {path}")
        await upstream.probe("SET LOCAL statement_timeout TO '2s'")
        page = await upstream.open(_EXPLAIN + sql, parameters, 0)
    except UpstreamError:
        return 0  # it will fail when it runs too, and the client shall hear of it then
    text = b"".join(row[0] or b"" for row in page.rows)
    return changed_rows(json.loads(text)[0]["Plan"])


def changed_rows(plan: dict[str, Any]) -> int:
    """The rows that come to the plan's own ModifyTable node."""
    return sum(round(part["Plan Rows"]) for part in plan.get("Plans", ()) if part["Parent Relationship"] == "Outer")
