"""An Execute decided anew: what was prepared may mean or show something else by now. Sans-IO."""

from __future__ import annotations

from gateway.admission import denial
from policy.model import Decision
from wire.session import Portal


def recheck(decision: Decision, portal: Portal, search_path: tuple[str, ...], max_rows: int) -> Decision:
    """The decision of this moment on a portal's text, denied where PostgreSQL would run what was prepared before it."""
    rewrite = decision.verdict.rewrite
    changed = rewrite is not None and rewrite.sql != portal.prepared.text.sql
    if changed or portal.search_path != search_path:
        decision = denial(
            decision,
            "statement.outdated",
            "what this prepared statement means or may show has changed since it was prepared",
            "Prepare it again.",
        )
    if decision.counts and max_rows:
        decision = denial(
            decision,
            "statement.counted",
            "the rows of this statement are counted, so its result cannot be fetched in parts",
            "Fetch all of it at once.",
        )
    return decision
