"""Texts made to exhaust or confuse us, at both doors: answered or refused with a sentence, and the door goes on.

How long and how large the engine gets over each is measured in tests/policy/test_robustness.py.
"""

from __future__ import annotations

from socket import socket as Socket  # noqa: N812 - a type here

import pytest
from mcp import MCPError

from tests.doors.mcp_calls import call, error
from tests.doors.wire_calls import errors, raw_client, values
from tests.stack import Stack
from tests.waiting import until
from wire import client as door_side
from wire.frontend import Query

NUMBERS = ",".join(map(str, range(100_000)))
# What it is, the text, what its refusal says and its SQLSTATE; None where it is answered.
TEXTS = [
    ("nested comments", "/* " * 100 + "*/ " * 100 + "SELECT 1", "nested deeper than 64", "54001"),
    ("comments that do not end", "/*" * 100_000, "256 operator characters", "54001"),
    ("parentheses", "SELECT " + "(" * 100_000 + "1" + ")" * 100_000, "memory exhausted", "42601"),
    ("a deep sum", "SELECT " + "1+" * 20_000 + "1", "nests too deep", "54001"),
    ("100,000 values", f"SELECT count(*) FROM orders WHERE id IN ({NUMBERS})", None, None),
    ("110,000 conditions", "SELECT 1 FROM orders WHERE " + " OR ".join(["id=1"] * 110_000), "too many parts", "54000"),
    ("a literal of 1 MB", "SELECT length('" + "x" * 1_000_000 + "')", None, None),
    ("a literal of 2 MB", "SELECT length('" + "x" * 2_000_000 + "')", "more than the limit of 1048576", "54000"),
    ("a name of 1 MB", 'SELECT "' + "x" * 1_000_000 + '" FROM orders', "does not exist", "42703"),
]
IDS = [name for name, *_ in TEXTS]


@pytest.mark.parametrize(("name", "text", "says", "code"), TEXTS, ids=IDS)
def test_the_wire_door_goes_on(stack: Stack, name: str, text: str, says: str | None, code: str | None) -> None:
    with raw_client(stack, "devin") as client:
        client.socket.settimeout(60)  # for this machine at its worst; the engine's own time is measured elsewhere
        heard = client.cycle(Query(text.encode()))
        assert [(says in said, state) for state, said in errors(heard) if says] == ([(True, code)] if says else [])
        assert values(client.cycle(Query(b"SELECT 1"))) == [(b"1",)]


@pytest.mark.parametrize(("name", "text", "says", "code"), TEXTS, ids=IDS)
async def test_the_mcp_door_goes_on(stack: Stack, name: str, text: str, says: str | None, code: str | None) -> None:
    result = await call(stack, "devin", "query", sql=text)
    assert result.is_error is (says is not None)
    assert says is None or says in str(error(result))
    assert not (await call(stack, "devin", "query", sql="SELECT 1")).is_error


async def test_nul_is_refused_at_the_mcp_door(stack: Stack) -> None:
    refused = await call(stack, "devin", "query", sql="SELECT 1\0; DROP TABLE orders")
    assert "NUL byte" in str(error(refused))


async def test_a_request_of_5_mb_is_turned_away_whole(stack: Stack) -> None:
    with pytest.raises((MCPError, ExceptionGroup)):
        await call(stack, "devin", "query", sql="SELECT length('" + "x" * 5_000_000 + "')")
    with raw_client(stack, "devin") as client:
        client.send(Query(b"SELECT length('" + b"x" * 5_000_000 + b"')"))
        assert errors(client.until_closed()) == [("08P01", "invalid message length 5000022 of message type `Q`")]
    assert not (await call(stack, "devin", "query", sql="SELECT 1")).is_error


def test_who_goes_on_sending_what_was_refused_is_cut_off(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_side, "_DROPPED_BYTES", 1 << 20)
    with raw_client(stack, "devin") as client:
        client.send(b"Q\x7f\xff\xff\xff")
        with pytest.raises(ConnectionError):
            client.send(b"x" * (64 << 20))


def test_who_is_told_to_go_and_stays_is_not_waited_for(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_side, "_LINGER_SECONDS", 0.1)
    with raw_client(stack, "devin") as client:
        client.send(b"Q\x7f\xff\xff\xff")
        assert [state for state, _ in errors(client.until_closed())] == ["08P01"]  # our direction is closed
        until(lambda: not sends(client.socket), "the connection is still held open")


def sends(socket: Socket) -> bool:
    """Whether the other side still takes bytes."""
    try:
        socket.send(b"x")
    except ConnectionError:
        return False
    return True
