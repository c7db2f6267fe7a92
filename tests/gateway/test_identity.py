"""Access tokens against a real issuer over HTTP: what opens a session and what does not, one sentence each."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway import identity
from gateway.errors import AuthenticationError
from gateway.identity import Issuer, TokenVerifier, as_principal, claim_at
from policy.model import PrincipalKind
from server import issuer as local


@pytest.fixture
async def issuer() -> AsyncIterator[local.Issuer]:
    async with local.serve() as running:
        yield running


@pytest.fixture
async def verifier(issuer: local.Issuer) -> AsyncIterator[TokenVerifier]:
    verifier = TokenVerifier([Issuer(issuer.url, local.AUDIENCE)])
    yield verifier
    await verifier.close()


async def test_an_agents_token_names_the_agent_its_groups_and_its_human(
    issuer: local.Issuer, verifier: TokenVerifier
) -> None:
    verified = await verifier.verify(
        issuer.token("devin", kind="agent", groups=["ai-agents"], on_behalf_of="ada", scope="query approve")
    )
    principal = verified.principal
    assert (principal.subject, principal.issuer, principal.kind) == ("devin", issuer.url, PrincipalKind.AGENT)
    assert principal.groups == {"ai-agents"}
    assert principal.human == (issuer.url, "ada")
    assert verified.scopes == {"query", "approve"}


async def test_an_act_claim_makes_the_actor_the_principal_and_the_subject_its_human(
    issuer: local.Issuer, verifier: TokenVerifier
) -> None:
    verified = await verifier.verify(issuer.token("ada", act={"sub": "devin"}))
    assert verified.principal.subject == "devin"
    assert verified.principal.kind is PrincipalKind.AGENT
    assert verified.principal.on_behalf_of == "ada"


NAMED: list[tuple[dict[str, Any], str | None]] = [
    ({}, "ada@example.com"),
    ({"email_verified": True}, "ada@example.com"),
    ({"email_verified": "true"}, "ada@example.com"),
    # Where people choose their address themselves, rules that name one would be anybody's.
    ({"email_verified": False}, None),
    ({"email_verified": "false"}, None),
    ({"email_verified": 0}, None),
    ({"email": "grace"}, None),  # a subject, not an address
    ({"act": {"sub": "devin"}}, None),  # the human's, and the agent is somebody else
]


@pytest.mark.parametrize(("claims", "email"), NAMED, ids=str)
async def test_only_an_address_that_is_verified_and_the_principals_own_names_it(
    issuer: local.Issuer, verifier: TokenVerifier, claims: dict[str, Any], email: str | None
) -> None:
    verified = await verifier.verify(issuer.token("ada", **({"email": "ada@example.com", "name": "Ada"} | claims)))
    assert verified.principal.email == email
    assert verified.principal.name == (None if "act" in claims else "Ada")


async def test_a_token_that_says_for_whom_it_works_and_no_kind_is_an_agents(
    issuer: local.Issuer, verifier: TokenVerifier
) -> None:
    verified = await verifier.verify(issuer.token("devin", principal_kind=None, on_behalf_of="ada"))
    assert verified.principal.kind is PrincipalKind.AGENT
    assert verified.principal.human == (issuer.url, "ada")


LOGINS: list[tuple[dict[str, Any], datetime | None, str | None]] = [
    ({"auth_time": 1_700_000_000, "acr": "phr"}, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), "phr"),
    ({}, None, None),
    # What is no time of the past is no login: nothing may count as fresh by an odd value.
    ({"auth_time": 4_000_000_000, "acr": ""}, None, None),
    ({"auth_time": "1700000000", "acr": ["phr"]}, None, None),
    ({"auth_time": True, "acr": 1}, None, None),
    ({"auth_time": float("nan")}, None, None),
]


@pytest.mark.parametrize(("claims", "auth_time", "acr"), LOGINS, ids=str)
async def test_when_and_how_a_person_logged_in_is_kept_as_the_issuer_says_it(
    issuer: local.Issuer, verifier: TokenVerifier, claims: dict[str, Any], auth_time: datetime | None, acr: str | None
) -> None:
    verified = await verifier.verify(issuer.token("grace", **claims))
    assert (verified.auth_time, verified.acr) == (auth_time, acr)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"lifetime": timedelta(hours=-1)}, "expired at"),
    ({"audience": "somebody-else"}, "was issued for `somebody-else`"),
    ({"audience": []}, "was issued for"),
    ({"iss": "https://elsewhere.example"}, "issuer `https://elsewhere.example` is not trusted"),
    ({"nbf": 4_000_000_000}, "is not valid yet"),
    ({"exp": None}, "has no expiry"),
    ({"exp": True}, "has no expiry"),
    ({"act": {"sub": ""}}, "names no actor"),
    # Odd types must not turn an agent into a human, who could vote, nor lose the human who may not.
    ({"act": "devin"}, "names no actor"),
    ({"act": []}, "names no actor"),
    ({"kind": "AGENT"}, "neither `agent` nor `human`"),
    ({"principal_kind": ["agent"]}, "neither `agent` nor `human`"),
    ({"principal_kind": True}, "neither `agent` nor `human`"),
    ({"kind": "agent", "on_behalf_of": ["ada"]}, "is not a name"),
    ({"kind": "agent", "on_behalf_of": {"sub": "ada"}}, "is not a name"),
    ({"exp": 1e300}, "has no expiry"),
    ({"exp": float("inf")}, "has no expiry"),
    ({"exp": float("nan")}, "has no expiry"),
    ({"nbf": True}, "is not valid yet"),
]


@pytest.mark.parametrize(("claims", "sentence"), REFUSED, ids=str)
async def test_a_wrong_claim_is_refused_with_its_own_sentence(
    issuer: local.Issuer, verifier: TokenVerifier, claims: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(AuthenticationError) as refused:
        await verifier.verify(issuer.token("devin", **claims))
    assert sentence in refused.value.text


async def test_text_that_is_no_token_is_refused(verifier: TokenVerifier) -> None:
    for text in ("", "secret", "a.b.c", "é.é.é", "x" * 20_000, "e30.e30.e30", "[" * 5000):
        with pytest.raises(AuthenticationError):
            await verifier.verify(text)


async def test_an_unsigned_token_is_refused(issuer: local.Issuer, verifier: TokenVerifier) -> None:
    payload = issuer.token("devin").split(".")[1]
    header = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).rstrip(b"=").decode()
    with pytest.raises(AuthenticationError, match="signature"):
        await verifier.verify(f"{header}.{payload}.")


async def test_a_token_signed_with_a_foreign_key_of_the_same_name_is_refused(
    issuer: local.Issuer, verifier: TokenVerifier
) -> None:
    stranger = local.Issuer(issuer.url)
    with pytest.raises(AuthenticationError, match=r"does not publish|signature"):
        await verifier.verify(stranger.token("grace", groups=["dba"]))


async def test_a_symmetric_signature_with_the_public_key_is_refused(
    issuer: local.Issuer, verifier: TokenVerifier
) -> None:
    """The algorithm confusion of RFC 8725 section 2.1: algorithms are pinned per issuer."""
    from joserfc import jwt
    from joserfc.jwk import OctKey

    claims = {"iss": issuer.url, "sub": "grace", "aud": local.AUDIENCE, "exp": 4_000_000_000}
    forged = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key("0" * 64))
    with pytest.raises(AuthenticationError):
        await verifier.verify(forged)


async def test_a_rotated_key_is_found_without_a_restart(
    issuer: local.Issuer, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    await verifier.verify(issuer.token("devin"))
    monkeypatch.setattr(identity, "_UNKNOWN_KEY_RETRY_SECONDS", 0.0)
    issuer.rotate()
    assert (await verifier.verify(issuer.token("devin"))).principal.subject == "devin"


async def test_an_issuer_that_is_down_is_named() -> None:
    verifier = TokenVerifier([Issuer("http://127.0.0.1:9", "countersign")])
    try:
        with pytest.raises(AuthenticationError, match=r"keys of issuer `http://127\.0\.0\.1:9` cannot be fetched"):
            await verifier.verify(local.Issuer("http://127.0.0.1:9").token("devin"))
    finally:
        await verifier.close()


async def test_known_keys_outlive_an_issuer_that_went_down() -> None:
    async with local.serve() as issuer:
        verifier = TokenVerifier([Issuer(issuer.url, local.AUDIENCE)])
        token = issuer.token("devin")
        await verifier.verify(token)
    assert (await verifier.verify(token)).principal.subject == "devin"
    await verifier.close()


def test_a_nested_claim_is_read_by_its_path() -> None:
    claims = {"sub": "ada", "realm_access": {"roles": ["dba"]}, "a.b": "whole"}
    assert claim_at(claims, "realm_access.roles") == ["dba"]
    assert claim_at(claims, "a.b") == "whole"
    assert claim_at(claims, "realm_access.roles.x") is None
    principal = as_principal(Issuer("https://i.example", "c", groups_claim="realm_access.roles"), claims)
    assert principal.groups == {"dba"}


@pytest.mark.parametrize("groups", [{"a": 1}, [1], 7])
def test_groups_that_are_no_names_are_refused(groups: object) -> None:
    with pytest.raises(AuthenticationError, match="not a list of names"):
        as_principal(Issuer("https://i.example", "c"), {"sub": "ada", "groups": groups})
