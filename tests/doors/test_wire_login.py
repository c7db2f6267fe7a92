"""Getting in through the wire door: whose token, for which connection, over which transport."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from server.app import server_tls
from server.wire_config import TlsFile, WireFile
from tests.certificates import Certificate, make
from tests.doors.wire_calls import errors, raw_client
from tests.stack import Stack, psql_path, running_stack
from wire.backend import Authentication
from wire.frontend import AuthenticationResponse, Query, SslRequest, StartupRequest
from wire.listener import WireDoor


def turned_away(stack: Stack, password: str, database: str | None = None) -> tuple[str, str]:
    """SQLSTATE and text that a client with this password gets."""
    with raw_client(stack) as client:
        client.send(StartupRequest(3, 0, {"user": "devin", "database": database or stack.database}))
        client.until(Authentication)
        client.send(AuthenticationResponse.password(password))
        [error] = client.until_closed()
    assert error.fields["S"] == "FATAL"
    return error.fields["C"], error.fields["M"]


def test_a_password_that_is_no_token(stack: Stack) -> None:
    code, says = turned_away(stack, "hunter2")
    assert code == "28000"
    assert "token" in says


@pytest.mark.parametrize("password", ["", "a.b.c", "é" * 20_000])
def test_passwords_that_are_nothing_at_all(stack: Stack, password: str) -> None:
    assert turned_away(stack, password)[0] == "28000"


def test_another_issuers_token_and_a_changed_one(stack: Stack, tmp_path: Path) -> None:
    header, payload, signature = stack.tokens["devin"].split(".")
    assert turned_away(stack, f"{header}.{payload}.{signature[:-4]}AAAA")[0] == "28000"
    assert turned_away(stack, f"{header}.{stack.tokens['grace'].split('.')[1]}.{signature}")[0] == "28000"


def test_an_unknown_connection_is_named(stack: Stack) -> None:
    code, says = turned_away(stack, stack.tokens["devin"], "elsewhere")
    assert code == "3D000"
    assert "`elsewhere`" in says


def test_every_failure_is_recorded_and_no_token_is(stack: Stack) -> None:
    before = stack.audit("SELECT max(seq) AS seq FROM entries")[0]["seq"]
    turned_away(stack, "hunter2-secret")
    turned_away(stack, stack.tokens["devin"], "elsewhere")
    found = stack.audit("SELECT kind, body FROM entries WHERE seq > ? AND kind = 'session.refused'", before)
    assert len(found) == 2
    text = " ".join(bytes(r["body"]).decode() if isinstance(r["body"], bytes) else r["body"] for r in found)
    assert "hunter2" not in text
    assert stack.tokens["devin"].split(".")[2] not in text


def test_the_user_name_is_not_who_you_are(stack: Stack) -> None:
    # The token says who: a name in the start-up packet gives nobody anything.
    dsn = stack.wire_dsn("devin", user="grace")
    with psycopg.connect(dsn) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("DROP TABLE orders")
    assert stack.audit("SELECT who FROM statements WHERE sql = 'DROP TABLE orders' ORDER BY seq DESC LIMIT 1") == [
        {"who": "devin"}
    ]


def test_psql_says_why_in_one_line(stack: Stack) -> None:
    done = subprocess.run(
        [psql_path(), "-X", "-w", "-h", stack.host, "-p", str(stack.port), "-U", "devin", "-d", stack.database,
         "-c", ""],
        env={"PGPASSWORD": "hunter2", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "FATAL:" in done.stderr
    assert "Traceback" not in done.stderr


# -- TLS -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls_port(stack: Stack, certificate: Certificate) -> Iterator[int]:
    """A second wire door of the same gateway, with a certificate."""
    file = WireFile(tls=TlsFile(certificate=certificate.certificate, key=certificate.key))
    hall = stack.app.hall
    door = WireDoor(hall.gateway, hall.verifier, hall.secrets, host="127.0.0.1", port=0, tls=server_tls(file))
    stack.call(door.start)
    try:
        yield door.port
    finally:
        stack.call(lambda: door.stop(1))


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_drivers_connect_and_verify(stack: Stack, certificate: Certificate, tls_port: int, mode: str) -> None:
    dsn = stack.wire_dsn("devin", port=str(tls_port), sslmode=mode, sslrootcert=str(certificate.certificate))
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.info.pgconn.ssl_in_use
        assert connection.execute("SELECT ssn FROM customers LIMIT 1").fetchone() is not None
        connection.cancel_safe(timeout=10)
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_psql_over_tls(stack: Stack, certificate: Certificate, tls_port: int) -> None:
    server = f"host=localhost port={tls_port} sslmode=verify-full sslrootcert={certificate.certificate}"
    done = subprocess.run(
        [psql_path(), "-X", "-w", f"{server} user=devin dbname={stack.database}", "-c", r"\conninfo"],
        env={"PGPASSWORD": stack.tokens["devin"], "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert "SSL connection (protocol: TLSv1.3" in done.stdout, done.stderr


def test_what_is_sent_behind_the_request_for_tls_is_never_read(stack: Stack, tls_port: int) -> None:
    # CVE-2021-23214: bytes that somebody in the middle injects before the handshake.
    with socket.create_connection((stack.host, tls_port), timeout=10) as client:
        injected = StartupRequest(3, 0, {"user": "devin", "database": stack.database}).encode()
        client.sendall(SslRequest().encode() + injected + Query(b"SELECT 1").encode())
        assert client.recv(1000) in (b"", b"S")
        client.settimeout(10)
        assert client.recv(1000) == b""


def test_a_handshake_that_is_none_ends_the_connection(stack: Stack, tls_port: int) -> None:
    with socket.create_connection((stack.host, tls_port), timeout=10) as client:
        client.sendall(SslRequest().encode())
        assert client.recv(1) == b"S"
        client.sendall(b"this is no ClientHello\r\n\r\n")
        assert b"shop" not in client.recv(1000)


def test_old_versions_of_tls_are_refused(stack: Stack, tls_port: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection((stack.host, tls_port), timeout=10) as client:
        client.sendall(SslRequest().encode())
        assert client.recv(1) == b"S"
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        # Asking for TLS 1.1 as the newest is what an old client does; OpenSSL calls that deprecated.
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(client)


# -- where a session ends --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ending_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("ending")) as stack:
        yield stack


def test_a_revoked_session_dies_at_once_even_in_the_middle_of_a_statement(ending_stack: Stack) -> None:
    stack = ending_stack
    process = subprocess.Popen(
        [psql_path(), "-X", "-w", "-h", stack.host, "-p", str(stack.port), "-U", "devin", "-d", stack.database,
         "-c", "SELECT count(*) FROM generate_series(1, 1000000000) revoked"],
        env={"PGPASSWORD": stack.tokens["devin"], "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    from tests.waiting import until

    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '% revoked'"
    running += " AND pid <> pg_backend_pid()"
    until(lambda: stack.direct(running) == [(1,)], "the statement did not reach PostgreSQL")
    sessions = stack.app.hall.gateway.sessions

    async def revoke() -> None:
        for session in sessions.list():
            sessions.end(session, "it was revoked by an administrator")

    stack.call(revoke)
    _, said = process.communicate(timeout=20)
    assert "terminating connection: it was revoked by an administrator" in said
    until(lambda: stack.direct(running) == [(0,)], "the statement still runs")
    until(
        lambda: (
            [r["status"] for r in stack.audit("SELECT status FROM statements WHERE sql LIKE '% revoked'")]
            in (["cancelled"], ["unknown"])
        ),
        "no outcome was written",
    )


def test_an_upstream_that_is_killed_is_reported_and_its_statement_ends_unknown(ending_stack: Stack) -> None:
    stack = ending_stack
    with psycopg.connect(stack.wire_dsn("grace"), autocommit=True) as connection:
        [(pid,)] = stack.direct("SELECT max(pid) FROM pg_stat_activity WHERE application_name LIKE 'countersign/%'")
        stack.direct(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


async def test_a_thousand_strangers_get_nothing(ending_stack: Stack) -> None:
    stack = ending_stack

    async def stranger() -> bytes:
        reader, writer = await asyncio.open_connection(stack.host, stack.port)
        try:
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()

    answers = await asyncio.gather(*(stranger() for _ in range(300)))
    assert all(b"08P01" in answer for answer in answers)
    with raw_client(stack, "devin") as client:
        assert errors(client.cycle(Query(b"SELECT 1"))) == []
