"""Parking at the wire door: the client waits as if the statement were slow; people decide; the client can withdraw."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.doors.mcp_calls import answer, call, error
from tests.doors.wire_calls import errors, kinds, raw_client, values
from tests.policy.corpus import ROOT
from tests.stack import Stack, psql_path, running_stack, use_policy
from tests.waiting import until
from wire.backend import NoticeResponse, ReadyForQuery
from wire.frontend import Bind, Execute, Parse, Query, Sync

# Reaches every row, so the reference policy asks a DBA; and changes nothing that other tests look at.
UPDATE = "UPDATE tickets SET body = body"


class Queue:
    """The approvals that were asked for since it was made."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._known = self._ids()

    def _ids(self) -> set[str]:
        return {str(row["id"]) for row in self._stack.audit("SELECT id FROM approvals")}

    def next(self) -> str:
        """The one that is asked for next."""
        until(lambda: self._ids() - self._known, "no approval was asked for")
        [approval] = self._ids() - self._known
        return approval


@contextmanager
def parked(stack: Stack) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """psql with a statement that waits, and the approval's id."""
    queue = Queue(stack)
    process = subprocess.Popen(
        [psql_path(), "-X", "-w", "-h", stack.host, "-p", str(stack.port), "-U", "devin", "-d", stack.database,
         "-c", UPDATE],
        env={"PGPASSWORD": stack.tokens["devin"], "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process, queue.next()
    finally:
        process.kill()
        if process.stdout and not process.stdout.closed:
            process.communicate(timeout=10)


def state(stack: Stack, approval: str) -> str:
    return str(stack.audit("SELECT state FROM approvals WHERE id = ?", approval)[0]["state"])


async def approve(stack: Stack, approval: str) -> None:
    shown = answer(await call(stack, "grace", "approval_status", id=approval))
    answer(await call(stack, "grace", "approve", id=approval, digest=shown["digest"]))


async def test_an_approval_lets_the_statement_run_as_if_it_had_been_slow(stack: Stack) -> None:
    with parked(stack) as (process, approval):
        await approve(stack, approval)
        out, said = process.communicate(timeout=20)
    [(tickets,)] = stack.direct("SELECT count(*) FROM tickets")
    assert out == f"UPDATE {tickets}\n"
    assert f"NOTICE:  this statement waits for approval {approval}" in said
    assert "dba" in re.search(r"HINT:  (.*)", said).group(1)  # type: ignore[union-attr]
    assert state(stack, approval) == "consumed"


async def test_a_rejection_is_an_error_with_its_comment(stack: Stack) -> None:
    with parked(stack) as (process, approval):
        answer(await call(stack, "grace", "reject", id=approval, comment="not today"))
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "not today" in said
    assert state(stack, approval) == "denied"


async def test_ctrl_c_withdraws_and_nobody_can_approve_any_more(stack: Stack) -> None:
    with parked(stack) as (process, approval):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert "canceling statement due to user request" in said
        assert "withdrawn" in said
        until(lambda: state(stack, approval) == "cancelled", "it was not withdrawn")
        shown = answer(await call(stack, "grace", "approval_status", id=approval))
        assert "cancelled" in str(error(await call(stack, "grace", "approve", id=approval, digest=shown["digest"])))


def test_a_client_that_dies_withdraws(stack: Stack) -> None:
    with parked(stack) as (process, approval):
        process.kill()
        process.wait(10)
        until(lambda: state(stack, approval) == "cancelled", "it was not withdrawn")


async def test_the_agent_cannot_approve_itself_nor_the_human_it_works_for(stack: Stack) -> None:
    with parked(stack) as (_, approval):
        shown = answer(await call(stack, "grace", "approval_status", id=approval))
        for who in ("devin", "ada"):
            error(await call(stack, who, "approve", id=approval, digest=shown["digest"]))
        assert state(stack, approval) == "requested"


def test_while_one_client_waits_others_work(stack: Stack) -> None:
    with parked(stack), psycopg.connect(stack.wire_dsn("devin"), autocommit=True) as other:
        assert other.execute("SELECT 1").fetchone() == (1,)


async def test_what_was_pipelined_behind_it_waits_in_order(stack: Stack) -> None:
    queue = Queue(stack)
    with raw_client(stack, "devin") as client:
        client.send(Parse("", UPDATE.encode()), Bind("", ""), Execute(""), Sync(), Query(b"SELECT 'behind'"))
        await approve(stack, queue.next())
        first, second = client.until(ReadyForQuery), client.until(ReadyForQuery)
    assert kinds(first).replace("N", "") == "12CZ"
    assert values(second) == [(b"behind",)]


def test_a_statement_that_needs_approval_is_not_one_of_several(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        [(code, said)] = errors(client.cycle(Query(f"SELECT 1; {UPDATE}".encode())))
    assert code == "42501"
    assert "cannot be part of several" in said


async def test_a_schema_that_changed_meanwhile_voids_the_yes(fresh_stack: Stack) -> None:
    stack = fresh_stack
    with parked(stack) as (process, approval):
        stack.direct("ALTER TABLE tickets ADD COLUMN added int")
        await approve(stack, approval)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "changed" in said
    statuses = stack.audit("SELECT status FROM statements WHERE sql = ?", UPDATE)
    assert "completed" not in [s["status"] for s in statuses]


def locks(stack: Stack, pid: int) -> list[tuple[str, str]]:
    """What a server process has locked, but for catalogs."""
    return stack.direct(
        "SELECT relation::regclass::text, mode FROM pg_locks WHERE locktype = 'relation' AND relation >= 16384"
        f" AND pid = {pid} ORDER BY 1, 2"
    )


@pytest.mark.parametrize("extended", [False, True], ids=["simple", "extended"])
async def test_a_transaction_that_waits_locks_nothing_more_and_says_what_it_holds(stack: Stack, extended: bool) -> None:
    queue = Queue(stack)
    with raw_client(stack, "devin") as client:
        [(pid,)] = values(client.cycle(Query(b"SELECT pg_backend_pid()")))
        client.cycle(Query(b"BEGIN"))
        client.cycle(Query(b"SELECT id FROM orders LIMIT 1"))
        before = locks(stack, int(pid or 0))
        assert ("orders", "AccessShareLock") in before
        if extended:
            client.send(Parse("", UPDATE.encode()), Bind("", ""), Execute(""), Sync())
        else:
            client.send(Query(UPDATE.encode()))
        said = client.until(NoticeResponse)[-1].fields["M"]
        assert f"and holds locks on {len({name for name, _ in before})} relations: " in said
        assert "orders (AccessShareLock)" in said
        approval = queue.next()
        assert locks(stack, int(pid or 0)) == before
        answer(await call(stack, "grace", "reject", id=approval, comment="no"))
        assert client.until(ReadyForQuery)[-1].status == "E"


async def test_a_transaction_without_locks_says_so_and_keeps_its_snapshot_for_later(stack: Stack) -> None:
    queue = Queue(stack)
    with raw_client(stack, "devin") as client:
        client.cycle(Query(b"BEGIN ISOLATION LEVEL REPEATABLE READ"))
        client.send(Query(UPDATE.encode()))
        assert client.until(NoticeResponse)[-1].fields["M"].endswith("and holds locks on 0 relations")
        approval = queue.next()
        stack.direct("UPDATE tickets SET subject = subject WHERE id = 1")  # would fail a snapshot of before
        await approve(stack, approval)
        assert errors(client.until(ReadyForQuery)) == []
        client.cycle(Query(b"ROLLBACK"))


async def test_many_clients_wait_at_once_without_a_thread_each_and_are_all_answered(stack: Stack) -> None:
    many, before = 15, threading.active_count()
    with contextlib.ExitStack() as opened:
        waiting = {}
        for _ in range(many):
            queue = Queue(stack)
            client = opened.enter_context(raw_client(stack, "devin"))
            client.send(Query(UPDATE.encode()))
            waiting[queue.next()] = client
        assert threading.active_count() - before <= 8  # asyncio's own workers, however many wait
        for number, (approval, client) in enumerate(waiting.items()):
            if number % 2:
                answer(await call(stack, "grace", "reject", id=approval, comment="no"))
            else:
                await approve(stack, approval)
            assert [code for code, _ in errors(client.until(ReadyForQuery))] == ["42501"] * (number % 2)


async def test_one_that_expires_while_it_waits_is_an_error(fresh_stack: Stack, tmp_path: Path) -> None:
    policy = (ROOT / "server" / "sample" / "policy.yaml").read_text().replace("expires: 30m", "expires: 1s")
    (tmp_path / "short.yaml").write_text(policy)
    await asyncio.to_thread(use_policy, fresh_stack, tmp_path / "short.yaml")
    with parked(fresh_stack) as (process, approval):
        _, said = await asyncio.to_thread(process.communicate, timeout=20)
    assert process.returncode == 1
    assert f"approval `{approval}` expired at" in said
    assert state(fresh_stack, approval) == "expired"


def test_a_server_that_is_stopped_tells_who_waits_and_withdraws(tmp_path: Path) -> None:
    with contextlib.ExitStack() as ending:
        stack = ending.enter_context(running_stack(tmp_path))
        with parked(stack) as (process, approval):
            ending.close()
            _, said = process.communicate(timeout=20)
    assert "terminating connection" in said
    assert state(stack, approval) == "cancelled"
    assert stack.audit("SELECT status FROM statements WHERE sql = ? AND status = 'completed'", UPDATE) == []


async def test_what_waits_at_the_wire_door_runs_there_only(stack: Stack) -> None:
    # A binary parameter reads as text elsewhere: what runs would not be what was approved.
    with parked(stack) as (process, approval):
        await approve(stack, approval)
        told = error(await call(stack, "devin", "await_approval", id=approval))
        process.communicate(timeout=20)
    assert "wire door" in str(told) or "already been used" in str(told)
    assert state(stack, approval) == "consumed"
