"""Client certificates that stand for a program, at the running wire door."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from server.app import certificate_principals, server_tls
from server.wire_config import ClientPrincipalFile, TlsFile, WireFile
from tests.certificates import Certificate, make, revoke
from tests.stack import Stack
from wire.listener import WireDoor


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificate]:
    folder = tmp_path_factory.mktemp("certificates")
    authority = make(folder, "authority", "Example CA")
    return {
        "server": make(folder),
        "authority": authority,
        "etl": make(folder, "etl", "etl.example.com", authority, lives=timedelta(minutes=4)),
        "stolen": make(folder, "stolen", "etl.example.com", authority),
        "web": make(folder, "web", "web.example.com", authority),
        "stranger": make(folder, "stranger", "etl.example.com"),
    }


@contextmanager
def door(stack: Stack, made: dict[str, Certificate], **tls: object) -> Iterator[int]:
    """A door that takes the certificate of `etl` for an agent of ada's."""
    hall = stack.app.hall
    principal = ClientPrincipalFile(
        common_name="etl.example.com", subject="etl", groups=["ai-agents"], on_behalf_of="ada"
    )
    file = TlsFile.model_validate(
        {
            "certificate": made["server"].certificate,
            "key": made["server"].key,
            "client_ca": made["authority"].certificate,
            "client_principals": [principal],
            **tls,
        }
    )
    opened = WireDoor(
        hall.gateway, hall.verifier, hall.secrets, host="127.0.0.1", port=0,
        tls=server_tls(WireFile(tls=file)), certificates=certificate_principals(hall.config, file),
    )  # fmt: skip
    stack.call(opened.start)
    try:
        yield opened.port
    finally:
        stack.call(lambda: opened.stop(1))


def come(stack: Stack, made: dict[str, Certificate], port: int, certificate: str | None, **more: str) -> str:
    """Who a client with this certificate is, by the audit's word; it has no password unless given."""
    given = made[certificate] if certificate else None
    parts = {
        "host": "localhost", "port": str(port), "sslmode": "verify-full", "password": "''",
        "sslrootcert": str(made["server"].certificate),
        "sslcert": str(given.certificate) if given else "none", "sslkey": str(given.key) if given else "none", **more,
    }  # fmt: skip
    with psycopg.connect(stack.wire_dsn("devin", **parts)) as connection:
        connection.execute("SELECT 1")
        opened = "SELECT subject FROM entries WHERE kind = 'session.opened' ORDER BY seq DESC LIMIT 1"
        return str(stack.audit(opened)[0]["subject"])


def test_a_certificate_alone_is_a_login_as_the_user_it_stands_for(stack: Stack, made: dict[str, Certificate]) -> None:
    with door(stack, made, client_certificates="optional") as port:
        assert come(stack, made, port, "etl", user="etl", require_auth="none") == "etl"
        opened = "SELECT body FROM entries WHERE kind = 'session.opened' ORDER BY seq DESC LIMIT 1"
        body = str(stack.audit(opened)[0]["body"])
        assert "tls:Example CA" in body
        assert "certificate " in body
        # As another user it is no more than a certificate: a login is asked for.
        assert come(stack, made, port, "etl", user="me", password=stack.tokens["devin"]) == "devin"
        for certificate, user in (("etl", "grace"), ("web", "etl"), (None, "etl")):
            with pytest.raises(psycopg.OperationalError, match="token"):
                come(stack, made, port, certificate, user=user, password="x")
        with pytest.raises(psycopg.OperationalError, match=r"SSL error|closed the connection"):
            come(stack, made, port, "stranger", user="etl")
        # Without TLS there is no certificate, so nobody is let in by its name.
        with pytest.raises(psycopg.OperationalError, match="token"):
            come(stack, made, port, "etl", user="etl", password="x", sslmode="disable", sslrootcert="")
        assert come(stack, made, port, None, user="me", password=stack.tokens["devin"]) == "devin"


def test_where_each_client_needs_one_a_login_is_needed_by_those_that_stand_for_nobody(
    stack: Stack, made: dict[str, Certificate]
) -> None:
    with door(stack, made, client_certificates="required") as port:
        assert come(stack, made, port, "etl", user="etl") == "etl"
        assert come(stack, made, port, "web", user="me", password=stack.tokens["devin"]) == "devin"
        with pytest.raises(psycopg.OperationalError, match=r"SSL error|closed the connection"):
            come(stack, made, port, None, user="me", password=stack.tokens["devin"])


def test_where_both_are_needed_a_certificate_is_no_login(stack: Stack, made: dict[str, Certificate]) -> None:
    with door(stack, made, client_certificates="both", client_principals=[]) as port:
        with pytest.raises(psycopg.OperationalError, match="token"):
            come(stack, made, port, "etl", user="etl", password="x")
        assert come(stack, made, port, "etl", user="etl", password=stack.tokens["devin"]) == "devin"


def test_a_session_ends_with_its_certificate(stack: Stack, made: dict[str, Certificate]) -> None:
    with door(stack, made, client_certificates="optional") as port:
        parts = {"sslcert": str(made["etl"].certificate), "sslkey": str(made["etl"].key)}
        dsn = stack.wire_dsn("devin", user="etl", port=str(port), sslmode="require", password="''", **parts)
        with psycopg.connect(dsn) as connection:
            connection.execute("SELECT 1")
            [session] = [s for s in stack.app.hall.gateway.sessions.list() if s.principal.subject == "etl"]
            assert session.expires <= datetime.now(UTC) + timedelta(minutes=4)


def test_a_revoked_certificate_is_no_certificate(stack: Stack, made: dict[str, Certificate], tmp_path: Path) -> None:
    revoked = revoke(tmp_path, made["authority"], made["web"])
    with door(stack, made, client_certificates="optional", client_crl=revoked) as port:
        assert come(stack, made, port, "stolen", user="etl") == "etl"
        revoke(tmp_path, made["authority"], made["stolen"])  # holds from the next connection on
        with pytest.raises(psycopg.OperationalError, match=r"SSL error|closed the connection"):
            come(stack, made, port, "stolen", user="etl")
        assert come(stack, made, port, "etl", user="etl") == "etl"
