"""The MCP door over stdio: `countersign mcp` as a host starts it, with the token in its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import version

import pytest
from mcp import Client, StdioServerParameters
from mcp.types import Implementation

from tests.doors.mcp_calls import ERAS, answer, error
from tests.stack import Stack

COMMAND = "import sys; from server.cli import main; sys.exit(main())"


def environment(token: str | None) -> dict[str, str]:
    """What a host gives to a server: a path, and the token."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    return kept if token is None else {**kept, "COUNTERSIGN_TOKEN": token}


@pytest.mark.parametrize("era", ERAS)
async def test_a_host_starts_the_command_and_calls_its_tools(stack: Stack, era: str) -> None:
    server = StdioServerParameters(
        command=sys.executable,
        args=["-c", COMMAND, "mcp", "--config", str(stack.demo.config_path)],
        env=environment(stack.tokens["devin"]),
    )
    async with Client(server, mode=era, read_timeout_seconds=60) as connected:
        assert "query" in {tool.name for tool in (await connected.list_tools()).tools}
        who = await connected.call_tool("whoami", {})
        assert answer(who)["subject"] == "devin"
        told = connected.server_info or Implementation(**(who.meta or {})["io.modelcontextprotocol/serverInfo"])
        assert told.version == version("countersign")
        assert answer(await connected.call_tool("query", {"sql": "SELECT 1 AS one"}))["rows"] == [[1]]
        assert error(await connected.call_tool("query", {"sql": "DROP TABLE customers"}))["kind"] == "refused"


@pytest.mark.parametrize("case", ["missing", "expired", "garbage"])
def test_a_token_that_will_not_do_is_one_sentence_and_exit_2(stack: Stack, case: str) -> None:
    token, sentence = {
        "missing": (None, "COUNTERSIGN_TOKEN is not set"),
        "expired": (stack.demo.issuer.token("devin", lifetime=timedelta(hours=-1)), "the token expired at"),
        "garbage": ("hunter2", "the token is not a signed JWT"),
    }[case]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "mcp", "--config", str(stack.demo.config_path)],
        env=environment(token),
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
