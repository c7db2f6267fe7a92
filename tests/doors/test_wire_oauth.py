"""SASL OAUTHBEARER at the running wire door: libpq 18 with a token hook, and clients that break its rules."""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import psycopg_binary
import pytest

from server.app import oauth_offer
from server.postgres import binaries
from server.wire_config import OauthFile
from tests.doors.wire_calls import errors, raw_client
from tests.stack import Stack
from wire.backend import Authentication
from wire.frontend import AuthenticationResponse, StartupRequest
from wire.listener import WireDoor

_OAUTH_BEARER_TOKEN = 1  # PGauthData, libpq-fe.h


@pytest.fixture(scope="module")
def port(stack: Stack) -> Iterator[int]:
    """A door that asks the user `oauth` for OAUTHBEARER."""
    hall = stack.app.hall
    offer = oauth_offer(hall.config, OauthFile(users=["oauth"], scope="openid db"))
    door = WireDoor(hall.gateway, hall.verifier, hall.secrets, host="127.0.0.1", port=0, tls=None, oauth=offer)
    stack.call(door.start)
    try:
        yield door.port
    finally:
        stack.call(lambda: door.stop(1))


# -- libpq -----------------------------------------------------------------------------------------------


class _Request(ctypes.Structure):
    """PGoauthBearerRequest, libpq-fe.h of PostgreSQL 18."""

    _fields_ = (
        ("openid_configuration", ctypes.c_char_p),
        ("scope", ctypes.c_char_p),
        ("poll", ctypes.c_void_p),
        ("cleanup", ctypes.c_void_p),
        ("token", ctypes.c_char_p),
        ("user", ctypes.c_void_p),
    )


_HOOK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


@contextmanager
def token_hook(token: str, told: list[tuple[str, str]]) -> Iterator[None]:
    """Let psycopg's own libpq take tokens from us, and tell what the server said where they are to be had."""
    [library] = Path(psycopg_binary.__file__).parents[1].glob("psycopg_binary.libs/libpq-*.so*")
    libpq = ctypes.CDLL(str(library))
    libpq.PQgetAuthDataHook.restype = ctypes.c_void_p
    libpq.PQsetAuthDataHook.argtypes = [ctypes.c_void_p]
    given = token.encode()

    def answer(kind: int, _: int, data: int) -> int:
        if kind != _OAUTH_BEARER_TOKEN:
            return 0
        request = _Request.from_address(data)
        told.append((request.openid_configuration.decode(), request.scope.decode()))
        request.token = given
        return 1

    hook = _HOOK(answer)
    before = libpq.PQgetAuthDataHook()
    libpq.PQsetAuthDataHook(ctypes.cast(hook, ctypes.c_void_p))
    try:
        yield
    finally:
        libpq.PQsetAuthDataHook(before)


def dsn(stack: Stack, port: int) -> str:
    [issuer] = stack.app.hall.config.issuers
    parts = {"user": "oauth", "port": str(port), "oauth_issuer": issuer.url, "oauth_client_id": "tests"}
    return stack.wire_dsn("devin", password="''", require_auth="oauth", **parts)


def refusals(stack: Stack) -> int:
    return int(stack.audit("SELECT count(*) AS n FROM entries WHERE kind = 'session.refused'")[0]["n"])


