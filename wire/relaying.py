"""The upstream's direction of a conversation: its bytes pass to the client untouched, as far as they may pass."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from wire import backend, reports, sqlstate
from wire.backend import ParameterStatus
from wire.client import ClientConnection
from wire.codec import BackendStream, Rows
from wire.fields import ProtocolError
from wire.idling import IdleClock
from wire.limiting import Limiter
from wire.messages import BackendMessage
from wire.replies import CutError, InvariantError, Replies, reported
from wire.reports import Report
from wire.upstream import UpstreamSession

log = logging.getLogger(__name__)


class Relaying:
    """Takes what one upstream session receives: `wire.upstream.Relay`.

    `progress` is set whenever something has moved. `end` ends the conversation with a report; `violated` hears
    of an invariant that does not hold, before anything of what shows it has left.
    """

    def __init__(
        self,
        client: ClientConnection,
        upstream: UpstreamSession,
        replies: Replies,
        limiter: Limiter,
        idle: IdleClock,
        progress: asyncio.Event,
        *,
        end: Callable[[Report], None],
        violated: Callable[[InvariantError], None],
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._replies = replies
        self._limiter = limiter
        self._idle = idle
        self._progress = progress
        self._end = end
        self._violated = violated
        self._stream = BackendStream()
        self._cut_short = False  # the last row that the client got is not whole

    @property
    def mid_row(self) -> bool:
        """Whether the client has got a part of a row, so that it would take a message for the rest."""
        return self._stream.mid_message and self._cut_short

    def upstream_received(self, chunk: bytes) -> None:
        """Relay what came, as far as it may be relayed."""
        out: list[bytes] = []
        over = True
        self._idle.touch()
        self._stream.whole_rows = self._replies.searches
        try:
            for piece in self._stream.feed(chunk):
                if isinstance(piece, Rows):
                    out.append(data := self._limiter.rows(piece))
                    self._cut_short = not piece.whole and bool(data)
                    continue
                if (setting := reported(piece)) is not None:
                    self._upstream.note_parameter(setting.name, setting.value)
                out.append(self._replies.received(piece))
            over = False
        except InvariantError as error:
            self._violated(error)
        except CutError as error:
            self._end(error.report)
        except ProtocolError as error:
            log.error("the upstream was not understood: %s", error)
            self._end(reports.fatal(sqlstate.CONNECTION_FAILURE, f"the server was not understood: {error}"))
        if not self._replies.unheard:
            self._client.send(b"".join(out))
            if self._client.congested:
                self._upstream.pause_reading()
        # The rest is out of step, and may be the very values that were not to leave.
        self._replies.unheard = self._replies.unheard or over
        self._progress.set()

    def upstream_said(self, message: BackendMessage) -> None:
        """What came while the gateway asked something of its own: settings and notifications are the client's."""
        match message:
            case ParameterStatus():
                self._client.send(self._replies.setting(message))
            case backend.NotificationResponse():
                self._client.send(self._replies.notification(message))

    def upstream_lost(self, reason: str) -> None:
        """Tell the client, with the outcome open: the server may have finished what it was doing."""
        self._end(reports.fatal(sqlstate.CONNECTION_FAILURE, reason))

    def upstream_writable(self) -> None:
        """What was sent has left."""
        self._progress.set()
