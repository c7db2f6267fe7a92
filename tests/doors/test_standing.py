"""What goes on giving out its result is decided again when the policy changes, or what it hears of time and session."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.model import Door
from tests.doors.mcp_calls import answer, client, error
from tests.doors.wire_calls import errors, raw_client, values
from tests.stack import Stack, use_policy
from wire.frontend import Bind, Execute, Parse, Query, Sync

HOURS = timedelta(hours=2)
SQL = "SELECT id FROM orders"
YOUNG = """
rules:
  - {name: young, effect: allow, actions: [select], relations: ["public.*"], when: {session_at_most: 1h}}
"""
EVER = """
rules:
  - {name: ever, effect: allow, actions: [select], relations: ["public.*"]}
"""
NEVER = """
rules:
  - {name: never, effect: deny, actions: ["*"]}
"""


@pytest.fixture(autouse=True)
def policies(stack: Stack, tmp_path: Path) -> Iterator[dict[str, Path]]:
    paths = {}
    for name, text in (("young", YOUNG), ("ever", EVER), ("never", NEVER)):
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(text)
    before = tmp_path / "before.yaml"
    before.write_bytes(stack.demo.config.policy_path.read_bytes())
    use_policy(stack, paths["young"])
    yield paths
    use_policy(stack, before)
    for session in stack.app.hall.gateway.sessions.list():
        if datetime.now(UTC) - session.opened > HOURS:
            session.opened += HOURS


def age(stack: Stack, door: Door) -> None:
    """Let two hours pass for devin's sessions at a door: the one at hand, and what earlier tests left open."""
    for session in stack.app.hall.gateway.sessions.list():
        if session.door is door and session.principal.subject == "devin":
            session.opened -= HOURS


@pytest.mark.parametrize("how", ["older", "ever", "never"])
def test_a_cursor_and_a_portal_at_the_wire_door(stack: Stack, policies: dict[str, Path], how: str) -> None:
    expected: tuple[int, list[str]] = (1, []) if how == "ever" else (0, ["42501"])
    with raw_client(stack, "devin") as wire:
        assert errors(wire.cycle(Query(f"BEGIN; DECLARE c CURSOR FOR {SQL}".encode()))) == []
        for more in [(Query(b"FETCH 1 FROM c"),), (Parse("", SQL.encode()), Bind("p", ""), Execute("p", 1), Sync())]:
            assert len(values(wire.cycle(*more))) == 1
        if how == "older":
            age(stack, Door.WIRE)
        else:
            use_policy(stack, policies[how])
        for more in [(Query(b"FETCH 1 FROM c"),), (Execute("p", 1), Sync())]:
            heard = wire.cycle(*more)
            assert (len(values(heard)), [code for code, _ in errors(heard)]) == expected


@pytest.mark.parametrize("how", ["older", "ever", "never"])
async def test_the_next_rows_at_the_mcp_door(stack: Stack, policies: dict[str, Path], how: str) -> None:
    async with client(stack, "devin") as mcp:
        first = answer(await mcp.call_tool("query", {"sql": SQL, "max_rows": 1}))
        if how == "older":
            age(stack, Door.MCP)
        else:
            use_policy(stack, policies[how])
        more = await mcp.call_tool("query", {"cursor": first["cursor"], "max_rows": 1})
        if how == "ever":
            assert answer(more)["row_count"] == 1
            return
        assert "has changed since its first rows" in error(more)["what"]
        outcomes = stack.audit("SELECT body FROM entries WHERE kind = 'outcome' ORDER BY seq DESC LIMIT 9")
        assert any("since its first rows" in outcome["body"] for outcome in outcomes)
        again = await mcp.call_tool("query", {"cursor": first["cursor"], "max_rows": 1})
        assert "unknown" in error(again)["what"]
