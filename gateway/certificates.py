"""Which program a client certificate stands for: its names against the configuration's, narrowed to a Principal.

TLS has proved the certificate and its authority before; here its names are only compared. What a certificate says of
itself never becomes a subject or a group: both are the configuration's words. Sources: RFC 5280 (sections 4.1.2.5,
4.1.2.6 and 4.2.1.6); PostgreSQL documentation, "Certificate Authentication" (the user name must be the one meant).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from gateway.errors import AuthenticationError
from gateway.identity import VerifiedToken
from policy.model import Principal, PrincipalKind
from policy.patterns import wildcard

NameKind = Literal["common_name", "dns", "uri", "email"]


@dataclass(frozen=True, slots=True)
class CertificateRule:
    """Certificates with a name of this pattern stand for this program.

    It is an agent, always: a key in a file is no person, and only persons vote. `on_behalf_of` is the subject of the
    human it works for, at the token issuer `human_issuer`.
    """

    kind: NameKind
    pattern: str  # `*` is any run of characters
    subject: str
    groups: frozenset[str] = frozenset()
    on_behalf_of: str | None = None
    human_issuer: str | None = None

    def principal(self, authority: str) -> Principal:
        """Who it is, under the name of the authority that signed."""
        return Principal(
            subject=self.subject,
            issuer=f"tls:{authority}",
            kind=PrincipalKind.AGENT,
            groups=self.groups,
            on_behalf_of=self.on_behalf_of,
            human_issuer=self.human_issuer if self.on_behalf_of else None,
        )


class CertificatePrincipals:
    """The configured rules."""

    def __init__(self, rules: Sequence[CertificateRule]) -> None:
        self._rules = tuple(rules)

    def login(self, der: bytes, user: str) -> VerifiedToken | None:
        """The login of a proved certificate as this user; None where it does not stand for one of that name.

        It lives no longer than the certificate. Raises AuthenticationError where several rules mean it, and where it
        says something that we cannot read though TLS could.
        """
        try:
            return self._login(x509.load_der_x509_certificate(der), user)
        except (ValueError, x509.DuplicateExtension) as error:
            raise AuthenticationError(f"the client certificate cannot be read: {error}") from None

    def _login(self, certificate: x509.Certificate, user: str) -> VerifiedToken | None:
        meant = {rule for rule in self._rules if rule.subject == user and _has(certificate, rule)}
        if not meant:
            return None
        if len(meant) > 1:
            raise AuthenticationError(
                f"the client certificate stands for `{user}` by several rules",
                cure="Let one entry of `wire.tls.client_principals` name it.",
            )
        return VerifiedToken(
            principal=meant.pop().principal(_common_name(certificate.issuer) or certificate.issuer.rfc4514_string()),
            expires=certificate.not_valid_after_utc,
            token_id=f"certificate {certificate.fingerprint(hashes.SHA256()).hex()}",
            scopes=frozenset(),
        )


def _has(certificate: x509.Certificate, rule: CertificateRule) -> bool:
    pattern = wildcard(rule.pattern)
    return any(pattern.fullmatch(name) for name in _names(certificate, rule.kind))


def _names(certificate: x509.Certificate, kind: NameKind) -> Sequence[str]:
    if kind == "common_name":
        name = _common_name(certificate.subject)
        return (name,) if name else ()
    try:
        named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    match kind:
        case "dns":
            return named.get_values_for_type(x509.DNSName)
        case "uri":
            return named.get_values_for_type(x509.UniformResourceIdentifier)
        case "email":
            return named.get_values_for_type(x509.RFC822Name)


def _common_name(name: x509.Name) -> str | None:
    """The one common name; of several none can be said to be the name."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else None
