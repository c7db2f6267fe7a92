"""Messages of ours that make known what the columns of a result are, before rows come that must be searched. Sans-IO.

A client need not ask for them, and of a COPY nobody could: PostgreSQL then describes a query with its columns.
"""

from __future__ import annotations

from gateway.drafts import denial
from policy.model import Decision
from wire import frontend
from wire.replies import Delivery, Owed, Owes
from wire.session import RESERVED_NAME
from wire.texts import Forwarded

_COPY_BATCH = (
    "detect.batch",
    "a COPY in which the policy looks for personal data cannot be part of several statements in one message",
    "Send it on its own.",
)


def copies(decision: Decision) -> bool:
    """Whether the statement is a COPY whose data must be searched."""
    rewrite = decision.verdict.rewrite
    return rewrite is not None and rewrite.detection is not None and rewrite.detection.copy is not None


def checked(decision: Decision, *, alone: bool) -> Decision:
    """The same decision, or a deny of a COPY that must be searched and is not `alone` in its message."""
    return decision if alone or not copies(decision) else denial(decision, *_COPY_BATCH)


def describing(delivery: Delivery, portal: str, text: Forwarded) -> list[tuple[Owed, bytes]]:
    """What to send between the Bind of the portal and its Execute; the client hears nothing of the answers."""
    if delivery.screen is None:
        return []
    copy = delivery.screen.detection.copy
    if copy is None:
        describe = Owed(Owes.DESCRIBE, text=text, hidden=True, describes=delivery)
        return [(describe, frontend.Describe(b"P", portal).encode())]
    return [
        (Owed(Owes.PARSE, text=text, hidden=True), frontend.Parse(RESERVED_NAME, copy.query).encode()),
        (
            Owed(Owes.DESCRIBE, text=text, hidden=True, describes=delivery),
            frontend.Describe(b"S", RESERVED_NAME).encode(),
        ),
        (Owed(Owes.CLOSE, hidden=True), frontend.Close(b"S", RESERVED_NAME).encode()),
    ]
