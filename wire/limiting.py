"""The policy's limits on what runs at this door: too large a result, too long a run, are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from gateway.admission import Grant
from gateway.errors import LimitExceededError, UnsearchableError
from wire.codec import Rows
from wire.cursors import read_by
from wire.replies import Delivery, Replies
from wire.session import Portal, WireSession


class Limiter:
    """Watches one conversation's statements; `cancel` asks the server to stop what runs."""

    def __init__(self, session: WireSession, replies: Replies, cancel: Callable[[], None]) -> None:
        self._session = session
        self._replies = replies
        self._cancel = cancel

    def delivery(self, grant: Grant, portal: Portal | None = None) -> Delivery:
        """The books of a statement's result; of a portal or cursor that is read in parts all parts count together."""
        used = self._session.used(read_by(grant.decision), portal)
        if portal is None:
            return Delivery(grant, used)
        return Delivery(grant, used, portal.prepared.description, portal.formats)

    def rows(self, piece: Rows) -> bytes:
        """What of these rows may go to the client; where it may get no more, the server is asked to stop."""
        try:
            return self._replies.rows(piece)
        except (LimitExceededError, UnsearchableError):
            self._cancel()
            return b""

    def time(self, grants: Sequence[Grant]) -> None:
        """Cancel the statements of these grants, each after the time that its principal may have."""
        for grant in grants:
            if grant.limits.timeout is not None:
                seconds = grant.limits.timeout.total_seconds()
                asyncio.get_running_loop().call_later(seconds, self._too_late, grant)

    def _too_late(self, grant: Grant) -> None:
        if any(delivery.grant is grant for delivery in self._replies.unsettled()):
            self._cancel()
