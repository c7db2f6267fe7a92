"""The session's books after a statement: what it may have changed is asked for again, what it prepared is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.connections import Connections
from gateway.model import Outcome, Status
from policy.model import Transaction

if TYPE_CHECKING:
    from gateway.admission import Grant


def note_effects(grant: Grant, outcome: Outcome, connections: Connections) -> None:
    """Take note of what a statement with this outcome has done to its session, or may have done to the schema."""
    session, analysis = grant.statement.session, grant.decision.analysis
    if analysis is None or outcome.status is Status.SKIPPED:
        return
    effects = analysis.effects
    if effects.catalog and outcome.status is not Status.FAILED:
        connections.changed(session)
    if effects.search_path or effects.catalog:
        # Not after a BEGIN: our question would be the transaction's first query, and SET TRANSACTION must be.
        session.stale = True
    if effects.transaction in (Transaction.COMMIT, Transaction.ROLLBACK) and session.schema_changed:
        connections.changed(session)
    if outcome.status is not Status.COMPLETED:
        return
    if effects.prepares is not None:
        session.prepared[effects.prepares] = grant.decision
    if effects.deallocates == "":
        session.prepared.clear()
    elif effects.deallocates is not None:
        session.prepared.pop(effects.deallocates, None)
