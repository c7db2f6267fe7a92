"""The primitive fields of protocol messages, read strictly and written. Sans-IO.

Source: PostgreSQL documentation, "Message Data Types" (Int16, Int32, String, Byte).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Self

_INT16 = Struct(">h")
_INT32 = Struct(">i")
_UINT32 = Struct(">I")

int16 = _INT16.pack
int32 = _INT32.pack
uint32 = _UINT32.pack


class ProtocolError(Exception):
    """The peer sent what the protocol does not allow. The text is a sentence; the connection is over."""

    def __init__(self, text: str, sqlstate: str = "08P01") -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


def string(text: str | bytes) -> bytes:
    """A String: the text in UTF-8 and a terminating zero byte."""
    raw = text.encode() if isinstance(text, str) else text
    if b"\0" in raw:
        raise ValueError("a protocol string cannot hold a zero byte")
    return raw + b"\0"


def frame(tag: bytes, body: bytes = b"") -> bytes:
    """One message: type byte, length (itself included), body."""
    return tag + _INT32.pack(len(body) + 4) + body


class Fields:
    """Reads a message body from the front; every read past the end is a ProtocolError, as is a rest."""

    __slots__ = ("_at", "_body", "_of")

    def __init__(self, body: bytes, of: str) -> None:
        self._body = body
        self._at = 0
        self._of = of

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self._at + size
        if size < 0 or end > len(self._body):
            raise ProtocolError(f"insufficient data left in {self._of} message")
        taken = self._body[self._at : end]
        self._at = end
        return taken

    def byte(self) -> bytes:
        """One byte."""
        return self.take(1)

    def int16(self) -> int:
        """A signed 16-bit number."""
        return int(_INT16.unpack(self.take(2))[0])

    def count(self) -> int:
        """An Int16 that counts what follows; parameters may be up to 65,535, so it is read unsigned."""
        return int.from_bytes(self.take(2), "big")

    def int32(self) -> int:
        """A signed 32-bit number."""
        return int(_INT32.unpack(self.take(4))[0])

    def uint32(self) -> int:
        """An unsigned 32-bit number: OIDs."""
        return int(_UINT32.unpack(self.take(4))[0])

    def raw_string(self) -> bytes:
        """A String without its zero byte."""
        end = self._body.find(b"\0", self._at)
        if end < 0:
            raise ProtocolError(f"unterminated string in {self._of} message")
        raw = self._body[self._at : end]
        self._at = end + 1
        return raw

    def string(self) -> str:
        """A String, decoded strictly from UTF-8."""
        try:
            return self.raw_string().decode()
        except UnicodeDecodeError:
            raise ProtocolError(f"invalid UTF-8 in {self._of} message", "22021") from None

    def value(self) -> bytes | None:
        """An Int32 length and that many bytes; -1 is NULL."""
        size = self.int32()
        return None if size == -1 else self.take(size)

    def rest(self) -> bytes:
        """Everything that is left."""
        taken = self._body[self._at :]
        self._at = len(self._body)
        return taken

    def end(self) -> None:
        """Require that nothing is left."""
        if self._at != len(self._body):
            raise ProtocolError(f"invalid message format: {len(self._body) - self._at} extra bytes in {self._of}")


def sized(value: bytes | None) -> bytes:
    """A value as Bind and DataRow carry it: Int32 length (-1 for NULL) and the bytes."""
    return b"\xff\xff\xff\xff" if value is None else _INT32.pack(len(value)) + value


@dataclass(frozen=True, slots=True)
class Bare:
    """A message that says all by its type byte."""

    TAG: ClassVar[bytes] = b""

    def encode(self) -> bytes:
        """The whole message."""
        return frame(self.TAG)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        Fields(body, cls.__name__).end()
        return cls()
