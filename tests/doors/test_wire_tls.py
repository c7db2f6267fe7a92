"""TLS at the wire door: direct negotiation, certificates renewed and asked for, channel binding; TLS to an upstream."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from gateway.identity import VerifiedToken
from gateway.model import Connection, SslMode
from gateway.session_secrets import IssuedSecret
from gateway.upstream import UpstreamError, UpstreamLostError
from tests.certificates import Certificate, make
from tests.doors.wire_calls import RawClient, errors, values
from tests.stack import Stack
from wire.backend import Authentication
from wire.frontend import Query, SslRequest, StartupRequest
from wire.listener import WireDoor
from wire.server_tls import ClientCertificates, ServerTls
from wire.upstream import connect


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return make(tmp_path)


@contextmanager
def tls_door(stack: Stack, tls: ServerTls) -> Iterator[int]:
    hall = stack.app.hall
    door = WireDoor(hall.gateway, hall.verifier, hall.secrets, host="127.0.0.1", port=0, tls=tls)
    stack.call(door.start)
    try:
        yield door.port
    finally:
        stack.call(lambda: door.stop(1))


@pytest.fixture
def port(stack: Stack, certificate: Certificate) -> Iterator[int]:
    with tls_door(stack, ServerTls(certificate.certificate, certificate.key)) as port:
        yield port


def client_context(certificate: Certificate, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate.certificate))
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def directly(port: int, context: ssl.SSLContext) -> RawClient:
    """A raw client that begins with the handshake."""
    return RawClient.over(
        context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=10), server_hostname="localhost")
    )


# -- direct negotiation ----------------------------------------------------------------------------------


def test_a_client_may_begin_with_the_handshake(stack: Stack, certificate: Certificate, port: int) -> None:
    client = directly(port, client_context(certificate, "postgresql"))
    with client.socket:
        assert client.socket.selected_alpn_protocol() == "postgresql"  # type: ignore[attr-defined]
        client.start(stack, "devin")
        assert values(client.cycle(Query(b"SELECT 1"))) == [(b"1",)]


def test_libpq_negotiates_directly(stack: Stack, certificate: Certificate, port: int) -> None:
    dsn = stack.wire_dsn(
        "devin", port=str(port), host="localhost", sslmode="verify-full", sslnegotiation="direct",
        sslrootcert=str(certificate.certificate),
    )  # fmt: skip
    with psycopg.connect(dsn) as connection:
        assert connection.info.pgconn.ssl_in_use
        assert connection.execute("SELECT 1").fetchone() == (1,)
        connection.cancel_safe(timeout=10)


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)])
def test_direct_negotiation_must_name_the_protocol(
    stack: Stack, certificate: Certificate, port: int, protocols: tuple[str, ...]
) -> None:
    client = directly(port, client_context(certificate, *protocols))
    with client.socket:
        client.send(StartupRequest(3, 0, {"user": "devin", "database": stack.database}))
        assert client.until_closed() == []


def test_a_handshake_in_pieces_is_the_same_handshake(stack: Stack, certificate: Certificate, port: int) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(certificate, "postgresql").wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                hello = outgoing.read()
                for at in range(0, len(hello), 50):
                    wire.sendall(hello[at : at + 50])
                incoming.write(wire.recv(65_536))
        tls.write(StartupRequest(3, 0, {"user": "devin", "database": stack.database}).encode())
        wire.sendall(outgoing.read())
        while True:
            incoming.write(wire.recv(65_536))
            try:
                assert tls.read(1) == Authentication.TAG
                break
            except ssl.SSLWantReadError:
                continue


def test_inside_of_tls_more_tls_is_declined(stack: Stack, certificate: Certificate, port: int) -> None:
    client = directly(port, client_context(certificate, "postgresql"))
    with client.socket:
        client.send(SslRequest())
        assert client.socket.recv(1) == b"N"
        client.start(stack, "devin")


# -- certificates ----------------------------------------------------------------------------------------


def test_a_renewed_certificate_holds_for_the_next_connection(stack: Stack, tmp_path: Path) -> None:
    used = make(tmp_path, "used")
    with tls_door(stack, ServerTls(used.certificate, used.key)) as port:
        first = client_context(used, "postgresql")
        old = directly(port, first)
        with old.socket:
            old.start(stack, "devin")
            renewed = make(tmp_path, "renewed")
            shutil.copy(renewed.key, used.key)
            shutil.copy(renewed.certificate, used.certificate)
            with directly(port, client_context(renewed, "postgresql")).socket:
                pass
            with pytest.raises(ssl.SSLCertVerificationError):
                directly(port, first)
            assert values(old.cycle(Query(b"SELECT 1"))) == [(b"1",)]


def test_a_certificate_that_does_not_fit_its_key_leaves_the_old_one(stack: Stack, tmp_path: Path) -> None:
    used, other = make(tmp_path, "used"), make(tmp_path, "other")
    first = client_context(used, "postgresql")
    with tls_door(stack, ServerTls(used.certificate, used.key)) as port:
        for wrong in (other.certificate.read_bytes(), b"nothing"):
            used.certificate.write_bytes(wrong)
            with directly(port, first).socket:
                pass
        used.certificate.unlink()
        with directly(port, first).socket:
            pass


def test_where_client_certificates_are_required_nobody_comes_in_without(stack: Stack, tmp_path: Path) -> None:
    server, authority = make(tmp_path, "server"), make(tmp_path, "authority", "authority")
    client, stranger = make(tmp_path, "client", "devin", authority), make(tmp_path, "stranger", "devin")
    tls = {"sslmode": "verify-full", "sslrootcert": str(server.certificate), "host": "localhost"}
    with tls_door(stack, ServerTls(server.certificate, server.key, ClientCertificates(authority.certificate))) as port:

        def come(**more: str) -> None:
            with psycopg.connect(stack.wire_dsn("devin", port=str(port), **more)) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)

        come(**tls, sslcert=str(client.certificate), sslkey=str(client.key))
        with pytest.raises(psycopg.OperationalError, match=r"SSL error|closed the connection"):
            come(**tls)
        with pytest.raises(psycopg.OperationalError, match=r"SSL error|closed the connection"):
            come(**tls, sslcert=str(stranger.certificate), sslkey=str(stranger.key))
        with pytest.raises(psycopg.OperationalError, match="not encrypted"):
            come(sslmode="disable")  # not even from this machine


# -- channel binding, and our own client as the other side -----------------------------------------------


def secret(stack: Stack, who: str = "grace") -> IssuedSecret:
    hall = stack.app.hall

    async def issue() -> IssuedSecret:
        token: VerifiedToken = await hall.verifier.verify(stack.tokens[who])
        return hall.secrets.issue(token)

    return stack.call(issue)


def test_libpq_insists_on_channel_binding(stack: Stack, certificate: Certificate, port: int) -> None:
    made = secret(stack)
    dsn = stack.wire_dsn(
        "grace", port=str(port), user=made.user, password=made.password, host="localhost", channel_binding="require",
        sslmode="verify-full", sslrootcert=str(certificate.certificate),
    )  # fmt: skip
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def upstream(stack: Stack, port: int, mode: SslMode, root: Path | None, host: str = "localhost") -> Connection:
    made = secret(stack)
    return Connection(
        "tls", host, port, stack.database, made.user, made.password, mode, str(root) if root is not None else None
    )


async def reached(connection: Connection) -> bool:
    session = await connect(connection, "test", {})
    try:
        return await session.probe("SELECT 1") == [("1",)]
    finally:
        await session.disconnect()


async def test_an_upstream_is_verified_as_its_sslmode_says(stack: Stack, tmp_path: Path, port: int) -> None:
    root, other = tmp_path / "server.crt", make(tmp_path, "other").certificate
    assert await reached(upstream(stack, port, "verify-full", root))
    assert await reached(upstream(stack, port, "verify-full", root, "127.0.0.1"))
    assert await reached(upstream(stack, port, "require", root))
    assert await reached(upstream(stack, port, "require", None))
    assert await reached(upstream(stack, port, "prefer", None))
    for mode in ("verify-full", "require"):
        with pytest.raises(UpstreamLostError, match="certificate is not trusted"):
            await reached(upstream(stack, port, mode, other))
    with pytest.raises(UpstreamLostError, match="certificate is not trusted"):
        await reached(upstream(stack, port, "verify-full", None))


async def test_an_upstream_with_anothers_name_is_not_believed(
    stack: Stack, tmp_path: Path, certificate: Certificate
) -> None:
    elsewhere = make(tmp_path, "elsewhere", "db.example")
    with tls_door(stack, ServerTls(elsewhere.certificate, elsewhere.key)) as port:
        with pytest.raises(UpstreamLostError, match="certificate is not trusted"):
            await reached(upstream(stack, port, "verify-full", elsewhere.certificate))
        for mode in ("require", "verify-ca"):
            assert await reached(upstream(stack, port, mode, elsewhere.certificate, "127.0.0.1"))
        with pytest.raises(UpstreamLostError, match="certificate is not trusted"):
            await reached(upstream(stack, port, "verify-ca", certificate.certificate))


async def test_an_upstream_can_be_required_to_bind_the_channel(stack: Stack, tmp_path: Path, port: int) -> None:
    bound = dataclasses.replace(
        upstream(stack, port, "verify-full", tmp_path / "server.crt"), channel_binding="require"
    )
    assert await reached(bound)
    with pytest.raises(UpstreamLostError, match="there is no TLS, but channel_binding is `require`"):
        await reached(dataclasses.replace(bound, sslmode="disable", host="127.0.0.1"))
    token = dataclasses.replace(bound, user="grace", password=stack.tokens["grace"])
    with pytest.raises(UpstreamLostError, match="in clear text, but channel_binding is `require`"):
        await reached(token)


async def test_an_upstream_without_tls_is_not_used_where_tls_is_required(stack: Stack) -> None:
    with pytest.raises(UpstreamLostError, match="does not speak TLS, but sslmode is `require`"):
        await reached(upstream(stack, stack.port, "require", None))


async def test_an_upstream_hears_a_wrong_password_by_scram(stack: Stack, tmp_path: Path, port: int) -> None:
    right = upstream(stack, port, "verify-full", tmp_path / "server.crt")
    wrong = dataclasses.replace(right, password="guessed")
    with pytest.raises(UpstreamError, match="password authentication failed") as caught:
        await reached(wrong)
    assert caught.value.sqlstate == "28P01"


def test_what_is_read_before_a_handshake_that_fails_is_no_startup(stack: Stack, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"\x16" + StartupRequest(3, 0, {"user": "devin", "database": stack.database}).encode())
        assert b"devin" not in client.recv(1000)
    raw = RawClient(stack, port)
    with raw.socket:
        raw.send(StartupRequest(3, 0, {"database": "shop"}))
        assert [code for code, _ in errors(raw.until_closed())] == ["28000"]


def test_a_client_inside_tls_reads_why_its_message_is_too_large(
    stack: Stack, certificate: Certificate, port: int
) -> None:
    client = directly(port, client_context(certificate, "postgresql"))
    client.start(stack, "devin")
    client.send(Query(b"SELECT length('" + b"x" * 5_000_000 + b"')"))
    assert errors(client.until_closed()) == [("08P01", "invalid message length 5000022 of message type `Q`")]
    client.socket.close()
