"""What the command line says of its verifier before a SAML login (RFC 7636, S256). Needs no extra."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode


def challenge_of(verifier: str) -> str:
    """The verifier's digest."""
    digest = hashlib.sha256(verifier.encode("utf-8", "surrogatepass")).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()
