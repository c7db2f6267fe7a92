"""The client's side of a connection: its bytes as messages to await, and what is written to it, both bounded."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import cast

from wire.codec import FrontendDecoder, Received
from wire.frontend import Packet
from wire.server_tls import ALPN, Presented

# Bytes that may wait undecoded before the client is told to wait; one message may be larger.
_READ_AHEAD_BYTES = 256 * 1024

# How long a client may take to read the last words that are written for it ...
_LINGER_SECONDS = 5.0
# ... and how much it may still send meanwhile: a message that is refused for its size, and what came behind it.
_DROPPED_BYTES = 128 << 20
_DROPPED_AT_ONCE = 65_536

_TLS_HANDSHAKE = 0x16  # RFC 8446, section 5.1: the type of a record that holds a handshake


class ClientGoneError(Exception):
    """The client closed the connection, or it broke."""


class ClientConnection(asyncio.Protocol):
    """One accepted connection. `on_gone` and `on_writable` are called on the loop; both may be replaced."""

    def __init__(self, accepted: Callable[[ClientConnection], None]) -> None:
        self._accepted = accepted
        self._transport: asyncio.Transport | None = None
        self._decoder = FrontendDecoder()
        self._waiter: asyncio.Future[None] | None = None
        self._paused = False
        self._greeted = False
        self._linger: asyncio.TimerHandle | None = None
        self._kept = b""  # to be written with what is sent next
        self.encrypted = False
        self.binding: bytes | None = None  # the hash of our certificate, inside TLS
        self.gone = False
        self.congested = False
        self.on_gone: Callable[[], None] = lambda: None
        self.on_writable: Callable[[], None] = lambda: None

    # -- asyncio's side -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; called again after the TLS handshake."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's do not derive from asyncio's
        if not self._greeted:
            self._greeted = True
            self._accepted(self)

    def data_received(self, data: bytes) -> None:
        """Keep bytes until they are asked for."""
        self._decoder.feed(data)
        if self._decoder.pending > _READ_AHEAD_BYTES and self._waiter is None:
            self._pause()
        self.wake()

    def eof_received(self) -> bool:
        """A client that has nothing more to say is gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        self.gone = True
        if self._linger is not None:
            self._linger.cancel()
        self.wake()
        self.on_gone()

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self.congested = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self.congested = False
        self.on_writable()

    # -- messages -------------------------------------------------------------------------------------

    async def next_packet(self) -> Packet:
        """The next packet of the start-up. Raises ClientGoneError, ProtocolError."""
        while (packet := self._decoder.next_packet()) is None:
            await self.more()
        return packet

    def ready(self) -> Received | None:
        """The next message if it is already here. Raises ProtocolError."""
        return self._decoder.next()

    async def next(self) -> Received:
        """The next message. Raises ClientGoneError, ProtocolError."""
        while (received := self._decoder.next()) is None:
            await self.more()
        return received

    async def more(self) -> None:
        """Wait for bytes, or for `wake`. Raises ClientGoneError."""
        if self.gone:
            raise ClientGoneError
        self._waiter = asyncio.get_running_loop().create_future()
        self._resume()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Let whoever waits for this client look around."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def send(self, data: bytes) -> None:
        """Write; the caller watches `congested`. Bytes for a client that is gone are dropped."""
        if self._transport is not None and not self.gone:
            if self._kept:
                data, self._kept = self._kept + data, b""
            self._transport.write(data)

    def send_with_next(self, data: bytes) -> None:
        """Write it together with what is sent next: the client can do nothing with it before."""
        self._kept += data

    async def leave(self, words: bytes) -> None:
        """Send these last words and close, so that the client can read them.

        A socket that is closed over unread bytes is reset at once, and the reset destroys words on their way (RFC 1122,
        section 4.2.2.13): where some are unread, only our direction is closed, and they are dropped as they come.
        """
        if words:
            self.send(words)
        if words and self._decoder.pending and self._transport is not None and not self.gone:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_LINGER_SECONDS):
                    await self._close_over_unread(self._transport)
        self.close()

    def close(self) -> None:
        """Send what is written, then close; a client that does not take it in time loses it. A second call is none."""
        if self._transport is not None and not self.gone and self._linger is None:
            self._transport.close()
            self._linger = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._transport.abort)

    async def begins_with_tls(self) -> bool:
        """Whether the first thing that came is a TLS handshake: direct negotiation. Raises ClientGoneError.

        No packet begins so: the first byte of its length is 0.
        """
        while not self._decoder.pending:
            await self.more()
        return self._decoder.first == _TLS_HANDSHAKE

    async def start_tls(self, tls: Presented, *, direct: bool = False) -> bool:
        """Answer an SSLRequest with `S` and shake hands; without a word where the client has begun (`direct`).

        False where bytes already follow the request: they were sent in clear by somebody in the middle
        (CVE-2021-23214), or by a client that must not be obeyed. Also where direct negotiation does not name its
        protocol, so that a client of another one cannot be led here (ALPACA).
        """
        begun = self._decoder.take_all() if direct else b""
        if self._decoder.pending:
            return False
        assert self._transport is not None
        self._transport.pause_reading()
        if not direct:
            self._transport.write(b"S")
        loop = asyncio.get_running_loop()
        shaking = asyncio.ensure_future(
            loop.start_tls(self._transport, self, tls.context, server_side=True, ssl_handshake_timeout=10)
        )
        if begun:
            # Behind what `start_tls` schedules first, which is the TLS protocol's own start.
            loop.call_soon(loop.call_soon, self._deliver, self._transport, begun)
        try:
            encrypted = await shaking
        except (OSError, ssl.SSLError) as error:
            raise ClientGoneError(str(error)) from None
        if encrypted is None:
            return False
        self._transport = encrypted
        self.encrypted = True
        self.binding = tls.binding
        named = encrypted.get_extra_info("ssl_object").selected_alpn_protocol()
        return named == ALPN if direct else True

    @staticmethod
    def _deliver(transport: asyncio.Transport, data: bytes) -> None:
        """Give bytes that we have read to the protocol that now has the transport, as the transport would."""
        # uvloop's protocols do not derive from asyncio's.
        protocol = cast("asyncio.BufferedProtocol", transport.get_protocol())
        while data and not transport.is_closing():
            buffer = memoryview(protocol.get_buffer(len(data)))
            taken = min(len(buffer), len(data))
            buffer[:taken] = data[:taken]
            protocol.buffer_updated(taken)
            data = data[taken:]

    @property
    def certificate(self) -> bytes | None:
        """The client's own certificate (DER), which its handshake has proved; None without one."""
        tls = self._transport.get_extra_info("ssl_object") if self._transport else None
        return tls.getpeercert(binary_form=True) if tls is not None else None

    @property
    def address(self) -> str:
        """`host:port` of the peer, or `local`."""
        peer = self._transport.get_extra_info("peername") if self._transport else None
        return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "local"

    @property
    def host(self) -> str:
        """The peer's address without its port, or `local`. Of IPv6 the network: whoever has one has all of a /64."""
        return self._peer[0]

    @property
    def private(self) -> bool:
        """Whether what it sends in clear stays on this machine or inside TLS."""
        return self.encrypted or self._peer[1]

    @cached_property
    def _peer(self) -> tuple[str, bool]:
        """Its `host`, and whether that is this machine."""
        peer = self._transport.get_extra_info("peername") if self._transport else None
        return _placed(peer[0].partition("%")[0]) if isinstance(peer, tuple) else ("local", True)

    # -- inside ---------------------------------------------------------------------------------------

    async def _close_over_unread(self, transport: asyncio.Transport) -> None:
        # A second handle holds the connection open while TLS, if there is any, says goodbye on the first.
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as held:
            held.setblocking(False)
            closed = asyncio.Event()
            self.on_gone = closed.set
            self.close()
            await closed.wait()
            held.shutdown(socket.SHUT_WR)
            await _drop(held)

    def _pause(self) -> None:
        if not self._paused and self._transport is not None and not self.gone:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self._transport is not None and not self.gone:
            self._paused = False
            self._transport.resume_reading()


@lru_cache(maxsize=1024)
def _placed(address: str) -> tuple[str, bool]:
    peer = ipaddress.ip_address(address)
    host = str(ipaddress.ip_network((peer, 64), strict=False)) if peer.version == 6 else str(peer)
    return host, peer.is_loopback


async def _drop(held: socket.socket) -> None:
    """Read until the other side has closed too, or has sent too much. Raises OSError."""
    loop, left, nowhere = asyncio.get_running_loop(), _DROPPED_BYTES, bytearray(_DROPPED_AT_ONCE)
    while left > 0 and (count := await loop.sock_recv_into(held, nowhere)):
        left -= count
