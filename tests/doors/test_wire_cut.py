"""Cut, stalled, killed: whoever goes away in the middle, nothing is left behind, every intent has its outcome."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from server.app import App, serve
from tests.certificates import make
from tests.conformance.wire_fuzz import nothing_left
from tests.doors.test_wire_limits import door, resident
from tests.doors.wire_calls import RawClient, errors, raw_client, values
from tests.stack import Stack, running_stack
from tests.unreliable import Relay, unreliable
from tests.waiting import until
from wire import backend
from wire.copy import CopyData, CopyInResponse, CopyOutResponse
from wire.frontend import Bind, Execute, Flush, Parse, Query, SslRequest, Sync
from wire.server_tls import ServerTls

T = TypeVar("T")

INSERT = (
    "INSERT INTO tickets (id, customer_id, subject, body, status, created_at)"
    " VALUES (889901, 1, 'cut', '', 'open', now())"
)
ENDLESS = b"SELECT generate_series(1, 100000000), repeat('x', 500) AS cut"
LARGE = b"SELECT repeat('x', 50000000) AS cut"
LOST = ("cancelled", "failed", "unknown", "skipped")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One of this module's own: PostgreSQL is killed in it, and what is left behind is counted."""
    with running_stack(tmp_path_factory.mktemp("cut")) as stack:
        yield stack


@contextmanager
def on_loop(stack: Stack, entered: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """An asynchronous context on the stack's own loop, entered and left by one task."""
    box: dict[str, T] = {}

    async def hold(stop: asyncio.Event, ready: asyncio.Event) -> None:
        async with entered as box["it"]:
            ready.set()
            await stop.wait()

    async def begin() -> tuple[asyncio.Task[None], asyncio.Event]:
        stop, ready = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(hold(stop, ready))
        await asyncio.wait((task, asyncio.ensure_future(ready.wait())), return_when=asyncio.FIRST_COMPLETED)
        return task, stop

    async def end(task: asyncio.Task[None], stop: asyncio.Event) -> None:
        stop.set()
        await task

    task, stop = stack.call(begin)
    try:
        yield box["it"]
    finally:
        stack.call(lambda: end(task, stop))


@pytest.fixture
def behind_a_relay(stack: Stack, tmp_path: Path) -> Iterator[tuple[Stack, Relay]]:
    """Another gateway, with an audit of its own, whose way to PostgreSQL is unreliable."""
    config = stack.demo.config
    upstream, wire = config.connections[0], config.wire
    assert wire is not None

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[App, Relay]]:
        async with unreliable(upstream.host, upstream.port) as relay:
            connection = replace(upstream, port=relay.port)
            there = replace(
                config, audit_path=tmp_path / "audit.db", connections=(connection,), mcp=None,
                wire=wire.model_copy(update={"port": 0}),
            )  # fmt: skip
            async with serve(there) as app:
                yield app, relay

    with on_loop(stack, opened()) as (app, relay):
        demo = replace(stack.demo, config=replace(config, audit_path=tmp_path / "audit.db"))
        yield Stack(demo, stack.loop, app, stack.tokens), relay


def leave(client: RawClient, *, reset: bool) -> None:
    """Close without a word: in order, or by a reset."""
    if reset:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.socket.close()


def statuses(stack: Stack, like: str) -> set[str]:
    return {row["status"] for row in stack.audit("SELECT status FROM statements WHERE sql LIKE ?", like)}


# -- the client goes --------------------------------------------------------------------------------------


def mid_copy_in(client: RawClient) -> None:
    client.send(Query(b"COPY tickets /* cut */ FROM STDIN"))
    client.until(CopyInResponse)
    client.send(CopyData.of(b"889902\t1\tcut\t\topen\t2026-01-01 00:00:00+00\n889903\t1"))


def mid_copy_out(client: RawClient) -> None:
    client.send(Query(b"COPY (%s) TO STDOUT" % ENDLESS))
    client.until(CopyOutResponse)
    assert client.socket.recv(100_000)


def mid_row(client: RawClient) -> None:
    client.send(Query(LARGE))
    assert client.socket.recv(200_000)


def mid_result(client: RawClient) -> None:
    client.send(Query(ENDLESS))
    client.until(backend.DataRow)


def mid_pipeline(client: RawClient) -> None:
    cut = (Parse("", f"{INSERT} /* cut */".encode()), Bind("", ""), Execute(""))
    client.send(*cut, Flush())
    client.until(backend.CommandComplete)
    client.send(Parse("s", b"SELECT 1"), Bind("", "s"), Execute(""))


