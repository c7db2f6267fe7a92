"""The Tasks extension over HTTP, message by message: a wait for people is a task for clients that say they know them.

Source: modelcontextprotocol/ext-tasks, specification of 2026-07-28 (SEP-2663).
"""

from __future__ import annotations

import asyncio
from typing import Any

from tests.doors.mcp_calls import answer, call, request
from tests.stack import Stack

UPDATE = "UPDATE tickets SET subject = subject"
TASKS: dict[str, Any] = {"extensions": {"io.modelcontextprotocol/tasks": {}}}


async def send(
    stack: Stack, who: str, method: str, params: dict[str, Any], capabilities: dict[str, Any] = TASKS
) -> dict[str, Any]:
    """One request of the modern era; the whole JSON-RPC answer."""
    return await request(stack, method, params, capabilities, token=stack.tokens[who])


async def asked(stack: Stack, **more: Any) -> dict[str, Any]:
    params = {"name": "query", "arguments": {"sql": UPDATE}}
    said: dict[str, Any] = (await send(stack, "devin", "tools/call", params, **more))["result"]
    return said


async def get(stack: Stack, who: str, task: str, **more: Any) -> dict[str, Any]:
    return await send(stack, who, "tasks/get", {"taskId": task}, **more)


async def approve(stack: Stack, task: str) -> None:
    shown = answer(await call(stack, "grace", "approval_status", id=task))
    answer(await call(stack, "grace", "approve", id=task, digest=shown["digest"]))


async def test_a_pending_statement_is_a_task_that_works_until_people_decide_and_gives_its_result_once(
    stack: Stack,
) -> None:
    task = await asked(stack)
    assert (task["resultType"], task["status"], task["pollIntervalMs"]) == ("task", "working", 5000)
    assert task["ttlMs"] == 30 * 60_000
    assert "dba" in task["statusMessage"]
    waiting = (await get(stack, "devin", task["taskId"]))["result"]
    assert (waiting["resultType"], waiting["status"]) == ("complete", "working")
    await approve(stack, task["taskId"])
    async with asyncio.timeout(30):
        while (done := (await get(stack, "devin", task["taskId"]))["result"])["status"] == "working":
            pass
    assert done["status"] == "completed"
    assert done["result"]["structuredContent"]["tag"].startswith("UPDATE ")
    again = (await get(stack, "devin", task["taskId"]))["result"]
    assert again["result"]["isError"] is True
    assert "already been used" in again["result"]["content"][0]["text"]
    runs = stack.audit("SELECT status FROM statements WHERE approval = ? AND status <> 'pending'", task["taskId"])
    assert [row["status"] for row in runs] == ["completed"]


async def test_a_client_that_does_not_declare_tasks_gets_none(stack: Stack) -> None:
    plain = await asked(stack, capabilities={})
    assert plain["structuredContent"]["status"] == "pending"
    id_ = plain["structuredContent"]["pending"]["id"]
    for method in ("tasks/get", "tasks/cancel"):
        refused = (await send(stack, "devin", method, {"taskId": id_}, {}))["error"]
        assert refused["code"] == -32021
        assert refused["data"] == {"requiredCapabilities": TASKS}
    await send(stack, "devin", "tasks/cancel", {"taskId": id_})


async def test_a_task_is_withdrawn_by_its_cancellation_and_is_there_for_nobody_else(stack: Stack) -> None:
    task = (await asked(stack))["taskId"]
    for who, name in (("grace", task), ("ada", task), ("devin", "apr-nothing")):
        assert (await get(stack, who, name))["error"]["code"] == -32602
        assert (await send(stack, who, "tasks/cancel", {"taskId": name}))["error"]["code"] == -32602
    assert (await send(stack, "devin", "tasks/get", {}))["error"]["code"] == -32602
    updated = await send(stack, "devin", "tasks/update", {"taskId": task, "inputResponses": {"x": {}}})
    assert updated["result"]["resultType"] == "complete"
    assert (await send(stack, "devin", "tasks/cancel", {"taskId": task}))["result"]["resultType"] == "complete"
    assert (await get(stack, "devin", task))["result"]["status"] == "cancelled"


async def test_a_rejection_is_a_result_that_is_an_error(stack: Stack) -> None:
    task = (await asked(stack))["taskId"]
    answer(await call(stack, "grace", "reject", id=task, comment="not on a Friday"))
    over = (await get(stack, "devin", task))["result"]
    assert over["status"] == "completed"
    assert over["result"]["isError"] is True
    assert "not on a Friday" in over["result"]["content"][0]["text"]
