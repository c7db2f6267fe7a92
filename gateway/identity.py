"""Who is calling: OIDC access tokens verified against their issuer's keys, narrowed to a Principal.

Sources: RFC 9068 (JWT access tokens), RFC 7519 (claims), RFC 8414 and OpenID Connect Discovery
(metadata), RFC 8693 section 4.1 (`act`), RFC 9728 and RFC 8707 for what the MCP door adds; RFC 9470 section 6
(`auth_time`, `acr`).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeGuard, cast

import httpx2
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import extract_compact

from gateway.errors import AuthenticationError, IssuerUnavailableError
from policy.model import Principal, PrincipalKind

# Keys are fetched again this long after the last good answer, and not more often than this because a
# token names an unknown key: a stream of forged tokens must not become a stream of requests.
_KEYS_LIVE_SECONDS = 600.0
_UNKNOWN_KEY_RETRY_SECONDS = 10.0
_FETCH_TIMEOUT_SECONDS = 5.0
# How far an issuer's clock may be off, RFC 7519 section 4.1.4 ("a few minutes" at most).
_LEEWAY_SECONDS = 30
# 9999-01-01: times beyond it are no dates.
_LAST_TIME = 253_370_764_800
# What the tokens that a gateway issues itself begin with: a JWT begins with `ey`.
OWN_PREFIX = "csb_"
# A token is a header field or a password message; real ones are 1-4 KiB.
_MAX_TOKEN_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Issuer:
    """A trusted token issuer and how its claims are read.

    Claim names are paths: `realm_access.roles` reads a nested claim. A token is an agent's when its
    `kind_claim` equals `agent`, when it says for whom it works and no kind, or when it carries an RFC 8693 `act`
    claim: then `act.sub` is the acting agent and `sub` the human it acts for, whom all names of the token describe.
    """

    url: str
    audience: str
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    jwks_url: str | None = None  # None: found through discovery
    groups_claim: str = "groups"
    kind_claim: str = "principal_kind"
    on_behalf_of_claim: str = "on_behalf_of"

    @property
    def discovery_url(self) -> str:
        """Where its metadata lies (OpenID Connect Discovery, section 4)."""
        return f"{self.url.rstrip('/')}/.well-known/openid-configuration"


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A token that passed every check, as values. The token itself is not kept.

    How and when its person logged in is here and not in the principal: no rule of a policy may depend on it, so that
    the same person gets the same verdict by an old login and by a new one.
    """

    principal: Principal
    expires: datetime  # aware, UTC
    token_id: str  # `jti`, or a digest where the issuer gives none
    scopes: frozenset[str]
    auth_time: datetime | None = None  # aware, UTC; None where the issuer does not say it, or says no time of the past
    acr: str | None = None  # the authentication context class, in the issuer's own words
    claims: Mapping[str, object] = field(repr=False, default_factory=dict)


def claim_at(claims: Mapping[str, Any], path: str) -> object:
    """The value at a dotted path, or None. A claim whose own name holds the dots wins."""
    if path in claims:
        return cast("object", claims[path])
    node: Any = claims
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return cast("object", node)


