"""Session secrets: a token changed for a password at the HTTP side, and SCRAM with it at the wire door."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import asyncpg
import httpx2
import psycopg
import pytest

from tests.doors.test_wire_limits import door
from tests.doors.wire_calls import errors, raw_client
from tests.stack import Stack, psql_path
from wire.backend import Authentication
from wire.frontend import AuthenticationResponse, StartupRequest


def logged_in(stack: Stack, who: str) -> dict[str, str]:
    """What `countersign login` prints, as an environment."""
    done = subprocess.run(
        [sys.executable, "-m", "server", "login", "--url", stack.url],
        env=os.environ | {"COUNTERSIGN_TOKEN": stack.tokens[who]},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("export ") for line in done.stdout.splitlines() if line.startswith("export ")]
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="module")
def secret(stack: Stack) -> dict[str, str]:
    return logged_in(stack, "devin")


def test_drivers_log_in_with_a_session_secret_by_scram(stack: Stack, secret: dict[str, str]) -> None:
    done = subprocess.run(
        [psql_path(), "-X", "-w", "-At", "-h", stack.host, "-p", str(stack.port), "-d", stack.database,
         "-c", "SELECT ssn FROM customers WHERE id = 1"],
        env={**secret, "PATH": "/usr/bin:/bin", "PGREQUIREAUTH": "scram-sha-256"},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("*******"), done.stderr
    dsn = stack.wire_dsn("devin", user=secret["PGUSER"], password=secret["PGPASSWORD"])
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    [row] = stack.audit("SELECT who FROM statements WHERE sql = 'SELECT ssn FROM customers WHERE id = 1' LIMIT 1")
    assert row["who"] == "devin"
    opened = "SELECT json_extract(body, '$.token') AS token FROM entries WHERE kind = 'session.opened'"
    assert stack.audit(f"{opened} ORDER BY seq DESC LIMIT 1")[0]["token"].endswith(f" {secret['PGUSER']}")


async def test_asyncpg_logs_in_with_a_session_secret(stack: Stack, secret: dict[str, str]) -> None:
    connection = await asyncpg.connect(
        host=stack.host, port=stack.port, database=stack.database, user=secret["PGUSER"], password=secret["PGPASSWORD"]
    )
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


def refusal(stack: Stack, user: str, password: str) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(stack.wire_dsn("devin", user=user, password=password))
    return str(caught.value)


def test_a_wrong_password_of_a_secret(stack: Stack, secret: dict[str, str]) -> None:
    user = secret["PGUSER"]
    assert f'FATAL:  password authentication failed for user "{user}"' in refusal(stack, user, "guessed")
    # Not even the token itself: what is asked for is the secret's password.
    assert "password authentication failed" in refusal(stack, user, "x" * 100)


def test_a_secret_that_does_not_exist_is_asked_for_as_if_it_did(stack: Stack) -> None:
    assert 'password authentication failed for user "cs-000000000000"' in refusal(stack, "cs-000000000000", "guessed")
    with raw_client(stack) as client:
        client.send(StartupRequest(3, 0, {"user": "cs-000000000000", "database": stack.database}))
        [request] = client.until(Authentication)
        assert (request.kind, request.mechanisms()) == (Authentication.SASL, ["SCRAM-SHA-256"])
        client.send(AuthenticationResponse.sasl_initial("SCRAM-SHA-256", b"n,,n=,r=abcdefghijklmnop"))
        assert client.until(Authentication)[-1].kind == Authentication.SASL_CONTINUE


def test_a_password_message_where_scram_was_asked_for_is_a_violation(stack: Stack) -> None:
    with raw_client(stack) as client:
        client.send(StartupRequest(3, 0, {"user": "cs-000000000000", "database": stack.database}))
        client.until(Authentication)
        client.send(AuthenticationResponse.password("hunter2"))
        assert [code for code, _ in errors(client.until_closed())] == ["08P01"]


def test_an_address_that_fails_too_often_waits(stack: Stack) -> None:
    with door(stack, failures=2) as port:
        for said in ("SELECT", "SELECT", None):
            with raw_client(stack, port=port) as client:
                client.send(StartupRequest(3, 0, {"user": "devin", "database": stack.database}))
                if said is not None:
                    client.until(Authentication)
                    client.send(AuthenticationResponse.password(said))
                told = errors(client.until_closed())
                assert [code for code, _ in told] == ["28000"]
        assert told[0][1] == "too many failed logins from this address; try again in a minute"


@pytest.mark.parametrize("token", [None, "hunter2"])
def test_without_a_token_there_is_no_secret(stack: Stack, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    answer = httpx2.post(stack.url.replace("/mcp", "/wire-secret"), headers=headers)
    assert answer.status_code == 401
    assert "password" not in answer.json()


def test_a_secret_is_made_by_post_only_and_never_cached(stack: Stack) -> None:
    url, headers = stack.url.replace("/mcp", "/wire-secret"), {"Authorization": f"Bearer {stack.tokens['devin']}"}
    assert httpx2.get(url, headers=headers).status_code == 405
    answer = httpx2.post(url, headers=headers)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["user"].startswith("cs-")


@pytest.mark.parametrize(
    ("token", "url", "says"),
    [
        ("", "http://127.0.0.1:1", "COUNTERSIGN_TOKEN is not set"),
        ("x", "http://127.0.0.1:1", "no secret could be had from http://127.0.0.1:1/wire-secret"),
        ("x", "not a url", "no secret could be had"),
    ],
)
def test_a_login_that_cannot_be_is_one_sentence(token: str, url: str, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", "login", "--url", url],
        env=os.environ | {"COUNTERSIGN_TOKEN": token}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_many_log_in_at_once(stack: Stack, secret: dict[str, str]) -> None:
    async def one(number: int) -> int:
        connection = await asyncpg.connect(
            host=stack.host, port=stack.port, database=stack.database,
            user=secret["PGUSER"], password=secret["PGPASSWORD"],
        )  # fmt: skip
        try:
            return int(await connection.fetchval("SELECT $1::int", number))
        finally:
            await connection.close()

    assert await asyncio.gather(*(one(n) for n in range(20))) == list(range(20))
