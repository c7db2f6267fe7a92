"""Certificates made for a test: self-signed ones for this machine, and client certificates that one of them signs."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificate:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path


def make(
    folder: Path,
    file: str = "server",
    host: str = "localhost",
    signer: Certificate | None = None,
    *,
    names: Sequence[x509.GeneralName] = (),
    lives: datetime.timedelta = datetime.timedelta(hours=1),
) -> Certificate:
    """A certificate for `host` (and 127.0.0.1 with localhost, and `names`), signed by `signer` or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    issuer, signing = (name, key) if signer is None else _signer(signer)
    alternatives: list[x509.GeneralName] = [x509.DNSName(host), *names]
    if host == "localhost":
        alternatives.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + lives)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .sign(signing, hashes.SHA256())
    )
    files = Certificate(folder / f"{file}.crt", folder / f"{file}.key")
    files.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files.key.touch(mode=0o600)  # libpq wants a client's key to be its own
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def revoke(folder: Path, signer: Certificate, *revoked: Certificate) -> Path:
    """The list of what `signer` has revoked."""
    name, key = _signer(signer)
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateRevocationListBuilder().issuer_name(name).last_update(now - datetime.timedelta(minutes=5))
    made = made.next_update(now + datetime.timedelta(hours=1))
    for certificate in revoked:
        serial = x509.load_pem_x509_certificate(certificate.certificate.read_bytes()).serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        made = made.add_revoked_certificate(entry.build())
    path = folder / "revoked.crl"
    path.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


def _signer(signer: Certificate) -> tuple[x509.Name, ec.EllipticCurvePrivateKey]:
    key = serialization.load_pem_private_key(signer.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate(signer.certificate.read_bytes()).subject, key
