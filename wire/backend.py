"""The messages that a server sends, one frozen type each, decoded strictly and encoded. Sans-IO.

Source: PostgreSQL documentation, chapter "Frontend/Backend Protocol", section "Message Formats".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from wire.fields import Bare, Fields, ProtocolError, frame, int16, int32, sized, string, uint32
from wire.frontend import PROTOCOL_MAJOR


@dataclass(frozen=True, slots=True)
class Authentication:
    """An `R` message: what the server asks for (`kind`), with its data."""

    TAG: ClassVar[bytes] = b"R"
    OK: ClassVar[int] = 0
    CLEARTEXT: ClassVar[int] = 3
    MD5: ClassVar[int] = 5
    SASL: ClassVar[int] = 10
    SASL_CONTINUE: ClassVar[int] = 11
    SASL_FINAL: ClassVar[int] = 12
    kind: int
    data: bytes = b""

    @classmethod
    def sasl(cls, mechanisms: Sequence[str]) -> Self:
        """AuthenticationSASL: the mechanisms that are offered, the best first."""
        return cls(cls.SASL, b"".join(map(string, mechanisms)) + b"\0")

    def mechanisms(self) -> list[str]:
        """The names in an AuthenticationSASL."""
        fields, names = Fields(self.data, "AuthenticationSASL"), []
        while name := fields.string():
            names.append(name)
        return names

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, int32(self.kind) + self.data)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        fields = Fields(body, "Authentication")
        return cls(fields.int32(), fields.rest())


@dataclass(frozen=True, slots=True)
class BackendKeyData:
    """The key that a CancelRequest for this session must show: 4 bytes in 3.0, up to 256 in 3.2."""

    TAG: ClassVar[bytes] = b"K"
    pid: int
    key: bytes

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, int32(self.pid) + self.key)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        fields = Fields(body, "BackendKeyData")
        return cls(fields.int32(), fields.rest())


@dataclass(frozen=True, slots=True)
class ParameterStatus:
    """The value of a reported setting."""

    TAG: ClassVar[bytes] = b"S"
    name: str
    value: str

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, string(self.name) + string(self.value))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        fields = Fields(body, "ParameterStatus")
        message = cls(fields.string(), fields.string())
        fields.end()
        return message


@dataclass(frozen=True, slots=True)
class NegotiateProtocolVersion:
    """Answers a newer minor version or unknown `_pq_.` options: the newest minor we speak, and those options."""

    TAG: ClassVar[bytes] = b"v"
    minor: int
    options: tuple[str, ...]

    def encode(self) -> bytes:
        """The whole message, header and all."""
        # Int32: the whole version since protocol 3.2's clarification, major number included.
        names = b"".join(map(string, self.options))
        return frame(self.TAG, int32(PROTOCOL_MAJOR << 16 | self.minor) + int32(len(self.options)) + names)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        fields = Fields(body, "NegotiateProtocolVersion")
        version = fields.int32()
        message = cls(version & 0xFFFF, tuple([fields.string() for _ in range(fields.int32())]))
        fields.end()
        return message


@dataclass(frozen=True, slots=True)
class ReadyForQuery:
    """The end of a query cycle with the transaction status: `I` idle, `T` in a block, `E` in a failed one."""

    TAG: ClassVar[bytes] = b"Z"
    status: str

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, self.status.encode())

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        if body not in (b"I", b"T", b"E"):
            raise ProtocolError("invalid transaction status in ReadyForQuery message")
        return cls(body.decode())


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An error; `fields` are keyed by the protocol's one-letter codes."""

    TAG: ClassVar[bytes] = b"E"
    fields: Mapping[str, str]

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, _encode_report(self.fields))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        return cls(_decode_report(body, "ErrorResponse"))


@dataclass(frozen=True, slots=True)
class NoticeResponse:
    """A notice: as ErrorResponse, but nothing failed."""

    TAG: ClassVar[bytes] = b"N"
    fields: Mapping[str, str]

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, _encode_report(self.fields))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        return cls(_decode_report(body, "NoticeResponse"))


def _encode_report(fields: Mapping[str, str]) -> bytes:
    return b"".join(code.encode("latin-1") + string(value) for code, value in fields.items()) + b"\0"


