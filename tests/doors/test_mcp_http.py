"""The MCP door over HTTP: who is let in, and what is said to those who are not."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from gateway.identity import Issuer as TrustedIssuer
from gateway.identity import TokenVerifier
from server.http import build_app, metadata_path
from server.issuer import AUDIENCE
from server.mcp_settings import McpSettings
from tests.doors.mcp_calls import ERAS, answer, client
from tests.stack import Stack

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "raw", "version": "0"},
    },
}
HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=30) as client_without_token:
        yield client_without_token


async def knock(http: httpx2.AsyncClient, url: str, token: str | None, **headers: str) -> httpx2.Response:
    """A legacy initialize, by hand."""
    auth = {"Authorization": f"Bearer {token}"} if token is not None else {}
    return await http.post(url, json=INITIALIZE, headers={**HEADERS, **auth, **headers})


def challenge(response: httpx2.Response) -> dict[str, str]:
    """The parameters of a Bearer challenge."""
    scheme, _, rest = response.headers["www-authenticate"].partition(" ")
    assert scheme == "Bearer"
    return dict(re.findall(r'(\w+)="([^"]*)"', rest))


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_with_a_token_lists_and_calls_the_tools_in_both_eras(stack: Stack, era: str) -> None:
    async with client(stack, "devin", era) as connected:
        tools = (await connected.list_tools()).tools
        who = answer(await connected.call_tool("whoami", {}))
    assert {tool.name for tool in tools} == {
        "query",
        "describe",
        "whoami",
        "list_approvals",
        "approval_status",
        "propose_migration",
        "approve",
        "reject",
        "review_approval",
        "withdraw",
        "await_approval",
        "search_audit",
    }
    assert (who["subject"], who["kind"], who["on_behalf_of"]) == ("devin", "agent", "ada")


async def test_every_tool_and_every_parameter_says_what_it_is_for(stack: Stack) -> None:
    async with client(stack, "devin") as connected:
        tools = (await connected.list_tools()).tools
    for tool in tools:
        assert tool.title
        assert tool.description
        assert len(tool.description) > 60
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is not None
        assert tool.output_schema is not None
        assert tool.output_schema["type"] == "object"
        for name, schema in tool.input_schema.get("properties", {}).items():
            assert schema.get("description"), f"{tool.name}.{name}"


async def test_without_a_token_the_answer_is_401_and_names_the_metadata(stack: Stack, http: httpx2.AsyncClient) -> None:
    response = await knock(http, stack.url, None)
    assert response.status_code == 401
    said = challenge(response)
    assert "error" not in said  # RFC 6750 section 3.1
    metadata = (await http.get(said["resource_metadata"])).json()
    assert metadata["resource"] == stack.url
    assert metadata["authorization_servers"] == [stack.demo.issuer.url]
    assert metadata["bearer_methods_supported"] == ["header"]
    issuer = (await http.get(metadata["authorization_servers"][0] + "/.well-known/openid-configuration")).json()
    assert issuer["issuer"] == stack.demo.issuer.url


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda i: i.token("devin", audience="https://elsewhere.example"),
            "was issued for `https://elsewhere.example`",
        ),
        (lambda i: i.token("devin", lifetime=timedelta(hours=-1)), "the token expired at"),
        (lambda i: i.token("devin", iss="https://evil.example"), "issuer `https://evil.example` is not trusted"),
        (lambda i: i.token("devin")[:-8] + "AAAAAAAA", "signature"),
        (lambda i: "garbage", "not a signed JWT"),
        (lambda i: "eyJhbGciOiJub25lIn0." + i.token("devin").split(".")[1] + ".", "the token"),
    ],
    ids=["wrong audience", "expired", "foreign issuer", "bad signature", "garbage", "alg none"],
)
async def test_a_token_that_does_not_verify_gets_401_with_the_reason(
    stack: Stack, http: httpx2.AsyncClient, make: Any, sentence: str
) -> None:
    response = await knock(http, stack.url, make(stack.demo.issuer))
    assert response.status_code == 401
    assert challenge(response)["error"] == "invalid_token"
    assert sentence.replace("`", "") in response.json()["error_description"].replace("`", "")
    assert "resource_metadata" in challenge(response)


async def test_a_refused_token_is_an_entry_of_the_audit(stack: Stack, http: httpx2.AsyncClient) -> None:
    token = stack.demo.issuer.token("devin", audience="https://audited.example")
    assert (await knock(http, stack.url, token)).status_code == 401
    rows = stack.audit("SELECT body FROM entries WHERE kind = 'session.refused'")
    assert any("https://audited.example" in str(row["body"]) for row in rows)


async def test_a_session_of_one_principal_does_not_open_for_another(stack: Stack, http: httpx2.AsyncClient) -> None:
    started = await knock(http, stack.url, stack.tokens["devin"])
    assert started.status_code == 200
    session = started.headers["mcp-session-id"]
    ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
    stolen = await http.post(
        stack.url,
        json=ping,
        headers={**HEADERS, "Authorization": f"Bearer {stack.tokens['grace']}", "Mcp-Session-Id": session},
    )
    assert stolen.status_code == 404
    bare = await http.post(stack.url, json=ping, headers={**HEADERS, "Mcp-Session-Id": session})
    assert bare.status_code == 401


async def test_foreign_hosts_and_origins_are_turned_away(stack: Stack, http: httpx2.AsyncClient) -> None:
    token = stack.tokens["devin"]
    assert (await knock(http, stack.url, token, Host="rebound.example")).status_code == 421
    assert (await knock(http, stack.url, token, Origin="https://rebound.example")).status_code == 403


async def test_health_needs_no_token(stack: Stack, http: httpx2.AsyncClient) -> None:
    response = await http.get(stack.url.removesuffix("/mcp") + "/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


@asynccontextmanager
async def scoped_door(stack: Stack, jwks_url: str | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    """The same door under another name: it wants a scope, and may look for keys elsewhere."""
    verifier = TokenVerifier([TrustedIssuer(stack.demo.issuer.url, AUDIENCE, jwks_url=jwks_url)])
    settings = McpSettings(
        public_url="https://gateway.example/db/mcp",
        issuer_urls=(stack.demo.issuer.url,),
        required_scopes=("sql:run",),
        allowed_hosts=("gateway.example",),
    )
    app = build_app(stack.app.hall.gateway, verifier, settings)
    try:
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app), base_url="https://gateway.example"
        ) as called:
            yield called
    finally:
        await verifier.close()


async def test_a_token_without_the_scope_gets_403_that_names_it(stack: Stack) -> None:
    token = stack.demo.issuer.token("devin", kind="agent", scope="other")
    async with scoped_door(stack) as door:
        refused = await knock(door, "/mcp", token)
        unauthorized = await knock(door, "/mcp", None)
    assert refused.status_code == 403
    assert challenge(refused) == {
        "error": "insufficient_scope",
        "error_description": "the token lacks the scope `sql:run`",
        "resource_metadata": "https://gateway.example/.well-known/oauth-protected-resource/db/mcp",
        "scope": "sql:run",
    }
    assert unauthorized.status_code == 401
    assert challenge(unauthorized)["scope"] == "sql:run"


async def test_the_metadata_stands_where_rfc_9728_puts_it_and_any_origin_may_read_it(stack: Stack) -> None:
    async with scoped_door(stack) as door:
        response = await door.get(
            "/.well-known/oauth-protected-resource/db/mcp", headers={"Origin": "https://inspector.example"}
        )
    assert response.json()["resource"] == "https://gateway.example/db/mcp"
    assert response.json()["scopes_supported"] == ["sql:run"]
    assert response.headers["access-control-allow-origin"] == "*"
    assert metadata_path(McpSettings("https://gateway.example", ())) == "/.well-known/oauth-protected-resource"


async def test_keys_that_cannot_be_fetched_are_503_and_not_a_bad_token(stack: Stack) -> None:
    token = stack.demo.issuer.token("devin", kind="agent", scope="sql:run")
    async with scoped_door(stack, jwks_url="http://127.0.0.1:1/jwks") as door:
        response = await knock(door, "/mcp", token)
    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert "cannot be fetched" in response.json()["error_description"]


async def test_a_client_that_sends_a_header_value_with_quotes_breaks_no_challenge(
    stack: Stack, http: httpx2.AsyncClient
) -> None:
    token = stack.demo.issuer.token("devin", iss='https://evil.example/"\\, realm="x')
    response = await knock(http, stack.url, token)
    assert response.status_code == 401
    assert set(challenge(response)) <= {"error", "error_description", "resource_metadata", "scope"}


async def test_a_rotated_key_is_found_without_a_restart(fresh_stack: Stack) -> None:
    fresh_stack.demo.issuer.rotate()
    token = fresh_stack.demo.issuer.token("devin", kind="agent", groups=["ai-agents"], on_behalf_of="ada")
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=30) as http,
        Client(streamable_http_client(fresh_stack.url, http_client=http)) as connected,
    ):
        assert answer(await connected.call_tool("whoami", {}))["subject"] == "devin"
