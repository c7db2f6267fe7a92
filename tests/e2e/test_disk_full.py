"""A disk that fills up under a running gateway, by the kernel's own word: nothing runs, and with room it goes on."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import psycopg
import pytest

from audit.verify import verify
from server.demo import Demo, prepare
from tests.e2e.test_crash import audited, gateway


@contextmanager
def no_file_may_grow(pid: int) -> Iterator[None]:
    """Every write of this process to a file fails with EFBIG (setrlimit(2), RLIMIT_FSIZE)."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def insert(number: int) -> str:
    return (
        "INSERT INTO tickets (id, customer_id, subject, body, status, created_at)"
        f" VALUES ({number}, 1, 'crash {number}', '', 'open', now())"
    )


def executed(demo: Demo) -> set[int]:
    """The oracle: which of the rows PostgreSQL has."""
    with psycopg.connect(demo.admin_dsn) as connection:
        return {n for (n,) in connection.execute("SELECT id FROM tickets WHERE subject LIKE 'crash %'")}


async def test_a_full_disk_refuses_every_statement_and_with_room_the_same_session_goes_on(tmp_path: Path) -> None:
    async with prepare(tmp_path / "demo", mcp_port=0, wire_port=0) as demo, gateway(demo) as (process, port):
        session = await asyncpg.connect(
            host="127.0.0.1", port=port, user="grace", password=demo.tokens["grace"], database=demo.connection,
            ssl=False,
        )  # fmt: skip
        await session.execute(insert(9_000_001))
        async with asyncio.timeout(10):
            while audited(demo.audit_path).get(9_000_001) != "completed":  # noqa: ASYNC110 - bounded
                await asyncio.sleep(0.01)
        with no_file_may_grow(process.pid):
            for number in (9_000_002, 9_000_003):
                with pytest.raises(asyncpg.PostgresError, match="nothing runs") as refused:
                    await session.execute(insert(number))
                assert refused.value.sqlstate == "58030"
                assert "disk" in str(refused.value)
        assert executed(demo) == {9_000_001}
        await session.execute(insert(9_000_003))
        await session.close()
        assert executed(demo) == {9_000_001, 9_000_003}
        assert set(audited(demo.audit_path)) == {9_000_001, 9_000_003}
        report = verify(demo.audit_path)
        assert report.ok, report.problem
