"""The running wire door fed with mangled conversations: `python -m tests.conformance.wire_fuzz MESSAGES [SEED]`.

Sends at least so many messages to a gateway of its own and prints the figures. The exit status is 1 if the gateway
itself failed or left anything behind. Its parts are what tests/doors/test_wire_fuzz.py runs for a moment.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from tests.doors.wire_calls import RawClient, raw_client, values
from tests.stack import Stack, running_stack
from tests.waiting import until
from tests.wire.mangled import conversation
from wire.backend import ErrorResponse
from wire.frontend import Query, Sync, Terminate

# A client whose last message is incomplete is waited for; so long do we wait for an answer before we leave.
_SILENCE_SECONDS = 0.2


def one_client(stack: Stack, who: str | None, sent: list[bytes], pieces: Random) -> Counter[str]:
    """Send a conversation and read what comes for it; SQLSTATEs of the errors, counted."""
    client, heard = RawClient(stack), Counter[str]()
    try:
        if who is not None:
            client.start(stack, who)
        data = b"".join(sent) + Sync().encode() + Terminate().encode()
        cut = pieces.randrange(len(data))
        with contextlib.suppress(ConnectionError, TimeoutError):
            client.send(data[:cut])
            client.send(data[cut:])
            client.socket.settimeout(_SILENCE_SECONDS)
            heard = Counter(_code(m) for m in client.until_closed() if isinstance(m, ErrorResponse))
        if pieces.randrange(4) == 0:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # leave with a reset
    finally:
        client.socket.close()
    return heard


def _code(error: ErrorResponse) -> str:
    """Its SQLSTATE. PostgreSQL has internal errors too, and names the routine of its own that found one."""
    code = error.fields["C"]
    return f"{code} in {error.fields['R']}" if code == "XX000" and "R" in error.fields else code


def nothing_left(stack: Stack) -> None:
    """No session, no upstream connection, no statement without an outcome; and the door is open."""
    sessions = stack.app.hall.gateway.sessions
    until(lambda: sessions.list() == [], "sessions were left behind")
    upstreams = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'countersign/se-%'"
    until(lambda: stack.direct(upstreams) == [(0,)], "upstream connections were left behind")
    unknown = "SELECT sql FROM statements WHERE status IS NULL OR status = 'running'"
    until(lambda: stack.audit(unknown) == [], "statements without an outcome were left behind")
    with raw_client(stack, "devin") as client:
        assert values(client.cycle(Query(b"SELECT 1"))) == [(b"1",)]


def main(messages: int, seed: int) -> int:
    """Send so many messages, and say what came of it; the exit status is 1 if the gateway itself failed."""
    random, sent, heard, began = Random(seed), 0, Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with running_stack(Path(folder) / "fuzz") as stack:
            while sent < messages:
                made = conversation(random, started=random.randrange(10) > 0, broken_of_100=random.choice((0, 1, 10)))
                sent += len(made)
                heard += one_client(stack, random.choice(("devin", "grace")), made, random)
            nothing_left(stack)
    print(f"seed {seed}: {sent} messages in {time.monotonic() - began:.0f} s; errors {dict(heard.most_common())}")
    return 1 if heard["XX000"] else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
