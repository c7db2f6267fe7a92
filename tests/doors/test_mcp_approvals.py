"""Approvals through MCP tools: pending, seen, approved by a person, run once; and who may not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.doors.mcp_calls import ERAS, answer, call, client, error, query, text
from tests.stack import Stack

# Reaches every row, so the reference policy asks a DBA; and changes nothing that other tests look at.
UPDATE = "UPDATE tickets SET subject = subject"


async def asked(stack: Stack, sql: str = UPDATE) -> dict[str, Any]:
    """A statement of the agent's that waits for approval."""
    result = await query(stack, "devin", sql)
    assert result["status"] == "pending"
    assert result["rows"] == []
    pending: dict[str, Any] = result["pending"]
    return pending


@pytest.mark.parametrize("era", ERAS)
async def test_an_approved_statement_runs_once_for_the_one_who_asked(stack: Stack, era: str) -> None:
    pending = await asked(stack)
    assert "dba" in pending["who"]
    assert pending["ask_again_seconds"] == 5
    async with client(stack, "grace", era) as dba:
        shown = answer(await dba.call_tool("approval_status", {"id": pending["id"]}))
        assert shown["statement"] == UPDATE
        assert (shown["requester"], shown["on_behalf_of"]) == ("devin", "ada")
        assert shown["digest"] == pending["digest"]
        approved = answer(
            await dba.call_tool("approve", {"id": pending["id"], "digest": shown["digest"], "comment": "looked at it"})
        )
        assert approved["state"] == "approved"
    async with client(stack, "devin", era) as agent:
        done = answer(await agent.call_tool("await_approval", {"id": pending["id"]}))
        [(tickets,)] = stack.direct("SELECT count(*) FROM tickets")
        assert (done["status"], done["tag"]) == ("completed", f"UPDATE {tickets}")
        again = error(await agent.call_tool("await_approval", {"id": pending["id"]}))
        assert "already been used" in again["what"]


async def test_waiting_reports_progress_and_wakes_when_people_decide(stack: Stack) -> None:
    pending = await asked(stack)
    reported = asyncio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        reported.set()

    async with client(stack, "devin") as agent, client(stack, "grace") as dba:
        waiting = asyncio.create_task(
            agent.call_tool("await_approval", {"id": pending["id"]}, progress_callback=on_progress)
        )
        await asyncio.wait_for(reported.wait(), 20)
        answer(await dba.call_tool("approve", {"id": pending["id"], "digest": pending["digest"]}))
        done = answer(await asyncio.wait_for(waiting, 20))
    assert done["tag"].startswith("UPDATE ")


async def test_a_rejection_reaches_the_requester_with_its_comment(stack: Stack) -> None:
    pending = await asked(stack)
    answer(await call(stack, "grace", "reject", id=pending["id"], comment="not in office hours"))
    said = error(await call(stack, "devin", "await_approval", id=pending["id"]))
    assert said["kind"] == "approval rejected"
    assert "not in office hours" in said["what"]


async def test_the_agent_cannot_vote_nor_the_human_it_works_for(stack: Stack) -> None:
    pending = await asked(stack)
    vote = {"id": pending["id"], "digest": pending["digest"]}
    assert "agents cannot vote" in error(await call(stack, "devin", "approve", **vote))["what"]
    assert "on behalf of" in error(await call(stack, "ada", "approve", **vote))["what"]
    assert answer(await call(stack, "devin", "withdraw", id=pending["id"]))["state"] == "cancelled"


async def test_a_yes_to_something_that_was_not_read_does_not_count(stack: Stack) -> None:
    pending = await asked(stack)
    said = error(await call(stack, "grace", "approve", id=pending["id"], digest="0" * 32))
    assert "digest" in said["what"]
    assert answer(await call(stack, "grace", "approval_status", id=pending["id"]))["state"] == "requested"
    await call(stack, "devin", "withdraw", id=pending["id"])


async def test_only_the_requester_runs_what_was_approved(stack: Stack) -> None:
    pending = await asked(stack)
    answer(await call(stack, "grace", "approve", id=pending["id"], digest=pending["digest"]))
    said = error(await call(stack, "grace", "await_approval", id=pending["id"]))
    assert "who alone can run it" in said["what"]
    assert answer(await call(stack, "devin", "await_approval", id=pending["id"]))["status"] == "completed"


async def test_a_request_is_seen_by_who_asks_for_whom_and_who_decides(stack: Stack) -> None:
    """Its parameters and rows are in clear: to all others, people included, it does not exist."""
    pending = await asked(stack)
    for who, sees in (("ada", True), ("grace", True), ("mallory", False)):
        token = stack.tokens.get(who) or stack.demo.issuer.token(who, groups=["developers"])
        async with client(stack, who, token=token) as person:
            listed = answer(await person.call_tool("list_approvals", {}))["approvals"]
            assert (pending["id"] in {approval["id"] for approval in listed}) is sees
            assert (await person.call_tool("approval_status", {"id": pending["id"]})).is_error is not sees
            if not sees:
                said = error(await person.call_tool("approve", {"id": pending["id"], "digest": pending["digest"]}))
                assert "there is no approval" in said["what"]
    await call(stack, "devin", "withdraw", id=pending["id"])


async def test_an_agent_sees_its_own_approvals_only(stack: Stack) -> None:
    pending = await asked(stack)
    other = stack.demo.issuer.token("other-agent", kind="agent", groups=["ai-agents"], on_behalf_of="grace")
    async with client(stack, "other-agent", token=other) as stranger:
        assert answer(await stranger.call_tool("list_approvals", {}))["approvals"] == []
        assert (
            "there is no approval" in error(await stranger.call_tool("approval_status", {"id": pending["id"]}))["what"]
        )
    listed = answer(await call(stack, "devin", "list_approvals"))["approvals"]
    assert pending["id"] in {approval["id"] for approval in listed}
    assert pending["id"] in {a["id"] for a in answer(await call(stack, "grace", "list_approvals"))["approvals"]}
    await call(stack, "devin", "withdraw", id=pending["id"])


async def test_the_approver_sees_invisible_characters(stack: Stack) -> None:
    pending = await asked(stack, "UPDATE tickets SET subject = subject || '\u202e'")
    result = await call(stack, "grace", "approval_status", id=pending["id"])
    shown = answer(result)
    assert "\\u{202e}" in shown["statement_visible"]
    assert any("RIGHT-TO-LEFT OVERRIDE" in warning for warning in shown["warnings"])
    assert "\u202e" not in text(result)
    await call(stack, "devin", "withdraw", id=pending["id"])


async def test_the_failing_row_of_a_masked_table_is_not_quoted(stack: Stack) -> None:
    [raw] = stack.direct("SELECT email, ssn, card FROM customers WHERE id = 5")
    pending = await asked(stack, "UPDATE customers SET name = NULL WHERE id = 5")
    answer(await call(stack, "grace", "approve", id=pending["id"], digest=pending["digest"]))
    result = await call(stack, "devin", "await_approval", id=pending["id"])
    assert error(result)["sqlstate"] == "23502"
    assert not [value for value in raw if value in str(result)]
