"""SAML 2.0 responses verified against the pinned certificates of one identity provider, narrowed to a VerifiedToken.

Needs the extra `saml`. The XML signature is checked by python3-saml (libxmlsec1); this module first demands the one
shape in which its verdict is about the very assertion that is read, and then what that library leaves open. Sources:
SAML 2.0 core (2.5, 5.4), bindings (3.5), profiles (4.1.4), security considerations; RFC 7519's words for the result.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from onelogin.saml2.authn_request import OneLogin_Saml2_Authn_Request
from onelogin.saml2.idp_metadata_parser import OneLogin_Saml2_IdPMetadataParser
from onelogin.saml2.response import OneLogin_Saml2_Response
from onelogin.saml2.settings import OneLogin_Saml2_Settings
from onelogin.saml2.xml_utils import OneLogin_Saml2_XML

from gateway.errors import AuthenticationError, ConfigurationError
from gateway.identity import Issuer, VerifiedToken, as_principal
from gateway.short_lived import LIFE

MAX_RESPONSE_BYTES = 256 * 1024  # of base64; real ones are 5-20 KiB
_MAX_REMEMBERED = 10_000
_NS = {
    "md": "urn:oasis:names:tc:SAML:2.0:metadata",
    "samlp": "urn:oasis:names:tc:SAML:2.0:protocol",
    "saml": "urn:oasis:names:tc:SAML:2.0:assertion",
    "ds": "http://www.w3.org/2000/09/xmldsig#",
    "xenc": "http://www.w3.org/2001/04/xmlenc#",
}
_BEARER = "urn:oasis:names:tc:SAML:2.0:cm:bearer"
# SAML core section 8.3. Who sends the browser's request himself can ask for another format under our request's id: of
# one person there must be one name, since one name is one vote.
NAME_FORMATS = {
    "persistent": "urn:oasis:names:tc:SAML:2.0:nameid-format:persistent",
    "emailAddress": "urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress",
}
_MORE = "http://www.w3.org/2001/04/xmldsig-more#"
_SIGNATURES = {_MORE + name for name in ("rsa-sha256", "rsa-sha384", "rsa-sha512")} | {
    _MORE + name for name in ("ecdsa-sha256", "ecdsa-sha384", "ecdsa-sha512")
}
_DIGESTS = {"http://www.w3.org/2001/04/xmlenc#sha256", _MORE + "sha384", "http://www.w3.org/2001/04/xmlenc#sha512"}
_EXCLUSIVE = "http://www.w3.org/2001/10/xml-exc-c14n#"
# SAML core section 5.4.4: anything else could leave a part of the assertion out of what is signed.
_TRANSFORMS = {_EXCLUSIVE, "http://www.w3.org/2000/09/xmldsig#enveloped-signature"}
_DECLARATION = re.compile(rb"""\A\s*<\?xml\s[^?<>]*\?>""")
_OTHER_ENCODING = re.compile(rb"""encoding\s*=\s*["'](?!utf-?8["'])""", re.IGNORECASE)
_CURE = "Start again with `countersign login --saml`."


@dataclass(frozen=True, slots=True)
class IdentityProvider:
    """The one whose assertions are believed, and how their attributes are read."""

    entity_id: str
    sso_url: str
    certificates: tuple[str, ...]  # base64 of DER, pinned from its metadata
    sp_entity_id: str | None = None  # None: where our metadata is
    name_id: str = "persistent"  # of NAME_FORMATS
    groups_attribute: str = "groups"
    email_attribute: str | None = None
    email_verified: bool = False
    name_attribute: str | None = None
    clock_skew: float = 60
    max_age: float | None = None


def read_metadata(path: Path, entity_id: str) -> tuple[str, tuple[str, ...]]:
    """The address for logins and the signing certificates of this provider. Raises ConfigurationError."""
    what = f"the metadata `{path}` of the identity provider"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{what} cannot be read: {error.strerror}", cure="Save it there as the provider publishes it."
        ) from None
    try:
        if "'" in entity_id:
            raise ValueError("its entity id holds a quote")
        tree = OneLogin_Saml2_XML.to_etree(text)
        # Where there is no other, the library would take a certificate to encrypt with for one that signs.
        for key in tree.findall(".//md:KeyDescriptor[@use='encryption']", _NS):
            key.getparent().remove(key)
        text = OneLogin_Saml2_XML.to_string(tree)
        found = OneLogin_Saml2_IdPMetadataParser.parse(text, entity_id=entity_id).get("idp", {})
    except Exception as error:  # lxml's and the library's own, of many kinds
        raise ConfigurationError(f"{what} is not SAML metadata: {error}", cure="Save it as published.") from None
    if found.get("entityId") != entity_id:
        raise ConfigurationError(f"{what} does not describe `{entity_id}`", cure="Correct `saml.idp` or the file.")
    one = [found["x509cert"]] if "x509cert" in found else []
    certificates = one or list(found.get("x509certMulti", {}).get("signing", []))
    url = found.get("singleSignOnService", {}).get("url")
    if not certificates or not url or urlsplit(url).scheme not in ("https", "http"):
        raise ConfigurationError(
            f"{what} names no signing certificate, or no address for HTTP-Redirect", cure="Ask its administrator."
        )
    return url, tuple(certificates)


