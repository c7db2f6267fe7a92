"""Short-lived passwords for the wire door: made for a verified token and checked by SCRAM, so neither crosses the wire.

A secret is a pair of names: the user to connect as, which finds it, and the password, which only its owner has. Kept
is what SCRAM needs to check it (RFC 5802, section 3: StoredKey and ServerKey), never the password. They are kept in
the memory of this process: they live for an hour at most, and a restart revokes them all.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from scramp import ScramMechanism

from gateway.bearers import Bearers
from gateway.errors import AuthenticationError, WrongPasswordError
from gateway.identity import VerifiedToken
from gateway.short_lived import ShortLived
from policy.model import Principal

# What tells the user name of a secret from any other: the wire door asks these for SCRAM, others for a token.
PREFIX = "cs-"
# The least that RFC 7677 allows: more rounds slow down guessing, and 256 random bits are not guessed.
_ITERATIONS = 4096
_SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class IssuedSecret:
    """What its owner gets, once."""

    user: str
    password: str = field(repr=False)
    expires: datetime


@dataclass(frozen=True, slots=True)
class ScramVerifier:
    """What a password is checked by; of no use for logging in."""

    salt: bytes
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)
    iterations: int = _ITERATIONS


class SessionSecrets:
    """The secrets of this process."""

    def __init__(self) -> None:
        self._held: ShortLived[str, ScramVerifier] = ShortLived()  # by user
        self.bearers = Bearers()  # revoked with the secrets, so that none of them makes new ones
        self._mock_key = secrets.token_bytes(32)
        self._mechanism = ScramMechanism("SCRAM-SHA-256")

    def issue(self, token: VerifiedToken, now: datetime | None = None) -> IssuedSecret:
        """A new secret of the token's principal; it lives no longer than the token. Raises AuthenticationError."""
        now = now or datetime.now(UTC)
        if token.expires <= now:
            raise AuthenticationError("the token has expired", cure="Get a fresh token from the issuer.")
        user, password = PREFIX + secrets.token_hex(6), secrets.token_urlsafe(32)
        # Sessions that it opens name it beside the token that it was made for.
        named = replace(token, token_id=f"{token.token_id} {user}")
        return IssuedSecret(user, password, self._held.keep(user, named, self._verifier(password), now))

    def verifier(self, user: str, now: datetime | None = None) -> ScramVerifier:
        """By what the password of this user is checked.

        For an unknown one something that no password fits, and always with the same salt: who guesses names learns
        nothing (RFC 5802, section 9).
        """
        held = self._held.live(user, now or datetime.now(UTC))
        return held.value if held else self._mock(user)

    def token(self, user: str, now: datetime | None = None) -> VerifiedToken:
        """The token of a user who proved to have the password. Raises WrongPasswordError."""
        held = self._held.live(user, now or datetime.now(UTC))
        if held is None:
            raise WrongPasswordError(user)
        return held.login

    def revoke(self, principal: Principal) -> None:
        """Forget the secrets and bearer tokens of this principal; the sessions that they opened go on."""
        self._held.revoke(principal)
        self.bearers.revoke(principal)

    def _verifier(self, password: str) -> ScramVerifier:
        salt = secrets.token_bytes(_SALT_BYTES)
        _, stored_key, server_key, iterations = self._mechanism.make_auth_info(password, _ITERATIONS, salt)
        return ScramVerifier(salt, stored_key, server_key, iterations)

    def _mock(self, user: str) -> ScramVerifier:
        salt = hmac.digest(self._mock_key, user.encode(), "sha256")[:_SALT_BYTES]
        return ScramVerifier(salt, secrets.token_bytes(32), secrets.token_bytes(32))