def as_principal(issuer: Issuer, claims: Mapping[str, Any]) -> Principal:
    """Narrow verified claims to a Principal. Raises AuthenticationError where they do not name one."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise AuthenticationError("the token names no subject", cure="Ask the issuer for a `sub` claim.")
    groups = claim_at(claims, issuer.groups_claim)
    if groups is None:
        groups = []
    if isinstance(groups, str):
        groups = [groups]
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise AuthenticationError(
            f"the token's claim `{issuer.groups_claim}` is not a list of names",
            cure="Point `groups_claim` at the claim that holds the groups.",
        )
    actor = claims.get("act")
    human = claim_at(claims, issuer.on_behalf_of_claim)
    if not isinstance(human, str | None) or human == "":
        raise AuthenticationError(
            f"the token's claim `{issuer.on_behalf_of_claim}` is not a name",
            cure="Point `on_behalf_of_claim` at the claim that names the human's subject.",
        )
    kind = _kind(issuer, claims, human)
    email, name = _email(claims), claims.get("name")
    if actor is not None:
        if not isinstance(actor, Mapping) or not isinstance(actor.get("sub"), str) or not actor["sub"]:
            raise AuthenticationError("the token's `act` claim names no actor", cure="Ask the issuer for `act.sub`.")
        subject, human, kind = actor["sub"], subject, PrincipalKind.AGENT
        email = name = None  # the human's
    return Principal(
        subject=subject,
        issuer=issuer.url,
        kind=kind,
        groups=frozenset(groups),
        email=email,
        name=name if isinstance(name, str) else None,
        on_behalf_of=human if kind is PrincipalKind.AGENT else None,
    )


def _email(claims: Mapping[str, Any]) -> str | None:
    """The address, unless the issuer says that nobody has verified it: its owner could be somebody else."""
    email, verified = claims.get("email"), claims.get("email_verified", True)
    if verified is not True and verified != "true":  # some issuers write it as text
        return None
    return email if isinstance(email, str) and "@" in email else None  # a bare word could be anybody's subject


def _kind(issuer: Issuer, claims: Mapping[str, Any], human: str | None) -> PrincipalKind:
    """Human or agent. A claim that says neither is refused: an agent that passed for a human could vote."""
    named = claim_at(claims, issuer.kind_claim)
    if named is None:
        return PrincipalKind.HUMAN if human is None else PrincipalKind.AGENT
    if not isinstance(named, str) or named not in [kind.value for kind in PrincipalKind]:
        raise AuthenticationError(
            f"the token's claim `{issuer.kind_claim}` is neither `agent` nor `human`",
            cure="Ask the issuer for one of them, or for no such claim in the tokens of humans.",
        )
    return PrincipalKind(named)


class _Keys:
    """One issuer's JWKS: cached, refreshed, and used stale rather than not at all."""

    def __init__(self, issuer: Issuer, http: httpx2.AsyncClient) -> None:
        self._issuer = issuer
        self._http = http
        self._set: KeySet | None = None
        self._fetched = 0.0
        self._tried = float("-inf")
        self._lock = asyncio.Lock()

    async def current(self, *, unknown_key: bool = False) -> KeySet:
        """The key set; with `unknown_key` a newer one, if the issuer was not asked just now."""
        async with self._lock:
            now = time.monotonic()
            wait = _UNKNOWN_KEY_RETRY_SECONDS if unknown_key or self._set is None else _KEYS_LIVE_SECONDS
            last = self._tried if unknown_key else self._fetched
            if self._set is not None and now - last < wait:
                return self._set
            try:
                self._tried = now
                self._set = await self._fetch()
                self._fetched = now
            except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, JoseError) as error:
                why = str(error) or type(error).__name__
                if self._set is None:
                    raise IssuerUnavailableError(
                        f"the keys of issuer `{self._issuer.url}` cannot be fetched: {why}",
                        cure="Check that the issuer is up and reachable from the gateway.",
                    ) from None
            return self._set

    async def _fetch(self) -> KeySet:
        url = self._issuer.jwks_url
        if url is None:
            answer = await self._http.get(self._issuer.discovery_url)
            metadata = answer.raise_for_status().json()
            # OpenID Connect Discovery section 4.3: the document must name the issuer it was asked for.
            if metadata.get("issuer") != self._issuer.url:
                raise ValueError(f"its metadata names another issuer, `{metadata.get('issuer')}`")
            url = str(metadata["jwks_uri"])
        answer = await self._http.get(url)
        return KeySet.import_key_set(answer.raise_for_status().json())


