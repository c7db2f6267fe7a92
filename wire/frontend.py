"""The messages that a client sends, one frozen type each, decoded strictly and encoded. Sans-IO.

Source: PostgreSQL documentation, chapter "Frontend/Backend Protocol", section "Message Formats".
Texts of SQL stay bytes; names are UTF-8 text, to which `client_encoding` is pinned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from wire.binary import as_text
from wire.fields import Bare, Fields, ProtocolError, frame, int16, int32, sized, string, uint32

PROTOCOL_MAJOR = 3
PROTOCOL_MINOR = 2  # the newest that we speak to clients
_SSL_REQUEST = 80877103
_CANCEL_REQUEST = 80877102
_GSSENC_REQUEST = 80877104


# -- before the start: packets without a type byte -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartupRequest:
    """The first packet of a session: protocol version and parameters (`user`, `database`, settings)."""

    major: int
    minor: int
    parameters: Mapping[str, str]

    def encode(self) -> bytes:
        """The whole message, header and all."""
        pairs = b"".join(string(name) + string(value) for name, value in self.parameters.items())
        return _packet(self.major << 16 | self.minor, pairs + b"\0")


@dataclass(frozen=True, slots=True)
class SslRequest:
    """Asks for TLS; answered by one byte, `S` or `N`."""

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return _packet(_SSL_REQUEST, b"")


@dataclass(frozen=True, slots=True)
class GssEncRequest:
    """Asks for GSSAPI encryption; we always answer `N`."""

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return _packet(_GSSENC_REQUEST, b"")


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Asks to cancel what runs in the session that holds this key."""

    pid: int
    key: bytes

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return _packet(_CANCEL_REQUEST, int32(self.pid) + self.key)


Packet = StartupRequest | SslRequest | GssEncRequest | CancelRequest


def _packet(code: int, body: bytes) -> bytes:
    return int32(len(body) + 8) + int32(code) + body


def decode_packet(body: bytes) -> Packet:
    """The packet in `body` (without its length). Raises ProtocolError."""
    fields = Fields(body, "start-up")
    code = fields.int32()
    if code == _SSL_REQUEST:
        fields.end()
        return SslRequest()
    if code == _GSSENC_REQUEST:
        fields.end()
        return GssEncRequest()
    if code == _CANCEL_REQUEST:
        pid, key = fields.int32(), fields.rest()
        if not 4 <= len(key) <= 256:  # protocol 3.2: keys of up to 256 bytes
            raise ProtocolError("invalid cancel key in start-up packet")
        return CancelRequest(pid, key)
    parameters: dict[str, str] = {}
    while name := fields.string():
        parameters[name] = fields.string()
    fields.end()
    return StartupRequest(code >> 16, code & 0xFFFF, parameters)


# -- frontend --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AuthenticationResponse:
    """A `p` message: a password, or a step of SASL, as the server's last request says."""

    TAG: ClassVar[bytes] = b"p"
    payload: bytes

    @classmethod
    def password(cls, password: str) -> Self:
        """PasswordMessage."""
        return cls(string(password))

    @classmethod
    def sasl_initial(cls, mechanism: str, data: bytes) -> Self:
        """SASLInitialResponse."""
        return cls(string(mechanism) + sized(data))

    def as_password(self) -> str:
        """The password in the payload. Raises ProtocolError."""
        fields = Fields(self.payload, "password")
        password = fields.string()
        fields.end()
        return password

    def as_sasl_initial(self) -> tuple[str, bytes | None]:
        """The mechanism of a SASLInitialResponse and the client's first message. Raises ProtocolError."""
        fields = Fields(self.payload, "SASLInitialResponse")
        mechanism, data = fields.string(), fields.value()
        fields.end()
        return mechanism, data

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, self.payload)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        return cls(body)


@dataclass(frozen=True, slots=True)
class Query:
    """A simple query: any number of statements in one text."""

    TAG: ClassVar[bytes] = b"Q"
    text: bytes

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, string(self.text))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        fields = Fields(body, "Query")
        message = cls(fields.raw_string())
        fields.end()
        return message


