"""At the MCP door: where a call comes from, and for which human an agent calls, is true of each call by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from tests.doors.mcp_calls import answer, call, error, query, request
from tests.doors.test_mcp_tasks import TASKS, UPDATE, approve
from tests.stack import Stack

RULES = """rules:
  - name: not-from-there
    effect: deny
    actions: [select]
    relations: [public.orders]
    when: {networks: [127.0.0.1/32, 127.0.0.3/32]}
"""


def with_rules(stack: Stack) -> None:
    path = stack.demo.config.policy_path
    path.write_text(path.read_text(encoding="utf-8").replace("rules:\n", RULES, 1), encoding="utf-8")
    stack.call(stack.app.hall.gateway.policies.reload)


async def called(
    stack: Stack,
    method: str,
    params: dict[str, Any],
    *,
    token: str = "",
    source: str = "127.0.0.1",
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    """One request of the modern era from this address; the whole JSON-RPC answer."""
    return await request(
        stack, method, params, TASKS, token=token or stack.tokens["devin"], source=source, headers=headers
    )


async def read_orders(stack: Stack, source: str, headers: dict[str, str] | None = None) -> str:
    params = {"name": "query", "arguments": {"sql": "SELECT count(*) FROM orders"}}
    result = (await called(stack, "tools/call", params, source=source, headers=headers))["result"]
    return "refused" if result.get("isError") else "read"


async def test_a_rule_about_networks_asks_where_this_call_comes_from_not_the_first_of_its_token(
    fresh_stack: Stack,
) -> None:
    with_rules(fresh_stack)
    assert await read_orders(fresh_stack, "127.0.0.2") == "read"
    assert await read_orders(fresh_stack, "127.0.0.3") == "refused"
    assert await read_orders(fresh_stack, "127.0.0.2") == "read"
    # Nobody is somewhere else by saying so.
    assert await read_orders(fresh_stack, "127.0.0.1", {"X-Forwarded-For": "127.0.0.2"}) == "refused"


async def test_the_next_rows_of_a_result_go_where_the_first_went(fresh_stack: Stack) -> None:
    with_rules(fresh_stack)

    async def page(source: str, **arguments: Any) -> dict[str, Any]:
        params = {"name": "query", "arguments": arguments | {"max_rows": 1}}
        result: dict[str, Any] = (await called(fresh_stack, "tools/call", params, source=source))["result"]
        return result

    first = await page("127.0.0.2", sql="SELECT id FROM orders")
    cursor = first["structuredContent"]["cursor"]
    assert (await page("127.0.0.3", cursor=cursor))["isError"] is True
    assert (await page("127.0.0.2", cursor=cursor))["structuredContent"]["row_count"] == 1


async def test_what_an_agent_asks_for_one_human_is_not_there_when_it_works_for_another(fresh_stack: Stack) -> None:
    other = fresh_stack.demo.issuer.token("devin", kind="agent", groups=("ai-agents",), on_behalf_of="hans")
    pending = (await query(fresh_stack, "devin", UPDATE))["pending"]
    params = {"taskId": pending["id"]}
    for method in ("tasks/get", "tasks/cancel"):
        assert (await called(fresh_stack, method, params, token=other))["error"]["code"] == -32602
    await approve(fresh_stack, pending["id"])
    for tool in ("approval_status", "await_approval", "withdraw"):
        asked = {"name": tool, "arguments": {"id": pending["id"]}}
        assert (await called(fresh_stack, "tools/call", asked, token=other))["result"]["isError"] is True
    # It is neither used up nor void by that.
    assert answer(await call(fresh_stack, "devin", "await_approval", id=pending["id"]))["status"] == "completed"
    refused = error(await call(fresh_stack, "devin", "await_approval", id=pending["id"]))
    assert "already been used" in refused["what"]


async def test_the_result_of_a_task_goes_where_it_was_run_for(
    fresh_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.mcp_tasks._RUN_SECONDS", 0.1)
    task = (await query(fresh_stack, "devin", UPDATE))["pending"]["id"]
    await approve(fresh_stack, task)

    async def get(source: str) -> dict[str, Any]:
        return await called(fresh_stack, "tasks/get", {"taskId": task}, source=source)

    with psycopg.connect(fresh_stack.demo.admin_dsn) as holding:
        holding.execute("LOCK TABLE tickets")
        assert (await get("127.0.0.2"))["result"]["status"] == "working"
        assert (await get("127.0.0.3"))["error"]["code"] == -32602
    async with asyncio.timeout(20):
        while (done := (await get("127.0.0.2"))["result"])["status"] == "working":
            assert (await get("127.0.0.3"))["error"]["code"] == -32602
    assert done["result"]["structuredContent"]["tag"].startswith("UPDATE ")
