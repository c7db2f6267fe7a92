"""Who calls a tool, and which gateway session serves them: one per verified token, connection, client and address.

MCP's modern era has no sessions, so the token is what stays the same from call to call. A session ends
with its token, by revocation, or after a time without calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.mcpserver import Context
from pydantic import ConfigDict

from gateway.admission import Gateway
from gateway.errors import AuthenticationError, LimitExceededError
from gateway.identity import TokenVerifier, VerifiedToken
from gateway.model import ClientInfo, Door, Session
from policy.model import Principal
from server.mcp_failures import CallError
from server.mcp_settings import McpSettings

# A client's words about itself and its request: kept short in the audit.
_WORDS = 200
_REASON_CHARACTERS = 2000
# One token does not need more: a connection each, a few clients.
_SESSIONS_PER_PRINCIPAL = 32

Identify = Callable[[], Awaitable[VerifiedToken]]
ToolContext = Context[Any, Any]


class VerifiedAccessToken(AccessToken):
    """The SDK's token with what our verifier found. The raw token is not in it (`token` is its id)."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    verified: VerifiedToken


async def http_identity() -> VerifiedToken:
    """The token that the HTTP gate verified for this request. Raises AuthenticationError outside of one."""
    token = get_access_token()
    if not isinstance(token, VerifiedAccessToken):
        raise AuthenticationError("the request carries no verified token", cure="Send `Authorization: Bearer <token>`.")
    return token.verified


def token_identity(verifier: TokenVerifier, token: str) -> Identify:
    """The identity of one fixed token (stdio), verified again at each call: it may have expired."""

    async def identify() -> VerifiedToken:
        return await verifier.verify(token)

    return identify


@dataclass(frozen=True, slots=True)
class _Key:
    principal: Principal
    token: str
    connection: str
    client: str | None
    version: str | None
    host: str | None  # rules ask where a session's client is: it is never two places


@dataclass(slots=True)
class _Entry:
    session: Session
    timer: asyncio.TimerHandle | None = None
    calls: int = 0


class McpSessions:
    """The gateway sessions of this door."""

    def __init__(self, gateway: Gateway, identify: Identify, settings: McpSettings) -> None:
        self._gateway = gateway
        self._identify = identify
        self._settings = settings
        self._entries: dict[_Key, _Entry] = {}
        self._opening = asyncio.Lock()

    async def identity(self) -> VerifiedToken:
        """Who calls now. Raises AuthenticationError."""
        return await self._identify()

    @asynccontextmanager
    async def of(self, context: ToolContext, connection: str = "") -> AsyncIterator[Session]:
        """The caller's session on a connection (empty: the default one), opened if there is none.

        It does not count as idle inside the block. Raises AuthenticationError, UnknownConnectionError,
        AuditUnavailableError, LimitExceededError.
        """
        verified = await self._identify()
        client = client_of(context)
        name = self._connection(connection)
        key = _Key(
            verified.principal,
            f"{verified.token_id} {verified.expires.timestamp()}",
            name,
            client.name,
            client.version,
            client.host,
        )
        async with self._opening:
            entry = self._entries.get(key)
            if entry is None or entry.session.ended is not None:
                self._check_room(verified.principal)
                entry = _Entry(await self._gateway.open_session(verified, name, Door.MCP, client))
                self._entries[key] = entry
                entry.session.on_end.append(lambda _: self._forget(key, entry))
            entry.calls += 1
        if entry.timer is not None:
            entry.timer.cancel()
        try:
            yield entry.session
        finally:
            entry.calls -= 1
            if entry.calls == 0 and entry.session.ended is None:
                loop = asyncio.get_running_loop()
                entry.timer = loop.call_later(self._settings.session_idle_seconds, self._idle, key, entry)

    def close(self) -> None:
        """End all sessions of this door."""
        for entry in list(self._entries.values()):
            self._end(entry, "the door was closed")
        self._entries.clear()

    # -- inside ---------------------------------------------------------------------------------------

    def _connection(self, name: str) -> str:
        if name:
            return name
        if self._settings.default_connection:
            return self._settings.default_connection
        names = self._gateway.connections.names
        if len(names) == 1:
            return names[0]
        known = ", ".join(f"`{known}`" for known in names) or "none"
        raise CallError("the call names no connection", f"Give `connection`; there are: {known}.")

    def _check_room(self, principal: Principal) -> None:
        if sum(key.principal == principal for key in self._entries) >= _SESSIONS_PER_PRINCIPAL:
            raise LimitExceededError(
                f"`{principal.subject}` has {_SESSIONS_PER_PRINCIPAL} open sessions here",
                cure="Use the sessions you have, or wait: idle ones are closed.",
            )

    def _idle(self, key: _Key, entry: _Entry) -> None:
        self._forget(key, entry)
        self._end(entry, "idle")

    def _forget(self, key: _Key, entry: _Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
        if self._entries.get(key) is entry:
            del self._entries[key]

    def _end(self, entry: _Entry, reason: str) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
        self._gateway.close_session(entry.session, reason)


def client_of(context: ToolContext) -> ClientInfo:
    """What the client says of itself, and where it calls from."""
    info = context.session.client_params.client_info if context.session.client_params else None
    peer = getattr(context.request_context.request, "client", None)
    return ClientInfo(
        name=info.name[:_WORDS] if info else None,
        version=info.version[:_WORDS] if info else None,
        address=f"{peer.host}:{peer.port}" if peer else None,
    )


def request_of(context: ToolContext, tool: str, reason: str = "") -> dict[str, str]:
    """What the audit keeps about the call around a statement: never trusted, always told."""
    request = {"tool": tool, "mcp_request": context.request_id[:_WORDS]}
    client = client_of(context)
    request |= {"client": client.name} if client.name else {}
    request |= {"client_version": client.version} if client.version else {}
    request |= {"protocol": context.protocol_version} if context.protocol_version else {}
    meta: Mapping[str, object] = context.request_context.meta or {}
    # W3C Trace Context, as MCP carries it (SEP-414).
    request |= {"traceparent": str(meta["traceparent"])[:_WORDS]} if "traceparent" in meta else {}
    request |= {"reason": reason[:_REASON_CHARACTERS]} if reason else {}
    return request