def _is_time(value: object) -> TypeGuard[int | float]:
    """Whether a NumericDate (RFC 7519 section 2) can be one: finite, and within the calendar."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LAST_TIME


def _login_time(claims: Mapping[str, Any]) -> datetime | None:
    """When the person logged in, as far as it can be believed: a time to come would be fresh for ever."""
    claimed = claims.get("auth_time")
    if not _is_time(claimed) or claimed > time.time() + _LEEWAY_SECONDS:
        return None
    return datetime.fromtimestamp(claimed, UTC)


class TokenVerifier:
    """Verifies access tokens of the configured issuers; the one door to a Principal."""

    def __init__(self, issuers: Sequence[Issuer], own: Callable[[str], VerifiedToken] | None = None) -> None:
        self._own = own  # verifies the tokens that this gateway issued itself
        self._http = httpx2.AsyncClient(timeout=_FETCH_TIMEOUT_SECONDS, follow_redirects=False)
        self._issuers = {issuer.url: (issuer, _Keys(issuer, self._http)) for issuer in issuers}

    @property
    def issuers(self) -> tuple[Issuer, ...]:
        """The trusted issuers."""
        return tuple(issuer for issuer, _ in self._issuers.values())

    async def close(self) -> None:
        """Let go of the HTTP connections."""
        await self._http.aclose()

    async def verify(self, token: str) -> VerifiedToken:
        """Check signature, algorithm, issuer, audience and times. Raises AuthenticationError, one sentence each.

        The claims are read before the signature only to choose the issuer; nothing else of them is
        believed until the signature holds.
        """
        if self._own is not None and token.startswith(OWN_PREFIX):
            return self._own(token)
        issuer, keys = self._issuer_of(token)
        claims = await self._checked_claims(token, issuer, keys)
        self._check_registered(claims, issuer)
        expires = datetime.fromtimestamp(int(claims["exp"]) + _LEEWAY_SECONDS, UTC)
        token_id = claims.get("jti")
        scope = claims.get("scope", "")
        return VerifiedToken(
            principal=as_principal(issuer, claims),
            expires=expires,
            token_id=token_id if isinstance(token_id, str) and token_id else f"exp-{claims['exp']}",
            scopes=frozenset(scope.split() if isinstance(scope, str) else ()),
            auth_time=_login_time(claims),
            acr=acr if isinstance(acr := claims.get("acr"), str) and acr else None,
            claims=claims,
        )

    def _issuer_of(self, token: str) -> tuple[Issuer, _Keys]:
        if not token:
            raise AuthenticationError("no token was given", cure="Send an access token of a trusted issuer.")
        if len(token) > _MAX_TOKEN_BYTES:
            raise AuthenticationError(f"the token is longer than {_MAX_TOKEN_BYTES} bytes")
        try:
            payload = json.loads(extract_compact(token.encode("ascii")).payload)
            named = payload.get("iss")
        except (JoseError, ValueError, AttributeError, UnicodeError, RecursionError):
            raise AuthenticationError(
                "the token is not a signed JWT", cure="Use an access token, not a password or an API key."
            ) from None
        if not isinstance(named, str) or named not in self._issuers:
            trusted = ", ".join(f"`{url}`" for url in self._issuers)
            raise AuthenticationError(
                f"the token's issuer `{named}` is not trusted here", cure=f"Get a token from {trusted}."
            )
        return self._issuers[named]

    async def _checked_claims(self, token: str, issuer: Issuer, keys: _Keys) -> dict[str, Any]:
        for unknown_key in (False, True):
            key_set = await keys.current(unknown_key=unknown_key)
            try:
                return dict(jwt.decode(token, key_set, algorithms=list(issuer.algorithms)).claims)
            except InvalidKeyIdError:
                continue  # the issuer may have rotated its keys: look once more
            except (JoseError, ValueError) as error:
                raise AuthenticationError(
                    f"the token's signature is not one of issuer `{issuer.url}` ({type(error).__name__})",
                    cure="Get a fresh token from the issuer.",
                ) from None
        raise AuthenticationError(
            f"the token is signed with a key that issuer `{issuer.url}` does not publish",
            cure="Get a fresh token from the issuer.",
        )

    def _check_registered(self, claims: Mapping[str, Any], issuer: Issuer) -> None:
        now = time.time()
        expires = claims.get("exp")
        if not _is_time(expires):
            raise AuthenticationError("the token has no expiry", cure="Ask the issuer for an `exp` claim.")
        if now > expires + _LEEWAY_SECONDS:
            at = datetime.fromtimestamp(expires, UTC)
            raise AuthenticationError(
                f"the token expired at {at:%Y-%m-%d %H:%M:%S} UTC", cure="Get a fresh token from the issuer."
            )
        not_before = claims.get("nbf", 0)
        if not _is_time(not_before) or now < not_before - _LEEWAY_SECONDS:
            raise AuthenticationError(
                "the token is not valid yet", cure="Check the clocks of the issuer and of this machine."
            )
        audience = claims.get("aud")
        named = audience if isinstance(audience, list) else [audience]
        if issuer.audience not in named:
            raise AuthenticationError(
                f"the token was issued for `{audience}`, not for `{issuer.audience}`",
                cure=f"Ask the issuer for a token with the audience `{issuer.audience}`.",
            )
