"""The HTTP app around the MCP door: bearer tokens, protected-resource metadata, health.

An OAuth 2.1 resource server: RFC 6750 (bearer tokens and their errors), RFC 9728 (metadata), RFC 8707
(resource indicators), MCP authorization 2025-11-25 and 2026-07-28. Every request to the MCP endpoint is
verified by itself; a session id alone opens nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.admission import Gateway
from gateway.errors import AuthenticationError, IssuerUnavailableError
from gateway.identity import TokenVerifier, VerifiedToken
from gateway.session_secrets import SessionSecrets
from server.mcp import build_door
from server.mcp_sessions import VerifiedAccessToken
from server.mcp_settings import McpSettings
from server.refusals import Refusals
from server.session_desk import ending, listing

MCP_PATH = "/mcp"
SECRET_PATH = "/wire-secret"  # noqa: S105 - a path
SESSIONS_PATH = "/sessions"
_WELL_KNOWN = "/.well-known/oauth-protected-resource"

_RETRY_SECONDS = 10


def build_app(
    gateway: Gateway,
    verifier: TokenVerifier,
    settings: McpSettings,
    secrets: SessionSecrets | None = None,
    more: Sequence[Route] = (),
) -> Starlette:
    """The ASGI app: `/mcp`, `/sessions`, the metadata and `/healthz`. Its lifespan runs and closes the MCP door.

    With `secrets` also `/wire-secret`, where a token is changed for a short-lived password of the wire door; `more` are
    routes beside ours (those of SAML).
    """
    door = build_door(gateway, settings)
    mcp = door.server.streamable_http_app(
        streamable_http_path=MCP_PATH,
        stateless_http=settings.stateless_http,
        transport_security=TransportSecuritySettings(
            allowed_hosts=list(settings.allowed_hosts), allowed_origins=list(settings.allowed_origins)
        ),
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # A mounted app's own lifespan never runs, so the session manager is run here.
        async with door.open(), door.server.session_manager.run():
            yield

    metadata = JSONResponse(resource_metadata(settings), headers={"Cache-Control": "max-age=3600"})

    async def serve_metadata(_: Request) -> Response:
        return metadata

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    # RFC 9728 section 3.1: the resource's path follows the well-known one. Some clients ask at the root only.
    paths = dict.fromkeys((metadata_path(settings), _WELL_KNOWN))
    return Starlette(
        routes=[
            Route("/healthz", healthz),
            *(Route(path, serve_metadata, middleware=[_PUBLIC]) for path in paths),
            Route(MCP_PATH, endpoint=BearerGate(mcp, gateway, verifier, settings)),
            *([Route(SECRET_PATH, BearerGate(issuing(secrets), gateway, verifier, settings))] if secrets else ()),
            Route(SESSIONS_PATH, BearerGate(listing(gateway), gateway, verifier, settings)),
            Route(f"{SESSIONS_PATH}/{{id}}", BearerGate(ending(gateway, secrets), gateway, verifier, settings)),
            *more,
        ],
        lifespan=lifespan,
    )


# The metadata is public, and browser clients read it from another origin.
_PUBLIC = Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["GET"], allow_headers=["*"])


def metadata_path(settings: McpSettings) -> str:
    """Where the resource's metadata is served (RFC 9728 section 3.1)."""
    return _WELL_KNOWN + urlsplit(settings.public_url).path.rstrip("/")


def resource_metadata(settings: McpSettings) -> dict[str, object]:
    """The protected resource metadata document (RFC 9728 section 2)."""
    document: dict[str, object] = {
        "resource": settings.public_url,
        "authorization_servers": list(settings.issuer_urls),
        "bearer_methods_supported": ["header"],
        "resource_name": "Countersign",
    }
    if settings.required_scopes:
        document["scopes_supported"] = list(settings.required_scopes)
    return document


