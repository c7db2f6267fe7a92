"""`saml` of the configuration file: the one identity provider of people who have no OIDC, as a value."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field

from gateway.errors import ConfigurationError
from server.config_model import STRICT
from server.witnesses import is_private

if TYPE_CHECKING:
    from gateway.saml import IdentityProvider


class SamlFile(BaseModel):
    """The provider's entity id and metadata, ours, and which attributes say what. See gateway.saml.IdentityProvider."""

    model_config = STRICT

    idp: Annotated[str, Field(min_length=1, max_length=1024)]
    metadata: Path
    entity_id: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    name_id: Literal["persistent", "emailAddress"] = "persistent"
    groups_attribute: str = "groups"
    email_attribute: str | None = None
    email_verified: bool = False
    name_attribute: str | None = None
    clock_skew: Annotated[float, Field(ge=0, le=180)] = 60
    max_age: Annotated[float, Field(ge=60)] | None = None


def identity_provider(file: SamlFile | None, base: Path) -> IdentityProvider | None:
    """The provider with its certificates read. Raises ConfigurationError: also where the extra is not installed."""
    if file is None:
        return None
    try:
        from gateway.saml import IdentityProvider, read_metadata
    except ImportError as error:
        raise ConfigurationError(
            f"`saml` is configured, but its libraries cannot be used: {error}",
            cure="Install the extra: `pip install 'countersign[saml]'`.",
        ) from None
    url, certificates = read_metadata(base / file.metadata, file.idp)
    return IdentityProvider(
        entity_id=file.idp,
        sso_url=url,
        certificates=certificates,
        sp_entity_id=file.entity_id,
        name_id=file.name_id,
        groups_attribute=file.groups_attribute,
        email_attribute=file.email_attribute,
        email_verified=file.email_verified,
        name_attribute=file.name_attribute,
        clock_skew=file.clock_skew,
        max_age=file.max_age,
    )


def origin_of(public_url: str) -> str:
    """Where browsers reach our routes. Raises ConfigurationError where others could read what they send."""
    parts = urlsplit(public_url)
    if not is_private(public_url):
        raise ConfigurationError(
            "SAML needs an https address, or http on this machine", cure="Set `mcp.public_url` to what browsers use."
        )
    return f"{parts.scheme}://{parts.netloc}"
