"""One client that sends, opens or asks for too much: it is held up or refused, and the others notice nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.doors import mcp_calls
from tests.doors.wire_calls import RawClient, errors, raw_client, values
from tests.stack import Stack
from tests.waiting import until
from wire.backend import Authentication
from wire.frontend import AuthenticationResponse, Bind, Execute, Parse, Query, StartupRequest, Sync

_CHUNK = 1 << 20
_FLOOD = 200 * _CHUNK


def fill(client: RawClient, data: bytes, limit: int) -> int:
    """Send over and over, reading nothing, until the gateway takes no more; returns the bytes taken."""
    client.socket.settimeout(2)
    taken = 0
    while taken < limit:
        try:
            taken += client.socket.send(data)
        except TimeoutError:
            break
    return taken


def accepted(stack: Stack, client: RawClient) -> bool:
    """Whether the gateway still holds its end of this client's connection (proc(5), /proc/net/tcp)."""
    ours, theirs, established = f":{stack.port:04X}", f":{client.socket.getsockname()[1]:04X}", "01"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()]
    return any(f[1].endswith(ours) and f[2].endswith(theirs) and f[3] == established for f in lines)


def test_a_client_that_writes_and_never_reads_is_held_up(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        client.send(Parse("", b"SELECT repeat('x', 1000) FROM generate_series(1, 1000000)"), Bind("", ""), Execute(""))
        client.send(Parse("p", b"SELECT $1::text"))
        assert fill(client, Bind("q", "p", values=(b"a" * _CHUNK,)).encode(), _FLOOD) < _FLOOD // 2


def test_a_pipeline_of_any_length_is_answered(stack: Stack) -> None:
    count = 12_000
    with raw_client(stack, "devin") as client:
        client.cycle(Parse("p", b"SELECT 1"), Sync())
        client.socket.settimeout(40)
        heard = client.cycle(Bind("", "p").encode() * count + Sync().encode())
        assert (len(heard), errors(heard)) == (count + 1, [])


@pytest.mark.parametrize("size", [9_000, 700_000])
def test_prepared_statements_that_nobody_closes_are_refused_at_last(stack: Stack, size: int) -> None:
    text = b"/*" + b"x" * size + b"*/ SELECT 1"
    with raw_client(stack, "devin") as client:
        client.socket.settimeout(40)
        for number in range(110):
            heard = client.cycle(Parse(f"s{number}", text), Sync())
            if errors(heard):
                break
        refused = (size, errors(heard)[:1])
        if size < 100_000:
            assert refused == (size, [])
        else:
            assert [code for code, _ in errors(heard)] == ["54000"]
        assert values(client.cycle(Query(b"SELECT 'still here'"))) == [(b"still here",)]


def test_parameters_are_recorded_by_digest_where_they_are_large(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        heard = client.cycle(
            Parse("", b"SELECT length($1::text)"), Bind("", "", values=(b"\x01" * 20_000_000,)), Execute(""), Sync()
        )
        assert values(heard) == [(b"20000000",)]
    [row] = stack.audit("SELECT body FROM entries WHERE kind = 'intent' ORDER BY seq DESC LIMIT 1")
    body = json.loads(row["body"])
    assert len(row["body"]) < 2_000_000
    assert body["parameters_cut"]["bytes"] == 20_000_000
    assert body["parameters"][0].startswith("\x01")


@pytest.mark.parametrize(
    "sql", ["SELECT repeat('x', 100000000)", "SELECT repeat('x', 9000000) FROM generate_series(1, 90)"]
)
def test_a_result_too_large_to_hold_is_given_up(stack: Stack, sql: str) -> None:
    told = mcp_calls.error(asyncio.run(mcp_calls.call(stack, "devin", "query", sql=sql)))
    assert "32 MiB" in str(told)


def test_large_rows_come_in_small_steps(stack: Stack) -> None:
    sql = "SELECT repeat('x', 2000000) FROM generate_series(1, 30)"
    result = asyncio.run(mcp_calls.query(stack, "devin", sql))
    assert len(result["rows"]) == 1


def test_requests_for_approval_have_an_end(stack: Stack) -> None:
    async def flood() -> list[str]:
        async with mcp_calls.client(stack, "devin") as client:

            async def ask(number: int) -> str:
                sql = f"UPDATE tickets SET body = 'flood {number}'"
                result = await client.call_tool("query", {"sql": sql})
                return "" if result.is_error else result.structured_content["pending"]["id"]

            asked = await asyncio.gather(*(ask(number) for number in range(24)))
            for approval in filter(None, asked):
                await client.call_tool("withdraw", {"id": approval})
            return asked

    asked = asyncio.run(flood())
    assert 15 <= len([approval for approval in asked if approval]) <= 20


def test_a_client_that_takes_no_farewell_is_cut_off(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.client._LINGER_SECONDS", 0.5)
    with raw_client(stack, "devin", application_name="deaf") as client:
        client.send(Query(b"SELECT repeat('x', 1000) FROM generate_series(1, 1000000)"))
        stuck = "SELECT wait_event FROM pg_stat_activity WHERE application_name LIKE 'countersign/%/deaf'"
        until(lambda: stack.direct(stuck) == [("ClientWrite",)], "the server was never made to wait")
        [opened] = stack.audit("SELECT session FROM entries WHERE kind = 'session.opened' ORDER BY seq DESC LIMIT 1")

        async def revoke() -> None:
            stack.app.hall.gateway.sessions.revoke(opened["session"])

        stack.call(revoke)
        assert accepted(stack, client)
        until(lambda: not accepted(stack, client), "the connection of a client that reads nothing was kept")


def test_a_long_statement_holds_nobody_else_up(stack: Stack) -> None:
    long = b"SELECT " + b",".join([b"id"] * 45_000) + b" FROM customers"  # takes half a second or more to decide
    with raw_client(stack, "devin") as client, raw_client(stack, "ada") as other:
        other.cycle(Query(b"SELECT 1"))
        client.socket.settimeout(60)
        client.send(Query(long))
        assert values(other.cycle(Query(b"SELECT 1"))) == [(b"1",)]
        client.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.socket.recv(1)  # it is still being decided: the other was served meanwhile


def test_strangers_do_not_fill_the_audit(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import deque

    monkeypatch.setattr("gateway.sessions._RECORDED_REFUSALS_PER_MINUTE", 3)
    monkeypatch.setattr(stack.app.hall.gateway.sessions, "_refused", deque())
    refused = "SELECT body FROM entries WHERE kind = 'session.refused'"
    before = len(stack.audit(refused))
    for _ in range(5):
        with raw_client(stack) as client:
            name = "n" * 3000
            client.send(StartupRequest(3, 0, {"user": name, "database": name, "application_name": name}))
            client.until(Authentication)
            client.send(AuthenticationResponse.password("no token"))
            assert [code for code, _ in errors(client.until_closed())] == ["28000"]
    recorded = stack.audit(refused)[before:]
    assert len(recorded) == 3
    assert all(len(row["body"]) < 2000 for row in recorded)
