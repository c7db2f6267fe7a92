"""Readings: what happens to a running statement and its upstream when a call, a session or we go wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from mcp import MCPError

from gateway.admission import Gateway, Grant
from gateway.errors import InvariantViolatedError
from gateway.model import ClientInfo, Door, Session, Statement
from server.mcp_cursors import Cursors
from server.mcp_portal import PageLimit
from tests.doors.mcp_calls import ERAS, answer, client, error
from tests.stack import Stack

# Runs for minutes unless it is cancelled.
ENDLESS = "SELECT count(*) AS {name} FROM generate_series(1, 2000000000)"


async def eventually(stack: Stack, sql: str, parameter: str) -> dict[str, Any]:
    """The first row of the audit that the query finds, within 15 s."""
    end = time.monotonic() + 15
    while time.monotonic() < end:
        if rows := stack.audit(sql, parameter):
            return rows[0]
        await asyncio.sleep(0.05)
    raise AssertionError(f"the audit has no such entry: {sql}")


OUTCOME_OF_TEXT = """
SELECT json_extract(o.body, '$.status') AS status FROM entries i JOIN entries o
    ON o.statement = i.statement AND o.kind = 'outcome'
 WHERE i.kind = 'intent' AND json_extract(i.body, '$.text') = ?"""
INTENT_OF_TEXT = "SELECT seq FROM entries WHERE kind = 'intent' AND json_extract(body, '$.text') = ?"


async def no_longer_running(stack: Stack, mark: str) -> None:
    """Return once PostgreSQL runs no statement with this mark; fails after 15 s."""
    end = time.monotonic() + 15
    while time.monotonic() < end:
        found = stack.direct(
            f"SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
            f" AND query LIKE '%{mark}%'"
        )
        if not found:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the statement still runs")


@pytest.mark.parametrize("era", ERAS)
async def test_a_call_that_the_client_gives_up_is_cancelled_in_postgresql(stack: Stack, era: str) -> None:
    mark = f"given_up_{era[0]}"
    sql = ENDLESS.format(name=mark)
    async with client(stack, "devin", era) as connected:
        with pytest.raises(MCPError):
            await connected.call_tool("query", {"sql": sql}, read_timeout_seconds=1.5)
        assert (await eventually(stack, OUTCOME_OF_TEXT, sql))["status"] == "cancelled"
        await no_longer_running(stack, mark)
        assert answer(await connected.call_tool("query", {"sql": "SELECT 1 AS still_here"}))["rows"] == [[1]]


async def test_a_session_that_is_revoked_takes_its_running_statement_with_it(stack: Stack) -> None:
    token = stack.demo.issuer.token("devin", kind="agent", groups=["ai-agents"], on_behalf_of="ada")
    sql = ENDLESS.format(name="revoked_meanwhile")
    async with client(stack, "devin", token=token) as connected:
        session = answer(await connected.call_tool("whoami", {}))["session"]
        running = asyncio.create_task(connected.call_tool("query", {"sql": sql}))
        await eventually(stack, INTENT_OF_TEXT, sql)

        async def revoke() -> None:
            stack.app.hall.gateway.sessions.revoke(session)

        stack.call(revoke)
        assert "revoked" in error(await asyncio.wait_for(running, 15))["what"]
        await no_longer_running(stack, "revoked_meanwhile")


def test_a_raw_masked_column_never_leaves_even_if_the_rewrite_failed(stack: Stack) -> None:
    hall = stack.app.hall
    sql = b"SELECT id, ssn FROM customers WHERE id = 7"

    async def run() -> tuple[Session, BaseException]:
        token = await hall.verifier.verify(stack.tokens["devin"])
        session = await hall.gateway.open_session(token, stack.database, Door.MCP, ClientInfo())
        cursors = Cursors(hall.gateway, per_session=1, idle_seconds=5)
        reading = cursors.begin(session, lambda: unmasked(hall.gateway, Statement(session, sql)))
        try:
            await reading.next(PageLimit(10, 10_000))
        except InvariantViolatedError as violated:
            return session, violated
        raise AssertionError("a raw value was delivered")

    session, violated = stack.call(run)
    assert "delivered nothing" in str(violated)
    assert session.ended is not None
    [entry] = stack.audit("SELECT body FROM entries WHERE kind = 'invariant.violated' AND session = ?", session.id)
    assert "ssn" in entry["body"]


@asynccontextmanager
async def unmasked(gateway: Gateway, statement: Statement) -> AsyncIterator[Grant]:
    """A grant as a broken rewriter would make it: it knows what to hide, and hides nothing."""
    decision = await gateway.decide(statement.session, statement.text)
    rewrite = decision.verdict.rewrite
    assert rewrite is not None
    assert rewrite.origins
    broken = replace(rewrite, sql=statement.text, splices=())
    async with gateway.admit(statement, decision._replace(verdict=decision.verdict._replace(rewrite=broken))) as grant:
        yield grant