def mid_message(client: RawClient) -> None:
    client.send(Query(b"BEGIN"), Query(f"{INSERT} /* cut */".encode()), Query(b"COMMIT /* cut */").encode()[:-3])
    client.until(backend.ReadyForQuery)


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("where", [mid_copy_in, mid_copy_out, mid_row, mid_result, mid_pipeline, mid_message])
def test_a_client_that_vanishes_leaves_nothing(stack: Stack, where: Any, reset: bool) -> None:
    before = resident()
    with raw_client(stack, "grace") as client:
        where(client)
        leave(client, reset=reset)
    nothing_left(stack)
    assert stack.direct("SELECT count(*) FROM tickets WHERE id > 889900") == [(0,)]
    assert resident() - before < 64 << 20


def test_the_statements_of_vanished_clients_have_their_outcomes(stack: Stack) -> None:
    assert statuses(stack, "%cut%") <= {"completed", *LOST}
    for like in ("COPY tickets /* cut */%", "COPY (%", LARGE.decode(), ENDLESS.decode()):
        assert statuses(stack, like) <= set(LOST)


def test_a_network_that_drops_the_client_in_the_middle_of_a_row(stack: Stack) -> None:
    with (
        on_loop(stack, unreliable(stack.host, stack.port)) as relay,
        raw_client(stack, "grace", port=relay.port) as client,
    ):
        relay.cut_after = 3_000_000
        client.send(Query(LARGE.replace(b"cut", b"dropped")))
        assert values(client.until_closed()) == []
    nothing_left(stack)
    assert statuses(stack, "%AS dropped") <= set(LOST)


# -- the server goes --------------------------------------------------------------------------------------


def backend_of(stack: Stack, like: str) -> int:
    found: list[tuple[int]] = []

    def find() -> bool:
        asked = f"SELECT pid FROM pg_stat_activity WHERE query LIKE '{like}' AND pid <> pg_backend_pid()"
        found[:] = stack.direct(asked)
        return bool(found)

    until(find, "the statement does not run")
    return found[0][0]


COUNT = "SELECT count(*) AS {} FROM generate_series(1, 1000000000)"


def test_a_backend_that_is_terminated_says_so(stack: Stack) -> None:
    with raw_client(stack, "grace") as client:
        client.send(Query(COUNT.format("terminated").encode()))
        stack.direct(f"SELECT pg_terminate_backend({backend_of(stack, '%AS terminated%')})")
        assert errors(client.until_closed()) == [("57P01", "terminating connection due to administrator command")]
    nothing_left(stack)
    assert statuses(stack, "%AS terminated%") == {"failed"}


def test_a_backend_that_is_terminated_in_the_middle_of_a_result(stack: Stack) -> None:
    with raw_client(stack, "grace") as client:
        client.send(Query(ENDLESS.replace(b"cut", b"ended")))
        client.until(backend.DataRow)
        stack.direct(f"SELECT pg_terminate_backend({backend_of(stack, '%AS ended%')})")
        # PostgreSQL itself says nothing where it was waiting for room to write.
        assert [code for code, _ in errors(client.until_closed())] in (["57P01"], ["08006"], [])
    nothing_left(stack)
    assert statuses(stack, "%AS ended%") <= {"failed", "unknown"}


@pytest.mark.parametrize(
    "sql", ["SELECT repeat('x', 9000000)", INSERT, ENDLESS.decode()], ids=["mid-row", "before the answer", "mid-result"]
)
def test_a_network_that_drops_postgresql(behind_a_relay: tuple[Stack, Relay], sql: str) -> None:
    stack, relay = behind_a_relay
    with raw_client(stack, "grace") as client:
        client.cycle(Query(b"BEGIN"))
        relay.cut_after = 0 if sql.startswith("INSERT") else 3_000_000
        client.send(Query(sql.encode()))
        heard = client.until_closed()
        # In the middle of a row nothing can be said.
        assert [code for code, _ in errors(heard)] in ([["08006"]] if sql == INSERT else [["08006"], []])
    until(lambda: "running" not in statuses(stack, sql), "no outcome was written")
    assert statuses(stack, sql) == {"unknown"}
    until(lambda: _comes_in(stack), "nobody can come in again")
    nothing_left(stack)


