"""An approver's hand on the MCP door's tools: over HTTP to a running server, or on the audit store of this machine.

Both ways call the same tools, so a vote from the command line is checked and recorded like any other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.dispatcher import ProgressFnT
from mcp.types import CallToolResult, Implementation, TextContent

from gateway.errors import AuthenticationError, CountersignError, UpstreamUnavailableError
from server.app import gateway_of
from server.config import load_config
from server.mcp import build_door
from server.mcp_sessions import token_identity
from server.mcp_settings import McpSettings

_TIMEOUT_SECONDS = 30.0


class ToolFailure(CountersignError):  # noqa: N818 - a tool's answer, told as it is
    """The door said no: its sentence and its cure."""


class Approver:
    """One person's connection to the approval tools."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def call(self, tool: str, *, progress: ProgressFnT | None = None, **arguments: object) -> dict[str, Any]:
        """The structured answer of a tool; `progress` hears how far it is. Raises ToolFailure with its own sentence."""
        try:
            result = await self._client.call_tool(tool, arguments, progress_callback=progress)
        except MCPError as error:
            raise ToolFailure(f"the server does not answer `{tool}`: {error}") from None
        if not isinstance(result, CallToolResult):
            raise ToolFailure(f"the server asks for more than `{tool}` was given", cure="Use the MCP tool itself.")
        answer = dict(result.structured_content or {})
        if not result.is_error:
            return answer
        failure = answer.get("error") or {}
        said = "\n".join(block.text for block in result.content if isinstance(block, TextContent))
        raise ToolFailure(str(failure.get("what") or said), cure=failure.get("cure"))


@asynccontextmanager
async def approver(config_path: Path, url: str | None, token: str) -> AsyncIterator[Approver]:
    """Connected as the person whose access token this is: to the server at `url`, else to the configured store.

    Raises AuthenticationError without a valid token, UpstreamUnavailableError where no server answers,
    ConfigurationError and AuditUnavailableError as `countersign mcp` does.
    """
    if not token:
        raise AuthenticationError(
            "COUNTERSIGN_TOKEN is not set", cure="Put your own access token of a trusted issuer into the environment."
        )
    if url is not None:
        async with _remote(url, token) as client:
            yield Approver(client)
        return
    async with gateway_of(load_config(config_path)) as hall:
        await hall.verifier.verify(token)
        default = hall.config.connections[0].name
        settings = McpSettings(public_url="", issuer_urls=(), default_connection=default)
        door = build_door(hall.gateway, settings, token_identity(hall.verifier, token))
        async with door.open(), Client(door.server, client_info=_ourselves()) as client:
            yield Approver(client)


@asynccontextmanager
async def _remote(url: str, token: str) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(headers=headers, timeout=_TIMEOUT_SECONDS) as http:
        await _check(http, url)
        async with Client(streamable_http_client(url, http_client=http), client_info=_ourselves()) as client:
            yield client


async def _check(http: httpx2.AsyncClient, url: str) -> None:
    """Say in a sentence what the SDK would say in an exception group: nobody there, or a token that will not do."""
    try:
        answer = await http.head(url)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise UpstreamUnavailableError(
            f"no server answers at `{url}`: {str(error) or type(error).__name__}",
            cure="Name the MCP endpoint of a running `countersign serve`, such as `http://127.0.0.1:8765/mcp`.",
        ) from None
    if answer.status_code in (401, 403):
        raise AuthenticationError(
            f"the server at `{url}` does not accept the token in COUNTERSIGN_TOKEN",
            cure="Get a fresh access token from your issuer.",
        )


def _ourselves() -> Implementation:
    return Implementation(name="countersign approvals", version=version("countersign"))
