"""Texts made to exhaust or confuse us, at both doors: answered or refused with a sentence, and the door goes on.

How long and how large the engine gets over each is measured in tests/policy/test_robustness.py.
"""

from __future__ import annotations

import pytest
from mcp import MCPError

from tests.doors.mcp_calls import call, error
from tests.doors.wire_calls import errors, raw_client, values
from tests.stack import Stack
from wire.frontend import Query

NUMBERS = ",".join(map(str, range(100_000)))
# What it is, the text, what its refusal says; None where it is answered.
TEXTS = [
    ("nested comments", "/* " * 100 + "*/ " * 100 + "SELECT 1", "nested deeper than 64"),
    ("comments that do not end", "/*" * 100_000, "256 operator characters"),
    ("parentheses", "SELECT " + "(" * 100_000 + "1" + ")" * 100_000, "memory exhausted"),
    ("a deep sum", "SELECT " + "1+" * 20_000 + "1", "nests too deep"),
    ("100,000 values", f"SELECT count(*) FROM orders WHERE id IN ({NUMBERS})", None),
    ("a literal of 1 MB", "SELECT length('" + "x" * 1_000_000 + "')", None),
    ("a literal of 2 MB", "SELECT length('" + "x" * 2_000_000 + "')", "more than the limit of 1048576"),
    ("a name of 1 MB", 'SELECT "' + "x" * 1_000_000 + '" FROM orders', "does not exist"),
]
IDS = [name for name, _, _ in TEXTS]


@pytest.mark.parametrize(("name", "text", "says"), TEXTS, ids=IDS)
def test_the_wire_door_goes_on(stack: Stack, name: str, text: str, says: str | None) -> None:
    with raw_client(stack, "devin") as client:
        client.socket.settimeout(60)  # for this machine at its worst; the engine's own time is measured elsewhere
        heard = client.cycle(Query(text.encode()))
        assert [says in said for _, said in errors(heard) if says] == ([True] if says else [])
        assert values(client.cycle(Query(b"SELECT 1"))) == [(b"1",)]


@pytest.mark.parametrize(("name", "text", "says"), TEXTS, ids=IDS)
async def test_the_mcp_door_goes_on(stack: Stack, name: str, text: str, says: str | None) -> None:
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
        try:
            client.send(Query(b"SELECT length('" + b"x" * 5_000_000 + b"')"))
        except ConnectionError:
            pass  # closed in the middle of it: what was said may be lost with what was not read
        else:
            assert [state for state, _ in errors(client.until_closed())] in (["08P01"], [])
    assert not (await call(stack, "devin", "query", sql="SELECT 1")).is_error
