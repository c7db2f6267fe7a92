"""SCRAM-SHA-256 and -PLUS: as the server, against session secrets, and as the client of an upstream. Sans-IO.

Sources: PostgreSQL documentation, "SASL Authentication"; RFC 5802 (sections 3, 5, 7 and 9), RFC 7677; RFC 5929 for
`tls-server-end-point`. Written here because libpq leaves the name in the SCRAM message empty, as PostgreSQL's server
wants it, and the library that we have for it refuses that as a server; as a client it derives the key anew for each
connect, for which all others wait (decision 0035).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from functools import lru_cache

from scramp.utils import saslprep

from gateway.errors import AuthenticationError, WrongPasswordError
from gateway.session_secrets import ScramVerifier
from wire.fields import ProtocolError
from wire.frontend import AuthenticationResponse

_PLAIN = "SCRAM-SHA-256"
_PLUS = "SCRAM-SHA-256-PLUS"
_END_POINT = "p=tls-server-end-point"
_MAX_ITERATIONS = 1_000_000  # a server must not make us compute for minutes

# Printable but for the comma (RFC 5802, section 7: `printable`). An authorisation name is refused, the user's ignored.
_FIRST = re.compile(r"(?P<header>(?P<flag>[yn]|p=[A-Za-z0-9.-]+),,)(?P<bare>n=[^,\0]*,r=(?P<nonce>[!-+\--~]+)(?:,.*)?)")
_FINAL = re.compile(r"(?P<unproved>c=(?P<binding>[^,]+),r=(?P<nonce>[!-+\--~]+)(?:,.*)?),p=(?P<proof>[^,]+)")
_CHALLENGE = re.compile(r"r=(?P<nonce>[!-+\--~]+),s=(?P<salt>[^,]+),i=(?P<rounds>[1-9][0-9]{0,9})(?:,.*)?")


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
        client_key = _xor(proof, signature)
        if not hmac.compare_digest(hashlib.sha256(client_key).digest(), self._verifier.stored_key):
            raise WrongPasswordError(self._user)
        return b"v=" + base64.b64encode(hmac.digest(self._verifier.server_key, message, "sha256"))


class ScramClient:
    """One authentication to a server: `mechanism`, then `first`, `final` and `check`. All raise ProtocolError.

    `nonce` is random and printable. `binding` is the hash of the server's certificate where both sides can bind;
    without it, `could_bind` says that we could, so that a server that could as well notices who took its offer away.
    """

    def __init__(
        self, user: str, password: str, nonce: str, binding: bytes | None = None, *, could_bind: bool = False
    ) -> None:
        self._password = password
        self._nonce = nonce
        flag = _END_POINT if binding is not None else "y" if could_bind else "n"
        self._header = f"{flag},,"
        self._bound = base64.b64encode(self._header.encode() + (binding or b"")).decode()
        self._bare = f"n={user.replace('=', '=3D').replace(',', '=2C')},r={nonce}"
        self._proof_of_server = b""
        self.mechanism = _PLUS if binding is not None else _PLAIN

    def first(self) -> bytes:
        """The first message."""
        return f"{self._header}{self._bare}".encode()

    def final(self, challenge: bytes) -> bytes:
        """The answer to the server's first message: the proof that we know the password."""
        match = _matched(_CHALLENGE, challenge)
        if not match["nonce"].startswith(self._nonce) or match["nonce"] == self._nonce:
            raise ProtocolError("malformed SCRAM message: its nonce is not this one's")
        if (rounds := int(match["rounds"])) > _MAX_ITERATIONS:
            raise ProtocolError("it asks for too many SCRAM iterations")
        salted = _salted(self._password, _decoded(match["salt"]), rounds)
        key = hmac.digest(salted, b"Client Key", "sha256")
        unproved = f"c={self._bound},r={match['nonce']}"
        message = f"{self._bare},{match[0]},{unproved}".encode()
        signature = hmac.digest(hashlib.sha256(key).digest(), message, "sha256")
        self._proof_of_server = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), message, "sha256")
        proof = base64.b64encode(_xor(key, signature))
        return f"{unproved},p={proof.decode()}".encode()

    def check(self, final: bytes) -> None:
        """The server's last message: it must know the password too."""
        expected = b"v=" + base64.b64encode(self._proof_of_server)
        if not self._proof_of_server or not hmac.compare_digest(final, expected):
            raise ProtocolError("the server's proof is not that of this password")


# Of one upstream user there is one; changed passwords and salts make room.
@lru_cache(maxsize=128)
def _salted(password: str, salt: bytes, rounds: int) -> bytes:
    """SaltedPassword: thousands of rounds, once (RFC 5802, section 9: it may be kept)."""
    return hashlib.pbkdf2_hmac("sha256", saslprep(password).encode(), salt, rounds)


def _xor(a: bytes, b: bytes) -> bytes:
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).to_bytes(len(a), "big")


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
