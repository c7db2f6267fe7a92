"""An audit that cannot be written refuses everything, at both doors, and lets go as soon as it can be written."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import asyncpg
import psycopg
import pytest

from audit.verify import verify
from tests.doors.mcp_calls import answer, client, error, query
from tests.stack import Stack, psql_path, running_stack
from tests.waiting import until

WRITE = (
    "INSERT INTO tickets (id, customer_id, subject, body, status, created_at)"
    " VALUES ({0}, 1, 'unwritable {0}', '', 'open', now())"
)


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose audit the tests may lock and move."""
    with running_stack(tmp_path_factory.mktemp("unwritable")) as stack:
        yield stack


@contextlib.contextmanager
def locked(stack: Stack) -> Iterator[None]:
    """The store's write lock in another program's hands."""
    with contextlib.closing(sqlite3.connect(stack.audit_path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def moved(stack: Stack) -> Iterator[None]:
    """The store's file under another name."""
    aside = stack.audit_path.with_name("aside.db")
    stack.audit_path.rename(aside)
    try:
        yield
    finally:
        aside.rename(stack.audit_path)


def written(stack: Stack, *numbers: int) -> set[int]:
    """The oracle: which of these rows PostgreSQL has."""
    found = stack.direct("SELECT id FROM tickets WHERE subject LIKE 'unwritable %'")
    return {number for (number,) in found} & set(numbers)


def kept(stack: Stack, number: int) -> list[str]:
    """The status of every recorded statement that writes this row."""
    return [row["status"] for row in stack.audit("SELECT status FROM statements WHERE sql = ?", WRITE.format(number))]


@contextlib.contextmanager
def running_psql(stack: Stack, who: str) -> Iterator[subprocess.Popen[str]]:
    """An interactive psql, with its session open before anything goes wrong."""
    command = [psql_path(), "-X", "-w", "-q", "-At", "-v", "VERBOSITY=verbose", stack.wire_dsn(who)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        ask(process, "SELECT 'ready';")
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0


def ask(process: subprocess.Popen[str], sql: str) -> str:
    """What an interactive psql answers to one line."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{sql}\n\\echo :end\n")
    process.stdin.flush()
    lines = []
    while (line := process.stdout.readline()) and line != ":end\n":
        lines.append(line)
    return "".join(lines)


async def test_open_sessions_are_refused_while_it_is_locked_and_go_on_afterwards(blocked: Stack) -> None:
    with running_psql(blocked, "grace") as psql:
        async with client(blocked, "grace") as mcp:
            assert answer(await mcp.call_tool("query", {"sql": "SELECT 1"}))["rows"] == [[1]]
            with locked(blocked):
                said, result = await asyncio.gather(
                    asyncio.to_thread(ask, psql, f"{WRITE.format(1001)};"),
                    mcp.call_tool("query", {"sql": WRITE.format(1002)}),
                )
            assert said.startswith("ERROR:  58030: the audit cannot be written, so nothing runs: ")
            assert "another process holds its lock" in said
            assert "HINT:  Nothing was executed." in said
            failure = error(result)
            assert (failure["kind"], failure["sqlstate"]) == ("audit unavailable", "58030")
            assert "another process holds its lock" in failure["what"]
            assert failure["cure"].startswith("Nothing was executed.")
            assert written(blocked, 1001, 1002) == set()
            assert kept(blocked, 1001) == kept(blocked, 1002) == []

            assert ask(psql, f"{WRITE.format(1001)};") == ""
            assert answer(await mcp.call_tool("query", {"sql": WRITE.format(1002)}))["tag"] == "INSERT 0 1"
    assert written(blocked, 1001, 1002) == {1001, 1002}
    until(lambda: kept(blocked, 1001) == kept(blocked, 1002) == ["completed"], "an outcome is missing")
    assert verify(blocked.audit_path).ok


async def test_nobody_comes_in_while_it_is_gone(blocked: Stack) -> None:
    async def by_wire() -> None:
        await asyncpg.connect(
            host=blocked.host, port=blocked.port, user="ada", password=blocked.tokens["ada"], database=blocked.database,
            ssl=False,
        )  # fmt: skip

    async def by_mcp() -> dict[str, object]:
        async with client(blocked, "ada") as mcp:
            return error(await mcp.call_tool("query", {"sql": "SELECT 1"}))

    with moved(blocked):
        refused, failure = await asyncio.gather(by_wire(), by_mcp(), return_exceptions=True)
    assert isinstance(refused, asyncpg.PostgresError)
    assert refused.sqlstate == "58030"
    assert "the audit cannot be written, so nothing runs" in str(refused)
    assert isinstance(failure, dict), failure
    assert failure["kind"] == "audit unavailable"
    assert blocked.psql("ada", "SELECT 1").returncode == 0
    assert (await query(blocked, "ada", "SELECT 1"))["rows"] == [[1]]


async def test_psql_says_why_it_cannot_connect(blocked: Stack) -> None:
    with moved(blocked):
        done = blocked.psql("ada", "SELECT 1")
    assert done.returncode == 2
    assert "FATAL:  the audit cannot be written, so nothing runs: audit store" in done.stderr
    assert "was moved, replaced or deleted" in done.stderr


async def test_the_extended_protocol_is_refused_too_and_its_connection_goes_on(blocked: Stack) -> None:
    async with await psycopg.AsyncConnection.connect(
        blocked.wire_dsn("grace", sslmode="disable"), autocommit=True
    ) as connection:
        insert = WRITE.format(1003)
        with moved(blocked), pytest.raises(psycopg.Error, match="nothing runs") as refused:
            await connection.execute(insert, prepare=True)
        assert refused.value.sqlstate == "58030"
        assert written(blocked, 1003) == set()
        await connection.execute(insert, prepare=True)
    assert written(blocked, 1003) == {1003}


async def test_a_transaction_with_a_statement_that_could_not_be_recorded_does_not_commit(blocked: Stack) -> None:
    with running_psql(blocked, "grace") as psql:
        assert ask(psql, f"BEGIN;\n{WRITE.format(1004)};") == ""
        until(lambda: kept(blocked, 1004) == ["completed"], "an outcome is missing")
        with moved(blocked):
            assert "58030" in ask(psql, f"{WRITE.format(1005)};")
            assert "58030" in ask(psql, "COMMIT;")
        assert "25P02" in ask(psql, "SELECT 1;")
        assert ask(psql, "COMMIT;") == ""
        assert ask(psql, "SELECT 'on';") == "on\n"
    assert written(blocked, 1004, 1005) == set()


def test_an_outcome_that_cannot_be_written_ends_the_wire_session(blocked: Stack) -> None:
    with psycopg.connect(blocked.wire_dsn("grace", sslmode="disable"), autocommit=True) as session:
        heard: list[str] = []
        # A FATAL that comes between two statements is a notice to libpq.
        session.add_notice_handler(lambda report: heard.append(f"{report.sqlstate} {report.message_primary}"))
        with ThreadPoolExecutor(1) as pool, psycopg.connect(blocked.demo.admin_dsn) as holder:
            holder.execute("LOCK TABLE tickets IN ACCESS EXCLUSIVE MODE")
            running = pool.submit(session.execute, WRITE.format(1006))
            until(lambda: waits_for_a_lock(blocked), "the statement does not wait for the table")
            with moved(blocked):
                holder.rollback()
                running.result(20)
                heard += go_on_until_closed(session)
        assert session.closed
    assert [said for said in heard if said.startswith("57P01 terminating connection: a statement's outcome cannot be")]
    assert written(blocked, 1006) == {1006}
    assert kept(blocked, 1006) == ["running"], "nobody knows how it ended until the next start"
    assert blocked.psql("grace", "SELECT 1").returncode == 0


async def test_an_outcome_that_cannot_be_written_fails_the_call_and_ends_the_mcp_session(blocked: Stack) -> None:
    async with client(blocked, "grace") as mcp:
        with psycopg.connect(blocked.demo.admin_dsn) as holder:
            holder.execute("LOCK TABLE tickets IN ACCESS EXCLUSIVE MODE")
            running = asyncio.create_task(mcp.call_tool("query", {"sql": WRITE.format(1007)}))
            waiting = partial(waits_for_a_lock, blocked)
            await asyncio.to_thread(until, waiting, "the statement does not wait for the table")
            with moved(blocked):
                holder.rollback()
                failure = error(await running)
        assert "outcome cannot be written to the audit" in failure["what"]
        assert "may have taken effect" in failure["cure"]
        assert answer(await mcp.call_tool("query", {"sql": "SELECT 'anew'"}))["rows"] == [["anew"]]
    assert written(blocked, 1007) == {1007}
    assert kept(blocked, 1007) == ["running"]
    [before] = blocked.audit("SELECT session FROM statements WHERE sql = ?", WRITE.format(1007))
    [after] = blocked.audit("SELECT session FROM statements WHERE sql = ?", "SELECT 'anew'")
    assert before["session"] != after["session"]


def go_on_until_closed(session: psycopg.Connection[Any]) -> list[str]:
    """Send statements until the connection is lost, each of which must fail; how they did, with SQLSTATE."""
    heard: list[str] = []
    while not session.closed:
        with pytest.raises(psycopg.OperationalError) as failed:
            session.execute("SELECT 'too late'")
        heard.append(f"{failed.value.sqlstate} {failed.value}")
    return heard


def waits_for_a_lock(stack: Stack) -> bool:
    """Whether an INSERT of ours waits for the table."""
    return bool(
        stack.direct("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%unwritable%'")
    )
