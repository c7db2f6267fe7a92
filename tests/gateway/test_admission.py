"""The one path on a real store, a real policy and a real PostgreSQL: what is on disk before anything runs."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from audit.approvals import Reader
from audit.instances import Instance, close_dangling
from audit.store import Store
from audit.verify import verify
from audit.writer import Writer
from gateway import admission
from gateway.admission import Gateway, Grant
from gateway.approvals import Approvals, Pending
from gateway.connections import Connections
from gateway.drafts import new_statement_id
from gateway.errors import AuditUnavailableError, RefusedError, SessionEndedError
from gateway.identity import VerifiedToken
from gateway.model import ClientInfo, Connection, Door, Outcome, Session, Statement, Status
from gateway.policies import PolicyBook
from gateway.recorder import Recorder
from gateway.sessions import Sessions
from policy.model import Principal
from tests.policy.sample import PRINCIPALS
from tests.stack import Stack
from tests.tap import tap
from wire.upstream import Factory

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "server" / "sample" / "policy.yaml"
# Short, so that a lock held by somebody else refuses at once; the product waits longer.
BUSY_SECONDS = 0.1


@dataclass
class OnePath:
    """One process's path: the gateway, the store it writes, and every byte that it sends to PostgreSQL."""

    gateway: Gateway
    store: Store
    instance: Instance
    sent: bytearray = field(default_factory=bytearray)

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """What somebody else finds in the file."""
        with contextlib.closing(sqlite3.connect(f"file:{self.store.path}?mode=ro", uri=True)) as db:
            return db.execute(sql, parameters).fetchall()

    def entries(self, text: str) -> list[tuple[str, str | None]]:
        """(kind, status) of the entries of the statements with this text, in the chain's order."""
        return self.rows(
            "SELECT kind, body ->> '$.status' FROM entries WHERE statement IN (SELECT statement FROM statements"
            " WHERE sql = ?) ORDER BY seq",
            text,
        )

    async def session(self, who: str = "grace") -> Session:
        """A session of somebody of the sample, its search path known."""
        principal: Principal = PRINCIPALS[who]
        token = VerifiedToken(principal, datetime.now(UTC) + timedelta(hours=1), f"token-{who}", frozenset())
        session = await self.gateway.open_session(token, self.gateway.connections.names[0], Door.MCP, ClientInfo())
        async with self.gateway.lease(session):
            return session

    async def decided(self, session: Session, *texts: str) -> Any:
        """Statements and their decisions, as `begin` takes them."""
        statements = [Statement(session, text.encode()) for text in texts]
        return statements, [await self.gateway.decide(session, one.text) for one in statements]

    async def run(self, session: Session, text: str) -> list[tuple[bytes | None, ...]]:
        """One statement, all the way."""
        async with self.gateway.lease(session) as upstream, self.gateway.admit(Statement(session, text.encode())) as g:
            page = await upstream.open(g.sql, g.parameters, 0)
            g.finish(Outcome(Status.COMPLETED, tag=page.tag, rows=len(page.rows)))
            return page.rows

    @contextlib.contextmanager
    def locked(self) -> Any:
        """The store's write lock in somebody else's hands."""
        with contextlib.closing(sqlite3.connect(self.store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")


@asynccontextmanager
async def running(audit: Path, policy: Path, connection: Connection) -> AsyncIterator[OnePath]:
    """As `server.app.gateway_of`, with a store that waits for locks no longer than BUSY_SECONDS."""
    async with contextlib.AsyncExitStack() as stack:
        store = Store.open(audit, busy_seconds=BUSY_SECONDS)
        stack.callback(store.close)
        instance = Instance.start(audit)
        stack.callback(instance.stop)
        close_dangling(store)
        writer = Writer(store)
        stack.callback(writer.close)
        recorder = Recorder(writer)
        reader = stack.enter_context(contextlib.closing(Reader.open(audit)))
        policies = PolicyBook(policy, recorder)
        connections = Connections([connection], Factory())
        stack.push_async_callback(connections.stop)
        sessions = Sessions(recorder, longest=timedelta(hours=1), instance=instance.id)
        gateway = Gateway(
            recorder=recorder, approvals=Approvals(recorder, reader), policies=policies, connections=connections,
            sessions=sessions, instance=instance.id,
        )  # fmt: skip
        yield OnePath(gateway, store, instance)
        for session in sessions.list():
            gateway.close_session(session, "the test is over")


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_bytes(POLICY.read_bytes())
    return path


@pytest.fixture
async def path(stack: Stack, audit: Path, policy: Path) -> AsyncIterator[OnePath]:
    upstream = stack.demo.config.connections[0]
    sent = bytearray()
    async with (
        tap(upstream.host, upstream.port, sent.extend) as port,
        running(audit, policy, replace(upstream, host="127.0.0.1", port=port)) as running_path,
    ):
        running_path.sent = sent
        yield running_path


# -- before anything runs ---------------------------------------------------------------------------------


def test_the_ids_of_statements_are_unique_and_sort_by_when_they_were_made() -> None:
    ids = [new_statement_id() for _ in range(1000)]
    moments = [one[:13] for one in ids]
    assert moments == sorted(moments)
    assert len(set(ids)) == 1000


async def test_the_intent_is_on_disk_before_the_upstream_sees_a_byte_of_the_statement(
    stack: Stack, audit: Path, policy: Path
) -> None:
    marker, found = "'seen-by-the-upstream'", []

    def witness(piece: bytes) -> None:
        if marker.encode() in piece:
            with contextlib.closing(sqlite3.connect(f"file:{audit}?mode=ro", uri=True)) as db:
                found.append(db.execute("SELECT sql, status FROM statements").fetchall())

    upstream = stack.demo.config.connections[0]
    async with (
        tap(upstream.host, upstream.port, witness) as port,
        running(audit, policy, replace(upstream, host="127.0.0.1", port=port)) as path,
    ):
        assert await path.run(await path.session(), f"SELECT {marker}") == [(marker.strip("'").encode(),)]
        assert found == [[(f"SELECT {marker}", "running")]]
        assert path.entries(f"SELECT {marker}") == [("intent", None), ("outcome", "completed")]


async def test_a_refusal_is_an_intent_and_its_outcome_and_nothing_is_sent(path: OnePath) -> None:
    session = await path.session("devin")
    with pytest.raises(RefusedError) as refused:
        async with path.gateway.admit(Statement(session, b"DROP TABLE customers")):
            pytest.fail("a refused statement was granted")
    assert b"DROP TABLE" not in path.sent
    assert path.entries("DROP TABLE customers") == [("intent", None), ("outcome", "refused")]
    [(body,)] = path.rows("SELECT body FROM entries WHERE kind = 'outcome' AND statement = ?", refused.value.statement)
    assert json.loads(body)["sqlstate"] == "42501"
    assert "agents-never-drop" in json.loads(body)["message"]


async def test_what_cannot_be_analysed_is_refused_and_kept_all_the_same(path: OnePath) -> None:
    session = await path.session()
    for text in (b"SELEC 1", b"SELECT 1 \x00", b"\xff\xfe", b"SELECT 1; SELECT 2"):
        with pytest.raises(RefusedError):
            async with path.gateway.admit(Statement(session, text)):
                pytest.fail(f"{text!r} was granted")
    kept = [json.loads(body) for (body,) in path.rows("SELECT body FROM entries WHERE kind = 'intent' ORDER BY seq")]
    assert [one["text"] for one in kept] == ["SELEC 1", "SELECT 1 \x00", "\ufffd\ufffd", "SELECT 1; SELECT 2"]
    assert len({one["sha256"] for one in kept}) == 4
    assert verify(path.store.path).ok


async def test_a_group_of_statements_has_all_its_intents_before_any_grant(path: OnePath) -> None:
    session = await path.session()
    grants = await path.gateway.begin(*await path.decided(session, "SELECT 1", "SELECT 2", "SELECT 3"))
    assert [grant.sql for grant in grants] == [b"SELECT 1", b"SELECT 2", b"SELECT 3"]
    assert path.rows("SELECT sql, status FROM statements ORDER BY seq") == [
        ("SELECT 1", "running"), ("SELECT 2", "running"), ("SELECT 3", "running"),
    ]  # fmt: skip
    for grant in grants:
        path.gateway.settle(grant, Outcome(Status.COMPLETED))


@pytest.mark.parametrize("denied", [0, 1, 2])
async def test_one_refused_statement_refuses_its_whole_group(path: OnePath, denied: int) -> None:
    session = await path.session("devin")
    texts = ["SELECT 1", "SELECT 2", "SELECT 3"]
    texts[denied] = "DROP TABLE customers"
    with pytest.raises(RefusedError, match="agents-never-drop"):
        await path.gateway.begin(*await path.decided(session, *texts))
    assert not [text for text in texts if text.encode() in path.sent]
    statuses = ["refused" if at == denied else "skipped" for at in range(3)]
    assert path.rows("SELECT sql, status FROM statements ORDER BY seq") == list(zip(texts, statuses, strict=True))


async def test_a_statement_that_needs_approval_is_refused_inside_a_group(path: OnePath) -> None:
    session = await path.session("devin")
    with pytest.raises(RefusedError, match="needs approval cannot be part of several"):
        await path.gateway.begin(*await path.decided(session, "SELECT 1", "DELETE FROM tickets"))
    assert {status for (status,) in path.rows("SELECT status FROM statements")} == {"refused"}
    assert path.rows("SELECT * FROM approvals") == []


# -- the audit cannot be written ----------------------------------------------------------------------------


async def test_while_another_process_holds_the_lock_nothing_runs_and_afterwards_it_goes_on(path: OnePath) -> None:
    session = await path.session()
    decided = await path.decided(session, "SELECT 'held'")
    with path.locked():
        with pytest.raises(AuditUnavailableError, match="another process holds its lock") as refused:
            await path.gateway.begin(*decided)
        assert refused.value.sqlstate == "58030"
        assert "Nothing was executed" in (refused.value.cure or "")
        with pytest.raises(AuditUnavailableError):
            await path.session("ada")
    assert b"'held'" not in path.sent
    assert path.entries("SELECT 'held'") == []
    assert session.ended is None
    assert await path.run(session, "SELECT 'held'") == [(b"held",)]
    assert verify(path.store.path).ok


async def test_a_refusal_that_cannot_be_written_is_still_a_refusal_to_run(path: OnePath) -> None:
    session = await path.session("devin")
    decided = await path.decided(session, "DROP TABLE customers")
    with path.locked(), pytest.raises(AuditUnavailableError):
        await path.gateway.begin(*decided)
    assert b"DROP TABLE" not in path.sent


async def test_on_a_full_disk_nothing_runs_and_with_room_again_it_goes_on(path: OnePath) -> None:
    session = await path.session()
    [pages] = path.store._db.execute("PRAGMA page_count").fetchone()
    path.store._db.execute(f"PRAGMA max_page_count = {pages}")
    long = f"SELECT '{'x' * 20_000}' AS filling"
    decided = await path.decided(session, long)
    with pytest.raises(AuditUnavailableError, match="the disk is full"):
        await path.gateway.begin(*decided)
    assert b"xxxxxxxx" not in path.sent
    assert path.entries(long) == []
    path.store._db.execute("PRAGMA max_page_count = 1000000")
    assert len(await path.run(session, long)) == 1
    assert verify(path.store.path).ok


@pytest.mark.parametrize("suffix", ["", "-wal"])
async def test_a_file_that_was_moved_away_is_not_written_to_in_secret(path: OnePath, suffix: str) -> None:
    session = await path.session()
    decided = await path.decided(session, "SELECT 'gone'")
    file = path.store.path.with_name(path.store.path.name + suffix)
    aside = file.with_name("aside")
    file.rename(aside)
    try:
        with pytest.raises(AuditUnavailableError, match="was moved, replaced or deleted"):
            await path.gateway.begin(*decided)
    finally:
        aside.rename(file)
    assert await path.run(session, "SELECT 'gone'") == [(b"gone",)]


# -- outcomes -------------------------------------------------------------------------------------------------


async def test_an_outcome_that_cannot_be_written_ends_the_session(path: OnePath) -> None:
    session = await path.session()
    heard: list[str] = []
    session.on_end.append(heard.append)

    async def run_while_the_lock_is_taken(lock: contextlib.ExitStack) -> None:
        async with path.gateway.admit(Statement(session, b"SELECT 2")) as grant:
            lock.enter_context(path.locked())
            grant.finish(Outcome(Status.COMPLETED))

    with contextlib.ExitStack() as lock:
        with pytest.raises(AuditUnavailableError, match="outcome cannot be written") as lost:
            await run_while_the_lock_is_taken(lock)
        assert "may have taken effect" in str(lost.value)
        assert session.ended is not None
        assert heard == [session.ended]
    with pytest.raises(SessionEndedError, match="outcome cannot be written"):
        await path.gateway.begin(*await path.decided(session, "SELECT 3"))
    assert path.entries("SELECT 2") == [("intent", None)]
    assert path.entries("SELECT 3") == []


async def test_a_queued_outcome_that_cannot_be_written_ends_the_session_too(path: OnePath) -> None:
    session = await path.session()
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    session.on_end.append(ended.set_result)
    [grant] = await path.gateway.begin(*await path.decided(session, "SELECT 1"))
    with path.locked():
        path.gateway.settle(grant, Outcome(Status.COMPLETED))
        assert "outcome cannot be written to the audit" in await asyncio.wait_for(ended, 10)
    assert path.entries("SELECT 1") == [("intent", None)]


@pytest.mark.parametrize(
    ("sql", "status", "sqlstate"),
    [("SELECT 1/0", "failed", "22012"), ("SELECT 'x'::int", "failed", "22P02")],
)
async def test_what_postgresql_says_no_to_has_its_sqlstate_in_the_outcome(
    path: OnePath, sql: str, status: str, sqlstate: str
) -> None:
    session = await path.session()
    with pytest.raises(Exception, match=r"division by zero|invalid input syntax"):
        await path.run(session, sql)
    assert path.rows("SELECT status, sqlstate FROM statements WHERE sql = ?", sql) == [(status, sqlstate)]


async def test_a_block_that_says_nothing_is_unknown_and_one_that_is_cancelled_is_cancelled(path: OnePath) -> None:
    session = await path.session()
    async with path.gateway.admit(Statement(session, b"SELECT 1")):
        pass
    with pytest.raises(asyncio.CancelledError):
        async with path.gateway.admit(Statement(session, b"SELECT 2")):
            raise asyncio.CancelledError
    assert path.rows("SELECT sql, status FROM statements ORDER BY seq") == [
        ("SELECT 1", "unknown"), ("SELECT 2", "cancelled"),
    ]  # fmt: skip


async def until_it_is_cancelled(path: OnePath, text: str) -> None:
    async with asyncio.timeout(10):
        while path.entries(text) != [("intent", None), ("outcome", "cancelled")]:  # noqa: ASYNC110 - bounded
            await asyncio.sleep(0.01)


async def leave_while_it_is_written(path: OnePath, who: str, text: str) -> None:
    """Ask for a statement, and go away while the writer has its intent in hand."""

    async def heard(pending: Pending) -> None:
        pytest.fail(f"{pending.id} was announced to somebody who is gone")

    statements, decisions = await path.decided(await path.session(who), text)
    with path.store._lock:  # the writer cannot finish
        asking = asyncio.create_task(path.gateway.begin(statements, decisions, on_pending=heard))
        for _ in range(3):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_who_goes_away_while_the_intent_is_written_leaves_no_statement_running(path: OnePath) -> None:
    await leave_while_it_is_written(path, "grace", "SELECT 'left'")
    await until_it_is_cancelled(path, "SELECT 'left'")
    assert b"'left'" not in path.sent


async def test_who_goes_away_while_the_request_is_written_leaves_nothing_to_approve(path: OnePath) -> None:
    await leave_while_it_is_written(path, "devin", "ALTER TABLE tickets ADD COLUMN later integer")
    assert path.rows("SELECT state, requester FROM approvals") == [("cancelled", "devin")]
    assert b"ALTER TABLE" not in path.sent


async def test_who_goes_away_before_the_rehearsal_is_written_leaves_no_request_and_nothing_is_sent(
    path: OnePath,
) -> None:
    await leave_while_it_is_written(path, "devin", "DELETE FROM tickets")
    assert path.rows("SELECT state, requester FROM approvals") == []
    await until_it_is_cancelled(path, "DELETE FROM tickets")
    assert b"DELETE FROM" not in path.sent


# -- the grant --------------------------------------------------------------------------------------------------


async def test_a_grant_cannot_be_made_outside_of_the_path(path: OnePath) -> None:
    session = await path.session()
    [statement], [decision] = await path.decided(session, "SELECT 1")
    for mint in (object(), None, True, "mint"):
        with pytest.raises(RuntimeError, match=r"made by gateway\.admission only"):
            Grant(mint, "st-forged", statement, decision)
    [denied_statement], [denied] = await path.decided(await path.session("devin"), "DROP TABLE customers")
    with pytest.raises(RuntimeError):
        Grant(admission._MINT, "st-denied", denied_statement, denied)
    grant = await path.gateway.begin([statement], [decision])
    with pytest.raises(AttributeError):
        grant[0].sql = b"DROP TABLE customers"
    path.gateway.settle(grant[0], Outcome(Status.COMPLETED))


def _name(node: ast.AST | None) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def test_only_admission_names_the_mint_and_calls_the_constructor() -> None:
    guilty = []
    for room in ("server", "wire", "gateway", "policy", "audit"):
        for file in (ROOT / room).rglob("*.py"):
            if file == ROOT / "gateway" / "admission.py":
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                called = node.func if isinstance(node, ast.Call) else None
                if _name(node) == "_MINT" or _name(called) == "Grant":
                    guilty.append(f"{file.relative_to(ROOT)}: {ast.unparse(node)}")
    assert guilty == []


async def test_a_grant_is_settled_once(path: OnePath) -> None:
    session = await path.session()
    [grant] = await path.gateway.begin(*await path.decided(session, "SELECT 1"))
    path.gateway.settle(grant, Outcome(Status.COMPLETED))
    path.gateway.settle(grant, Outcome(Status.FAILED))
    await path.run(session, "SELECT 2")
    assert path.entries("SELECT 1") == [("intent", None), ("outcome", "completed")]


# -- the decision cache -----------------------------------------------------------------------------------------


async def test_decisions_are_kept_by_exact_bytes_never_by_a_fingerprint(path: OnePath) -> None:
    session = await path.session("devin")
    decide = path.gateway.decide
    known = await decide(session, b"SELECT id FROM tickets WHERE id = 1")
    assert await decide(session, b"SELECT id FROM tickets WHERE id = 1") is known
    # What a fingerprint takes for the same statement.
    for text in (
        b"SELECT id FROM tickets WHERE id = 2",
        b"select id from tickets where id = 1",
        b"SELECT  id FROM tickets WHERE id = 1",
        b"SELECT id FROM tickets WHERE id = 1 ",
        b"SELECT id FROM tickets WHERE id = 1 -- no",
    ):
        other = await decide(session, text)
        assert other is not known
        assert other.verdict.rewrite is not None
        assert b"id = 1" in other.verdict.rewrite.sql or b"id = 2" in text
    harmless = await decide(session, b"SET application_name = 'public'")
    assert (await decide(session, b"SET role = 'public'")).verdict.effect > harmless.verdict.effect


async def test_a_kept_decision_serves_nobody_else_and_no_other_path_or_policy(path: OnePath, policy: Path) -> None:
    text = b"SELECT card FROM customers"
    devin, grace = await path.session("devin"), await path.session("grace")
    masked, raw = await path.gateway.decide(devin, text), await path.gateway.decide(grace, text)
    assert masked.verdict.rewrite is not None
    assert raw.verdict.rewrite is not None
    assert masked.verdict.rewrite.masked
    assert raw.verdict.rewrite.masked == ()
    devin.search_path = ("pg_catalog", "hr")
    assert (await path.gateway.decide(devin, text)).verdict.rewrite is None
    policy.write_text(POLICY.read_text().replace("unless: {groups: [dba]}", "unless: {groups: [nobody]}"))  # noqa: ASYNC240
    await path.gateway.policies.reload()
    stricter = await path.gateway.decide(grace, text)
    assert stricter.verdict.rewrite is not None
    assert stricter.verdict.rewrite.masked


# -- after a death ----------------------------------------------------------------------------------------------


async def test_an_intent_left_by_a_dead_process_is_closed_as_unknown_at_the_next_start(
    path: OnePath, stack: Stack, audit: Path, policy: Path
) -> None:
    session = await path.session()
    await path.gateway.begin(*await path.decided(session, "SELECT 'dangling'"))
    connection = stack.demo.config.connections[0]
    async with running(audit, policy, connection) as beside:
        assert beside.entries("SELECT 'dangling'") == [("intent", None)], "its process lives"
    for lock in audit.parent.glob("audit.db.in-*.lock"):
        lock.unlink()  # a process without its lock is a dead one
    async with running(audit, policy, connection) as after:
        assert after.entries("SELECT 'dangling'") == [("intent", None), ("outcome", "unknown")]
        assert after.rows("SELECT ended_because FROM sessions WHERE session = ?", session.id) == [
            ("the gateway process died",)
        ]
        assert await after.run(await after.session(), "SELECT 1") == [(b"1",)]
    report = verify(audit)
    assert report.ok
    assert report.open_statements == 0
