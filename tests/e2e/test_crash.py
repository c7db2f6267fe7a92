"""kill -9 of a gateway under load: whatever PostgreSQL executed has its intent, and nothing is guessed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import psycopg
import pytest

from audit.verify import verify
from server.demo import Demo, prepare

WORKERS = 6


@contextlib.asynccontextmanager
async def gateway(demo: Demo) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """`countersign serve` in a process of its own; yields it with its wire port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", "serve", "--config", str(demo.config_path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process, await wire_port(process)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def wire_port(process: asyncio.subprocess.Process) -> int:
    """The port that the gateway prints once its doors are open."""
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.timeout(20):
        while line := (await process.stdout.readline()).decode():
            if match := re.search(r"wire door: .*:(\d+)", line):
                return int(match[1])
        pytest.fail((await process.stderr.read()).decode())


async def insert_until_killed(demo: Demo, port: int, worker: int, seen: list[int]) -> None:
    """Insert numbered rows one by one, noting each that was acknowledged."""
    connection = await asyncpg.connect(
        host="127.0.0.1", port=port, user="grace", password=demo.tokens["grace"], database=demo.connection, ssl=False
    )
    number = worker * 1_000_000
    with contextlib.suppress(OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
        while True:
            number += 1
            await connection.execute(
                "INSERT INTO tickets (id, customer_id, subject, body, status, created_at)"
                f" VALUES ({number}, 1, 'crash {number}', '', 'open', now())"
            )
            seen.append(number)


def audited(path: Path) -> dict[int, str]:
    """The status in the audit of each numbered insert that has an intent."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT sql, status FROM statements WHERE sql LIKE 'INSERT INTO tickets%'").fetchall()
    return {int(re.search(r"VALUES \((\d+)", sql)[1]): status for sql, status in rows}  # type: ignore[index]


async def test_after_kill_9_under_load_every_executed_statement_has_an_intent(tmp_path: Path) -> None:
    async with prepare(tmp_path / "demo", mcp_port=0, wire_port=0) as demo:
        seen: list[int] = []
        async with gateway(demo) as (process, port):
            workers = [asyncio.create_task(insert_until_killed(demo, port, n + 10, seen)) for n in range(WORKERS)]
            async with asyncio.timeout(30):
                while len(seen) < 200:  # noqa: ASYNC110 - bounded, and what is awaited is the load itself
                    await asyncio.sleep(0.01)
            process.kill()
            await asyncio.wait_for(asyncio.gather(*workers), 20)

        with psycopg.connect(demo.admin_dsn) as connection:
            executed = {n for (n,) in connection.execute("SELECT id FROM tickets WHERE subject LIKE 'crash %'")}
        recorded = audited(demo.audit_path)
        assert executed >= set(seen)
        assert executed <= set(recorded), "PostgreSQL executed a statement that has no intent"
        dangling = {n for n, status in recorded.items() if status == "running"}

        async with gateway(demo) as (_, port):
            after = audited(demo.audit_path)
            assert {after[n] for n in dangling} <= {"unknown"}
            assert set(after.values()) <= {"completed", "unknown", "failed", "cancelled"}
            # The restarted gateway goes on with the same chain.
            late: list[int] = []
            worker = asyncio.create_task(insert_until_killed(demo, port, 99, late))
            async with asyncio.timeout(20):
                while len(late) < 3:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.01)
            worker.cancel()
            await asyncio.wait([worker])
        report = verify(demo.audit_path)
        assert report.ok, report.problem
        assert report.open_statements == 0
