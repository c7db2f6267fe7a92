"""Limits at both doors: results that are too large, runs that are too long, statements and rows that are too many."""

from __future__ import annotations

from collections.abc import Iterator

import asyncpg
import psycopg
import pytest

from tests.doors.mcp_calls import call, error, query
from tests.doors.test_recordings import complete
from tests.policy.corpus import ROOT
from tests.stack import Stack, running_stack, use_policy
from tests.waiting import until
from wire import backend

# A join that takes minutes and no memory.
ENDLESS = "SELECT count(*) FROM orders a, orders b, orders c, orders d WHERE a.total + b.total + c.total + d.total < 0"


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("limits")) as stack:
        use_policy(stack, ROOT / "tests/policy/policies/limited.yaml")
        yield stack


def last(stack: Stack) -> tuple[str, str]:
    asked = "SELECT status, message FROM statements ORDER BY seq DESC LIMIT 1"
    # Outcomes of the wire door are written without making the client wait.
    until(lambda: stack.audit(asked)[0]["status"] != "running", "the statement has no outcome")
    [row] = stack.audit(asked)
    return row["status"], row["message"]


def test_a_result_may_not_grow_beyond_rows_and_bytes_at_the_wire_door(limited: Stack) -> None:
    assert len(limited.psql("devin", "SELECT id FROM orders LIMIT 50", "-At").stdout.split()) == 50
    for sql in ("SELECT id FROM orders LIMIT 51", "SELECT id FROM orders, generate_series(1, 10000)"):
        done = limited.psql("devin", sql, "-At")
        assert "more than the 50 rows that the policy lets a statement return" in done.stderr
        assert len(done.stdout.split()) <= 50
        assert last(limited)[0] == "failed"
    wide = "SELECT repeat('x', 5000) FROM orders LIMIT 1"
    assert "more than the 4000 bytes" in limited.psql("devin", wide, "-At").stderr
    assert "more than the 50 rows" in limited.psql("devin", "COPY (SELECT id FROM orders) TO STDOUT").stderr


def test_the_session_goes_on_after_a_cut_result(limited: Stack) -> None:
    with psycopg.connect(limited.wire_dsn("devin")) as connection:
        for prepare in (True, False):
            with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="50 rows"):
                connection.execute("SELECT id FROM orders LIMIT 200", prepare=prepare)
            connection.rollback()
            assert connection.execute("SELECT 1").fetchone() == (1,)


async def test_a_result_read_in_parts_counts_as_a_whole(limited: Stack) -> None:
    connection = await asyncpg.connect(
        host=limited.host, port=limited.port, user="devin", password=limited.tokens["devin"],
        database=limited.database, ssl=False,
    )  # fmt: skip
    seen = []

    async def read() -> None:
        async with connection.transaction():
            async for record in connection.cursor("SELECT id FROM orders", prefetch=20):
                seen.append(record)  # noqa: PERF401 - what came before the error counts

    try:
        with pytest.raises(asyncpg.ProgramLimitExceededError, match="50 rows"):
            await read()
        assert len(seen) == 40
    finally:
        await connection.close()


def test_a_cursor_fetched_in_parts_counts_as_a_whole(limited: Stack) -> None:
    fetches = [part for _ in range(4) for part in ("-c", "FETCH 20 FROM c")]
    declared = "DECLARE c CURSOR WITH HOLD FOR SELECT id FROM orders"
    done = limited.psql("devin", None, "-At", "-q", "-c", declared, *fetches)
    assert len(done.stdout.split()) == 40
    assert done.stderr.count("more than the 50 rows") == 2


def test_statements_that_went_on_after_a_cut_result_end_the_session(limited: Stack) -> None:
    done = limited.psql("devin", "SELECT id FROM orders LIMIT 60; UPDATE tickets SET status = 'open' WHERE id = 1")
    assert "50 rows" in done.stderr
    assert "UPDATE" not in done.stdout


def test_what_takes_too_long_is_cancelled_at_the_wire_door(limited: Stack) -> None:
    done = limited.psql("devin", ENDLESS)
    assert "canceling statement" in done.stderr
    assert last(limited)[0] == "cancelled"


async def test_what_takes_too_long_or_grows_too_large_is_refused_at_the_mcp_door(limited: Stack) -> None:
    assert len((await query(limited, "devin", "SELECT id FROM orders LIMIT 50"))["rows"]) == 50
    refused = error(await call(limited, "devin", "query", sql="SELECT id FROM orders LIMIT 51"))
    assert "more than the 50 rows" in refused["what"]
    assert last(limited)[0] == "failed"
    late = error(await call(limited, "devin", "query", sql=ENDLESS))
    assert late["sqlstate"] == "57014"


def test_statements_per_minute_are_counted_over_sessions_and_refusals_are_recorded(limited: Stack) -> None:
    for _ in range(3):
        assert limited.psql("ada", "SELECT 1").returncode == 0
    refused = limited.psql("ada", "SELECT 1")
    assert "the policy lets `ada` run 3 statements per minute" in refused.stderr
    assert last(limited) == ("refused", "the policy lets `ada` run 3 statements per minute")
    assert limited.psql("devin", "SELECT 1").returncode == 0


def test_the_rows_of_a_day_are_counted_over_statements(limited: Stack) -> None:
    assert len(limited.psql("grace", "SELECT id FROM orders LIMIT 8", "-At").stdout.split()) == 8
    assert "more than the 2 rows" in limited.psql("grace", "SELECT id FROM orders LIMIT 3", "-At").stderr
    assert len(limited.psql("grace", "SELECT id FROM orders LIMIT 2", "-At").stdout.split()) == 2
    assert "has had the 10 rows that the policy grants for a day" in limited.psql("grace", "SELECT 1").stderr


async def test_the_recording_holds_the_rows_that_passed_and_the_error(limited: Stack) -> None:
    limited.psql("devin", "SELECT id, 'cut at the wire' FROM orders", "-At")
    error(await call(limited, "devin", "query", sql="SELECT id, 'cut at mcp' FROM orders", max_rows=60))
    for like in ("%cut at the wire%", "%cut at mcp%"):
        described, *delivered, last = complete(limited, like)
        assert isinstance(described, backend.RowDescription)
        assert isinstance(last, backend.ErrorResponse)
        assert "50 rows" in last.fields["M"]
        assert len(delivered) <= 50


async def test_what_people_approve_has_the_limits_too(limited: Stack) -> None:
    path = limited.demo.config.policy_path
    asks = "rules:\n  - {name: ask, effect: approve, actions: [select], relations: [public.customers]"
    asks += ", approvers: {groups: [dba]}}\n"
    path.write_text(path.read_text(encoding="utf-8").replace("rules:\n", asks, 1), encoding="utf-8")
    limited.call(limited.app.hall.gateway.policies.reload)
    try:
        many = "SELECT c.id FROM customers c, generate_series(1, 100)"
        pending = (await query(limited, "devin", many))["pending"]
        voted = await call(limited, "grace", "approve", id=pending["id"], digest=pending["digest"])
        assert not voted.is_error
        refused = error(await call(limited, "devin", "await_approval", id=pending["id"]))
        assert "more than the 50 rows" in refused["what"]
    finally:
        use_policy(limited, ROOT / "tests/policy/policies/limited.yaml")
