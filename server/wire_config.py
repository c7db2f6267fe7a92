"""`wire` of the configuration file: how the PostgreSQL door listens, whom it lets in and how many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from gateway.certificates import NameKind
from server.config_model import STRICT, Port


class _Model(BaseModel):
    model_config = STRICT


class ClientPrincipalFile(_Model):
    """Certificates with a name that fits stand for this program; see gateway.certificates.CertificateRule."""

    common_name: Annotated[str, Field(min_length=1)] | None = None
    dns: Annotated[str, Field(min_length=1)] | None = None
    uri: Annotated[str, Field(min_length=1)] | None = None
    email: Annotated[str, Field(min_length=1)] | None = None
    subject: Annotated[str, Field(min_length=1)]
    groups: list[str] = []
    on_behalf_of: Annotated[str, Field(min_length=1)] | None = None
    on_behalf_of_issuer: str | None = None

    @property
    def names(self) -> dict[NameKind, str]:
        """What is given of a certificate's names."""
        kinds: tuple[NameKind, ...] = ("common_name", "dns", "uri", "email")
        return {kind: pattern for kind in kinds if (pattern := getattr(self, kind)) is not None}

    @model_validator(mode="after")
    def _one_name(self) -> ClientPrincipalFile:
        if len(self.names) != 1:
            raise ValueError("give exactly one of `common_name`, `dns`, `uri` and `email`")
        return self


class TlsFile(_Model):
    """The wire door's server certificate, and what clients' certificates are good for; PEM files.

    `both`: each client needs a certificate and a login besides. `required`: each needs a certificate, and a login where
    the certificate stands for nobody. `optional`: a certificate that stands for a program, or a login.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    client_crl: Path | None = None
    client_certificates: Literal["both", "required", "optional"] = "both"
    client_principals: list[ClientPrincipalFile] = []

    @model_validator(mode="after")
    def _clients(self) -> TlsFile:
        asked = self.client_crl or self.client_principals or self.client_certificates != "both"
        if asked and self.client_ca is None:
            raise ValueError("clients' certificates need a `client_ca` that signed them")
        if self.client_principals and self.client_certificates == "both":
            raise ValueError(
                "with `client_certificates: both` no certificate stands for anybody: "
                "say `required` or `optional` for `client_principals`"
            )
        return self


class WireLimitsFile(_Model):
    """What the wire door gives to its clients; see wire.occupancy.DoorLimits. Times are seconds, null is no limit."""

    connections: Annotated[int, Field(ge=1, le=100_000)] = 500
    per_principal: Annotated[int, Field(ge=1, le=100_000)] = 100
    per_address: Annotated[int, Field(ge=1, le=100_000)] = 500
    failures: Annotated[int, Field(ge=1, le=100_000)] = 60
    start: Annotated[float, Field(gt=0, le=600)] = 30
    idle: Annotated[float, Field(gt=0)] | None = None
    idle_in_transaction: Annotated[float, Field(gt=0)] | None = None


class OauthFile(_Model):
    """Users whom the wire door asks for SASL OAUTHBEARER; `*` in a name is any run of characters.

    A client without a token is told the issuer (one of `issuers`; may be left out where there is but one) and scope.
    """

    users: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    issuer: str | None = None
    scope: str = "openid"


class WireFile(_Model):
    """The wire door. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: Port = 6432
    tls: TlsFile | None = None
    oauth: OauthFile | None = None
    limits: WireLimitsFile = WireLimitsFile()


def issuers_named(wire: WireFile | None) -> list[tuple[str, str | None]]:
    """The wire door's keys that name an issuer, with what they say; None means the only one."""
    named: list[tuple[str, str | None]] = []
    if wire is not None and wire.oauth is not None:
        named.append(("wire.oauth.issuer", wire.oauth.issuer))
    if wire is not None and wire.tls is not None:
        named += [
            ("on_behalf_of_issuer", entry.on_behalf_of_issuer)
            for entry in wire.tls.client_principals
            if entry.on_behalf_of is not None
        ]
    return named


def with_absolute_paths(wire: WireFile | None, base: Path) -> WireFile | None:
    """The same, its certificates named from the root."""
    if wire is None or wire.tls is None:
        return wire
    given = ((name, getattr(wire.tls, name)) for name in ("certificate", "key", "client_ca", "client_crl"))
    tls = wire.tls.model_copy(update={name: base / path for name, path in given if path is not None})
    return wire.model_copy(update={"tls": tls})
