"""`saml` of the configuration file: what it becomes, and what is told at the start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway.errors import ConfigurationError
from server.config import Config
from tests.identity_provider import ENTITY_ID, IdentityProvider
from tests.server.test_config import config

IDP = IdentityProvider()


def saml(folder: Path, more: str = "", idp: str = ENTITY_ID, mcp: str = "mcp: {}\n") -> Config:
    IDP.metadata(folder / "idp.xml")
    return config(folder, wire=f"{mcp}saml: {{idp: '{idp}', metadata: idp.xml{more}}}\n")


def test_a_provider_is_its_metadata_and_the_keys_of_the_file(tmp_path: Path) -> None:
    more = ", groups_attribute: roles, email_attribute: mail, email_verified: true, max_age: 600, entity_id: ours"
    provider = saml(tmp_path, more).saml
    assert provider is not None
    assert (provider.entity_id, provider.sso_url, len(provider.certificates)) == (ENTITY_ID, "https://idp.test/sso", 1)
    assert (provider.groups_attribute, provider.email_attribute, provider.email_verified) == ("roles", "mail", True)
    assert (provider.max_age, provider.clock_skew, provider.sp_entity_id) == (600, 60, "ours")


def test_without_the_section_there_is_no_provider(tmp_path: Path) -> None:
    assert config(tmp_path).saml is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"more": ", clock_skew: 181"}, "less than or equal to 180"),
        ({"more": ", max_age: 1"}, "greater than or equal to 60"),
        ({"more": ", name_id: transient"}, "'persistent' or 'emailAddress'"),
        ({"more": ", fetch: true"}, "unknown key `fetch`"),
        ({"idp": ""}, "at least 1 character"),
        ({"mcp": ""}, "`saml` needs `mcp:`"),
        ({"idp": "https://issuer.example"}, "two subjects would be one person"),
        ({"idp": "https://other.example"}, "does not describe `https://other.example`"),
    ],
)
def test_a_section_that_cannot_be_is_told_at_the_start(tmp_path: Path, given: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        saml(tmp_path, **given)
    assert says in str(caught.value)


def test_metadata_that_is_not_there_is_told_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.xml` of the identity provider cannot be read"):
        config(tmp_path, wire=f"mcp: {{}}\nsaml: {{idp: '{ENTITY_ID}', metadata: none.xml}}\n")


def test_without_the_extra_the_cure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gateway.saml", raising=False)
    monkeypatch.setitem(sys.modules, "onelogin.saml2.authn_request", None)  # what an import of an absent module finds
    with pytest.raises(ConfigurationError) as caught:
        saml(tmp_path)
    assert "pip install 'countersign[saml]'" in str(caught.value) + str(caught.value.cure)
