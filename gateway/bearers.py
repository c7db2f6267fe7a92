"""Short-lived opaque bearer tokens: what a login that brings no token of its own (SAML) leaves in its owner's hand.

Kept as session secrets are: in the memory of this process, as digests, for an hour at most; a restart revokes them all.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from gateway.errors import AuthenticationError
from gateway.identity import OWN_PREFIX, VerifiedToken
from policy.model import Principal

LIFE = timedelta(hours=1)
_EACH = 20  # of one principal at the same time; the oldest gives way


@dataclass(frozen=True, slots=True)
class IssuedBearer:
    """What its owner gets, once."""

    token: str = field(repr=False)
    expires: datetime


class Bearers:
    """The bearer tokens of this process."""

    def __init__(self) -> None:
        self._held: OrderedDict[bytes, VerifiedToken] = OrderedDict()  # by digest, the oldest first

    def issue(self, login: VerifiedToken, now: datetime | None = None) -> IssuedBearer:
        """A new token of the login's principal; it lives no longer than the login. Raises AuthenticationError."""
        now = now or datetime.now(UTC)
        if login.expires <= now:
            raise AuthenticationError("the login has expired", cure="Log in again: `countersign login --saml`.")
        self._forget(login.principal, now)
        token, expires = OWN_PREFIX + secrets.token_urlsafe(32), min(login.expires, now + LIFE)
        self._held[_digest(token)] = replace(login, expires=expires)
        return IssuedBearer(token, expires)

    def verify(self, token: str, now: datetime | None = None) -> VerifiedToken:
        """The login behind a token. Raises AuthenticationError."""
        login = self._held.get(_digest(token))
        if login is None or login.expires <= (now or datetime.now(UTC)):
            raise AuthenticationError(
                "the token is none that this gateway issued, or it is over",
                cure="Log in again: `countersign login --saml --token`.",
            )
        return login

    def revoke(self, principal: Principal) -> None:
        """Forget the tokens of this principal."""
        for digest in self._of(principal):
            del self._held[digest]

    def _of(self, principal: Principal) -> list[bytes]:
        whose = (principal.issuer, principal.subject)
        return [
            digest for digest, login in self._held.items() if (login.principal.issuer, login.principal.subject) == whose
        ]

    def _forget(self, principal: Principal, now: datetime) -> None:
        """What is over, and the principal's oldest where it has too many."""
        for digest in [digest for digest, login in self._held.items() if login.expires <= now]:
            del self._held[digest]
        own = self._of(principal)
        for digest in own[: max(0, len(own) - _EACH + 1)]:
            del self._held[digest]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