def _decode_report(body: bytes, of: str) -> dict[str, str]:
    # A server in trouble may send texts in its own encoding before ours is set: shown, never trusted.
    reader, fields = Fields(body, of), {}
    while (code := reader.byte()) != b"\0":
        fields[code.decode("latin-1")] = reader.raw_string().decode(errors="replace")
    reader.end()
    return fields


@dataclass(frozen=True, slots=True)
class Column:
    """A field of a RowDescription; `table` and `attribute` are 0 where it is not a table's column."""

    name: str
    table: int = 0
    attribute: int = 0
    type: int = 25
    size: int = -1
    modifier: int = -1
    format: int = 0


@dataclass(frozen=True, slots=True)
class RowDescription:
    """The columns of the rows that follow."""

    TAG: ClassVar[bytes] = b"T"
    columns: tuple[Column, ...]

    def in_formats(self, formats: tuple[int, ...]) -> RowDescription:
        """The same with a Bind's result formats: none, one for all, or one each."""
        each = formats if len(formats) > 1 else (formats or (0,)) * len(self.columns)
        return RowDescription(
            tuple([replace(column, format=format) for column, format in zip(self.columns, each, strict=False)])
        )

    def encode(self) -> bytes:
        """The whole message, header and all."""
        parts = [len(self.columns).to_bytes(2, "big")]
        for c in self.columns:
            parts += [string(c.name), uint32(c.table), int16(c.attribute), uint32(c.type)]
            parts += [int16(c.size), int32(c.modifier), int16(c.format)]
        return frame(self.TAG, b"".join(parts))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        f = Fields(body, "RowDescription")
        columns = tuple(
            [
                Column(f.string(), f.uint32(), f.int16(), f.uint32(), f.int16(), f.int32(), f.int16())
                for _ in range(f.count())
            ]
        )
        f.end()
        return cls(columns)


@dataclass(frozen=True, slots=True)
class ParameterDescription:
    """The parameter types of a described statement."""

    TAG: ClassVar[bytes] = b"t"
    types: tuple[int, ...]

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, len(self.types).to_bytes(2, "big") + b"".join(map(uint32, self.types)))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        fields = Fields(body, "ParameterDescription")
        message = cls(tuple([fields.uint32() for _ in range(fields.count())]))
        fields.end()
        return message


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row; None is NULL."""

    TAG: ClassVar[bytes] = b"D"
    values: tuple[bytes | None, ...]

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, len(self.values).to_bytes(2, "big") + b"".join(map(sized, self.values)))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        fields = Fields(body, "DataRow")
        message = cls(tuple([fields.value() for _ in range(fields.count())]))
        fields.end()
        return message


@dataclass(frozen=True, slots=True)
class CommandComplete:
    """A statement's end, with its command tag."""

    TAG: ClassVar[bytes] = b"C"
    tag: str

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, string(self.tag))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        fields = Fields(body, "CommandComplete")
        message = cls(fields.string())
        fields.end()
        return message

    @property
    def rows(self) -> int | None:
        """The number at the tag's end (`INSERT 0 5`, `SELECT 3`); None where there is none."""
        last = self.tag.rpartition(" ")[2]
        return int(last) if last.isascii() and last.isdigit() else None


@dataclass(frozen=True, slots=True)
class NotificationResponse:
    """A NOTIFY that this session listens to."""

    TAG: ClassVar[bytes] = b"A"
    pid: int
    channel: str
    payload: str

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, int32(self.pid) + string(self.channel) + string(self.payload))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        fields = Fields(body, "NotificationResponse")
        message = cls(fields.int32(), fields.string(), fields.string())
        fields.end()
        return message


class ParseComplete(Bare):
    """A Parse succeeded."""

    TAG = b"1"


class BindComplete(Bare):
    """A Bind succeeded."""

    TAG = b"2"


class CloseComplete(Bare):
    """A Close was done."""

    TAG = b"3"


class EmptyQueryResponse(Bare):
    """A statement without content was run."""

    TAG = b"I"


class NoData(Bare):
    """What was described returns no rows."""

    TAG = b"n"


class PortalSuspended(Bare):
    """Execute stopped at its row limit; the portal has more."""

    TAG = b"s"
