"""`/saml/…` of the HTTP app: a browser's way to the identity provider and back, and the hand-over to the command line.

The command line makes a verifier and keeps it (RFC 7636), and listens on a port of the loopback. `/saml/login` takes
the verifier's digest and the port, binds both to a request of ours and to this browser by a cookie, and sends it to the
provider. `/saml/acs` takes the provider's response, and sends the browser to that port of its own machine, nowhere
else, with a code that serves once. `/saml/token` changes code and verifier for a bearer token.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar
from urllib.parse import parse_qs, urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from gateway.admission import Gateway
from gateway.bearers import Bearers
from gateway.errors import AuthenticationError
from gateway.identity import VerifiedToken
from gateway.saml import MAX_RESPONSE_BYTES, ServiceProvider
from server.refusals import Refusals
from server.saml_challenge import challenge_of

_LOGIN_SECONDS = 300.0
_CODE_SECONDS = 60.0
_MOST = 1000  # of what waits; the oldest gives way
_MOST_BODY_BYTES = 2 * MAX_RESPONSE_BYTES  # percent-encoding makes a form longer
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_STATE = re.compile(r"[A-Za-z0-9_-]{16,64}")
_PRIVATE = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
_REFUSED = "The login was refused. The audit of the gateway says why. You may close this page."

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Pending:
    challenge: str
    state: str
    port: int
    browser: bytes  # the digest of its cookie


@dataclass(frozen=True, slots=True)
class _Granted:
    challenge: str
    login: VerifiedToken


class _Waiting(Generic[T]):
    """What waits for a while under a name, and can be taken once."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._held: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def put(self, name: str, value: T) -> None:
        while len(self._held) >= _MOST:
            self._held.popitem(last=False)
        self._held[name] = (time.monotonic() + self._seconds, value)

    def get(self, name: str) -> T | None:
        until, value = self._held.get(name, (0.0, None))
        return value if until > time.monotonic() else None

    def take(self, name: str) -> T | None:
        value = self.get(name)
        self._held.pop(name, None)
        return value


class SamlLogin:
    """The routes, and what waits between two of them."""

    def __init__(self, sp: ServiceProvider, bearers: Bearers, gateway: Gateway, scopes: tuple[str, ...] = ()) -> None:
        self._sp = sp
        self._bearers = bearers
        self._refusals = Refusals(gateway)
        # A login here is meant for this gateway and no other: it has the scopes that the MCP door asks tokens for.
        self._scopes = frozenset(scopes)
        self._secure = sp.acs_url.startswith("https:")
        # `__Host-`: no other host of the domain can set it.
        self._cookie = "__Host-countersign-saml" if self._secure else "countersign-saml"
        self._pending: _Waiting[_Pending] = _Waiting(_LOGIN_SECONDS)
        self._granted: _Waiting[_Granted] = _Waiting(_CODE_SECONDS)

    def routes(self) -> list[Route]:
        """To be mounted at the root."""
        return [
            Route("/saml/login", self._start, methods=["GET"]),
            Route("/saml/acs", self._finish, methods=["POST"]),
            Route("/saml/token", self._redeem, methods=["POST"]),
            Route("/saml/metadata", self._metadata, methods=["GET"]),
        ]

    async def _metadata(self, _: Request) -> Response:
        return Response(self._sp.metadata(), media_type="application/samlmetadata+xml")

    async def _start(self, request: Request) -> Response:
        port, challenge, state = (request.query_params.get(name, "") for name in ("port", "challenge", "state"))
        known = re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) and 1024 <= int(port) <= 65535
        if not (known and _CHALLENGE.fullmatch(challenge) and _STATE.fullmatch(state)):
            return _page("Start the login with `countersign login --saml`.", 400)
        made, browser = self._sp.request(), secrets.token_urlsafe(32)
        self._pending.put(made.id, _Pending(challenge, state, int(port), _digest(browser)))
        answer = RedirectResponse(made.url, 303, headers=_PRIVATE)
        # The provider's POST comes from another site. Without TLS (loopback only) browsers take no `None`, and a
        # cookie without the word goes along for two minutes.
        answer.set_cookie(
            self._cookie, browser, max_age=int(_LOGIN_SECONDS), path="/", httponly=True,
            secure=self._secure, samesite="none" if self._secure else None,
        )  # fmt: skip
        return answer

    async def _finish(self, request: Request) -> Response:
        try:
            pending, login = await self._verified(request)
        except AuthenticationError as error:
            await self._refusals.record(error, request.scope)
            return _page(_REFUSED, 403)
        code = secrets.token_urlsafe(32)
        self._granted.put(_name(code), _Granted(pending.challenge, login))
        # INVARIANT: the browser goes to its own machine, whatever RelayState says: nothing here reads it.
        back = f"http://127.0.0.1:{pending.port}/?{urlencode({'code': code, 'state': pending.state})}"
        answer = RedirectResponse(back, 303, headers=_PRIVATE)
        answer.delete_cookie(self._cookie, path="/", secure=self._secure, httponly=True)
        return answer

    async def _verified(self, request: Request) -> tuple[_Pending, VerifiedToken]:
        encoded = _field(await _body(request), "SAMLResponse")
        claimed = await asyncio.to_thread(self._sp.in_response_to, encoded)
        pending = self._pending.get(claimed)
        if pending is None:
            raise AuthenticationError("the response answers no request of ours that is still open")
        if not hmac.compare_digest(_digest(request.cookies.get(self._cookie, "")), pending.browser):
            raise AuthenticationError("the response came by another browser than the one that made the request")
        login = await asyncio.to_thread(self._sp.verify, encoded, claimed)
        if self._pending.take(claimed) is None:  # another response to the same request was faster
            raise AuthenticationError("the response answers no request of ours that is still open")
        return pending, replace(login, scopes=self._scopes)

    async def _redeem(self, request: Request) -> Response:
        try:
            body = await _body(request)
            code, verifier = _field(body, "code"), _field(body, "verifier")
            granted = self._granted.take(_name(code))  # a wrong verifier spends the code too
            if granted is None:
                raise AuthenticationError("the code is unknown, was used before or is over")
            if not hmac.compare_digest(challenge_of(verifier), granted.challenge):
                raise AuthenticationError("the verifier is not the one that the login was begun with")
            issued = self._bearers.issue(granted.login)
        except AuthenticationError as error:
            await self._refusals.record(error, request.scope)
            said = {"error": "invalid_grant", "error_description": "the login was refused"}
            return JSONResponse(said, 400, headers=_PRIVATE)
        answer = {"token": issued.token, "expires": issued.expires.isoformat()}
        return JSONResponse(answer, headers=_PRIVATE)


async def _body(request: Request) -> Mapping[str, list[str]]:
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MOST_BODY_BYTES:
            raise AuthenticationError(f"the form is longer than {_MOST_BODY_BYTES} bytes")
    try:
        return parse_qs(data.decode("ascii"), strict_parsing=True, max_num_fields=8)
    except ValueError:
        raise AuthenticationError("the body is not a form") from None


def _field(form: Mapping[str, list[str]], name: str) -> str:
    if len(form.get(name, [])) != 1:
        raise AuthenticationError(f"the form has not exactly one `{name}`")
    return form[name][0]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _name(code: str) -> str:
    return _digest(code).hex()


def _page(text: str, status: int) -> Response:
    return Response(f"{text}\n", status, media_type="text/plain", headers=_PRIVATE)