def test_libpq_finds_the_issuer_and_comes_again_with_a_token(
    stack: Stack, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOAUTHDEBUG", "UNSAFE")  # the issuer of the tests has no TLS
    [issuer] = stack.app.hall.config.issuers
    told: list[tuple[str, str]] = []
    before = refusals(stack)
    with token_hook(stack.tokens["devin"], told), psycopg.connect(dsn(stack, port)) as connection:
        assert connection.execute("SELECT count(*) FROM tickets").fetchone() is not None
    assert told == [(f"{issuer.url}/.well-known/openid-configuration", "openid db")]
    opened = "SELECT subject, json_extract(body, '$.door') AS door FROM entries WHERE kind = 'session.opened'"
    assert stack.audit(f"{opened} ORDER BY seq DESC LIMIT 1") == [{"subject": "devin", "door": "wire"}]
    assert refusals(stack) == before, "to ask where a token is to be had is no failed login"


def test_libpq_shows_why_its_token_was_refused(stack: Stack, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOAUTHDEBUG", "UNSAFE")
    before = refusals(stack)
    with token_hook("forged.token", []), pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(dsn(stack, port))
    assert "FATAL:  the token is not a signed JWT" in str(caught.value)
    assert refusals(stack) == before + 1


def test_psql_18_without_a_flow_says_what_it_lacks(stack: Stack, port: int) -> None:
    """Discovery is its own; only the flow that fetches a token is not in this build."""
    done = subprocess.run(
        [str(binaries() / "psql"), "-X", "-w", "-c", "SELECT 1", dsn(stack, port)],
        env={"PGOAUTHDEBUG": "UNSAFE", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no OAuth flows are available" in done.stderr


# -- by hand ---------------------------------------------------------------------------------------------


def asked(stack: Stack, port: int, first: AuthenticationResponse, *more: bytes) -> tuple[list[bytes], tuple[str, str]]:
    """The challenges and the FATAL that these responses get."""
    with raw_client(stack, port=port) as client:
        client.send(StartupRequest(3, 0, {"user": "oauth", "database": stack.database}))
        [request] = client.until(Authentication)
        assert (request.kind, request.mechanisms()) == (Authentication.SASL, ["OAUTHBEARER"])
        client.send(first, *(AuthenticationResponse(payload) for payload in more))
        got = client.until_closed()
    [error] = errors(got)
    return [m.data for m in got if isinstance(m, Authentication)], error


def initial(text: str, mechanism: str = "OAUTHBEARER") -> AuthenticationResponse:
    return AuthenticationResponse.sasl_initial(mechanism, text.encode())


@pytest.mark.parametrize(
    ("first", "more", "code", "says", "challenged"),
    [
        (initial("n,,\x01auth=Bearer a.b.c\x01\x01"), (b"\x01",), "28000", "not a signed JWT", True),
        (initial("n,,\x01auth=Basic YTpi\x01\x01"), (b"\x01",), "28000", "no bearer token", True),
        (initial("n,a=grace,\x01auth=Bearer a\x01\x01"), (b"\x01",), "28000", "authorization identity", True),
        (initial("n,,\x01auth=\x01\x01"), (b"\x01",), "28000", "no token was sent", True),
        (initial("n,,\x01auth=\x01\x01"), (b"again",), "08P01", "not acknowledged", True),
        (initial("n,,\x01auth="), (), "08P01", "malformed OAUTHBEARER message", False),
        (initial("p=tls-exporter,,\x01auth=\x01\x01"), (), "08P01", "binds a channel", False),
        (initial("n,,\x01auth=Bearer a\x01\x01", "SCRAM-SHA-256"), (), "08P01", "invalid SASL", False),
        (AuthenticationResponse.password("hunter2"), (), "08P01", "", False),
    ],
    ids=str,
)
def test_each_failure_has_its_own_sentence(
    stack: Stack,
    port: int,
    first: AuthenticationResponse,
    more: tuple[bytes, ...],
    code: str,
    says: str,
    challenged: bool,
) -> None:
    challenges, (got, text) = asked(stack, port, first, *more)
    assert got == code
    assert says in text
    assert [json.loads(data)["status"] for data in challenges] == ["invalid_token"] * challenged


def test_a_token_by_hand_opens_a_session_and_other_users_are_asked_as_before(stack: Stack, port: int) -> None:
    with raw_client(stack, port=port) as client:
        client.send(StartupRequest(3, 0, {"user": "oauth", "database": stack.database}))
        client.until(Authentication)
        client.send(initial(f"n,,\x01auth=Bearer {stack.tokens['grace']}\x01\x01"))
        assert client.until(Authentication)[-1].kind == Authentication.OK
    for user, kind in (("devin", Authentication.CLEARTEXT), ("cs-000000000000", Authentication.SASL)):
        with raw_client(stack, port=port) as client:
            client.send(StartupRequest(3, 0, {"user": user, "database": stack.database}))
            [request] = client.until(Authentication)
            assert request.kind == kind
