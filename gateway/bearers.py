"""Short-lived opaque bearer tokens: what a login that brings no token of its own (SAML) leaves in its owner's hand.

Kept as session secrets are: in the memory of this process, as digests, for an hour at most; a restart revokes them all.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from gateway.errors import AuthenticationError
from gateway.identity import OWN_PREFIX, VerifiedToken
from gateway.short_lived import ShortLived
from policy.model import Principal


@dataclass(frozen=True, slots=True)
class IssuedBearer:
    """What its owner gets, once."""

    token: str = field(repr=False)
    expires: datetime


class Bearers:
    """The bearer tokens of this process."""

    def __init__(self) -> None:
        self._held: ShortLived[bytes, None] = ShortLived()  # by digest

    def issue(self, login: VerifiedToken, now: datetime | None = None) -> IssuedBearer:
        """A new token of the login's principal; it lives no longer than the login. Raises AuthenticationError."""
        now = now or datetime.now(UTC)
        if login.expires <= now:
            raise AuthenticationError("the login has expired", cure="Log in again: `countersign login --saml`.")
        token = OWN_PREFIX + secrets.token_urlsafe(32)
        return IssuedBearer(token, self._held.keep(_digest(token), login, None, now))

    def verify(self, token: str, now: datetime | None = None) -> VerifiedToken:
        """The login behind a token. Raises AuthenticationError."""
        held = self._held.live(_digest(token), now or datetime.now(UTC))
        if held is None:
            raise AuthenticationError(
                "the token is none that this gateway issued, or it is over",
                cure="Log in again: `countersign login --saml --token`.",
            )
        return replace(held.login, expires=held.expires)

    def revoke(self, principal: Principal) -> None:
        """Forget the tokens of this principal."""
        self._held.revoke(principal)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
