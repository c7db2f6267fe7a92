"""Refused logins of the HTTP app as entries of the audit, but not more of them in a minute than a book can bear."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque

from starlette.types import Scope

from gateway.admission import Gateway
from gateway.errors import AuthenticationError, CountersignError
from gateway.model import ClientInfo, Door

log = logging.getLogger(__name__)

# Whoever sends garbage must not fill the audit.
_RECORDED_PER_MINUTE = 60


class Refusals:
    """Those of one route."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._recorded: deque[float] = deque(maxlen=_RECORDED_PER_MINUTE)

    async def record(self, error: AuthenticationError, scope: Scope) -> None:
        """Write down that whoever sent this request was turned away."""
        now = time.monotonic()
        if len(self._recorded) == self._recorded.maxlen and now - self._recorded[0] < 60:
            log.warning("refused logins come too fast to be recorded one by one")
            return
        self._recorded.append(now)
        peer = scope.get("client")
        client = ClientInfo(address=f"{peer[0]}:{peer[1]}" if peer else None)
        # Nothing is let in here, so an audit that cannot be written takes nothing away but the entry.
        with contextlib.suppress(CountersignError):
            await self._gateway.refuse_login(error, Door.MCP, client, None)
