"""SCRAM as the server, against a client of our own and of nobody's; and the count of failures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from scramp import ScramClient as Scramp

from gateway.errors import AuthenticationError, WrongPasswordError
from gateway.identity import VerifiedToken
from gateway.session_secrets import SessionSecrets
from policy.model import Principal, PrincipalKind
from wire.fields import ProtocolError
from wire.frontend import AuthenticationResponse
from wire.scram import ScramClient, ScramServer
from wire.throttle import FailureLimit

SECRETS = SessionSecrets()
ISSUED = SECRETS.issue(
    VerifiedToken(
        Principal("devin", "https://issuer.example", PrincipalKind.AGENT),
        datetime.now(UTC) + timedelta(hours=1),
        "jti",
        frozenset(),
    )
)


def server(binding: bytes | None = None) -> ScramServer:
    return ScramServer(ISSUED.user, SECRETS.verifier(ISSUED.user), "server-nonce", binding)


def first(mechanism: str, text: str) -> AuthenticationResponse:
    return AuthenticationResponse.sasl_initial(mechanism, text.encode())


def talk(to: ScramServer, password: str, binding: bytes | None = None) -> Scramp:
    with_binding = None if binding is None else ("tls-server-end-point", binding)
    client = Scramp(list(to.mechanisms), "devin", password, channel_binding=with_binding)
    answer = to.first(first(client.mechanism_name, client.get_client_first()))
    client.set_server_first(answer.decode())
    client.set_server_final(to.final(AuthenticationResponse(client.get_client_final().encode())).decode())
    return client


@pytest.mark.parametrize("binding", [None, b"\1" * 32])
def test_scram_both_ways(binding: bytes | None) -> None:
    used = talk(server(binding), ISSUED.password, binding)
    assert used.mechanism_name == ("SCRAM-SHA-256" if binding is None else "SCRAM-SHA-256-PLUS")


def test_the_example_of_rfc_7677() -> None:
    client = ScramClient("user", "pencil", "rOprNGfwEbeRWgbNEkqO")
    assert (client.mechanism, client.first()) == ("SCRAM-SHA-256", b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
    challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    assert client.final(challenge) == (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    client.check(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")


@pytest.mark.parametrize("binding", [None, b"\1" * 32])
def test_our_client_meets_our_server(binding: bytes | None) -> None:
    for password, proves in ((ISSUED.password, True), (ISSUED.password + "x", False)):
        to, client = server(binding), ScramClient("devin", password, "nonce", binding)
        client_final = client.final(to.first(AuthenticationResponse.sasl_initial(client.mechanism, client.first())))
        if proves:
            client.check(to.final(AuthenticationResponse(client_final)))
        else:
            with pytest.raises(WrongPasswordError):
                to.final(AuthenticationResponse(client_final))


def test_a_server_that_can_bind_hears_from_our_client_that_its_offer_was_taken_away() -> None:
    client = ScramClient("devin", ISSUED.password, "nonce", could_bind=True)
    with pytest.raises(AuthenticationError, match="channel binding negotiation failed"):
        server(b"\1" * 32).first(AuthenticationResponse.sasl_initial(client.mechanism, client.first()))


def test_another_password_or_another_certificate_is_no_proof() -> None:
    with pytest.raises(AuthenticationError, match="password authentication failed"):
        talk(server(), ISSUED.password + "x")
    with pytest.raises(AuthenticationError, match="binding check failed"):
        talk(server(b"\1" * 32), ISSUED.password, b"\2" * 32)  # somebody in the middle with a certificate of their own


def test_a_client_that_was_talked_out_of_channel_binding_is_refused() -> None:
    # RFC 5802, section 6: `y` says that the client could bind, and believes that we cannot.
    with pytest.raises(AuthenticationError):
        server(b"\1" * 32).first(first("SCRAM-SHA-256", "y,,n=,r=abcdefghijklmnop"))


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1", "PLAIN", ""])
def test_a_mechanism_that_was_not_offered_is_a_violation(mechanism: str) -> None:
    with pytest.raises(ProtocolError, match="invalid SASL"):
        server().first(first(mechanism, "n,,n=,r=abcdefghijklmnop"))


MALFORMED = ["", "n", "n,,", "n,,r=", "n,,n=,r=", "x,,n=,r=a", "n,a=root,n=,r=a", "n,,m=x,n=,r=a", "n,,n=,r=\0",
             "é" * 9, "p=tls-unique,,n=,r=a", "p=tls-server-end-point,,n=,r=a"]  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED)
def test_a_message_that_scram_does_not_allow(text: str) -> None:
    with pytest.raises(ProtocolError, match="malformed SCRAM"):
        server().first(first("SCRAM-SHA-256", text))


def test_channel_binding_is_not_left_out_of_the_mechanism_that_has_it() -> None:
    with pytest.raises(ProtocolError, match="malformed SCRAM"):
        server(b"\1" * 32).first(first("SCRAM-SHA-256-PLUS", "n,,n=,r=abc"))


NONCE = b"abcserver-nonce"
PROOF = b",p=" + b"A" * 43 + b"="
FINALS = {
    b"": ProtocolError,
    b"\xff": ProtocolError,
    b"c=biws": ProtocolError,
    b"c=biws,r=" + NONCE + b",p=AAAA": ProtocolError,
    b"c=biws,r=" + NONCE + b",p=!": ProtocolError,
    b"c=biws,r=abc" + PROOF: ProtocolError,
    b"c=eSws,r=" + NONCE + PROOF: AuthenticationError,
    b"c=biws,r=" + NONCE + PROOF: WrongPasswordError,
}


@pytest.mark.parametrize("final", FINALS, ids=repr)
def test_a_final_message_without_a_proof(final: bytes) -> None:
    to = server()
    to.first(first("SCRAM-SHA-256", "n,,n=,r=abc"))
    with pytest.raises(FINALS[final]):
        to.final(AuthenticationResponse(final))


def test_the_name_in_the_message_may_be_empty_as_libpq_sends_it() -> None:
    assert server().first(first("SCRAM-SHA-256", "n,,n=,r=abc")).startswith(b"r=abcserver-nonce,s=")


def test_an_address_that_fails_too_often_waits_and_no_other_does() -> None:
    limit = FailureLimit(3)
    for second in range(3):
        assert not limit.blocked("10.0.0.1", second)
        limit.failed("10.0.0.1", second)
    assert limit.blocked("10.0.0.1", 59)
    assert not limit.blocked("10.0.0.1", 60)
    assert not limit.blocked("10.0.0.2", 3)


def test_what_is_remembered_of_failures_is_bounded() -> None:
    limit = FailureLimit(1)
    for number in range(10_001):
        limit.failed(f"10.0.{number // 256}.{number % 256}", 0)
    assert not limit.blocked("10.0.0.0", 0)
    assert limit.blocked("10.0.0.1", 0)
