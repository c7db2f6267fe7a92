"""The transaction that the server keeps open for an extended batch, where a simple query joins it. Sans-IO.

A simple query behind an Execute runs in the batch's transaction, which its Sync commits. But a server of late
(PostgreSQL 18.6 does, 15.18 does not) has then no command in progress, and takes a Sync that follows at once for one
that has nothing to end: it says that the session is idle, and drops what both have written at its next statement
(`StartTransactionCommand: unexpected state STARTED`). Any message that begins a command makes the Sync commit. See
decision 0040.
"""

from __future__ import annotations

from wire import frontend
from wire.replies import Owed, Owes
from wire.session import RESERVED_NAME

# Begins a command and does nothing.
BEGIN = frontend.Parse(RESERVED_NAME, b"").encode() + frontend.Close(b"S", RESERVED_NAME).encode()


def begun() -> tuple[Owed, Owed]:
    """What the server owes for `BEGIN`; the client hears nothing of it."""
    return Owed(Owes.PARSE, hidden=True), Owed(Owes.CLOSE, hidden=True)
