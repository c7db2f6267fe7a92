"""At both doors: when PostgreSQL is sent a statement, its intent is already on disk. The witness reads the bytes."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from server.app import App, serve
from tests.doors.mcp_calls import answer
from tests.stack import Stack, psql_path
from tests.tap import tap


@asynccontextmanager
async def watched(stack: Stack, folder: Path, witness: Callable[[bytes, Path], None]) -> AsyncIterator[App]:
    """Both doors, with a witness on the line to PostgreSQL, who also knows where the audit lies."""
    config, audit = stack.demo.config, folder / "audit.db"
    upstream = config.connections[0]
    async with tap(upstream.host, upstream.port, lambda piece: witness(piece, audit)) as port:
        connection = replace(upstream, host="127.0.0.1", port=port)
        wire = config.wire and config.wire.model_copy(update={"port": 0})
        mcp = config.mcp and config.mcp.model_copy(update={"port": 0})
        async with serve(replace(config, audit_path=audit, connections=(connection,), wire=wire, mcp=mcp)) as app:
            yield app


def recorded(audit: Path, text: str) -> list[str]:
    """The statuses of the statements of this text, as somebody else reads them now."""
    with contextlib.closing(sqlite3.connect(f"file:{audit}?mode=ro", uri=True)) as db:
        return [status for (status,) in db.execute("SELECT status FROM statements WHERE sql = ?", (text,))]


async def by_psql(stack: Stack, app: App, sql: str) -> str:
    dsn = f"host=127.0.0.1 port={app.wire_port} dbname={stack.database} user=grace password={stack.tokens['grace']}"
    command = [psql_path(), "-X", "-w", "-At", "-c", sql, dsn]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()


async def by_mcp(stack: Stack, app: App, sql: str) -> str:
    headers = {"Authorization": f"Bearer {stack.tokens['grace']}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(app.mcp_url or "", http_client=http)) as connected,
    ):
        return str(answer(await connected.call_tool("query", {"sql": sql}))["rows"][0][0])


@pytest.mark.parametrize("run", [by_psql, by_mcp], ids=["wire", "mcp"])
async def test_the_intent_is_on_disk_when_the_text_is_sent(
    stack: Stack, tmp_path: Path, run: Callable[[Stack, App, str], Awaitable[str]]
) -> None:
    sql = "SELECT 'sent-after-its-intent'"
    seen: list[list[str]] = []

    def witness(piece: bytes, audit: Path) -> None:
        if b"sent-after-its-intent" in piece:
            seen.append(recorded(audit, sql))

    async with watched(stack, tmp_path, witness) as app:
        assert await run(stack, app, sql) == "sent-after-its-intent"
    assert seen == [["running"]]


async def test_with_the_extended_protocol_it_is_there_when_execute_is_sent(stack: Stack, tmp_path: Path) -> None:
    """Parse asks what a statement means and runs nothing; Execute runs it, and each has an intent of its own."""
    sql, execute = "SELECT 'run-after-its-intent'", b"E\0\0\0\x09\0\0\0\0\0"  # of the unnamed portal, all rows
    seen: list[list[str]] = []

    def witness(piece: bytes, audit: Path) -> None:
        if execute in piece:
            seen.append(recorded(audit, sql))

    async with watched(stack, tmp_path, witness) as app:
        session = await asyncpg.connect(
            host="127.0.0.1", port=app.wire_port, user="grace", password=stack.tokens["grace"], database=stack.database,
            ssl=False,
        )  # fmt: skip
        prepared = await session.prepare(sql)
        assert recorded(tmp_path / "audit.db", sql) == []
        seen.clear()
        for _ in range(2):
            assert [tuple(row) for row in await prepared.fetch()] == [("run-after-its-intent",)]
        await session.close()
    assert [statuses[-1:] for statuses in seen] == [["running"], ["running"]]
    assert [len(statuses) for statuses in seen] == [1, 2]
