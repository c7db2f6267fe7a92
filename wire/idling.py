"""Clients that do nothing: when their session, or the transaction that they hold open, is over.

The codes are those of PostgreSQL's own `idle_session_timeout` and `idle_in_transaction_session_timeout`. A batch
without its Sync and a COPY without its end hold a transaction open as well, so they count as one here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum

from wire import reports, sqlstate
from wire.occupancy import DoorLimits
from wire.reports import Report


class Waiting(Enum):
    """What a conversation waits for."""

    SERVER = "for the server, or for people"
    CLIENT = "for the client, outside of a transaction"
    CLIENT_IN_TRANSACTION = "for the client, who holds a transaction open"


_ENDS = {
    Waiting.CLIENT: reports.fatal(sqlstate.IDLE_SESSION_TIMEOUT, "terminating connection due to idle-session timeout"),
    Waiting.CLIENT_IN_TRANSACTION: reports.fatal(
        sqlstate.IDLE_IN_TRANSACTION_TIMEOUT, "terminating connection due to idle-in-transaction timeout"
    ),
}


class IdleClock:
    """Ends one conversation that has waited for its client for too long.

    One timer for the conversation, not one for each message: it looks at the time of the last traffic.
    """

    def __init__(self, limits: DoorLimits, waiting: Callable[[], Waiting], end: Callable[[Report], None]) -> None:
        self._waiting = waiting
        self._end = end
        self._limits = {
            state: seconds
            for state, seconds in (
                (Waiting.CLIENT, limits.idle_seconds),
                (Waiting.CLIENT_IN_TRANSACTION, limits.idle_in_transaction_seconds),
            )
            if seconds is not None
        }
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """From now on; nothing where there is no limit."""
        if self._limits:
            self.touch()
            self._arm(min(self._limits.values()))

    def stop(self) -> None:
        """The conversation is over."""
        if self._timer is not None:
            self._timer.cancel()

    def touch(self) -> None:
        """Something was sent or received."""
        self._last = self._loop.time()

    def _arm(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        state = self._waiting()
        left = self._limits.get(state, float("inf")) + self._last - self._loop.time()
        if left <= 0:
            self._end(_ENDS[state])
        else:
            # The state, and with it the limit, may be another one before this is over.
            self._arm(min(left, *self._limits.values()))