@dataclass(frozen=True, slots=True)
class Parse:
    """Prepares one statement; `types` are parameter type OIDs, 0 where the server is to find out."""

    TAG: ClassVar[bytes] = b"P"
    name: str
    text: bytes
    types: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """The whole message, header and all."""
        types = b"".join(uint32(oid) for oid in self.types)
        count = len(self.types).to_bytes(2, "big")
        return frame(self.TAG, string(self.name) + string(self.text) + count + types)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        fields = Fields(body, "Parse")
        name, text = fields.string(), fields.raw_string()
        message = cls(name, text, tuple([fields.uint32() for _ in range(fields.count())]))
        fields.end()
        return message


@dataclass(frozen=True, slots=True)
class Bind:
    """Makes a portal of a prepared statement. Formats are 0 (text) or 1 (binary): none, one for all, or one each."""

    TAG: ClassVar[bytes] = b"B"
    portal: str
    statement: str
    formats: tuple[int, ...] = ()
    values: tuple[bytes | None, ...] = ()
    results: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """The whole message, header and all."""
        parts = [string(self.portal), string(self.statement)]
        parts += [len(self.formats).to_bytes(2, "big"), *map(int16, self.formats)]
        parts += [len(self.values).to_bytes(2, "big"), *map(sized, self.values)]
        parts += [len(self.results).to_bytes(2, "big"), *map(int16, self.results)]
        return frame(self.TAG, b"".join(parts))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        fields = Fields(body, "Bind")
        portal, statement = fields.string(), fields.string()
        formats = tuple([fields.int16() for _ in range(fields.count())])
        values = tuple([fields.value() for _ in range(fields.count())])
        results = tuple([fields.int16() for _ in range(fields.count())])
        fields.end()
        if any(f not in (0, 1) for f in (*formats, *results)):
            raise ProtocolError("unsupported format code in Bind message", "22023")
        if len(formats) > 1 and len(formats) != len(values):
            raise ProtocolError(f"bind message has {len(formats)} parameter formats but {len(values)} parameters")
        return cls(portal, statement, formats, values, results)

    def readable(self, types: Sequence[int] = ()) -> tuple[bytes | None, ...]:
        """The values as text: binary ones by their types as far as those are known, else as `\\x…`."""
        formats = self.formats
        if not any(formats):
            return self.values
        each = formats if len(formats) > 1 else formats * len(self.values)
        known = (*types, *(0 for _ in self.values[len(types) :]))
        return tuple(
            as_text(value, oid).encode() if binary and value is not None else value
            for binary, value, oid in zip(each, self.values, known, strict=False)
        )


@dataclass(frozen=True, slots=True)
class Describe:
    """Asks for the description of a statement (`S`) or a portal (`P`)."""

    TAG: ClassVar[bytes] = b"D"
    kind: bytes
    name: str

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, self.kind + string(self.name))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        return cls(*_target(body, "Describe"))


@dataclass(frozen=True, slots=True)
class Close:
    """Closes a statement (`S`) or a portal (`P`); closing one that does not exist is no error."""

    TAG: ClassVar[bytes] = b"C"
    kind: bytes
    name: str

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, self.kind + string(self.name))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        return cls(*_target(body, "Close"))


def _target(body: bytes, of: str) -> tuple[bytes, str]:
    fields = Fields(body, of)
    kind, name = fields.byte(), fields.string()
    fields.end()
    if kind not in (b"S", b"P"):
        raise ProtocolError(f"invalid {of} message subtype {kind[0]}")
    return kind, name


@dataclass(frozen=True, slots=True)
class Execute:
    """Runs a portal for at most `max_rows` rows (0: all)."""

    TAG: ClassVar[bytes] = b"E"
    portal: str
    max_rows: int = 0

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, string(self.portal) + int32(self.max_rows))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        fields = Fields(body, "Execute")
        message = cls(fields.string(), fields.int32())
        fields.end()
        return message


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """The fast-path function call: no SQL at all, so always refused; its body is not looked at."""

    TAG: ClassVar[bytes] = b"F"
    body: bytes = b""

    def encode(self) -> bytes:
        """The whole message, header and all."""
        return frame(self.TAG, self.body)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From a message body."""
        return cls(body)


class Sync(Bare):
    """Ends a batch: the implicit transaction closes, and after an error the server listens again."""

    TAG = b"S"


class Flush(Bare):
    """Asks the server to send what it has answered so far."""

    TAG = b"H"


class Terminate(Bare):
    """The client is done."""

    TAG = b"X"
