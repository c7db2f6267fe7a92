"""SAML responses: the honest one becomes a person, and every tampering is refused with its own sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xmlsec
from lxml import etree

from gateway import saml
from gateway.bearers import Bearers
from gateway.errors import AuthenticationError, ConfigurationError
from gateway.saml import ServiceProvider, read_metadata
from policy.model import PrincipalKind
from tests.identity_provider import DS, ENTITY_ID, NS, IdentityProvider, Said, assertion_of, encoded

ORIGIN = "https://countersign.test"
IDP = IdentityProvider()
OTHER = IdentityProvider()
SIGNATURE = f"{{{DS}}}Signature"


def sp(tmp_path: Path, **more: Any) -> ServiceProvider:
    url, certificates = read_metadata(IDP.metadata(tmp_path / "idp.xml"), ENTITY_ID)
    return ServiceProvider(saml.IdentityProvider(ENTITY_ID, url, certificates, **more), ORIGIN)


def said(**more: Any) -> Said:
    return Said(**{"request": "_r1", "acs": f"{ORIGIN}/saml/acs", "audience": f"{ORIGIN}/saml/metadata"} | more)


def test_an_honest_response_becomes_a_human_with_groups_and_the_time_of_the_login(tmp_path: Path) -> None:
    login = sp(tmp_path).verify(encoded(IDP.signed(said(groups=("dba", "ops"), logged_in=-100))), "_r1")
    assert (login.principal.subject, login.principal.issuer) == ("noor@example.test", ENTITY_ID)
    assert login.principal.kind is PrincipalKind.HUMAN
    assert login.principal.groups == {"dba", "ops"}
    assert login.principal.email is None
    assert login.auth_time is not None
    assert login.acr == "urn:oasis:names:tc:SAML:2.0:ac:classes:TimeSyncToken"


def test_the_response_may_be_signed_as_well(tmp_path: Path) -> None:
    response = IDP.signed(said())
    IDP.sign(response)
    assert sp(tmp_path).verify(encoded(response), "_r1").principal.subject == "noor@example.test"


@pytest.mark.parametrize(("verified", "email"), [(True, "noor@example.test"), (False, None)])
def test_an_address_counts_only_where_the_configuration_says_that_it_is_verified(
    tmp_path: Path, verified: bool, email: str | None
) -> None:
    more = '<saml:Attribute Name="mail"><saml:AttributeValue>noor@example.test</saml:AttributeValue></saml:Attribute>'
    provider = sp(tmp_path, email_attribute="mail", email_verified=verified)
    assert provider.verify(encoded(IDP.signed(said(more=more))), "_r1").principal.email == email


def test_an_attribute_cannot_make_an_agent_or_a_delegate_of_a_person(tmp_path: Path) -> None:
    more = "".join(
        f'<saml:Attribute Name="{name}"><saml:AttributeValue>x</saml:AttributeValue></saml:Attribute>'
        for name in ("sub", "act", "on_behalf_of", "principal_kind")
    )
    principal = sp(tmp_path).verify(encoded(IDP.signed(said(more=more))), "_r1").principal
    assert (principal.subject, principal.kind) == ("noor@example.test", PrincipalKind.HUMAN)
    assert principal.on_behalf_of is None


def evil(response: etree._Element) -> etree._Element:
    """A copy of the signed assertion that names somebody else, without the signature."""
    forged = copy.deepcopy(assertion_of(response))
    forged.remove(forged.find(SIGNATURE))
    forged.set("ID", "_evil")
    forged.find("saml:Subject/saml:NameID", NS).text = "root@example.test"
    return forged


def wrapped_before() -> etree._Element:
    response = IDP.signed(said())
    response.insert(2, evil(response))
    return response


def wrapped_after() -> etree._Element:
    response = IDP.signed(said())
    response.append(evil(response))
    return response


def wrapped_in_extensions() -> etree._Element:
    """The signed assertion moves aside; a forged one with the signature takes its place."""
    response = IDP.signed(said())
    original = assertion_of(response)
    forged = evil(response)
    aside = etree.Element(f"{{{NS['samlp']}}}Extensions")
    response.replace(original, forged)
    aside.append(original)
    response.insert(1, aside)
    return response


def wrapped_in_the_signature() -> etree._Element:
    """The signed assertion hides in an Object of the signature that the forged one carries."""
    response = IDP.signed(said())
    original = assertion_of(response)
    forged = evil(response)
    signature = copy.deepcopy(original.find(SIGNATURE))
    original.remove(original.find(SIGNATURE))
    etree.SubElement(signature, f"{{{DS}}}Object").append(copy.deepcopy(original))
    forged.insert(1, signature)
    response.replace(original, forged)
    return response


def same_id() -> etree._Element:
    response = IDP.signed(said())
    response.set("ID", assertion_of(response).get("ID"))
    return response


def signature_of_another_element() -> etree._Element:
    response = IDP.signed(said())
    assertion_of(response).set("ID", "_evil")
    return response


def edited(path: str, change: Callable[[etree._Element], None]) -> Callable[[], etree._Element]:
    """Signed, and changed afterwards."""

    def make() -> etree._Element:
        response = IDP.signed(said())
        change(response.find(path, NS))
        return response

    return make


def stripped() -> etree._Element:
    response = IDP.signed(said())
    assertion_of(response).remove(assertion_of(response).find(SIGNATURE))
    return response


def response_signed_only() -> etree._Element:
    response = IDP.response(said())
    IDP.sign(response)
    return response


def unaddressed(path: str, attribute: str) -> Callable[[], etree._Element]:
    """Signed without an attribute that the library alone would not miss."""

    def make() -> etree._Element:
        response = IDP.response(said())
        node = response if path == "." else response.find(path, NS)
        del node.attrib[attribute]
        IDP.sign(assertion_of(response))
        return response

    return make


def named(attribute: str, value: str) -> Callable[[], etree._Element]:
    """Signed with a name that is qualified."""

    def make() -> etree._Element:
        response = IDP.response(said())
        response.find(NAME, NS).set(attribute, value)
        IDP.sign(assertion_of(response))
        return response

    return make


def without_audience() -> etree._Element:
    response = IDP.response(said())
    conditions = response.find("saml:Assertion/saml:Conditions", NS)
    conditions.remove(conditions[0])
    IDP.sign(assertion_of(response))
    return response


def text(change: Callable[[bytes], bytes]) -> Callable[[], bytes]:
    return lambda: change(etree.tostring(IDP.signed(said())))


CONFIRMED = "saml:Assertion/saml:Subject/saml:SubjectConfirmation/saml:SubjectConfirmationData"
NAME = "saml:Assertion/saml:Subject/saml:NameID"
HMAC = xmlsec.Key.from_binary_data(xmlsec.KeyData.HMAC, b"the public certificate, as a secret")
NOT_ONE = "does not hold exactly one assertion"
ATTACKS: dict[str, tuple[Callable[[], Any], str]] = {
    "a forged assertion before the signed one": (wrapped_before, NOT_ONE),
    "a forged assertion behind it": (wrapped_after, NOT_ONE),
    "the signed one moved into extensions": (wrapped_in_extensions, NOT_ONE),
    "the signed one inside of the signature": (wrapped_in_the_signature, NOT_ONE),
    "two elements with one id": (same_id, "have the same id"),
    "a reference to another element": (signature_of_another_element, "does not cover the very element"),
    "no signature": (stripped, "the assertion itself is not signed"),
    "a signed response only": (response_signed_only, "the assertion itself is not signed"),
    "another key": (lambda: OTHER.signed(said()), "the signature is not one of the issuer"),
    "another subject": (edited(NAME, lambda n: setattr(n, "text", "root@example.test")), "the signature is not one of"),
    "another group": (
        edited(
            "saml:Assertion/saml:AttributeStatement/saml:Attribute/saml:AttributeValue",
            lambda n: setattr(n, "text", "admin"),
        ),
        "the signature is not one of",
    ),
    "sha-1": (lambda: IDP.signed(said(), method=xmlsec.Transform.RSA_SHA1), "the signature method"),
    "a sha-1 digest": (lambda: IDP.signed(said(), digest=xmlsec.Transform.SHA1), "the digest"),
    "hmac": (lambda: IDP.signed(said(), method=xmlsec.Transform.HMAC_SHA256, key=HMAC), "the signature method"),
    "another audience": (lambda: IDP.signed(said(audience="https://other.test")), "not for the audience"),
    "no audience": (without_audience, "not for the audience"),
    "another recipient": (lambda: IDP.signed(said(recipient="https://other.test/")), "is for the recipient"),
    "a recipient that begins with ours": (lambda: IDP.signed(said(recipient=f"{ORIGIN}/saml/acs.x")), "the recipient"),
    "no recipient": (unaddressed(CONFIRMED, "Recipient"), "is for the recipient"),
    "another destination": (lambda: IDP.signed(said(destination="https://other.test/")), "the response was sent to"),
    "no destination": (unaddressed(".", "Destination"), "the response was sent to"),
    "another request": (lambda: IDP.signed(said(request="_r2")), "answers another request"),
    "unsolicited": (unaddressed(".", "InResponseTo"), "answers another request"),
    "an unsolicited assertion": (unaddressed(CONFIRMED, "InResponseTo"), "answers another request"),
    "no end": (unaddressed(CONFIRMED, "NotOnOrAfter"), "until when it holds"),
    "expired": (lambda: IDP.signed(said(ends=-120)), "the assertion was over at"),
    "not yet": (lambda: IDP.signed(said(begins=200)), "does not hold yet"),
    "a login to come": (lambda: IDP.signed(said(logged_in=900)), "the login lies in the future"),
    "another issuer": (lambda: IDP.signed(said(issuer="https://evil.test")), "is not from the issuer"),
    "a passing name": (
        lambda: IDP.signed(said(name_format="urn:oasis:names:tc:SAML:2.0:nameid-format:transient")),
        "is not `persistent`, which `saml.name_id` asks for",
    ),
    "a second name of the same person": (
        lambda: IDP.signed(said(name_format="urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress")),
        "is not `persistent`, which `saml.name_id` asks for",
    ),
    "a name for an affiliation": (
        named("SPNameQualifier", "https://all.test"),
        "cannot be read: The SPNameQualifier",
    ),
    "a name of another provider": (named("NameQualifier", "https://evil.test"), "is one of another provider"),
    "a comment in the name": (
        text(lambda xml: xml.replace(b"noor@example.test<", b"noor@example.test<!---->.evil.test<")),
        "holds a comment",
    ),
    "a dtd": (text(lambda xml: b'<!DOCTYPE r [<!ENTITY e "x">]>' + xml), "holds a comment, a DTD"),
    "an instruction": (text(lambda xml: xml.replace(b"noor@", b"noor<?x ?>@")), "an instruction"),
    "another encoding": (lambda: b'<?xml version="1.0" encoding="utf-7"?><a/>', "is not UTF-8"),
    "utf-16": (text(lambda xml: xml.decode().encode("utf-16")), "is not base64 of UTF-8"),
    "too long": (lambda: b" " * 300_000, "is longer than"),
    "no xml": (lambda: b"hunter2", "is not XML"),
    "encrypted": (
        lambda: (
            f'<samlp:Response xmlns:samlp="{NS["samlp"]}"><saml:EncryptedAssertion xmlns:saml="{NS["saml"]}"/>'
            "</samlp:Response>".encode()
        ),
        "is encrypted",
    ),
    "a refusal of the provider": (
        text(lambda xml: xml.replace(b"status:Success", b"status:Responder")),
        "did not let the person in",
    ),
    "something else": (lambda: f'<samlp:LogoutRequest xmlns:samlp="{NS["samlp"]}"/>'.encode(), "not a SAML response"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_tampered_response_is_refused_with_its_own_sentence(tmp_path: Path, attack: str) -> None:
    make, sentence = ATTACKS[attack]
    with pytest.raises(AuthenticationError) as caught:
        sp(tmp_path).verify(encoded(make()), "_r1")
    assert sentence in str(caught.value)


def test_an_assertion_serves_once(tmp_path: Path) -> None:
    provider, response = sp(tmp_path), encoded(IDP.signed(said()))
    provider.verify(response, "_r1")
    with pytest.raises(AuthenticationError, match="was used before"):
        provider.verify(response, "_r1")


def test_a_login_that_is_too_old_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match="older than 600 seconds"):
        sp(tmp_path, max_age=600).verify(encoded(IDP.signed(said(logged_in=-900))), "_r1")


@pytest.mark.parametrize("broken", ["<a/>", "no xml", '<!DOCTYPE a [<!ENTITY e "x">]><a>&e;</a>'])
def test_metadata_that_is_none_is_refused(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "idp.xml"
    path.write_text(broken)
    with pytest.raises(ConfigurationError, match="of the identity provider"):
        read_metadata(path, ENTITY_ID)


@pytest.mark.parametrize(("use", "taken"), [(' use="signing"', True), ("", True), (' use="encryption"', False)])
def test_a_certificate_that_is_only_for_encryption_is_not_pinned(tmp_path: Path, use: str, taken: bool) -> None:
    path = IDP.metadata(tmp_path / "idp.xml")
    path.write_text(path.read_text().replace(' use="signing"', use))
    if taken:
        assert len(read_metadata(path, ENTITY_ID)[1]) == 1
    else:
        with pytest.raises(ConfigurationError, match="names no signing certificate"):
            read_metadata(path, ENTITY_ID)


def test_a_bearer_token_is_known_until_it_is_over_or_revoked(tmp_path: Path) -> None:
    login = sp(tmp_path).verify(encoded(IDP.signed(said())), "_r1")
    bearers = Bearers()
    issued = bearers.issue(login)
    assert bearers.verify(issued.token).principal == login.principal
    with pytest.raises(AuthenticationError, match="it is over"):
        bearers.verify(issued.token, now=issued.expires)
    with pytest.raises(AuthenticationError, match="expired"):
        bearers.issue(replace(login, expires=issued.expires), now=issued.expires)
    bearers.revoke(login.principal)
    with pytest.raises(AuthenticationError, match="none that this gateway issued"):
        bearers.verify(issued.token)
