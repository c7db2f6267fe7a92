"""SCRAM-SHA-256 and -PLUS as the server, against session secrets. Sans-IO.

Sources: PostgreSQL documentation, "SASL Authentication"; RFC 5802 (sections 3, 5 and 7), RFC 7677; RFC 5929 for
`tls-server-end-point`. Written here because libpq leaves the name in the SCRAM message empty, as PostgreSQL's server
wants it, and the library that we use as a client refuses that as a server.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re

from gateway.errors import AuthenticationError, WrongPasswordError
from gateway.session_secrets import ScramVerifier
from wire.fields import ProtocolError
from wire.frontend import AuthenticationResponse

_PLAIN = "SCRAM-SHA-256"
_PLUS = "SCRAM-SHA-256-PLUS"
_END_POINT = "p=tls-server-end-point"

# Printable but for the comma (RFC 5802, section 7: `printable`). An authorisation name is refused, the user's ignored.
_FIRST = re.compile(r"(?P<header>(?P<flag>[yn]|p=[A-Za-z0-9.-]+),,)(?P<bare>n=[^,\0]*,r=(?P<nonce>[!-+\--~]+)(?:,.*)?)")
_FINAL = re.compile(r"(?P<unproved>c=(?P<binding>[^,]+),r=(?P<nonce>[!-+\--~]+)(?:,.*)?),p=(?P<proof>[^,]+)")


class ScramServer:
    """One authentication: `mechanisms`, then `first`, then `final`.

    `nonce` is random and printable; `binding` is the hash of our certificate where the client is inside TLS, else None.
    """

    def __init__(self, user: str, verifier: ScramVerifier, nonce: str, binding: bytes | None) -> None:
        self._user = user
        self._verifier = verifier
        self._nonce = nonce
        self._binding = binding
        self._bound = b""  # what the client must repeat of its header, with the binding behind it
        self._client_first = ""
        self._server_first = ""

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """What is offered, the best first."""
        return (_PLUS, _PLAIN) if self._binding is not None else (_PLAIN,)

    def first(self, response: AuthenticationResponse) -> bytes:
        """The answer to the client's first message. Raises AuthenticationError, ProtocolError."""
        mechanism, data = response.as_sasl_initial()
        if mechanism not in self.mechanisms:
            raise ProtocolError("client selected an invalid SASL authentication mechanism")
        match = _matched(_FIRST, data or b"")
        flag = match["flag"]
        if flag not in ((_END_POINT,) if mechanism == _PLUS else ("y", "n")):
            raise ProtocolError("malformed SCRAM message: its channel binding flag is not its mechanism's")
        if flag == "y" and self._binding is not None:
            # The client could bind and believes that we cannot: somebody in the middle took our offer away.
            raise AuthenticationError("SCRAM channel binding negotiation failed: this server supports it")
        self._bound = match["header"].encode() + (self._binding or b"" if mechanism == _PLUS else b"")
        self._client_first = match["bare"]
        self._nonce = match["nonce"] + self._nonce
        salt = base64.b64encode(self._verifier.salt).decode()
        self._server_first = f"r={self._nonce},s={salt},i={self._verifier.iterations}"
        return self._server_first.encode()

    def final(self, response: AuthenticationResponse) -> bytes:
        """The proof that we know the password too, once the client has given its own. Raises AuthenticationError."""
        match = _matched(_FINAL, response.payload)
        if not hmac.compare_digest(_decoded(match["binding"]), self._bound):
            raise AuthenticationError("SCRAM channel binding check failed")
        if not hmac.compare_digest(match["nonce"], self._nonce):
            raise ProtocolError("malformed SCRAM message: its nonce is not this one's")
        message = f"{self._client_first},{self._server_first},{match['unproved']}".encode()
        signature = hmac.digest(self._verifier.stored_key, message, "sha256")
        proof = _decoded(match["proof"])
        if len(proof) != len(signature):
            raise ProtocolError("malformed SCRAM message: its proof has another length")
        client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        if not hmac.compare_digest(hashlib.sha256(client_key).digest(), self._verifier.stored_key):
            raise WrongPasswordError(self._user)
        return b"v=" + base64.b64encode(hmac.digest(self._verifier.server_key, message, "sha256"))


def _matched(pattern: re.Pattern[str], data: bytes) -> re.Match[str]:
    try:
        match = pattern.fullmatch(data.decode())
    except UnicodeDecodeError:
        match = None
    if match is None:
        raise ProtocolError("malformed SCRAM message")
    return match


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("malformed SCRAM message: it is not base64") from None
