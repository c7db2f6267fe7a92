"""What one statement's client is sent, kept as it leaves: bounded slices and times, compressed later by the writer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from audit.recording import Chunk, Mode, Recording
from gateway.model import Session
from gateway.parameters import report_without_values

# Beyond the bounds there is room for what a statement cannot be without: columns, an error, a tag.
_ESSENTIAL_BYTES = 4096
_SALT_BYTES = 16
_NOTICE = b"N"
_REPORTS = (_NOTICE, b"E")


@dataclass(frozen=True, slots=True)
class RecordingBounds:
    """How much is recorded at most, in bytes of messages: of one statement, and of a whole session.

    `mode` is the policy's word; None: as the connection says.
    """

    statement: int = 256 * 1024
    session: int = 16 * 1024 * 1024
    mode: Mode | None = None


class Transcript:
    """The recording of one statement while it is made. Keeps the slices that it is given: nothing is copied."""

    __slots__ = ("_bounds", "_chunks", "_concealed", "_kept", "_left_out", "_mode", "_rows", "_session", "_started")

    def __init__(
        self, session: Session, bounds: RecordingBounds, started: float, concealed: Sequence[bytes | None] = ()
    ) -> None:
        """`started` is what `time.perf_counter` said when the intent was durable.

        `concealed` are parameters that entries hold as digests: what an error or a notice quotes of them is left out.
        """
        self._session = session
        self._mode = bounds.mode or session.connection.recording
        self._bounds = bounds
        self._started = started
        self._concealed = concealed
        self._chunks: list[Chunk] = []
        self._kept = 0
        self._left_out = 0
        self._rows = False

    def message(self, raw: bytes) -> None:
        """Whole messages that are no rows were sent."""
        if self._mode is Mode.OFF:
            return
        if self._concealed and raw[:1] in _REPORTS:
            raw = report_without_values(raw, self._concealed)
        if len(raw) > self._room() + (0 if raw[:1] == _NOTICE else _ESSENTIAL_BYTES):
            self._left_out += len(raw)
            return
        self._keep(False, raw)

    def rows(self, raw: bytes) -> None:
        """Rows, or a piece of one, were sent."""
        if self._mode is Mode.OFF:
            return
        room = self._room() if self._mode is Mode.FULL else 0
        kept = raw[:room] if room < len(raw) else raw
        self._left_out += len(raw) - len(kept)
        if kept or not self._rows:
            self._rows = True
            self._keep(True, kept)

    def finish(self) -> Recording | None:
        """What is to be stored; None where nothing was sent, or nothing is recorded on this connection."""
        if not self._chunks and not self._left_out:
            return None
        return Recording(self._mode, self._chunks, self._left_out, secrets.token_bytes(_SALT_BYTES))

    def _room(self) -> int:
        return max(0, min(self._bounds.statement - self._kept, self._bounds.session - self._session.recorded))

    def _keep(self, rows: bool, raw: bytes) -> None:
        self._chunks.append(Chunk(int((time.perf_counter() - self._started) * 1_000_000), rows, raw))
        self._kept += len(raw)
        self._session.recorded += len(raw)