@dataclass(frozen=True, slots=True)
class Request:
    """An AuthnRequest that waits for its answer: its id, and where the browser takes it."""

    id: str
    url: str


class ServiceProvider:
    """Our side: makes requests, verifies responses. An assertion serves once: it is remembered until it is over."""

    def __init__(self, idp: IdentityProvider, origin: str) -> None:
        self.idp = idp
        self.acs_url = f"{origin}/saml/acs"
        self.entity_id = idp.sp_entity_id or f"{origin}/saml/metadata"
        self._issuer = Issuer(url=idp.entity_id, audience=self.entity_id)
        self._used: dict[str, float] = {}  # assertion id → when it is over
        self._settings = OneLogin_Saml2_Settings(
            {
                "strict": True,
                "sp": {
                    "entityId": self.entity_id,
                    "assertionConsumerService": {"url": self.acs_url},
                    "NameIDFormat": NAME_FORMATS[idp.name_id],
                },
                "idp": {
                    "entityId": idp.entity_id,
                    "singleSignOnService": {"url": idp.sso_url},
                    "x509certMulti": {"signing": list(idp.certificates)},
                },
                "security": {
                    "wantAssertionsSigned": True,
                    "wantAttributeStatement": False,
                    "rejectDeprecatedAlgorithm": True,
                    "requestedAuthnContext": False,
                },
            },
        )

    def metadata(self) -> bytes:
        """Our metadata, for the provider's administrator."""
        made = self._settings.get_sp_metadata()
        return made if isinstance(made, bytes) else str(made).encode()

    def request(self) -> Request:
        """A new AuthnRequest."""
        made = OneLogin_Saml2_Authn_Request(self._settings)
        glue = "&" if "?" in self.idp.sso_url else "?"
        return Request(made.get_id(), f"{self.idp.sso_url}{glue}{urlencode({'SAMLRequest': made.get_request()})}")

    def in_response_to(self, encoded: str) -> str:
        """Which request a response says that it answers: to find what waits for it, believed by nobody."""
        return str(_parsed(self._settings, encoded).document.get("InResponseTo", ""))

    def verify(self, encoded: str, request_id: str) -> VerifiedToken:
        """The login that this response to that request proves. Raises AuthenticationError, one sentence each."""
        response = _parsed(self._settings, encoded)
        root = response.document
        assertion = _the_assertion(root)
        _check_signatures(root, assertion)
        self._check_addressed(root, assertion, request_id)
        over = self._check_times(assertion)
        self._check_library(response, request_id)
        # From here on the assertion is the provider's own word.
        login = self._login(response, assertion)
        self._spend(assertion.get("ID"), over)
        return login

    def _check_addressed(self, root: Any, assertion: Any, request_id: str) -> None:
        confirmations = _all(assertion, "saml:Subject/saml:SubjectConfirmation")
        data = [_all(c, "saml:SubjectConfirmationData") for c in confirmations]
        if len(confirmations) != 1 or confirmations[0].get("Method") != _BEARER or len(data[0]) != 1:
            raise _refused("the assertion has not exactly one bearer confirmation of its subject")
        confirmed = data[0][0]
        if root.get("Destination") != self.acs_url:
            raise _refused(f"the response was sent to `{_short(root.get('Destination'))}`, not to `{self.acs_url}`")
        if confirmed.get("Recipient") != self.acs_url:
            raise _refused(f"the assertion is for the recipient `{_short(confirmed.get('Recipient'))}`, not for us")
        if root.get("InResponseTo") != request_id or confirmed.get("InResponseTo") != request_id:
            raise _refused("the response answers another request than the one that this browser made")
        audiences = [
            [node.text for node in _all(restriction, "saml:Audience")]
            for restriction in _all(assertion, "saml:Conditions/saml:AudienceRestriction")
        ]
        if not audiences or not all(self.entity_id in named for named in audiences):
            raise _refused(f"the assertion is not for the audience `{self.entity_id}`")
        for issuer in (*_all(root, "saml:Issuer"), *(_all(assertion, "saml:Issuer") or [None])):
            if issuer is None or issuer.text != self.idp.entity_id:
                raise _refused(f"the response is not from the issuer `{self.idp.entity_id}`")

    def _check_times(self, assertion: Any) -> float:
        """When the assertion is over: the earliest of its ends, with the skew."""
        now, skew = time.time(), self.idp.clock_skew
        confirmed = _all(assertion, "saml:Subject/saml:SubjectConfirmation/saml:SubjectConfirmationData")[0]
        conditions = _all(assertion, "saml:Conditions")
        if len(conditions) != 1 or confirmed.get("NotOnOrAfter") is None:
            raise _refused("the assertion does not say until when it holds")
        ends = [_instant(confirmed.get("NotOnOrAfter"))]
        ends += [_instant(end)] if (end := conditions[0].get("NotOnOrAfter")) else []
        begins = [_instant(b) for b in (confirmed.get("NotBefore"), conditions[0].get("NotBefore")) if b]
        if now >= min(ends) + skew:
            raise _refused(f"the assertion was over at {_utc(min(ends)):%Y-%m-%d %H:%M:%S} UTC")
        if any(now < begin - skew for begin in begins):
            raise _refused("the assertion does not hold yet; the clocks may differ")
        return min(ends) + skew

    def _check_library(self, response: Any, request_id: str) -> None:
        at = urlsplit(self.acs_url)
        request = {"http_host": at.netloc, "script_name": at.path, "https": "on" if at.scheme == "https" else "off"}
        try:
            response.is_valid(request, request_id, raise_exceptions=True)
        except Exception as error:  # xmlsec's, lxml's and the library's own, of many kinds
            if "ignature" in str(error):
                raise _refused(f"the signature is not one of the issuer `{self.idp.entity_id}`") from None
            raise _refused(f"the response is not valid: {_short(str(error))}") from None

    def _login(self, response: Any, assertion: Any) -> VerifiedToken:
        statements = _all(assertion, "saml:AuthnStatement")
        [statement] = statements  # the library has counted them
        now, skew = datetime.now(UTC), timedelta(seconds=self.idp.clock_skew)
        logged_in = _utc(_instant(statement.get("AuthnInstant")))
        if logged_in > now + skew:
            raise _refused("the login lies in the future; the clocks may differ")
        if self.idp.max_age is not None and now > logged_in + timedelta(seconds=self.idp.max_age) + skew:
            raise _refused(f"the login at the identity provider is older than {self.idp.max_age:g} seconds")
        ends = statement.get("SessionNotOnOrAfter")
        expires = min(now + LIFE, _utc(_instant(ends))) if ends else now + LIFE
        acr = _all(statement, "saml:AuthnContext/saml:AuthnContextClassRef")
        return VerifiedToken(
            principal=as_principal(self._issuer, self._claims(response)),
            expires=expires,
            token_id=f"saml {assertion.get('ID')}",
            scopes=frozenset(),
            auth_time=logged_in,
            acr=acr[0].text if acr and acr[0].text else None,
        )

    def _claims(self, response: Any) -> Mapping[str, Any]:
        """The assertion in the words of a token. Nothing but what is named here gets through."""
        try:
            named, attributes = response.get_nameid_data(), response.get_attributes()
        except Exception as error:  # the library's own
            raise _refused(f"the assertion cannot be read: {_short(str(error))}") from None
        if named.get("Format") != NAME_FORMATS[self.idp.name_id]:
            raise _refused(f"the name of the subject is not `{self.idp.name_id}`, which `saml.name_id` asks for")
        if named.get("NameQualifier") not in (None, self.idp.entity_id):  # of SPNameQualifier the library sees to it
            raise _refused("the name of the subject is one of another provider")
        claims: dict[str, Any] = {"sub": named["Value"], "principal_kind": "human"}
        claims["groups"] = attributes.get(self.idp.groups_attribute, [])
        for claim, attribute in (("email", self.idp.email_attribute), ("name", self.idp.name_attribute)):
            values = attributes.get(attribute, []) if attribute else []
            claims |= {claim: values[0]} if len(values) == 1 else {}
        claims["email_verified"] = self.idp.email_verified
        return claims

    def _spend(self, assertion_id: str, over: float) -> None:
        now = time.time()
        if assertion_id in self._used:
            raise _refused("the assertion was used before")
        if len(self._used) >= _MAX_REMEMBERED:
            self._used = {used: end for used, end in self._used.items() if end > now}
        if len(self._used) >= _MAX_REMEMBERED:
            raise _refused("too many logins at once to remember them all; try again in a minute")
        self._used[assertion_id] = over


