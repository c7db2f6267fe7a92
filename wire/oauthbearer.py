"""SASL OAUTHBEARER as the server: the token of a PostgreSQL 18 client, or where it can get one. Sans-IO.

Sources: PostgreSQL 18 documentation, "OAUTHBEARER Authentication"; RFC 7628 (section 3), RFC 5801 (the header),
RFC 6750 (section 2.1: the grammar of a token).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from gateway.errors import AuthenticationError
from policy.patterns import wildcard
from wire.fields import ProtocolError
from wire.frontend import AuthenticationResponse

MECHANISM = "OAUTHBEARER"
# Between key and value pairs, behind the last of them, and all of a client's answer to a failure.
_SEPARATOR = "\x01"

# The header says that no channel is bound; `y` is a client that could and believes that we cannot, which is so here.
_HEADER = re.compile(r"[yn],(?P<authorization>a=[^,]*)?,")
_PAIR = re.compile(r"(?P<key>[A-Za-z]+)=(?P<value>[ \t\r\n!-~]*)")
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +(?P<token>[A-Za-z0-9\-._~+/]+=*)")


@dataclass(frozen=True, slots=True)
class OauthOffer:
    """Which users are asked for OAUTHBEARER, and what a client without a token is told."""

    users: tuple[str, ...]  # names with `*` for any run of characters
    discovery_url: str
    scope: str

    def asks(self, user: str) -> bool:
        """Whether this user is asked for it; others for the token as a password."""
        return any(wildcard(pattern).fullmatch(user) for pattern in self.users)

    def failure(self) -> bytes:
        """What a client hears whose token is missing or wrong: it answers, and hears our sentence."""
        told = {"status": "invalid_token", "openid-configuration": self.discovery_url, "scope": self.scope}
        return json.dumps(told).encode()


def token_of(response: AuthenticationResponse) -> str:
    """The token of the client's first message; empty where it asks where to get one.

    Raises AuthenticationError, ProtocolError.
    """
    mechanism, data = response.as_sasl_initial()
    if mechanism != MECHANISM:
        raise ProtocolError("client selected an invalid SASL authentication mechanism")
    try:
        text = (data or b"").decode("ascii")
    except UnicodeDecodeError:
        raise _malformed("it is not ASCII") from None
    if text.startswith("p"):
        raise _malformed("it binds a channel, which OAUTHBEARER does not")
    header = _HEADER.match(text)
    if header is None:
        raise _malformed("its header is not that of SASL")
    if header["authorization"] is not None:
        raise AuthenticationError(
            "an authorization identity is not supported: who you are is what your token says",
            cure="Connect without it.",
        )
    return _bearer(_auth(text[header.end() :]))


def check_acknowledged(response: AuthenticationResponse) -> None:
    """The client's answer to our failure is a single separator. Raises ProtocolError."""
    if response.payload != _SEPARATOR.encode():
        raise _malformed("a failure was not acknowledged")


def _auth(pairs: str) -> str:
    """The value of the one `auth` key; others have no meaning here and are passed over (RFC 7628, section 3.1)."""
    if len(pairs) < 2 or not pairs.startswith(_SEPARATOR) or not pairs.endswith(_SEPARATOR * 2):
        raise _malformed("its key and value pairs have no end")
    found = []
    for pair in pairs[1:-2].split(_SEPARATOR):
        match = _PAIR.fullmatch(pair)
        if match is None:
            raise _malformed("it holds something else than key and value pairs")
        if match["key"] == "auth":
            found.append(match["value"])
    if len(found) != 1:
        raise _malformed("it does not hold one `auth` value")
    return found[0]


def _bearer(value: str) -> str:
    if not value:
        return ""
    match = _BEARER.fullmatch(value)
    if match is None:
        raise AuthenticationError("what was sent is no bearer token", cure="Send `Bearer` and an access token.")
    return match["token"]


def _malformed(why: str) -> ProtocolError:
    return ProtocolError(f"malformed OAUTHBEARER message: {why}")
