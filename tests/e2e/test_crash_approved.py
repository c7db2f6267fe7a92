"""kill -9 of a gateway between the single use of an approval and the outcome of what it permitted."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from audit.verify import verify
from server.demo import Demo, prepare
from tests.doors.mcp_calls import answer, call, error, query
from tests.waiting import until


@dataclass
class Served:
    """`countersign serve` in a process of its own, as `tests.doors.mcp_calls` needs it."""

    process: asyncio.subprocess.Process
    url: str
    tokens: dict[str, str]


@contextlib.asynccontextmanager
async def gateway(demo: Demo) -> AsyncIterator[Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", "serve", "--config", str(demo.config_path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = (await process.stdout.readline()).decode()
        match = re.search(r"MCP door: (\S+)", line)
        assert match, line
        yield Served(process, match[1], dict(demo.tokens))
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


def rows(demo: Demo, sql: str, *values: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(f"file:{demo.audit_path}?mode=ro", uri=True)) as db:
        return db.execute(sql, values).fetchall()


BUSY = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'countersign%' AND state <> 'idle'"
CASES = [
    # Counted, so in a transaction that only the gateway could have committed: it has not happened.
    ("UPDATE tickets SET subject = subject || '!'", "SELECT count(*) FROM tickets WHERE subject LIKE '%!'", {0}),
    # In autocommit: PostgreSQL finishes it when it gets its lock, or sees first that nobody is there. Never twice.
    (
        "ALTER TABLE tickets ADD COLUMN crashed integer",
        "SELECT count(*) FROM information_schema.columns WHERE column_name = 'crashed'",
        {0, 1},
    ),
]


@pytest.mark.parametrize(("sql", "oracle", "possible"), CASES, ids=["update", "alter"])
async def test_nothing_runs_twice_and_the_state_says_unknown(
    tmp_path: Path, sql: str, oracle: str, possible: set[int]
) -> None:
    async with prepare(tmp_path / "demo", mcp_port=0, wire_port=0) as demo:
        with psycopg.connect(demo.admin_dsn) as holder:
            async with gateway(demo) as served:
                pending = (await query(served, "devin", sql))["pending"]
                approval = pending["id"]
                answer(await call(served, "grace", "approve", id=approval, digest=pending["digest"]))
                holder.execute("LOCK TABLE tickets IN ACCESS SHARE MODE")
                holder.execute("SELECT * FROM tickets FOR UPDATE")
                running = asyncio.create_task(call(served, "devin", "await_approval", id=approval))
                waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                with psycopg.connect(demo.admin_dsn, autocommit=True) as oracle_connection:
                    await asyncio.to_thread(
                        until, lambda: oracle_connection.execute(waiting).fetchall(), "it does not run"
                    )
                    served.process.kill()
                    await served.process.wait()
                    with pytest.raises(BaseException):  # noqa: B017, PT011 - however the transport says it
                        await asyncio.wait_for(running, 20)
                    holder.rollback()
                    done = "PostgreSQL did not notice"
                    await asyncio.to_thread(until, lambda: not oracle_connection.execute(BUSY).fetchall(), done)
                    [(after_the_kill,)] = oracle_connection.execute(oracle.encode()).fetchall()
                    assert after_the_kill in possible
            assert rows(demo, "SELECT state FROM approvals WHERE id = ?", approval) == [("consumed",)]

            async with gateway(demo) as served:
                statuses = [s for (s,) in rows(demo, "SELECT status FROM statements WHERE sql = ? ORDER BY seq", sql)]
                assert statuses[-1] == "unknown"
                said = error(await call(served, "devin", "await_approval", id=approval))
                assert "already been used" in said["what"]
                voted = error(await call(served, "grace", "approve", id=approval, digest=pending["digest"]))
                assert "already consumed" in voted["what"]
            with psycopg.connect(demo.admin_dsn) as connection:
                assert connection.execute(oracle.encode()).fetchone() == (after_the_kill,)
        report = verify(demo.audit_path)
        assert report.ok, report.problem
        assert report.open_statements == 0