class BearerGate:
    """ASGI middleware that lets a request pass only with a token that verifies and has the scopes.

    The SDK's own would do for the happy path; this one also says why (RFC 6750 section 3), names the
    scopes that are needed, tells an issuer that is down from a bad token, and keeps the audit informed.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway, verifier: TokenVerifier, settings: McpSettings) -> None:
        self._app = AuthContextMiddleware(app)
        self._verifier = verifier
        self._settings = settings
        self._refusals = Refusals(gateway)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Verify, then pass on with `user` and `auth` set, or answer 401, 403 or 503."""
        token = bearer_token(Headers(scope=scope))
        if token is None:
            return await self._unauthorized(None)(scope, receive, send)
        try:
            verified = await self._verifier.verify(token)
        except IssuerUnavailableError as error:
            return await _unavailable(error)(scope, receive, send)
        except AuthenticationError as error:
            await self._refusals.record(error, scope)
            return await self._unauthorized(error)(scope, receive, send)
        if missing := [s for s in self._settings.required_scopes if s not in verified.scopes]:
            return await self._forbidden(missing)(scope, receive, send)
        scope["user"] = AuthenticatedUser(as_access_token(verified, self._settings.public_url))
        scope["auth"] = AuthCredentials(sorted(verified.scopes))
        await self._app(scope, receive, send)
        return None

    def _unauthorized(self, error: AuthenticationError | None) -> Response:
        # RFC 6750 section 3.1: no error code where no token was given.
        said = {} if error is None else {"error": "invalid_token", "error_description": str(error)}
        body = said or {"error_description": "send an access token: `Authorization: Bearer …`"}
        return JSONResponse(body, 401, headers={"WWW-Authenticate": self._challenge(said)})

    def _forbidden(self, missing: list[str]) -> Response:
        description = f"the token lacks the scope {', '.join(f'`{name}`' for name in missing)}"
        said = {"error": "insufficient_scope", "error_description": description}
        return JSONResponse(said, 403, headers={"WWW-Authenticate": self._challenge(said)})

    def _challenge(self, said: dict[str, str]) -> str:
        parts = {**said, "resource_metadata": self._metadata_url()}
        if self._settings.required_scopes:
            parts["scope"] = " ".join(self._settings.required_scopes)
        return "Bearer " + ", ".join(f'{name}="{_quotable(value)}"' for name, value in parts.items())

    def _metadata_url(self) -> str:
        public = urlsplit(self._settings.public_url)
        return f"{public.scheme}://{public.netloc}{metadata_path(self._settings)}"


def issuing(secrets: SessionSecrets) -> ASGIApp:
    """The app behind the gate that answers a POST with a new secret of the token's principal."""

    async def issue(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            return await Response(status_code=405, headers={"Allow": "POST"})(scope, receive, send)
        secret = secrets.issue(scope["user"].access_token.verified)
        body = {"user": secret.user, "password": secret.password, "expires": secret.expires.isoformat()}
        await JSONResponse(body, headers={"Cache-Control": "no-store"})(scope, receive, send)
        return None

    return issue


def bearer_token(headers: Headers) -> str | None:
    """The token of an Authorization header (RFC 6750 section 2.1), or None."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def as_access_token(verified: VerifiedToken, resource: str) -> VerifiedAccessToken:
    """What the SDK keeps: it binds legacy sessions to (client, issuer, subject)."""
    claims = verified.claims
    client = claims.get("client_id") or claims.get("azp") or verified.principal.subject
    return VerifiedAccessToken(
        token=verified.token_id,
        client_id=str(client),
        scopes=sorted(verified.scopes),
        expires_at=int(verified.expires.timestamp()),
        resource=resource,
        subject=verified.principal.subject,
        claims={"iss": verified.principal.issuer},
        verified=verified,
    )


def _unavailable(error: IssuerUnavailableError) -> Response:
    body = {"error": "temporarily_unavailable", "error_description": str(error)}
    return JSONResponse(body, 503, headers={"Retry-After": str(_RETRY_SECONDS)})


def _quotable(text: str) -> str:
    """As a quoted-string may hold it (RFC 6750 section 3: no quote, no backslash, ASCII only)."""
    plain = text.replace('"', "'").replace("\\", "/")
    return "".join(char if " " <= char <= "~" else "?" for char in plain)
