"""Framing: bytes in, messages out, in both directions, bounded, however the bytes were cut. Sans-IO.

`FrontendDecoder` reads a client, `BackendDecoder` reads a server message by message, `BackendStream`
reads a server for relaying: rows pass as uncut slices, everything else as frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from policy.detection import MOST_SEARCHED_BYTES
from wire.copy import CopyData
from wire.fields import ProtocolError
from wire.frontend import Packet, decode_packet
from wire.messages import BACKEND, FRONTEND, BackendMessage, FrontendMessage

_HEAD = Struct(">BI").unpack_from
_HEAD_BYTES = 5

# postmaster.h MAX_STARTUP_PACKET_LENGTH.
_MAX_PACKET_BYTES = 10_000
# libpq.h PQ_SMALL_MESSAGE_LIMIT, for messages that hold names and numbers only.
_SMALL = 10_000
# SQL: the policy refuses texts above 1 MiB with a sentence; this only bounds the buffer.
_TEXT = 4 << 20
# Parameters and COPY rows. PostgreSQL's own limit is 1 GiB; a gateway serves many clients.
_LARGE = 64 << 20
# A password message may hold an access token.
_TOKEN = 65_536
# A server's message that is not a row.
_MAX_CONTROL_BYTES = 16 << 20

_LIMITS: Mapping[int, int] = {
    ord("p"): _TOKEN,
    ord("Q"): _TEXT,
    ord("P"): _TEXT,
    ord("B"): _LARGE,
    ord("F"): _LARGE,
    ord("d"): _LARGE,
}

_ROW = ord("D")
_COPY = ord("d")
# A server answers the same questions in the same words, again and again: of these messages some are kept decoded.
_REPEATED = frozenset(b"TCZ")
_REPEATED_BYTES = 1024
# A row above this is relayed in pieces while it still arrives; below it, only whole.
_PIECE_BYTES = 65_536


class Received(NamedTuple):
    """A client's message and its bytes as they came."""

    message: FrontendMessage
    raw: bytes


class FrontendDecoder:
    """A client's bytes to packets (before the start) and messages (after it).

    Raises ProtocolError, after which it must not be fed again. Holds at most one incomplete message.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes that are not decoded yet."""
        return len(self._buffer)

    @property
    def first(self) -> int:
        """The first of them; there must be one."""
        return self._buffer[0]

    def take_all(self) -> bytes:
        """All of them, for somebody else to read."""
        return self._take(len(self._buffer))

    def feed(self, data: bytes) -> None:
        """Take bytes in, as they came."""
        self._buffer += data

    def next_packet(self) -> Packet | None:
        """The next packet without a type byte, or None while it is incomplete."""
        if len(self._buffer) < 4:
            return None
        size = int.from_bytes(self._buffer[:4], "big")
        if not 8 <= size <= _MAX_PACKET_BYTES:
            raise ProtocolError("invalid length of startup packet")
        if len(self._buffer) < size:
            return None
        return decode_packet(self._take(size)[4:])

    def next(self) -> Received | None:
        """The next message, or None while it is incomplete. Adjacent CopyData messages come as one."""
        buffer = self._buffer
        if len(buffer) < _HEAD_BYTES:
            return None
        tag, length = _HEAD(buffer)
        if tag == _COPY:
            return self._copy_run()
        decode = FRONTEND.get(tag)
        if decode is None:
            raise ProtocolError(f"invalid frontend message type {tag}")
        if not 4 <= length <= _LIMITS.get(tag, _SMALL):
            raise ProtocolError(f"invalid message length {length} of message type `{chr(tag)}`")
        if len(buffer) <= length:
            return None
        raw = self._take(length + 1)
        return Received(decode(raw[_HEAD_BYTES:]), raw)

    def _copy_run(self) -> Received | None:
        buffer, end, at, count = self._buffer, len(self._buffer), 0, 0
        while end - at >= _HEAD_BYTES:
            tag, length = _HEAD(buffer, at)
            if tag != _COPY:
                break
            if not 4 <= length <= _LARGE:
                if count:
                    break  # what came before it is whole
                raise ProtocolError(f"invalid message length {length} of message type `d`")
            if at + 1 + length > end:
                break
            at += 1 + length
            count += 1
        if not count:
            return None
        raw = self._take(at)
        return Received(CopyData(raw, count), raw)

    def _take(self, size: int) -> bytes:
        taken = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return taken


class Rows(NamedTuple):
    """Adjacent DataRow or CopyData messages, or a piece of a large one, untouched.

    `messages` of them begin in it; `size` is the bytes of those messages' values. `whole` is False for a piece.
    """

    data: bytes
    tag: int
    messages: int
    size: int
    whole: bool = True