def _parsed(settings: Any, encoded: str) -> Any:
    """The library's response. A text with `<!` is refused before any parser sees it: DTDs, entities, comments, CDATA.

    No signature covers a comment, and text around one has been cut short (CVE-2017-11427 and its kin).
    """
    if len(encoded) > MAX_RESPONSE_BYTES:
        raise _refused(f"the response is longer than {MAX_RESPONSE_BYTES} bytes")
    try:
        xml = base64.b64decode("".join(encoded.split()), validate=True)
        xml.decode("utf-8")
    except (binascii.Error, ValueError):
        raise _refused("the response is not base64 of UTF-8") from None
    declaration = _DECLARATION.match(xml)
    if b"\0" in xml or (declaration and _OTHER_ENCODING.search(declaration[0])):
        raise _refused("the response is not UTF-8")
    if b"<!" in xml or b"<?" in xml[declaration.end() if declaration else 0 :]:
        raise _refused("the response holds a comment, a DTD, an instruction or CDATA")
    try:
        return OneLogin_Saml2_Response(settings, base64.b64encode(xml).decode())
    except Exception as error:  # lxml's and the library's own: XML that is none, encryption
        if b"EncryptedAssertion" in xml:
            raise _refused("the assertion is encrypted, which is not supported") from None
        raise _refused(f"the response is not XML ({type(error).__name__})") from None


