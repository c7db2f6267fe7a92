"""OAUTHBEARER as the server: what a client may send, and what each other message is called."""

from __future__ import annotations

import json

import pytest

from gateway.errors import AuthenticationError
from wire.fields import ProtocolError
from wire.frontend import AuthenticationResponse
from wire.oauthbearer import OauthOffer, check_acknowledged, token_of

OFFER = OauthOffer(("oauth", "*@example.com"), "https://i.example/.well-known/openid-configuration", "openid db")


def first(text: str, mechanism: str = "OAUTHBEARER") -> AuthenticationResponse:
    return AuthenticationResponse.sasl_initial(mechanism, text.encode())


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("n,,\x01auth=Bearer a.b-c_d~e+f/0==\x01\x01", "a.b-c_d~e+f/0=="),
        ("y,,\x01auth=bearer   abc\x01\x01", "abc"),
        ("n,,\x01host=db\x01port=5432\x01auth=Bearer abc\x01\x01", "abc"),
        ("n,,\x01auth=\x01\x01", ""),  # where is a token to be had?
    ],
)
def test_a_token_is_found_in_the_first_message(text: str, token: str) -> None:
    assert token_of(first(text)) == token


@pytest.mark.parametrize(
    "text",
    [
        "", "n", "n,,", "n,,\x01", "n,,\x01\x01", "n,,\x01\x01\x01", "n,\x01auth=Bearer a\x01\x01",
        "z,,\x01auth=Bearer a\x01\x01", "n,,auth=Bearer a\x01\x01", "n,,\x01auth=Bearer a\x01", "n,,\x01auth=Bearer a",
        "n,,\x01auth=Bearer a\x01auth=Bearer b\x01\x01", "n,,\x01host=db\x01\x01", "n,,\x01=Bearer a\x01\x01",
        "n,,\x01auth=Bearer a\x01\x01\x01", "n,,\x01auth=Bearer a\x01\x01more", "n,,\x01auth=Bearer \0a\x01\x01",
        "n,,\x01auth=Bearer é\x01\x01", "p=tls-server-end-point,,\x01auth=Bearer a\x01\x01",
    ],
)  # fmt: skip
def test_a_message_that_is_none_is_a_violation(text: str) -> None:
    with pytest.raises(ProtocolError):
        token_of(first(text))


def test_another_mechanism_than_the_one_offered_is_a_violation() -> None:
    with pytest.raises(ProtocolError, match="invalid SASL authentication mechanism"):
        token_of(first("n,,\x01auth=Bearer a\x01\x01", "SCRAM-SHA-256"))
    with pytest.raises(ProtocolError):
        token_of(AuthenticationResponse(b"OAUTHBEARER\0\xff\xff\xff\xff"))


@pytest.mark.parametrize("value", ["Basic abc", "Bearer", "Bearer ", "abc", "Bearer a b", "Bearer =", "Bearer a,b"])
def test_what_is_no_bearer_token_is_refused(value: str) -> None:
    with pytest.raises(AuthenticationError, match="no bearer token"):
        token_of(first(f"n,,\x01auth={value}\x01\x01"))


def test_nobody_acts_as_somebody_else() -> None:
    with pytest.raises(AuthenticationError, match="authorization identity"):
        token_of(first("n,a=grace,\x01auth=Bearer a\x01\x01"))


def test_a_failure_says_where_a_token_is_to_be_had_and_is_acknowledged() -> None:
    assert json.loads(OFFER.failure()) == {
        "status": "invalid_token",
        "openid-configuration": "https://i.example/.well-known/openid-configuration",
        "scope": "openid db",
    }
    check_acknowledged(AuthenticationResponse(b"\x01"))
    for wrong in (b"", b"\x01\x01", b"n,,\x01auth=Bearer a\x01\x01"):
        with pytest.raises(ProtocolError, match="not acknowledged"):
            check_acknowledged(AuthenticationResponse(wrong))


def test_who_is_asked_is_said_by_the_users_name() -> None:
    asked = [name for name in ("oauth", "ada@example.com", "oauth2", "ada@examplexcom", "devin") if OFFER.asks(name)]
    assert asked == ["oauth", "ada@example.com"]
