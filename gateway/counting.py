"""How many rows a statement changes or returns: the planner's estimate before it runs.

The estimate only decides early. What binds is, for a write, the count in the command tag: whoever runs a counted
statement keeps its transaction open until `Gateway.too_many` has said nothing against it; and for a read, the rows as
they come (`Grant.too_large`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from gateway.upstream import Upstream, UpstreamError
from policy.parse import NotAnalysableError, tokens

_EXPLAIN = b"EXPLAIN (FORMAT JSON) "


async def estimate(
    upstream: Upstream, search_path: Sequence[str], sql: bytes, parameters: Sequence[bytes | None]
) -> int:
    """The rows that the planner expects of `sql`; 0 where it cannot tell. Leaves a transaction open.

    Nothing runs but the planner, read only and for two seconds. Raises UpstreamLostError.
    """
    path = ", ".join('"' + schema.replace('"', '""') + '"' for schema in search_path)
    try:
        await upstream.probe("BEGIN READ ONLY")
        await upstream.probe(f"SET LOCAL search_path TO {path}")
        await upstream.probe("SET LOCAL statement_timeout TO '2s'")
        page = await upstream.open(_EXPLAIN + _explainable(sql), parameters, 0)
    except (UpstreamError, NotAnalysableError):
        return 0  # it will fail when it runs too, and the client shall hear of it then
    text = b"".join(row[0] or b"" for row in page.rows)
    return rows_of(json.loads(text)[0]["Plan"])


def rows_of(plan: dict[str, Any]) -> int:
    """The rows that come to the plan's own ModifyTable node, or that a plan without one returns."""
    if plan["Node Type"] != "ModifyTable":
        return int(plan["Plan Rows"])
    return sum(round(part["Plan Rows"]) for part in plan.get("Plans", ()) if part["Parent Relationship"] == "Outer")


def _explainable(sql: bytes) -> bytes:
    """The text that EXPLAIN takes: of a COPY the query inside it, or one of the whole table."""
    words = [sql[token.start : token.end] for token in tokens(sql)]
    if not words or words[0].lower() != b"copy":
        return sql
    if words[1] != b"(":
        name = takewhile(lambda word: word != b"(" and word.lower() != b"to", words[1:])
        return b"SELECT * FROM " + b"".join(name)
    depth, first = 0, 0
    for token in tokens(sql):
        word = sql[token.start : token.end]
        depth += (word == b"(") - (word == b")")
        if word == b"(" and not first:
            first = token.end
        elif first and not depth:
            return sql[first : token.start]
    return sql
