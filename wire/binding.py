"""What SCRAM binds to a TLS channel: the hash of the server's certificate, `tls-server-end-point`. Sans-IO.

Source: RFC 5929, section 4.1.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes


def end_point(certificate: x509.Certificate) -> bytes | None:
    """Hashed as the certificate is signed, but never by less than SHA-256; None where it is signed without a hash."""
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return None
    if algorithm is None:  # Ed25519 signs without a hash
        return None
    weak = isinstance(algorithm, hashes.MD5 | hashes.SHA1)
    return certificate.fingerprint(hashes.SHA256() if weak else algorithm)
