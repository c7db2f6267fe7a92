"""The local issuer, met as the gateway meets any issuer: over HTTP, by its published keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import httpx2
import pytest

from gateway.errors import AuthenticationError
from gateway.identity import Issuer as Trusted
from gateway.identity import TokenVerifier
from policy.model import Principal, PrincipalKind
from server import issuer as local
from server.issuer import AUDIENCE, Algorithm, Issuer


@asynccontextmanager
async def verifier_of(issuer: Issuer) -> AsyncIterator[TokenVerifier]:
    verifier = TokenVerifier([Trusted(issuer.url, AUDIENCE)])
    try:
        yield verifier
    finally:
        await verifier.close()


@pytest.fixture(params=["ES256", "RS256"])
async def issuer(request: pytest.FixtureRequest) -> AsyncIterator[Issuer]:
    algorithm: Algorithm = request.param
    async with local.serve(algorithm=algorithm) as served:
        yield served


async def test_an_agents_token_names_the_agent_and_the_person_behind_it(issuer: Issuer) -> None:
    token = issuer.token(
        "devin", kind="agent", groups=["ai-agents"], on_behalf_of="ada", email="d@example.com", name="Devin"
    )
    async with verifier_of(issuer) as verifier:
        verified = await verifier.verify(token)
    assert verified.principal == Principal(
        subject="devin",
        issuer=issuer.url,
        kind=PrincipalKind.AGENT,
        groups=frozenset({"ai-agents"}),
        email="d@example.com",
        name="Devin",
        on_behalf_of="ada",
    )


async def test_an_rfc_8693_token_names_the_actor_in_act(issuer: Issuer) -> None:
    token = issuer.token("ada", principal_kind=None, act={"sub": "devin"})
    async with verifier_of(issuer) as verifier:
        principal = (await verifier.verify(token)).principal
    assert (principal.subject, principal.kind, principal.on_behalf_of) == ("devin", PrincipalKind.AGENT, "ada")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lifetime": timedelta(hours=-1)}, "the token expired"),
        ({"audience": "another-service"}, "issued for `another-service`"),
        ({"iss": "https://elsewhere.example"}, "is not trusted here"),
        ({"exp": None}, "has no expiry"),
    ],
)
async def test_tokens_that_must_be_refused_can_be_made(
    issuer: Issuer, changes: dict[str, object], sentence: str
) -> None:
    async with verifier_of(issuer) as verifier:
        with pytest.raises(AuthenticationError, match=sentence):
            await verifier.verify(issuer.token("ada", **changes))  # type: ignore[arg-type]


async def test_another_issuers_key_does_not_sign_for_this_one(issuer: Issuer) -> None:
    foreign = Issuer(issuer.url, algorithm=issuer.algorithm)
    async with verifier_of(issuer) as verifier:
        with pytest.raises(AuthenticationError, match="does not publish"):
            await verifier.verify(foreign.token("ada"))


async def test_after_a_rotation_old_tokens_stay_good_until_the_old_keys_are_retired(issuer: Issuer) -> None:
    old = issuer.token("ada")
    issuer.rotate()
    new = issuer.token("ada")
    async with verifier_of(issuer) as verifier:
        assert (await verifier.verify(old)).principal == (await verifier.verify(new)).principal
    issuer.retire_old_keys()
    async with verifier_of(issuer) as verifier:
        assert (await verifier.verify(new)).principal.subject == "ada"
        with pytest.raises(AuthenticationError, match="does not publish"):
            await verifier.verify(old)


async def test_both_metadata_documents_name_the_issuer_and_its_public_keys_alone(issuer: Issuer) -> None:
    async with httpx2.AsyncClient(base_url=issuer.url) as http:
        for document in ("openid-configuration", "oauth-authorization-server"):
            metadata = (await http.get(f"/.well-known/{document}")).raise_for_status().json()
            assert metadata["issuer"] == issuer.url
            keys = (await http.get(metadata["jwks_uri"])).raise_for_status().json()["keys"]
            assert [key["alg"] for key in keys] == [issuer.algorithm]
            assert not {"d", "p", "q"} & set(keys[0])


async def test_the_port_is_free_again_after_the_block() -> None:
    async with local.serve() as first:
        port = int(first.url.rpartition(":")[2])
    async with local.serve(port=port) as second:
        assert second.url == first.url
