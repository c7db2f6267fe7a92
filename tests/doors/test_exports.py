"""Bulk exports: a large read asks people by the planner's estimate, and stops cleanly by its actual size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.doors.mcp_calls import answer, call, client, error, query
from tests.doors.test_wire_approvals import Queue, approve
from tests.doors.wire_calls import errors, raw_client, values
from tests.policy.corpus import ROOT
from tests.stack import Stack, running_stack, use_policy
from wire.backend import ReadyForQuery
from wire.frontend import Bind, Execute, Parse, Query, Sync

ALL = "SELECT id FROM orders"
# The planner expects each condition to hold for one row in 200; all of them hold for every row.
MISJUDGED = "SELECT id FROM orders WHERE " + " AND ".join(f"(id + {n}) % 1 = 0" for n in range(4))
STOPPED = "more than the 50 rows that it was allowed for"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("exports")) as stack:
        use_policy(stack, ROOT / "tests/policy/policies/exports.yaml")
        stack.direct("ANALYZE orders")
        yield stack


@pytest.fixture(scope="module")
def orders(exports: Stack) -> int:
    [(count,)] = exports.direct("SELECT count(*) FROM orders")
    assert 200 < count < 50_000
    return int(count)


async def pending(stack: Stack, sql: str) -> dict[str, Any]:
    asked = await query(stack, "devin", sql)
    assert asked["status"] == "pending", asked
    found: dict[str, Any] = asked["pending"]
    return found


async def test_a_read_whose_estimate_is_large_asks_people_and_names_its_size(exports: Stack, orders: int) -> None:
    asked = await pending(exports, ALL)
    assert "it is expected to return" in asked["why"]
    shown = answer(await call(exports, "grace", "approval_status", id=asked["id"]))
    reads = shown["evidence"]["reads"]
    assert abs(reads["rows"] - orders) < orders / 5
    assert reads["at_most"] == 2 * reads["rows"]
    answer(await call(exports, "grace", "approve", id=asked["id"], digest=asked["digest"]))
    async with client(exports, "devin") as agent:
        page = answer(await agent.call_tool("await_approval", {"id": asked["id"]}))
        rows = len(page["rows"])
        while page["truncated"]:
            page = answer(await agent.call_tool("query", {"cursor": page["cursor"], "max_rows": 1000}))
            rows += len(page["rows"])
    assert rows == orders
    small = await query(exports, "devin", f"{ALL} LIMIT 50")
    assert (small["status"], small["row_count"]) == ("completed", 50)


async def test_an_estimate_that_was_too_low_stops_in_the_middle_and_asks_when_it_is_sent_again(exports: Stack) -> None:
    async with client(exports, "devin") as agent:
        first = answer(await agent.call_tool("query", {"sql": MISJUDGED, "max_rows": 30}))
        assert first["row_count"] == 30
        stopped = await agent.call_tool("query", {"cursor": first["cursor"], "max_rows": 30})
        assert STOPPED in error(stopped)["what"]
        again = answer(await agent.call_tool("query", {"sql": MISJUDGED}))
    assert again["status"] == "pending"
    assert "it is expected to return 60 rows" in again["pending"]["why"]


def test_psql_is_stopped_cleanly_and_goes_on(exports: Stack) -> None:
    done = exports.psql("devin", None, "-At", "-c", MISJUDGED, "-c", "SELECT 'still here'")
    assert STOPPED in done.stderr
    assert "What was delivered stays delivered" in done.stderr
    assert done.stdout.splitlines()[-1] == "still here"
    assert len(done.stdout.split()) <= 52


@pytest.mark.parametrize("shape", ["COPY ({}) TO STDOUT", "COPY ({}) TO STDOUT (FORMAT csv)"])
def test_copy_is_judged_by_its_query_and_stopped_by_its_rows(exports: Stack, shape: str) -> None:
    queue = Queue(exports)
    with raw_client(exports, "devin") as connection:
        connection.send(Query(shape.format(ALL).encode()))
        approval = queue.next()
        [row] = exports.audit("SELECT record FROM approval_records WHERE id = ?", approval)
        assert "it is expected to return" in row["record"]
    done = exports.psql("devin", shape.format(MISJUDGED))
    assert STOPPED in done.stderr
    assert len(done.stdout.split()) <= 50


def test_copy_of_a_whole_table_is_judged_by_its_size(exports: Stack) -> None:
    queue = Queue(exports)
    with raw_client(exports, "devin") as connection:
        connection.send(Query(b"COPY public.customers (id, name) TO STDOUT"))
        assert queue.next().startswith("apr-")
    assert exports.psql("devin", "COPY (SELECT id FROM customers LIMIT 5) TO STDOUT").stdout.split() == list("12345")


@pytest.mark.parametrize("hold", ["", "WITH HOLD "])
def test_what_is_fetched_of_a_cursor_counts_together_whatever_the_parts(exports: Stack, hold: str) -> None:
    with psycopg.connect(exports.wire_dsn("devin")) as connection:
        connection.execute(f"DECLARE c CURSOR {hold}FOR {MISJUDGED}")
        if hold:
            connection.commit()
        for _ in range(5):
            assert len(connection.execute("FETCH 10 FROM c").fetchall()) == 10
        connection.commit() if hold else None
        with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="more than the 50 rows"):
            connection.execute("FETCH 1 FROM c")
        connection.rollback()
        # Another cursor's beginning is not the first one's.
        connection.execute(f"DECLARE d CURSOR FOR {MISJUDGED}")
        assert len(connection.execute("FETCH 50 FROM d").fetchall()) == 50
        if hold:
            with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="more than the 50 rows"):
                connection.execute("FETCH 1 FROM c")
        connection.rollback()


def test_a_cursor_and_its_fetch_in_one_message_or_pipelined_get_no_more(exports: Stack) -> None:
    declare = f"DECLARE c CURSOR FOR {MISJUDGED}"
    with raw_client(exports, "devin") as connection:
        [(code, said)] = errors(connection.cycle(Query(f"BEGIN; {declare}; FETCH ALL FROM c".encode())))
        assert (code, "in the same message" in said) == ("42501", True)
    with raw_client(exports, "devin") as connection:
        connection.cycle(Query(b"BEGIN"))
        sent: list[Any] = []
        for sql in (declare, "FETCH ALL FROM c"):
            sent += [Parse("", sql.encode()), Bind("", ""), Execute("")]
        got = connection.cycle(*sent, Sync())
        assert [code for code, _ in errors(got)] == ["54000"]
        assert len(values(got)) <= 50


def test_a_portal_read_in_parts_counts_as_a_whole(exports: Stack) -> None:
    with raw_client(exports, "devin") as connection:
        parts = [Execute("p", 20) for _ in range(4)]
        connection.send(Parse("", MISJUDGED.encode()), Bind("p", ""), *parts, Sync())
        # Its part is over before a cancellation could reach the server, so the session ends.
        got = connection.until_closed()
    assert [code for code, _ in errors(got)] == ["54000"]
    assert len(values(got)) <= 50


async def test_a_yes_to_a_size_is_not_one_to_a_larger_result(exports: Stack) -> None:
    exports.direct("CREATE TABLE public.growing AS SELECT generate_series(1, 60) AS n")
    exports.direct("GRANT SELECT ON public.growing TO countersign_gateway; ANALYZE public.growing")
    queue = Queue(exports)
    with raw_client(exports, "devin") as connection:
        connection.send(Query(b"SELECT n FROM public.growing"))
        approval = queue.next()
        exports.direct("INSERT INTO public.growing SELECT generate_series(61, 500)")
        await approve(exports, approval)
        got = connection.until(ReadyForQuery)
    assert [code for code, _ in errors(got)] == ["54000"]
    assert len(values(got)) <= 120


def test_a_plan_and_a_single_row_ask_nobody(exports: Stack) -> None:
    assert exports.psql("devin", f"EXPLAIN {ALL}").returncode == 0
    assert exports.psql("devin", "SELECT count(*) FROM orders", "-At").returncode == 0
