"""The audit through the MCP door: for auditors, each search an entry, and nobody else learns a thing."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from audit import segments
from audit.entry import Draft, Kind
from audit.search import Query
from policy.document import DocumentError
from policy.load import load_policy
from server.cli import main
from tests.doors.mcp_calls import answer, call, client, error, query, text
from tests.stack import Stack


def readings(stack: Stack, who: str) -> list[dict[str, Any]]:
    rows = stack.audit("SELECT body FROM entries WHERE kind = 'audit.read' AND subject = ? ORDER BY seq", who)
    return [json.loads(row["body"]) for row in rows]


async def test_an_auditor_finds_statements_and_leaves_an_entry(stack: Stack) -> None:
    await query(stack, "devin", "SELECT 'looked for by an auditor'")
    before = len(readings(stack, "grace"))
    found = answer(await call(stack, "grace", "search_audit", words="auditor", user="devin", since="1h", limit=9))
    texts = [entry["body"]["text"] for entry in found["entries"] if entry["kind"] == "intent"]
    assert texts == ["SELECT 'looked for by an auditor'"]
    assert "not instructions" in found["notice"]
    [told] = readings(stack, "grace")[before:]
    assert told["query"]["words"] == "auditor"
    assert (told["how"], told["found"], told["principal"]["groups"]) == ("search", len(found["entries"]), ["dba"])


async def test_the_tool_looks_for_all_that_the_command_looks_for(stack: Stack) -> None:
    async with client(stack, "grace") as connected:
        [tool] = [tool for tool in (await connected.list_tools()).tools if tool.name == "search_audit"]
    told = {"duration_ms": "min_ms", "rows": "min_rows"}
    assert set(tool.input_schema["properties"]) == {told.get(part.name, part.name) for part in fields(Query)}
    await query(stack, "devin", "SELECT 'by each of them'")
    asked: dict[str, Any] = {
        "user": "devin",
        "on_behalf_of": "ada",
        "group": "ai-agents",
        "door": "mcp",
        "text": "BY EACH",
        "min_ms": 0,
    }
    found = answer(await call(stack, "grace", "search_audit", **asked, kind="intent", min_rows=1))
    assert [entry["body"]["text"] for entry in found["entries"]] == ["SELECT 'by each of them'"]
    assert answer(await call(stack, "grace", "search_audit", text="by each", min_rows=2))["entries"] == []


@pytest.mark.parametrize("who", ["devin", "ada"])
async def test_nobody_else_may_and_the_attempt_is_an_entry(stack: Stack, who: str) -> None:
    before = len(readings(stack, who))
    said = error(await call(stack, who, "search_audit", kind="intent"))
    assert f"does not let `{who}` read the audit" in said["what"]
    assert "auditors" in said["cure"]
    [told] = readings(stack, who)[before:]
    assert "no such auditor" in told["refused"]
    assert "found" not in told


async def test_what_cannot_be_searched_is_a_lesson(stack: Stack) -> None:
    said = error(await call(stack, "grace", "search_audit", since="yesterday"))
    assert "`yesterday` is not a time" in said["what"]
    assert "there is no kind" in error(await call(stack, "grace", "search_audit", kind="nothing"))["what"]


async def test_a_slip_does_not_read_as_if_nothing_had_happened(stack: Stack) -> None:
    for name, slip, known in (
        ("verdict", "denied", "deny"),
        ("status", "complete", "completed"),
        ("door", "http", "mcp"),
    ):
        told = error(await call(stack, "grace", "search_audit", **{name: slip}))
        assert (told["what"], known in told["cure"]) == (f"there is no {name} `{slip}`", True)
        answer(await call(stack, "grace", "search_audit", **{name: known}, limit=1))


async def test_long_answers_are_bounded_and_say_so(stack: Stack) -> None:
    recorder = stack.app.hall.gateway.recorder
    stack.call(lambda: recorder.record(Draft(Kind.INVARIANT_VIOLATED, "se-long", "x", None, {"detail": "x" * 9000})))
    for _ in range(40):
        stack.call(
            lambda: recorder.record(Draft(Kind.INVARIANT_VIOLATED, "se-long", "x", None, {"detail": "y" * 8000}))
        )
    result = await call(stack, "grace", "search_audit", session="se-long", limit=100)
    found = answer(result)
    assert (len(found["entries"]), found["left_out"]) == (32, 9)
    assert "9 older ones did not fit" in text(result)
    seqs = [entry["seq"] for entry in found["entries"]]
    assert seqs == sorted(seqs)
    older = answer(await call(stack, "grace", "search_audit", session="se-long", until=found["entries"][0]["time"]))
    assert (older["entries"][0]["body"], older["entries"][0]["body_bytes"] > 9000) == (None, True)


def test_auditors_are_named_and_no_rule_makes_one() -> None:
    everything = "rules: [{name: all, effect: allow, actions: ['*']}]\n"
    assert load_policy(everything, "p.yaml").auditors == ()
    one = load_policy(everything + "auditors: [{groups: [security], kinds: [human]}]", "p.yaml")
    assert len(one.auditors) == 1
    with pytest.raises(DocumentError, match="`who` says nobody"):
        load_policy("auditors: [{}]", "p.yaml")
    assert one.hash != load_policy(everything, "p.yaml").hash


async def test_what_lies_elsewhere_is_told_with_what_was_found(fresh_stack: Stack, tmp_path: Path) -> None:
    await query(fresh_stack, "devin", "SELECT 'moved away'")
    config = ["--config", str(fresh_stack.demo.config_path)]
    rolled = CliRunner().invoke(main, ["audit", "roll", *config])
    assert rolled.exit_code == 0, rolled.output
    [one] = segments.here(fresh_stack.audit_path)
    assert answer(await call(fresh_stack, "grace", "search_audit", words="moved"))["elsewhere"] == []
    shutil.move(one.path, tmp_path / "elsewhere.db")
    said = await call(fresh_stack, "grace", "search_audit", words="moved")
    assert answer(said)["elsewhere"] == [[one.first, one.last]]
    assert f"entries {one.first} to {one.last} were not searched" in text(said)
    exported = CliRunner().invoke(main, ["audit", "export", *config, "--format", "otlp"])
    told = [json.loads(row["body"]) for row in fresh_stack.audit("SELECT body FROM entries WHERE kind = 'audit.read'")]
    assert [body.get("elsewhere") for body in told][-1] == [[one.first, one.last]]
    assert f"the entries 1 to {one.last} are in a segment that is elsewhere" in exported.stderr