class Frame(NamedTuple):
    """Any other message of a server, whole."""

    tag: int
    raw: bytes

    @property
    def body(self) -> bytes:
        """The message without its header."""
        return self.raw[_HEAD_BYTES:]

    def decode(self) -> BackendMessage:
        """The message. Raises ProtocolError."""
        if self.tag in _REPEATED and len(self.raw) <= _REPEATED_BYTES:
            return _decoded(self.tag, self.body)
        decode = BACKEND.get(self.tag)
        if decode is None:
            raise ProtocolError(f"invalid backend message type {self.tag}")
        return decode(self.body)


@lru_cache(maxsize=256)
def _decoded(tag: int, body: bytes) -> BackendMessage:
    return BACKEND[tag](body)


class BackendStream:
    """A server's bytes for relaying. Buffers at most one small incomplete message.

    With `whole_rows` a row is given out whole, up to the size in which the policy searches.
    """

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._missing = 0  # bytes without which what is held cannot go on
        self._owed = 0
        self.whole_rows = False

    @property
    def mid_message(self) -> bool:
        """Whether a large row has been given out in part: nothing else may be sent before its rest."""
        return self._owed > 0

    def feed(self, chunk: bytes) -> Iterator[Rows | Frame]:
        """Everything that is complete now, in order."""
        at = 0
        if self._owed:
            at = min(self._owed, len(chunk))
            self._owed -= at
            yield Rows(chunk[:at], _ROW, 0, 0, whole=False)
        elif self._held:
            self._held.append(chunk)
            self._missing -= len(chunk)
            if self._missing > 0:
                return
            chunk = b"".join(self._held)
            self._held.clear()
        end = len(chunk)
        while end - at >= _HEAD_BYTES:
            tag, length = _HEAD(chunk, at)
            if tag in (_ROW, _COPY):
                rows = self._run(chunk, at, end, tag)
                if rows is None:
                    break
                yield rows
                at += len(rows.data)
                continue
            if not 4 <= length <= _MAX_CONTROL_BYTES:
                raise ProtocolError(f"invalid message length {length} from the server")
            after = at + 1 + length
            if after > end:
                break
            yield Frame(tag, chunk[at:after])
            at = after
        if at < end:
            self._hold(chunk[at:])

    def _hold(self, rest: bytes) -> None:
        """Keep the beginning of a message until it can be given out."""
        self._held.append(rest)
        self._missing = 1
        if len(rest) >= _HEAD_BYTES:
            tag, length = _HEAD(rest, 0)
            if tag not in (_ROW, _COPY) or length < self._piece_bytes:
                self._missing = 1 + length - len(rest)

    @property
    def _piece_bytes(self) -> int:
        return MOST_SEARCHED_BYTES if self.whole_rows else _PIECE_BYTES

    def _run(self, chunk: bytes, start: int, end: int, tag: int) -> Rows | None:
        """The whole rows from `start` on; a piece of the row there if it is large; None to wait."""
        at, count = start, 0
        while end - at >= _HEAD_BYTES:
            kind, length = _HEAD(chunk, at)
            after = at + 1 + length
            if kind != tag or after > end:
                break
            if length < 4:
                raise ProtocolError(f"invalid message length {length} from the server")
            at = after
            count += 1
        if count:
            return Rows(chunk[start:at], tag, count, at - start - count * _overhead(chunk, start, tag))
        _, length = _HEAD(chunk, start)
        if length < self._piece_bytes or end - start < _HEAD_BYTES + 2:
            return None
        self._owed = length + 1 - (end - start)
        return Rows(chunk[start:end], tag, 1, length + 1 - _overhead(chunk, start, tag), whole=False)


def _overhead(chunk: bytes, start: int, tag: int) -> int:
    """Bytes per message that are not values: the header, and for a DataRow the count and lengths."""
    if tag == _COPY:
        return _HEAD_BYTES
    columns = int.from_bytes(chunk[start + 5 : start + 7], "big")
    return _HEAD_BYTES + 2 + 4 * columns


class BackendDecoder:
    """A server's bytes to whole messages, rows included. Raises ProtocolError."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[BackendMessage]:
        """Everything that is complete now, in order. CopyData comes in runs."""
        buffer = self._buffer
        buffer += data
        at, end = 0, len(buffer)
        messages: list[BackendMessage] = []
        while end - at >= _HEAD_BYTES:
            tag, length = _HEAD(buffer, at)
            if length < 4:
                raise ProtocolError(f"invalid message length {length} from the server")
            after = at + 1 + length
            if after > end:
                break
            raw = bytes(memoryview(buffer)[at:after])
            messages.append(CopyData(raw) if tag == _COPY else Frame(tag, raw).decode())
            at = after
        del buffer[:at]
        return iter(messages)
