"""A SAML identity provider of the tests: real keys, real signatures (libxmlsec1), and a hand for every tampering."""

from __future__ import annotations

import base64
import secrets
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import xmlsec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from lxml import etree

NS = {"samlp": "urn:oasis:names:tc:SAML:2.0:protocol", "saml": "urn:oasis:names:tc:SAML:2.0:assertion"}
DS = "http://www.w3.org/2000/09/xmldsig#"
ENTITY_ID = "https://idp.test/saml"


def at(seconds: float = 0) -> str:
    """This many seconds from now, as SAML writes it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Said:
    """What an assertion says; a test changes one word."""

    request: str
    acs: str
    audience: str
    destination: str | None = None  # the ACS
    recipient: str | None = None
    subject: str = "noor@example.test"
    name_format: str = "urn:oasis:names:tc:SAML:2.0:nameid-format:persistent"
    groups: tuple[str, ...] = ("dba",)
    issuer: str = ENTITY_ID
    ends: float = 300
    begins: float = -5
    logged_in: float = -2
    id: str = field(default_factory=lambda: "_" + secrets.token_hex(16))
    more: str = ""  # attributes, as XML


class IdentityProvider:
    """One key, one certificate."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "idp.test")])
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder(name, name, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .sign(self.key, hashes.SHA256())
        )

    def metadata(self, path: Path, sso: str = "https://idp.test/sso") -> Path:
        """Its metadata, written to this file."""
        der = base64.b64encode(self.certificate.public_bytes(serialization.Encoding.DER)).decode()
        path.write_text(
            f'<md:EntityDescriptor xmlns:md="urn:oasis:names:tc:SAML:2.0:metadata" xmlns:ds="{DS}"'
            f' entityID="{ENTITY_ID}"><md:IDPSSODescriptor'
            ' protocolSupportEnumeration="urn:oasis:names:tc:SAML:2.0:protocol">'
            f'<md:KeyDescriptor use="signing"><ds:KeyInfo><ds:X509Data><ds:X509Certificate>{der}</ds:X509Certificate>'
            "</ds:X509Data></ds:KeyInfo></md:KeyDescriptor><md:SingleSignOnService"
            f' Binding="urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Redirect" Location="{sso}"/>'
            "</md:IDPSSODescriptor></md:EntityDescriptor>"
        )
        return path

    def response(self, said: Said) -> etree._Element:
        """The unsigned response."""
        acs = said.destination if said.destination is not None else said.acs
        recipient = said.recipient if said.recipient is not None else said.acs
        groups = "".join(f"<saml:AttributeValue>{group}</saml:AttributeValue>" for group in said.groups)
        return etree.fromstring(
            f'<samlp:Response xmlns:samlp="{NS["samlp"]}" xmlns:saml="{NS["saml"]}" ID="_{secrets.token_hex(16)}"'
            f' Version="2.0" IssueInstant="{at()}" Destination="{acs}" InResponseTo="{said.request}">'
            f"<saml:Issuer>{said.issuer}</saml:Issuer><samlp:Status><samlp:StatusCode"
            ' Value="urn:oasis:names:tc:SAML:2.0:status:Success"/></samlp:Status>'
            f'<saml:Assertion ID="{said.id}" Version="2.0" IssueInstant="{at()}">'
            f"<saml:Issuer>{said.issuer}</saml:Issuer>"
            f'<saml:Subject><saml:NameID Format="{said.name_format}">{said.subject}</saml:NameID>'
            '<saml:SubjectConfirmation Method="urn:oasis:names:tc:SAML:2.0:cm:bearer"><saml:SubjectConfirmationData'
            f' InResponseTo="{said.request}" Recipient="{recipient}" NotOnOrAfter="{at(said.ends)}"/>'
            "</saml:SubjectConfirmation></saml:Subject>"
            f'<saml:Conditions NotBefore="{at(said.begins)}" NotOnOrAfter="{at(said.ends)}"><saml:AudienceRestriction>'
            f"<saml:Audience>{said.audience}</saml:Audience></saml:AudienceRestriction></saml:Conditions>"
            f'<saml:AuthnStatement AuthnInstant="{at(said.logged_in)}"><saml:AuthnContext><saml:AuthnContextClassRef>'
            "urn:oasis:names:tc:SAML:2.0:ac:classes:TimeSyncToken</saml:AuthnContextClassRef></saml:AuthnContext>"
            f'</saml:AuthnStatement><saml:AttributeStatement><saml:Attribute Name="groups">{groups}</saml:Attribute>'
            f"{said.more}</saml:AttributeStatement></saml:Assertion></samlp:Response>"
        )

    def sign(
        self,
        element: etree._Element,
        method: Any = xmlsec.Transform.RSA_SHA256,
        digest: Any = xmlsec.Transform.SHA256,
        key: Any = None,
    ) -> None:
        """A signature behind the element's Issuer, over the element."""
        signature = xmlsec.template.create(element, xmlsec.Transform.EXCL_C14N, method, ns="ds")
        element.insert(1, signature)
        reference = xmlsec.template.add_reference(signature, digest, uri=f"#{element.get('ID')}")
        xmlsec.template.add_transform(reference, xmlsec.Transform.ENVELOPED)
        xmlsec.template.add_transform(reference, xmlsec.Transform.EXCL_C14N)
        xmlsec.tree.add_ids(element, ["ID"])
        context = xmlsec.SignatureContext()
        context.key = key or xmlsec.Key.from_memory(
            self.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            xmlsec.KeyFormat.PEM,
        )
        context.sign(signature)

    def signed(self, said: Said, **how: Any) -> etree._Element:
        """The response with its assertion signed."""
        response = self.response(said)
        self.sign(assertion_of(response), **how)
        return response


def assertion_of(response: etree._Element) -> etree._Element:
    """The assertion, the response's own child."""
    found = response.find("saml:Assertion", NS)
    assert found is not None
    return found


def encoded(response: etree._Element | bytes) -> str:
    """As a form carries it."""
    return base64.b64encode(response if isinstance(response, bytes) else etree.tostring(response)).decode()


def asked(location: str) -> etree._Element:
    """The AuthnRequest of a redirect to the provider."""
    [packed] = parse_qs(urlsplit(location).query)["SAMLRequest"]
    return etree.fromstring(zlib.decompress(base64.b64decode(packed), -15))
