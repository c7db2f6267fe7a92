"""`/sessions` of the HTTP app: who is in, for operators whom the policy names, and for each their own; and ending one.

A session's own are those of the principal and of the agents that work for them. Of another's nobody learns that it is.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.admission import Gateway
from gateway.model import Session
from gateway.session_secrets import SessionSecrets
from policy.model import Principal, PrincipalKind

_WHY_CHARACTERS = 200
_MOST_BYTES = 4096


def listing(gateway: Gateway) -> ASGIApp:
    """The app behind the gate that answers a GET with the open sessions, the oldest first."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            return await Response(status_code=405, headers={"Allow": "GET"})(scope, receive, send)
        principal = _principal(scope)
        seen = [_described(session) for session in gateway.sessions.list() if _may_end(gateway, principal, session)]
        await JSONResponse({"sessions": seen}, headers={"Cache-Control": "no-store"})(scope, receive, send)
        return None

    return answer


def ending(gateway: Gateway, secrets: SessionSecrets | None) -> ASGIApp:
    """The app behind the gate that answers a DELETE by ending a session, its principal's session secrets with it."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "DELETE":
            return await Response(status_code=405, headers={"Allow": "DELETE"})(scope, receive, send)
        response = await _end(gateway, secrets, Request(scope, receive))
        await response(scope, receive, send)
        return None

    return answer


async def _end(gateway: Gateway, secrets: SessionSecrets | None, request: Request) -> Response:
    principal, wanted = _principal(request.scope), request.path_params["id"]
    why = _why(await _body(request))
    for session in gateway.sessions.list():
        if session.id == wanted and _may_end(gateway, principal, session):
            if secrets is not None:
                secrets.revoke(session.principal)
            gateway.sessions.end(session, f"the session was ended by `{principal.subject}`{why}")
            return JSONResponse({"id": session.id, "subject": session.principal.subject, "ended": session.ended})
    return JSONResponse({"error_description": f"there is no open session `{wanted}` that you may end"}, 404)


async def _body(request: Request) -> bytes:
    """The request's body, but no more of it than a reason needs."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MOST_BYTES:
            return b""
    return data


def _why(body: bytes) -> str:
    """The reason that was given, as the end of a sentence: printable, for an error message and the audit."""
    try:
        given: Any = json.loads(body or b"{}").get("why", "")
    except (ValueError, AttributeError, RecursionError):
        return ""
    text = "".join(c if c.isprintable() else " " for c in given[:_WHY_CHARACTERS]) if isinstance(given, str) else ""
    return f": {text.strip()}" if text.strip() else ""


def _principal(scope: Scope) -> Principal:
    principal: Principal = scope["user"].access_token.verified.principal
    return principal


def _may_end(gateway: Gateway, principal: Principal, session: Session) -> bool:
    named = (session.principal.issuer, session.principal.subject) == (principal.issuer, principal.subject)
    same_human = session.principal.human == principal.human
    # An agent's sessions for one human are none of its own while it works for another.
    own = (named or same_human) if principal.kind is PrincipalKind.HUMAN else (named and same_human)
    return own or any(who.includes(principal) for who in gateway.policies.current.operators)


def _described(session: Session) -> dict[str, object]:
    return {
        "id": session.id,
        "subject": session.principal.subject,
        "issuer": session.principal.issuer,
        "kind": session.principal.kind.value,
        "on_behalf_of": session.principal.on_behalf_of,
        "door": session.door.value,
        "connection": session.connection.name,
        "upstream_user": session.connection.user,
        "client": session.client.name,
        "address": session.client.address,
        "opened": session.opened.isoformat(),
        "expires": session.expires.isoformat(),
    }
