"""How much of the gateway one client of the wire door can take: connections, time, memory."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.doors.wire_calls import RawClient, errors, raw_client, values
from tests.stack import Stack
from tests.waiting import until
from wire import backend
from wire.frontend import Bind, Execute, Flush, Parse, Query, StartupRequest, Sync
from wire.listener import WireDoor
from wire.occupancy import DoorLimits
from wire.server_tls import ServerTls


@contextmanager
def door(stack: Stack, tls: ServerTls | None = None, **limits: float) -> Iterator[int]:
    """Another wire door of the same gateway, with these limits; its port."""
    hall = stack.app.hall
    opened = WireDoor(
        hall.gateway,
        hall.verifier,
        hall.secrets,
        host="127.0.0.1",
        port=0,
        tls=tls,
        limits=DoorLimits(**limits),  # type: ignore[arg-type]
    )
    stack.call(opened.start)
    try:
        yield opened.port
    finally:
        stack.call(lambda: opened.stop(1))


def refused(stack: Stack, port: int, who: str) -> tuple[str, str]:
    """SQLSTATE and text of the FATAL that this person gets for one connection more."""
    with raw_client(stack, port=port) as client:
        client.send(StartupRequest(3, 0, {"user": who, "database": stack.database}))
        client.until(backend.Authentication)
        client.password(stack, who)
        [found] = errors(client.until_closed())
    return found


# -- connections -----------------------------------------------------------------------------------------


def test_the_door_is_full_at_its_number_of_sessions(stack: Stack) -> None:
    with door(stack, connections=2) as port, ExitStack() as clients:
        first = clients.enter_context(raw_client(stack, "devin", port=port))
        clients.enter_context(raw_client(stack, "ada", port=port))
        assert refused(stack, port, "grace") == ("53300", "sorry, too many clients already")
        assert values(first.cycle(Query(b"SELECT 1"))) == [(b"1",)]
        first.socket.close()
        until(lambda: _comes_in(stack, port, "grace"), "a seat that was left stayed taken")


def test_one_principal_does_not_fill_the_door(stack: Stack) -> None:
    with door(stack, per_principal=2) as port, ExitStack() as clients:
        for _ in range(2):
            clients.enter_context(raw_client(stack, "devin", port=port))
        code, says = refused(stack, port, "devin")
        assert (code, says) == ("53300", "too many connections of `devin`")
        assert _comes_in(stack, port, "ada")
    last = "SELECT json_extract(body, '$.reason') AS said FROM entries WHERE kind = 'session.refused'"
    assert "too many connections of `devin`" in str(stack.audit(f"{last} ORDER BY seq DESC LIMIT 1")[0]["said"])


def test_one_address_does_not_fill_the_door_without_a_token_either(stack: Stack) -> None:
    with door(stack, per_address=3) as port, ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(raw_client(stack, port=port))
        with raw_client(stack, port=port) as client:
            assert errors(client.until_closed()) == [("53300", "too many connections from 127.0.0.1")]


def _comes_in(stack: Stack, port: int, who: str) -> bool:
    with raw_client(stack, port=port) as client:
        client.send(StartupRequest(3, 0, {"user": who, "database": stack.database}))
        client.until(backend.Authentication)
        client.password(stack, who)
        return isinstance(client.until((backend.ReadyForQuery, backend.ErrorResponse))[-1], backend.ReadyForQuery)


# -- time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"\0", StartupRequest(3, 0, {"user": "devin", "database": "shop"}).encode()])
def test_a_client_that_does_not_finish_its_start_is_turned_away(stack: Stack, sent: bytes) -> None:
    with door(stack, start_seconds=0.3) as port, raw_client(stack, port=port) as client:
        client.send(sent)
        assert errors(client.until_closed()) == [("28000", "start-up took too long")]


def test_one_byte_at_a_time_does_not_buy_more_time(stack: Stack) -> None:
    with door(stack, start_seconds=0.5) as port, raw_client(stack, port=port) as client:
        packet = StartupRequest(3, 0, {"user": "devin", "database": "x" * 5000}).encode()
        began = time.monotonic()
        client.socket.settimeout(0.02)
        for at in range(len(packet)):
            client.send(packet[at : at + 1])
            try:
                if client.socket.recv(1000):
                    break
            except TimeoutError:
                continue
        assert time.monotonic() - began < 5


def test_an_idle_session_ends_and_a_busy_one_does_not(stack: Stack) -> None:
    with door(stack, idle_seconds=0.5) as port, raw_client(stack, "devin", port=port) as client:
        busy = Query(b"SELECT count(*) FROM generate_series(1, 6000000)")
        client.cycle(busy)
        assert errors(client.until_closed()) == [("57P05", "terminating connection due to idle-session timeout")]


HELD_OPEN = [
    (Query(b"BEGIN"),),
    (Query(b"BEGIN; SELECT 1"),),
    (Parse("", b"SELECT 1"), Bind("", ""), Execute("")),  # nobody knows of it but us
    (Parse("", b"SELECT 1"), Bind("", ""), Execute(""), Flush()),
]


@pytest.mark.parametrize("held", HELD_OPEN, ids=["begin", "block", "held", "flushed"])
def test_a_transaction_that_nobody_goes_on_with_ends(stack: Stack, held: tuple[object, ...]) -> None:
    with (
        door(stack, idle_in_transaction_seconds=0.4) as port,
        raw_client(stack, "devin", port=port) as client,
        raw_client(stack, "devin", port=port) as outside,
    ):
        client.send(*held)
        told = "terminating connection due to idle-in-transaction timeout"
        assert errors(client.until_closed()) == [("25P03", told)]
        assert values(outside.cycle(Query(b"SELECT 1"), Sync())[:-1]) == [(b"1",)]


def test_a_copy_that_stalls_ends(stack: Stack) -> None:
    with door(stack, idle_in_transaction_seconds=0.4) as port, raw_client(stack, "grace", port=port) as client:
        client.send(Query(b"COPY tickets FROM STDIN"))
        assert [code for code, _ in errors(client.until_closed())][-1] == "25P03"


# -- memory ----------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of memory that this process, in which the gateway runs, holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


STATE = "SELECT wait_event FROM pg_stat_activity WHERE query LIKE '%AS slow_reader%' AND pid <> pg_backend_pid()"


def test_a_client_that_does_not_read_slows_postgresql_and_not_our_memory(stack: Stack) -> None:
    with raw_client(stack, "grace") as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        before = resident()
        client.send(Query(b"SELECT repeat('x', 200) AS slow_reader FROM generate_series(1, 1000000)"))
        until(lambda: stack.direct(STATE) == [("ClientWrite",)], "PostgreSQL was not made to wait")
        assert resident() - before < 32 << 20
        end = b""
        while b"SELECT 1000000\0Z" not in end:
            end = end[-100:] + client.socket.recv(1 << 20)
    until(lambda: stack.direct(STATE) == [], "the statement was left behind")


def _stuffed(client: RawClient, message: bytes, most: int) -> int:
    """How many bytes of this message, again and again, are taken within a second's silence."""
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < most:
            sent += client.socket.send(message[sent % len(message) :])
    return sent


