"""The wire door's certificate: the TLS context of new connections, and its hash for SCRAM's channel binding.

Sources: PostgreSQL documentation, "SSL Session Encryption" (ALPN `postgresql`); RFC 5929, section 4.1.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

log = logging.getLogger(__name__)

ALPN = "postgresql"


@dataclass(frozen=True, slots=True)
class Presented:
    """What one connection is shown: a context, and the hash of its certificate where RFC 5929 defines one."""

    context: ssl.SSLContext
    binding: bytes | None


class ServerTls:
    """PEM files of a certificate with its key, and of the authority of client certificates where they are required.

    They are looked at for each new connection: a renewed certificate holds from then on, and a pair that does not fit
    is told in the log while the old one stays. The first is loaded here: raises OSError, ssl.SSLError, ValueError.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._seen = self._state()
        self._presented = self._load()

    @property
    def requires_certificate(self) -> bool:
        """Whether only clients with a certificate of their own may log in."""
        return self._client_ca is not None

    def present(self) -> Presented:
        """For a new connection."""
        try:
            if (state := self._state()) != self._seen:
                self._seen = state
                self._presented = self._load()
                log.info("the certificate `%s` was loaded anew", self._certificate)
        except (OSError, ValueError) as error:
            log.error(
                "the certificate `%s` was changed and cannot be used: %s; the old one stays", self._certificate, error
            )
        return self._presented

    def _state(self) -> list[tuple[int, int, int]]:
        files = [path for path in (self._certificate, self._key, self._client_ca) if path is not None]
        return [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in map(Path.stat, files)]

    def _load(self) -> Presented:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([ALPN])
        context.load_cert_chain(self._certificate, self._key)
        if self._client_ca is not None:
            context.load_verify_locations(cafile=self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return Presented(context, _end_point(self._certificate.read_bytes()))


def _end_point(pem: bytes) -> bytes | None:
    """`tls-server-end-point`: hashed as the certificate is signed, but never by less than SHA-256; None without one."""
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return None
    if algorithm is None:  # Ed25519 signs without a hash
        return None
    weak = isinstance(algorithm, hashes.MD5 | hashes.SHA1)
    return certificate.fingerprint(hashes.SHA256() if weak else algorithm)
