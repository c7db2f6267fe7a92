"""FETCH and MOVE: they run what stands behind a portal's name, which may be more than their own text shows.

SQL's cursors and the protocol's portals share one name space (PostgreSQL: utils/mmgr/portalmem.c), so FETCH
would run a statement that was only bound: undecided, without an intent. And a cursor goes on giving out what
it was declared to read, whatever the policy has become since.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.admission import Gateway
from gateway.drafts import denial
from gateway.model import Session
from policy.model import Decision
from policy.parse import statements
from wire.session import Portal


def read_by(decision: Decision) -> str | None:
    """The name of the cursor that a FETCH or MOVE reads; None for any other statement."""
    if decision.analysis is None or decision.analysis.kind != "FetchStmt":
        return None
    [(_, _, tree)] = statements(decision.analysis.text)
    name: str = tree["FetchStmt"]["portalname"]
    return name


async def checked(decision: Decision, portals: Mapping[str, Portal], session: Session, gateway: Gateway) -> Decision:
    """The same decision, or a deny where it would read a portal that may not be read by it.

    A name that is in no book of ours is PostgreSQL's to judge: a cursor that a function has opened, or none.
    """
    name = read_by(decision)
    portal = portals.get(name) if name is not None else None
    if portal is None:
        return decision
    if not portal.declared:
        return denial(
            decision,
            "cursor.bound",
            f'"{name}" is a portal of the protocol: reading it would run a statement that was not decided',
            "Execute the portal, or DECLARE a cursor.",
        )
    prepared = portal.prepared
    holds = await gateway.holds(session, prepared.text.client, prepared.decision)
    if not holds or (decision.policy != prepared.decision.policy and portal.search_path != session.search_path):
        return denial(
            decision,
            "statement.outdated",
            f'what the policy says of the cursor "{name}" has changed since it was declared',
            "Declare it again.",
        )
    return decision._replace(at_most=prepared.decision.at_most)