def test_a_client_that_only_writes_is_made_to_wait(stack: Stack) -> None:
    with raw_client(stack, "grace") as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.socket.settimeout(1)
        before = resident()
        message = Bind("", "", values=(b"x" * (1 << 20),)).encode() + Execute("").encode()
        client.send(Parse("", b"SELECT $1::text"))
        assert _stuffed(client, message, 400 << 20) < 100 << 20
        assert resident() - before < 100 << 20


def test_a_client_that_leaves_while_it_does_not_read_is_gone(stack: Stack) -> None:
    client = RawClient(stack)
    client.start(stack, "grace")
    client.send(Query(b"SELECT repeat('x', 200) AS slow_reader FROM generate_series(1, 10000000)"))
    until(lambda: stack.direct(STATE) == [("ClientWrite",)], "PostgreSQL was not made to wait")
    client.socket.close()
    until(lambda: stack.direct(STATE) == [], "the statement was left behind")
    outcome = "SELECT status FROM statements WHERE sql LIKE '%AS slow_reader FROM generate_series(1, 10000000)'"
    until(lambda: [r["status"] for r in stack.audit(outcome)] == ["cancelled"], "no outcome was written")


def test_a_client_that_does_not_read_does_not_hold_up_the_end(stack: Stack) -> None:
    client = None
    try:
        with door(stack) as port:
            client = RawClient(stack, port)
            client.start(stack, "grace")
            client.send(Query(b"SELECT repeat('x', 200) AS slow_reader FROM generate_series(1, 10000001)"))
            until(lambda: stack.direct(STATE) == [("ClientWrite",)], "PostgreSQL was not made to wait")
            began = time.monotonic()
        assert time.monotonic() - began < 5
        until(lambda: stack.direct(STATE) == [], "the statement was left behind")
    finally:
        if client is not None:
            client.socket.close()
