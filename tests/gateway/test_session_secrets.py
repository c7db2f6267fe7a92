"""Short-lived passwords of the wire door: how long they live, and what is kept of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.errors import AuthenticationError
from gateway.identity import VerifiedToken
from gateway.session_secrets import SessionSecrets
from policy.model import Principal, PrincipalKind

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def token(subject: str = "devin", lives: timedelta = timedelta(hours=8)) -> VerifiedToken:
    principal = Principal(subject, "https://issuer.example", PrincipalKind.AGENT)
    return VerifiedToken(principal, NOW + lives, "jti-1", frozenset())


def test_a_secret_lives_an_hour_and_no_longer_than_its_token() -> None:
    secrets = SessionSecrets()
    long, short = secrets.issue(token(), NOW), secrets.issue(token(lives=timedelta(minutes=5)), NOW)
    assert (long.expires, short.expires) == (NOW + timedelta(hours=1), NOW + timedelta(minutes=5))
    assert secrets.token(long.user, NOW).principal.subject == "devin"
    with pytest.raises(AuthenticationError):
        secrets.token(short.user, short.expires)
    with pytest.raises(AuthenticationError, match="expired"):
        secrets.issue(token(lives=timedelta(0)), NOW)


def test_what_is_kept_names_the_secret_and_not_its_password() -> None:
    secrets = SessionSecrets()
    issued = secrets.issue(token(), NOW)
    assert secrets.token(issued.user, NOW).token_id == f"jti-1 {issued.user}"
    assert issued.password not in repr(vars(secrets)) + repr(issued)


def test_an_unknown_user_looks_like_a_known_one() -> None:
    secrets = SessionSecrets()
    known, unknown = secrets.verifier(secrets.issue(token(), NOW).user, NOW), secrets.verifier("cs-guess", NOW)
    assert (len(known.salt), known.iterations) == (len(unknown.salt), unknown.iterations)
    assert secrets.verifier("cs-guess", NOW).salt == unknown.salt
    assert secrets.verifier("cs-other", NOW).salt != unknown.salt


def test_a_principals_oldest_secret_gives_way_and_nobody_elses() -> None:
    secrets = SessionSecrets()
    other = secrets.issue(token("ada"), NOW)
    issued = [secrets.issue(token(), NOW) for _ in range(21)]
    with pytest.raises(AuthenticationError):
        secrets.token(issued[0].user, NOW)
    for kept in [*issued[1:], other]:
        secrets.token(kept.user, NOW)  # raises nothing
