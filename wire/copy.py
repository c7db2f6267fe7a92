"""The messages of COPY's data stream, which both sides send, and those that begin it. Sans-IO.

Source: PostgreSQL documentation, section "COPY Operations".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from wire.fields import Bare, Fields, frame, int16, string


@dataclass(frozen=True, slots=True)
class CopyData:
    """One or more whole, adjacent CopyData messages, as they came: headers and all."""

    TAG: ClassVar[bytes] = b"d"
    run: bytes
    count: int = 1

    @classmethod
    def of(cls, data: bytes) -> Self:
        """A single message with this content."""
        return cls(frame(cls.TAG, data))

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return self.run


@dataclass(frozen=True, slots=True)
class CopyFail:
    """Ends COPY FROM STDIN with an error."""

    TAG: ClassVar[bytes] = b"f"
    reason: str

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, string(self.reason))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        fields = Fields(body, "CopyFail")
        message = cls(fields.string())
        fields.end()
        return message


class CopyDone(Bare):
    """The end of the data."""

    TAG = b"c"


@dataclass(frozen=True, slots=True)
class CopyInResponse:
    """The server waits for data: the overall format (0 text, 1 binary) and each column's."""

    TAG: ClassVar[bytes] = b"G"
    format: int
    columns: tuple[int, ...]

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, _encode_formats(self.format, self.columns))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        return cls(*_decode_formats(body, "CopyInResponse"))


@dataclass(frozen=True, slots=True)
class CopyOutResponse:
    """The server will send data: the overall format (0 text, 1 binary) and each column's."""

    TAG: ClassVar[bytes] = b"H"
    format: int
    columns: tuple[int, ...]

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, _encode_formats(self.format, self.columns))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        return cls(*_decode_formats(body, "CopyOutResponse"))


def _encode_formats(overall: int, columns: tuple[int, ...]) -> bytes:
    return bytes((overall,)) + len(columns).to_bytes(2, "big") + b"".join(map(int16, columns))


def _decode_formats(body: bytes, of: str) -> tuple[int, tuple[int, ...]]:
    fields = Fields(body, of)
    overall = fields.byte()[0]
    columns = tuple([fields.int16() for _ in range(fields.count())])
    fields.end()
    return overall, columns
