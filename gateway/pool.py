"""Clean upstream sessions of one connection, kept for the next who needs one as the same role.

A session comes back only if it can be verified to hold nothing of whoever had it; each doubt ends it. What
`DISCARD ALL` drops is asked for again, because a server extension may have its own mind, and what it cannot drop (the
interpreters of procedural languages keep variables as long as the session lives) rules a second use out.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque

from gateway.model import Connection
from gateway.upstream import Upstream, UpstreamError, UpstreamFactory, UpstreamLostError

# Of one role. A session that nobody wanted for so long goes: a server counts what is connected.
_MOST_IDLE = 8
_IDLE_SECONDS = 300.0

# How sessions of ours are called (`application_name`) begins so. One that nobody has is the pool's; whoever takes it
# gives it a name of their own.
OUR_NAMES = "countersign/"
NAME = f"{OUR_NAMES}pool"

_LEFT_OVER = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_prepared_statements)
    OR EXISTS (SELECT FROM pg_catalog.pg_cursors)
    OR EXISTS (SELECT FROM pg_catalog.pg_listening_channels())
    OR EXISTS (SELECT FROM pg_catalog.pg_settings WHERE source = 'session')
    OR EXISTS (SELECT FROM pg_catalog.pg_locks WHERE pid = pg_catalog.pg_backend_pid() AND locktype = 'advisory')
    OR EXISTS (SELECT FROM pg_catalog.pg_language WHERE lanname NOT IN ('internal', 'c', 'sql', 'plpgsql'))
    OR session_user <> current_user OR pg_catalog.pg_my_temp_schema() <> 0"""

_Role = tuple[str, bool]


class Pool:
    """The idle sessions of one connection."""

    def __init__(self, factory: UpstreamFactory) -> None:
        self._factory = factory
        self._idle: defaultdict[_Role, deque[tuple[Upstream, float]]] = defaultdict(deque)
        self._closed = False

    def idle(self, connection: Connection) -> Upstream | None:
        """A clean session as the connection's role, if there is one."""
        idle = self._idle[_role(connection)]
        while idle:
            upstream, _ = idle.pop()  # the last used: those that nobody needs grow old
            if upstream.connected:
                return upstream
        return None

    async def give_back(self, upstream: Upstream) -> None:
        """Keep a session for its next use if it is verified clean, else end it. No client's statement may run on it."""
        idle = self._idle[_role(upstream.connection)]
        # Looked at again: many may come back at the same time.
        if len(idle) < _MOST_IDLE and await _clean(upstream) and len(idle) < _MOST_IDLE and not self._closed:
            idle.append((upstream, time.monotonic()))
        else:
            await upstream.disconnect()

    async def tend(self, connection: Connection) -> None:
        """End what was idle for long, and keep as many ready as the connection wants for its own user.

        Raises UpstreamError, UpstreamLostError.
        """
        oldest = time.monotonic() - _IDLE_SECONDS
        for role, idle in list(self._idle.items()):
            keep = connection.warm if role == _role(connection) else 0
            while len(idle) > keep and idle[0][1] < oldest:
                upstream, _ = idle.popleft()
                await upstream.disconnect()
        ready = self._idle[_role(connection)]
        while len(ready) < connection.warm:
            made = await self.fresh(connection)
            ready.append((made, time.monotonic()))

    async def fresh(self, connection: Connection) -> Upstream:
        """A session that nobody had before. Raises UpstreamError, UpstreamLostError."""
        return await self._factory.connect(connection, application_name=NAME)

    async def close(self) -> None:
        """Disconnect; what comes back later ends."""
        self._closed = True
        for idle in self._idle.values():
            while idle:
                await idle.pop()[0].disconnect()


def _role(connection: Connection) -> _Role:
    return connection.user, connection.read_only


async def _clean(upstream: Upstream) -> bool:
    if not upstream.connected:
        return False
    try:
        if upstream.transaction_status != "I":
            await upstream.probe("ROLLBACK")
        return await upstream.probe("DISCARD ALL", _LEFT_OVER) == [("f",)]
    except (UpstreamError, UpstreamLostError):
        return False
