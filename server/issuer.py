"""A small OpenID Connect issuer for the demo and the tests: real keys, real discovery, real signed tokens.

It signs access tokens for whoever asks its `token` method in this process, and publishes its keys over
HTTP as any issuer does. It has no login of its own: never trust one outside a machine of your own.

Sources: RFC 9068 (JWT access tokens), RFC 8414 and OpenID Connect Discovery 1.0 (metadata), RFC 7517
(key sets).
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Literal

from joserfc import jwt
from joserfc.jwk import ECKey, Key, KeySet, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.asgi import serving

Algorithm = Literal["ES256", "RS256"]

AUDIENCE = "countersign"
_LIFETIME = timedelta(hours=12)
_RSA_BITS = 2048


class Issuer:
    """One issuer with its keys. `url` is its `iss`; `serve` makes one that answers at its url."""

    def __init__(self, url: str, *, algorithm: Algorithm = "ES256") -> None:
        self.url = url
        self.algorithm = algorithm
        self._keys: list[Key] = []
        self.rotate()

    def rotate(self) -> None:
        """Sign with a new key from now on. The old keys stay published: their tokens stay good."""
        key = _new_key(self.algorithm)
        key.ensure_kid()  # its RFC 7638 thumbprint
        self._keys.append(key)

    def retire_old_keys(self) -> None:
        """Publish the newest key only: what another signed is refused once the keys are read again."""
        del self._keys[:-1]

    def token(
        self,
        subject: str,
        *,
        kind: Literal["human", "agent"] = "human",
        groups: Collection[str] = (),
        on_behalf_of: str | None = None,
        audience: str | list[str] = AUDIENCE,
        email: str | None = None,
        name: str | None = None,
        scope: str | None = None,
        lifetime: timedelta = _LIFETIME,
        **claims: object,
    ) -> str:
        """A signed access token (RFC 9068).

        An agent's token names the agent in `sub`, says `principal_kind: agent`, and names the human it
        works for in `on_behalf_of`: the claims that a configuration reads by default. `claims` are added,
        and win (`iss=…` makes a foreign token, `act={"sub": …}` an RFC 8693 one); a claim given as None is
        left out. A negative `lifetime` makes an expired token.
        """
        now = int(time.time())
        body: dict[str, object] = {
            "iss": self.url,
            "sub": subject,
            "aud": audience,
            "exp": now + int(lifetime.total_seconds()),
            "nbf": now,
            "iat": now,
            "jti": secrets.token_hex(8),
            "client_id": "countersign-demo",
            "groups": sorted(groups),
            "principal_kind": kind,
            "on_behalf_of": on_behalf_of,
            "email": email,
            "name": name,
            "scope": scope,
        } | claims
        key = self._keys[-1]
        header = {"alg": self.algorithm, "typ": "at+jwt", "kid": key.kid}
        return jwt.encode(header, {k: v for k, v in body.items() if v is not None}, key)

    def metadata(self) -> dict[str, object]:
        """What discovery says. There is no authorization endpoint: nobody can log in here."""
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/jwks",
            "response_types_supported": [],
            "grant_types_supported": [],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [self.algorithm],
        }

    def app(self) -> Starlette:
        """The issuer's public face: two metadata documents and the key set."""

        async def metadata(_: Request) -> Response:
            return JSONResponse(self.metadata())

        async def jwks(_: Request) -> Response:
            return JSONResponse(KeySet(self._keys).as_dict(private=False))

        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", metadata),
                Route("/.well-known/oauth-authorization-server", metadata),
                Route("/jwks", jwks),
            ]
        )


@asynccontextmanager
async def serve(*, host: str = "127.0.0.1", port: int = 0, algorithm: Algorithm = "ES256") -> AsyncIterator[Issuer]:
    """An issuer that answers on the running loop until the block ends; port 0 takes a free one.

    Raises OSError where the port cannot be had.
    """
    with socket.create_server((host, port), reuse_port=False) as listening:
        issuer = Issuer(f"http://{host}:{listening.getsockname()[1]}", algorithm=algorithm)
        async with serving(issuer.app(), listening, grace=1, lifespan="off"):
            yield issuer


def _new_key(algorithm: Algorithm) -> ECKey | RSAKey:
    if algorithm == "ES256":
        return ECKey.generate_key("P-256", {"use": "sig", "alg": "ES256"})
    return RSAKey.generate_key(_RSA_BITS, {"use": "sig", "alg": "RS256"})
