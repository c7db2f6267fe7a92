"""The wire door's certificate: the TLS context of new connections, and its hash for SCRAM's channel binding.

Sources: PostgreSQL documentation, "SSL Session Encryption" (ALPN `postgresql`).
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from wire.binding import end_point

log = logging.getLogger(__name__)

ALPN = "postgresql"


@dataclass(frozen=True, slots=True)
class Presented:
    """What one connection is shown: a context, and the hash of its certificate where RFC 5929 defines one."""

    context: ssl.SSLContext
    binding: bytes | None


@dataclass(frozen=True, slots=True)
class ClientCertificates:
    """Whose client certificates are believed (PEM), whether each client needs one, and which were revoked (PEM)."""

    authority: Path
    required: bool = True
    revoked: Path | None = None


class ServerTls:
    """PEM files of a certificate with its key, and what is asked of clients' certificates.

    They are looked at for each new connection: a renewed certificate holds from then on, and a pair that does not fit
    is told in the log while the old one stays. The first is loaded here: raises OSError, ssl.SSLError, ValueError.
    """

    def __init__(self, certificate: Path, key: Path, clients: ClientCertificates | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._clients = clients
        self._seen = self._state()
        self._presented = self._load()

    @property
    def requires_certificate(self) -> bool:
        """Whether only clients with a certificate of their own may log in."""
        return self._clients is not None and self._clients.required

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
        files = [self._certificate, self._key]
        if self._clients is not None:
            files += [path for path in (self._clients.authority, self._clients.revoked) if path is not None]
        return [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in map(Path.stat, files)]

    def _load(self) -> Presented:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([ALPN])
        context.load_cert_chain(self._certificate, self._key)
        if self._clients is not None:
            context.load_verify_locations(cafile=self._clients.authority)
            context.verify_mode = ssl.CERT_REQUIRED if self._clients.required else ssl.CERT_OPTIONAL
            if self._clients.revoked is not None:
                # A list that is too old refuses everybody: what it does not say yet may be anything.
                context.load_verify_locations(cafile=self._clients.revoked)
                context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        return Presented(context, end_point(x509.load_pem_x509_certificate(self._certificate.read_bytes())))
