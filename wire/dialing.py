"""Reaching a PostgreSQL server: socket, TLS as libpq's `sslmode` says, and what each failure is called.

Source: PostgreSQL documentation, "SSL Session Encryption" and libpq's "SSL Support".
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar, cast

from gateway.model import Connection, SslMode
from gateway.upstream import UpstreamLostError
from wire.frontend import SslRequest

# Seconds of silence before the first probe, seconds between probes, probes without an answer.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}

P = TypeVar("P", bound=asyncio.Protocol)


async def dial(connection: Connection, make: Callable[[], P]) -> tuple[asyncio.Transport, P]:
    """Connect as the connection says. Raises UpstreamLostError with a sentence that names the server."""
    try:
        async with asyncio.timeout(connection.connect_timeout):
            if connection.host.startswith("/"):
                return await _dial_local(connection, make)
            return await _dial_tcp(connection, make)
    except TimeoutError:
        raise lost(connection, f"no answer within {connection.connect_timeout:g} seconds") from None
    except ssl.SSLError as error:
        raise lost(connection, f"TLS failed: {_tls_reason(error)}") from None
    except OSError as error:
        raise lost(connection, _reason(error)) from None


def lost(connection: Connection, reason: str) -> UpstreamLostError:
    """The error for a server that cannot be reached or went away."""
    where = f"{connection.host}:{connection.port}"
    return UpstreamLostError(f"cannot reach `{connection.name}` at {where}: {reason}")


async def _dial_local(connection: Connection, make: Callable[[], P]) -> tuple[asyncio.Transport, P]:
    """A Unix-domain socket; `host` is its folder, as in libpq. TLS makes no sense there."""
    path = f"{connection.host}/.s.PGSQL.{connection.port}"
    return await asyncio.get_running_loop().create_unix_connection(make, path)


async def _dial_tcp(connection: Connection, make: Callable[[], P]) -> tuple[asyncio.Transport, P]:
    loop = asyncio.get_running_loop()
    context = tls_context(connection.sslmode, connection.sslrootcert)
    if context is None:
        transport, protocol = await loop.create_connection(make, connection.host, connection.port)
        keep_alive(transport.get_extra_info("socket"))
        return transport, protocol
    transport, asking = await loop.create_connection(_AskForTls, connection.host, connection.port)
    keep_alive(transport.get_extra_info("socket"))
    try:
        answer = await asking.answer
        protocol = make()
        if answer == b"S":
            name = connection.host if context.check_hostname else None
            secured = await loop.start_tls(transport, protocol, context, server_hostname=name)
            if secured is None:
                raise ConnectionResetError(errno.ECONNRESET, "the connection was closed")
            protocol.connection_made(secured)
            return secured, protocol
        if answer != b"N":
            # CVE-2021-23222: nothing but one byte may come before TLS.
            raise lost(connection, "it answered the request for TLS with something else")
        if connection.sslmode != "prefer":
            raise lost(connection, f"it does not speak TLS, but sslmode is `{connection.sslmode}`")
    except BaseException:
        transport.close()
        raise
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    transport.resume_reading()
    return transport, protocol


class _AskForTls(asyncio.Protocol):
    """Sends an SSLRequest and takes the one byte that answers it; leaves the transport paused."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(SslRequest().encode())

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.pause_reading()
        if not self.answer.done():
            self.answer.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc or ConnectionResetError(errno.ECONNRESET, "connection reset"))


def tls_context(mode: SslMode, root: str | None) -> ssl.SSLContext | None:
    """The client context of an `sslmode`; None for no TLS. `require` with a root certificate verifies it."""
    if mode == "disable":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = mode == "verify-full"
    verify = mode in ("verify-ca", "verify-full") or (mode == "require" and root is not None)
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    if root is not None:
        context.load_verify_locations(cafile=root)
    elif verify:
        context.load_default_certs()
    return context


def keep_alive(handle: socket.socket) -> None:
    """Notice within two minutes that the other side is gone without a word (RFC 1122, section 4.2.3.6).

    What a listening socket accepts has its options.
    """
    if handle.family not in (socket.AF_INET, socket.AF_INET6):
        return
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE.items():
        if hasattr(socket, option):  # not every system lets them be set
            handle.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    return (error.reason or str(error)).replace("_", " ").lower()


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the host name cannot be resolved"
    # asyncio puts several addresses' failures into one text; the number survives in the first.
    known = errno.errorcode.get(error.errno or 0)
    if known == "ECONNREFUSED" or "Connect call failed" in str(error):
        return "connection refused"
    return (error.strerror or str(error) or type(error).__name__).lower()
