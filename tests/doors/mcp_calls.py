"""Calling the MCP door as a real client does: the SDK's, in both protocol eras, over HTTP with a token."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, Implementation

from tests.stack import Stack

# The modern era (2026-07-28, stateless) and the handshake era (2025-11-25).
ERAS = ("2026-07-28", "legacy")

# Made once: reading the machine's certificates takes longer than a call.
_TLS = ssl.create_default_context()


@asynccontextmanager
async def client(stack: Stack, who: str, mode: str = "auto", token: str | None = None) -> AsyncIterator[Client]:
    """A connected client, as this person."""
    headers = {"Authorization": f"Bearer {token or stack.tokens[who]}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30, verify=_TLS) as http,
        Client(
            streamable_http_client(stack.url, http_client=http),
            mode=mode,
            client_info=Implementation(name="door-tests", version="1.2.3"),
        ) as connected,
    ):
        yield connected


async def call(stack: Stack, who: str, tool: str, mode: str = "auto", **arguments: Any) -> CallToolResult:
    """One call on a connection of its own."""
    async with client(stack, who, mode) as connected:
        return await connected.call_tool(tool, arguments)


async def query(stack: Stack, who: str, sql: str, **more: Any) -> dict[str, Any]:
    """The structured answer of a query that must succeed."""
    return answer(await call(stack, who, "query", sql=sql, **more))


def answer(result: CallToolResult) -> dict[str, Any]:
    """The structured answer of a call that must have succeeded."""
    assert not result.is_error, text(result)
    structured: dict[str, Any] = result.structured_content
    return structured


def error(result: CallToolResult) -> dict[str, Any]:
    """The parts of the error of a call that must have failed."""
    assert result.is_error, text(result)
    parts: dict[str, Any] = result.structured_content["error"]
    return parts


def text(result: CallToolResult) -> str:
    """What a model reads."""
    return "\n".join(block.text for block in result.content if block.type == "text")


async def request(
    stack: Stack,
    method: str,
    params: dict[str, Any],
    capabilities: dict[str, Any],
    *,
    token: str,
    source: str = "127.0.0.1",
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    """One request of the modern era from this address, without the SDK; the whole JSON-RPC answer."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": ERAS[0],
        "io.modelcontextprotocol/clientInfo": {"name": "plain-request", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": capabilities,
    }
    sent = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": ERAS[0],
        "Mcp-Method": method,
        "Mcp-Name": params.get("name") or params.get("taskId", ""),
    }
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    transport = httpx2.AsyncHTTPTransport(local_address=source, verify=_TLS)
    async with httpx2.AsyncClient(timeout=30, transport=transport) as http:
        said: dict[str, Any] = (await http.post(stack.url, json=message, headers=sent | (headers or {}))).json()
    return said
