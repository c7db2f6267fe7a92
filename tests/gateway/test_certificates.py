"""Client certificates against the configuration's rules: whom they stand for, and whom they never do."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from gateway.certificates import CertificatePrincipals, CertificateRule, NameKind
from gateway.errors import AuthenticationError
from policy.model import PrincipalKind
from tests.certificates import Certificate, make


def der(certificate: Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.certificate.read_text())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make(tmp_path_factory.mktemp("authority"), "authority", "Example CA")


@pytest.fixture(scope="module")
def etl(tmp_path_factory: pytest.TempPathFactory, authority: Certificate) -> bytes:
    names = [x509.UniformResourceIdentifier("spiffe://example.com/ns/etl/nightly"), x509.RFC822Name("etl@example.com")]
    return der(make(tmp_path_factory.mktemp("etl"), "etl", "etl.example.com", authority, names=names))


@pytest.mark.parametrize(
    ("kind", "pattern", "fits"),
    [
        ("common_name", "etl.example.com", True),
        ("common_name", "*.example.com", True),
        ("common_name", "etl", False),
        ("common_name", "ETL.example.com", False),
        ("common_name", "etl.example.co", False),
        ("common_name", "etl.example.com.evil.example", False),
        ("common_name", "etl?example.com", False),
        ("common_name", "spiffe://*", False),  # another kind of name is another name
        ("dns", "etl.example.com", True),
        ("dns", "etl@example.com", False),
        ("uri", "spiffe://example.com/ns/etl/*", True),
        ("uri", "spiffe://example.com/ns/web/*", False),
        ("email", "etl@example.com", True),
        ("email", "etl.example.com", False),
    ],
)
def test_a_rule_means_certificates_by_one_kind_of_name(etl: bytes, kind: NameKind, pattern: str, fits: bool) -> None:
    found = CertificatePrincipals([CertificateRule(kind, pattern, "etl")]).login(etl, "etl")
    assert (found is not None) is fits


def test_a_principal_is_the_configurations_words_and_an_agents(etl: bytes) -> None:
    rule = CertificateRule(
        "dns", "etl.example.com", "etl", frozenset({"jobs"}), on_behalf_of="ada", human_issuer="https://issuer.example"
    )
    login = CertificatePrincipals([rule]).login(etl, "etl")
    assert login is not None
    principal = login.principal
    assert (principal.subject, principal.issuer, principal.groups) == ("etl", "tls:Example CA", frozenset({"jobs"}))
    assert (principal.kind, principal.email, principal.name) == (PrincipalKind.AGENT, None, None)
    # The same person as by a token of theirs: ada cannot approve what her own program asks for.
    assert principal.human == ("https://issuer.example", "ada")


def test_it_lives_as_long_as_the_certificate(tmp_path: Path, authority: Certificate) -> None:
    short = der(make(tmp_path, "short", "etl", authority, lives=timedelta(minutes=3)))
    login = CertificatePrincipals([CertificateRule("common_name", "etl", "etl")]).login(short, "etl")
    assert login is not None
    assert login.expires - datetime.now(UTC) <= timedelta(minutes=3)
    assert login.token_id.startswith("certificate ")


def test_only_the_user_that_is_named_is_meant(etl: bytes) -> None:
    rules = CertificatePrincipals([CertificateRule("dns", "*", "etl"), CertificateRule("dns", "etl.*", "loader")])
    for user in ("etl", "loader"):
        login = rules.login(etl, user)
        assert login is not None
        assert login.principal.subject == user
    assert rules.login(etl, "grace") is None
    assert rules.login(etl, "ETL") is None


def test_two_rules_for_one_subject_are_nobodys_choice(etl: bytes) -> None:
    rules = CertificatePrincipals(
        [CertificateRule("dns", "*", "etl", frozenset({"dba"})), CertificateRule("dns", "etl.*", "etl")]
    )
    with pytest.raises(AuthenticationError, match="several rules"):
        rules.login(etl, "etl")


def test_what_cannot_be_read_is_nobodys_certificate(etl: bytes) -> None:
    rules = CertificatePrincipals([CertificateRule("dns", "*", "etl")])
    for unreadable in (b"", b"nothing", etl[:200]):
        with pytest.raises(AuthenticationError, match="cannot be read"):
            rules.login(unreadable, "etl")