def _comes_in(stack: Stack) -> bool:
    with raw_client(stack) as client:
        heard = client.start(stack, "grace")
        return isinstance(heard[-1], backend.ReadyForQuery)


def test_a_postgresql_that_says_nothing_any_more_holds_nobody(
    behind_a_relay: tuple[Stack, Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, relay = behind_a_relay
    monkeypatch.setattr("wire.conversation._CANCEL_SECONDS", 0.5)
    monkeypatch.setattr("wire.upstream._CANCEL_SECONDS", 0.5)
    with raw_client(stack, "grace") as client:
        client.cycle(Query(b"SELECT 1"))
        relay.stalled = True
        client.send(Query(b"SELECT 'stalled'"))
        until(lambda: statuses(stack, "SELECT 'stalled'") == {"running"}, "it was not sent")
    sessions = stack.app.hall.gateway.sessions
    until(lambda: sessions.list() == [], "the session was left behind")
    until(lambda: statuses(stack, "SELECT 'stalled'") == {"unknown"}, "no outcome was written")


def test_a_postgresql_that_answers_byte_by_byte_is_understood(behind_a_relay: tuple[Stack, Relay]) -> None:
    stack, relay = behind_a_relay
    with raw_client(stack, "devin") as client:
        relay.piece = 1
        heard = client.cycle(Parse("", b"SELECT ssn FROM customers WHERE id = 1"), Bind("", ""), Execute(""), Sync())
        assert values(heard)[0][0].startswith(b"*******")  # type: ignore[union-attr]


# -- nobody goes, and nobody comes on ------------------------------------------------------------------------


def test_a_statement_byte_by_byte_does_not_keep_a_session_alive(stack: Stack) -> None:
    with door(stack, idle_seconds=0.5) as port, raw_client(stack, "devin", port=port) as client:
        client.socket.settimeout(0.02)
        ended: list[Any] = []
        for byte in Query(b"SELECT '" + b"x" * 4000 + b"'").encode():
            client.send(bytes((byte,)))
            try:
                ended.append(client.receive())
                break
            except TimeoutError:
                continue
        assert errors(ended) == [("57P05", "terminating connection due to idle-session timeout")]


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02"], ids=["nothing", "a beginning"])
def test_a_handshake_that_does_not_go_on_ends(stack: Stack, tmp_path: Path, sent: bytes) -> None:
    certificate = make(tmp_path)
    with door(stack, ServerTls(certificate.certificate, certificate.key), start_seconds=0.4) as port:
        with raw_client(stack, port=port) as client:
            client.send(SslRequest())
            assert client.socket.recv(1) == b"S"
            client.send(sent)
            assert client.socket.recv(1000) == b""
        nothing_left(stack)


# -- last, for it takes every session of the server with it -------------------------------------------------


def test_a_backend_that_is_killed_in_the_middle_of_a_result(stack: Stack) -> None:
    with raw_client(stack, "grace") as client, raw_client(stack, "ada") as other:
        client.send(Query(ENDLESS.replace(b"cut", b"killed")))
        client.until(backend.DataRow)
        os.kill(backend_of(stack, "%AS killed%"), signal.SIGKILL)
        told = [code for code, _ in errors(client.until_closed())]
        assert told in (["08006"], ["57P02"], [])
        assert [code for code, _ in errors(other.until_closed())] in (["57P02"], ["08006"])
    until(lambda: _answers(stack), "the server did not come back")
    nothing_left(stack)
    assert statuses(stack, "%AS killed%") <= {"unknown", "failed"}


def _answers(stack: Stack) -> bool:
    import psycopg

    try:
        return stack.direct("SELECT 1") == [(1,)] and _comes_in(stack)
    except (psycopg.OperationalError, AssertionError):
        return False


def test_a_client_that_is_gone_without_a_word_is_noticed(stack: Stack) -> None:
    # The kernel's own word (/proc/net/tcp, see proc(5)): which timer runs at our end of a connection that is idle.
    def end_of(client: RawClient) -> str:
        ours, theirs = client.socket.getpeername()[1], client.socket.getsockname()[1]
        lines = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
        ports = [(int(f[1].split(":")[1], 16), int(f[2].split(":")[1], 16), f[5]) for f in lines]
        return ports[[port[:2] for port in ports].index((ours, theirs))][2].split(":")[0]

    with raw_client(stack, "devin") as client:
        until(lambda: end_of(client) == "02", "nothing asks whether the client is still there")
