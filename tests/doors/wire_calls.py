"""The wire door spoken to message by message: what no well-behaved driver sends, and what it gets for it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.stack import Stack
from wire.backend import Authentication, DataRow, ErrorResponse, ReadyForQuery
from wire.codec import BackendDecoder
from wire.frontend import AuthenticationResponse, StartupRequest


class RawClient:
    """A socket that speaks whole messages; every wait is bounded by the socket's time-out."""

    def __init__(self, stack: Stack, port: int | None = None) -> None:
        self.socket = socket.create_connection((stack.host, port or stack.port), timeout=10)
        self._begin()

    @classmethod
    def over(cls, connected: socket.socket) -> RawClient:
        """One that speaks over a socket that is connected already."""
        client = cls.__new__(cls)
        client.socket = connected
        client._begin()
        return client

    def _begin(self) -> None:
        self._decoder = BackendDecoder()
        self._read: list[Any] = []
        self.closed = False

    def send(self, *messages: Any) -> None:
        """Send messages, or bytes as they are, in one write."""
        self.socket.sendall(b"".join(m if isinstance(m, bytes) else m.encode() for m in messages))

    def receive(self) -> Any:
        """The next message; None when the server has closed the connection."""
        while not self._read:
            try:
                data = self.socket.recv(65_536)
            except ConnectionResetError:
                data = b""
            if not data:
                self.closed = True
                return None
            self._read += self._decoder.feed(data)
        return self._read.pop(0)

    def until(self, kind: type | tuple[type, ...]) -> list[Any]:
        """All messages up to one of this kind; fails where the connection ends before."""
        found: list[Any] = []
        while not found or not isinstance(found[-1], kind):
            message = self.receive()
            assert message is not None, f"closed before {kind}: {found}"
            found.append(message)
        return found

    def until_closed(self) -> list[Any]:
        """Everything up to the end of the connection."""
        found: list[Any] = []
        while (message := self.receive()) is not None:
            found.append(message)
        return found

    def cycle(self, *messages: Any) -> list[Any]:
        """Send, and everything up to ReadyForQuery."""
        self.send(*messages)
        return self.until(ReadyForQuery)

    def start(self, stack: Stack, who: str, **parameters: str) -> list[Any]:
        """Start up and log in."""
        self.send(StartupRequest(3, 0, {"user": who, "database": stack.database, **parameters}))
        [request] = self.until(Authentication)
        assert request.kind == Authentication.CLEARTEXT
        self.password(stack, who)
        return self.until(ReadyForQuery)

    def password(self, stack: Stack, who: str) -> None:
        """Answer the request for a password with this person's token."""
        self.send(AuthenticationResponse.password(stack.tokens[who]))


@contextmanager
def raw_client(
    stack: Stack, who: str | None = None, *, port: int | None = None, **parameters: str
) -> Iterator[RawClient]:
    """A raw client, logged in as this person if one is named; of another door of the stack's, if a port is."""
    client = RawClient(stack, port)
    try:
        if who is not None:
            client.start(stack, who, **parameters)
        yield client
    finally:
        client.socket.close()


def errors(messages: list[Any]) -> list[tuple[str, str]]:
    """SQLSTATE and text of every error."""
    return [(m.fields["C"], m.fields["M"]) for m in messages if isinstance(m, ErrorResponse)]


def values(messages: list[Any]) -> list[tuple[bytes | None, ...]]:
    """Every row."""
    return [m.values for m in messages if isinstance(m, DataRow)]


def kinds(messages: list[Any]) -> str:
    """The type bytes, in order."""
    return "".join(m.TAG.decode() for m in messages)