def _the_assertion(root: Any) -> Any:
    """The only assertion there is, in the only place for one."""
    if root.tag != f"{{{_NS['samlp']}}}Response":
        raise _refused("the message is not a SAML response")
    if root.xpath("//*[local-name()='EncryptedAssertion' or local-name()='EncryptedID']"):
        raise _refused("the assertion is encrypted, which is not supported")
    status = root.xpath("string(samlp:Status/samlp:StatusCode/@Value)", namespaces=_NS)
    if status != "urn:oasis:names:tc:SAML:2.0:status:Success":
        raise _refused(f"the identity provider did not let the person in (`{_short(status.rpartition(':')[2])}`)")
    everywhere, here = root.xpath("//*[local-name()='Assertion']"), _all(root, "saml:Assertion")
    if len(everywhere) != 1 or len(here) != 1:
        raise _refused("the response does not hold exactly one assertion, as its own child")
    if len(root.xpath("//*[local-name()='Response']")) != 1:
        raise _refused("the response holds another response")
    ids = root.xpath("//@*[local-name()='ID' or local-name()='Id' or local-name()='id']")
    if len(set(ids)) != len(ids) or not here[0].get("ID"):
        raise _refused("two elements of the response have the same id, or the assertion has none")
    return here[0]


def _check_signatures(root: Any, assertion: Any) -> None:
    """The assertion has a signature of its own over itself and nothing else; a second one may be the response's."""
    own = _all(assertion, "ds:Signature")
    if len(own) != 1:
        raise _refused("the assertion itself is not signed")
    everywhere = root.xpath("//*[local-name()='Signature']")
    if {*own, *_all(root, "ds:Signature")} != set(everywhere) or len(everywhere) > 2:
        raise _refused("a signature is where none belongs")
    if root.xpath("//ds:Object | //ds:Manifest", namespaces=_NS):
        raise _refused("a signature carries objects of its own")
    for signature in everywhere:
        references = _all(signature, "ds:SignedInfo/ds:Reference")
        if len(references) != 1 or references[0].get("URI") != f"#{signature.getparent().get('ID')}":
            raise _refused("a signature does not cover the very element that it is in")
        _check_algorithms(signature)


def _check_algorithms(signature: Any) -> None:
    def named(path: str) -> set[str]:
        return {str(node.get("Algorithm")) for node in _all(signature, f"ds:SignedInfo/{path}")}

    for what, used, allowed in (
        ("signature method", named("ds:SignatureMethod"), _SIGNATURES),
        ("digest", named("ds:Reference/ds:DigestMethod"), _DIGESTS),
        ("canonicalization", named("ds:CanonicalizationMethod"), {_EXCLUSIVE}),
        ("transform", named("ds:Reference/ds:Transforms/ds:Transform"), _TRANSFORMS),
    ):
        if not used or used - allowed:
            wrong = ", ".join(f"`{_short(name)}`" for name in sorted(used - allowed)) or "none"
            raise _refused(f"the {what} {wrong} is not one that is accepted")


def _all(node: Any, path: str) -> list[Any]:
    found: list[Any] = node.xpath(path, namespaces=_NS)
    return found


def _instant(text: str | None) -> float:
    """An xs:dateTime in UTC (SAML core section 1.3.3) as seconds."""
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError:
        at = None
    if at is None or at.utcoffset() != timedelta(0):
        raise _refused(f"`{_short(text)}` is not a time in UTC")
    return at.timestamp()


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _short(text: str | None) -> str:
    return (text or "")[:200]


def _refused(text: str) -> AuthenticationError:
    return AuthenticationError(text, cure=_CURE)
