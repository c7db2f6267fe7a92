"""Parking at the wire door: the client waits as if the statement were slow; people decide; the client can withdraw."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.doors.mcp_calls import answer, call, error
from tests.doors.wire_calls import errors, kinds, raw_client, values
from tests.stack import Stack, psql_path
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


async def test_in_a_transaction_the_client_is_told_that_its_locks_stay(stack: Stack) -> None:
    queue = Queue(stack)
    with raw_client(stack, "devin") as client:
        client.cycle(Query(b"BEGIN"))
        client.send(Query(UPDATE.encode()))
        assert "the locks it holds" in client.until(NoticeResponse)[-1].fields["M"]
        answer(await call(stack, "grace", "reject", id=queue.next(), comment="no"))
        assert client.until(ReadyForQuery)[-1].status == "E"


async def test_what_waits_at_the_wire_door_runs_there_only(stack: Stack) -> None:
    # A binary parameter reads as text elsewhere: what runs would not be what was approved.
    with parked(stack) as (process, approval):
        await approve(stack, approval)
        told = error(await call(stack, "devin", "await_approval", id=approval))
        process.communicate(timeout=20)
    assert "wire door" in str(told) or "already been used" in str(told)
    assert state(stack, approval) == "consumed"
