"""Logging in upstream: SCRAM against an independent server, and every request that must not be obeyed."""

from __future__ import annotations

import ssl

import pytest
from scramp import ScramMechanism

from wire.backend import Authentication
from wire.fields import ProtocolError, int32
from wire.frontend import AuthenticationResponse
from wire.login import Login, LoginError


def login(*, private: bool = True) -> Login:
    return Login("gateway, = mine", "secret", "our-nonce", private=private, tls=None)


OK = Authentication(Authentication.OK)
CLEARTEXT = Authentication(Authentication.CLEARTEXT)
SASL = Authentication(Authentication.SASL, b"SCRAM-SHA-256\0\0")


def scram_until_final(known_password: str) -> tuple[Login, Authentication]:
    """A conversation with scramp's server, up to the server's last word."""
    mechanism = ScramMechanism("SCRAM-SHA-256")
    info = mechanism.make_auth_info(known_password)
    server = mechanism.make_server(lambda _user: info)
    client = login()
    first = client.answer(SASL)
    assert first is not None
    name, _, rest = first.payload.partition(b"\0")
    assert name == b"SCRAM-SHA-256"
    assert rest[:4] == int32(len(rest) - 4)
    server.set_client_first(rest[4:].decode())
    final = client.answer(Authentication(Authentication.SASL_CONTINUE, server.get_server_first().encode()))
    assert final is not None
    server.set_client_final(final.payload.decode())
    return client, Authentication(Authentication.SASL_FINAL, server.get_server_final().encode())


def test_scram_proves_both_sides() -> None:
    client, final = scram_until_final("secret")
    assert client.answer(final) is None
    assert not client.done
    assert client.answer(OK) is None
    assert client.done


def test_a_server_that_accepts_without_its_proof_is_not_believed() -> None:
    client, _ = scram_until_final("secret")
    with pytest.raises(LoginError, match="did not prove that it knows the password"):
        client.answer(OK)
    assert not client.done


@pytest.mark.parametrize("forged", [b"v=AAAA", b"e=other-error", b"", b"\xff"])
def test_a_wrong_proof_is_refused(forged: bytes) -> None:
    client, _ = scram_until_final("secret")
    with pytest.raises(LoginError):
        client.answer(Authentication(Authentication.SASL_FINAL, forged))
    assert not client.done


@pytest.mark.parametrize("first", ["", "r=x", "r=x,s=AAAA,i=0", "nonsense", "r=,s=,i="])
def test_a_first_word_that_means_nothing_is_refused(first: str) -> None:
    client = login()
    client.answer(SASL)
    with pytest.raises(LoginError):
        client.answer(Authentication(Authentication.SASL_CONTINUE, first.encode()))


def test_a_server_cannot_make_us_compute_for_minutes() -> None:
    client = login()
    first = client.answer(SASL)
    assert first is not None
    nonce = first.payload.decode().rpartition("r=")[2]
    with pytest.raises(LoginError, match="too many SCRAM iterations"):
        client.answer(
            Authentication(Authentication.SASL_CONTINUE, f"r={nonce}x,s=QUJDREVGR0hJSktMTU5PUA==,i=2000000".encode())
        )


@pytest.mark.parametrize("nonce", ["our-nonc", "our-nonce", "another-nonce"])
def test_a_challenge_that_does_not_carry_our_nonce_on_is_refused(nonce: str) -> None:
    client = login()
    client.answer(SASL)
    challenge = f"r={nonce},s=QUJDREVGR0hJSktMTU5PUA==,i=4096".encode()
    with pytest.raises(LoginError, match="its nonce is not this one's"):
        client.answer(Authentication(Authentication.SASL_CONTINUE, challenge))


def test_a_proof_before_the_challenge_is_refused() -> None:
    client = login()
    client.answer(SASL)
    with pytest.raises(LoginError, match="not that of this password"):
        client.answer(Authentication(Authentication.SASL_FINAL, b"v="))
    assert not client.done


def test_the_password_goes_in_clear_only_where_nobody_else_reads() -> None:
    assert login().answer(CLEARTEXT) == AuthenticationResponse.password("secret")
    with pytest.raises(LoginError, match="clear text outside of TLS"):
        login(private=False).answer(CLEARTEXT)


def test_trust_is_accepted() -> None:
    client = login()
    assert client.answer(OK) is None
    assert client.done


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Authentication(Authentication.MD5, b"salt"), "MD5"),
        (Authentication(Authentication.SASL, b"OAUTHBEARER\0\0"), "only OAUTHBEARER"),
    ],
)
def test_what_we_do_not_do_is_said(request_: Authentication, says: str) -> None:
    with pytest.raises(LoginError, match=says):
        login().answer(request_)


@pytest.mark.parametrize(
    ("tls", "request_", "says"),
    [
        (None, SASL, "there is no TLS"),
        (ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO()), SASL, "not offer SCRAM-SHA-256-PLUS"),
        (None, CLEARTEXT, "in clear text"),
        (None, OK, "lets us in without SCRAM"),
    ],
)
def test_where_a_bound_channel_is_required_nothing_less_is_enough(
    tls: ssl.SSLObject | None, request_: Authentication, says: str
) -> None:
    client = Login("gateway", "secret", "our-nonce", private=True, tls=tls, channel_binding="require")
    with pytest.raises(LoginError, match=f"{says}.*channel_binding is `require`"):
        client.answer(request_)
    assert not client.done


@pytest.mark.parametrize("kind", [2, 6, 7, 9, Authentication.SASL_CONTINUE, Authentication.SASL_FINAL, 99])
def test_a_request_out_of_turn_is_a_violation(kind: int) -> None:
    with pytest.raises(ProtocolError, match="unexpected authentication request"):
        login().answer(Authentication(kind, b""))
