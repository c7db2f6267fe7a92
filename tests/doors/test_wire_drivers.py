"""Drivers through the wire door: psycopg and asyncpg as applications use them, compared with a direct connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg import rows, sql

from audit.recording import unpack
from tests.stack import Stack
from tests.waiting import until


@pytest.fixture
def agent(stack: Stack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(stack.wire_dsn("devin"), autocommit=True) as connection:
        yield connection


@pytest.fixture
def dba(stack: Stack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(stack.wire_dsn("grace"), autocommit=True) as connection:
        yield connection


def intents(stack: Stack, like: str) -> list[dict[str, Any]]:
    return stack.audit("SELECT * FROM statements WHERE sql LIKE ? ORDER BY seq", like)


VALUES = """SELECT 1::int2, 2::int4, 9223372036854775807::int8, 'NaN'::float8, '-Infinity'::float8, 1.50::numeric,
'NaN'::numeric, 'süß'::text, 'x'::varchar(3), '\\xdead'::bytea, true, '2026-11-24'::date,
'2026-11-24 10:00+00'::timestamptz, ARRAY[1,NULL,3], '{"a": [1, null]}'::jsonb, '10.0.0.1'::inet, '[1,5)'::int4range,
NULL::text, '5b1b5c9e-0000-4000-8000-000000000000'::uuid, '1 day 02:00'::interval"""


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("prepare", [False, True])
def test_every_type_arrives_as_directly_in_both_formats(
    stack: Stack, agent: psycopg.Connection[Any], binary: bool, prepare: bool
) -> None:
    with psycopg.connect(stack.demo.admin_dsn) as direct:
        expected = direct.execute(VALUES, binary=binary).fetchone()
    assert repr(agent.execute(VALUES, binary=binary, prepare=prepare).fetchone()) == repr(expected)


@pytest.mark.parametrize("binary", [False, True])
def test_masks_hold_in_both_formats(stack: Stack, agent: psycopg.Connection[Any], binary: bool) -> None:
    found = agent.execute("SELECT id, ssn, card, notes FROM customers WHERE id = %s", (5,), binary=binary).fetchone()
    [(ssn,)] = stack.direct("SELECT ssn FROM customers WHERE id = 5")
    assert found == (5, "*" * (len(ssn) - 4) + ssn[-4:], "[redacted]", None)


def test_parameters_are_bound_and_recorded(stack: Stack, agent: psycopg.Connection[Any]) -> None:
    query = "SELECT %t::text || 'recorded', %b::int2 + 1, %t::text"
    assert agent.execute(query, ("it's ", 41, None)).fetchone() == ("it's recorded", 42, None)
    [entry] = stack.audit(
        "SELECT json_extract(body, '$.parameters') AS parameters FROM entries"
        " WHERE kind = 'intent' AND body LIKE '%recorded%' ORDER BY seq DESC LIMIT 1"
    )
    assert entry["parameters"] == '["it\'s ","41",null]'


def test_a_statement_prepared_once_is_recorded_each_time_it_runs(stack: Stack, agent: psycopg.Connection[Any]) -> None:
    query = "SELECT 'prepared once', %s::int"
    before = len(intents(stack, "%prepared once%"))
    for n in range(5):
        assert agent.execute(query, (n,), prepare=True).fetchone() == ("prepared once", n)
    assert len(intents(stack, "%prepared once%")) == before + 5


def test_an_errors_fields_are_postgresqls(agent: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        agent.execute("SELECT 1/0")
    with pytest.raises(psycopg.errors.UndefinedColumn) as undefined:
        agent.execute("SELECT id, nme FROM customers")
    assert undefined.value.diag.statement_position == "12"
    assert agent.execute("SELECT 1").fetchone() == (1,)


def test_a_refusal_is_an_insufficient_privilege_with_its_reason(agent: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
        agent.execute("SELECT * FROM hr.employees")
    assert "hr.employees" in str(refused.value)
    assert refused.value.diag.severity == "ERROR"
    assert agent.execute("SELECT 1", prepare=True).fetchone() == (1,)


def test_a_refusal_fails_the_transaction_as_postgresqls_own_would(stack: Stack) -> None:
    with psycopg.connect(stack.wire_dsn("devin")) as connection:
        connection.execute("SELECT 1")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DROP TABLE orders")
        assert connection.info.transaction_status is psycopg.pq.TransactionStatus.INERROR
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute("SELECT 1")
        connection.rollback()
        assert connection.execute("SELECT 2").fetchone() == (2,)


def synced(connection: psycopg.Connection[Any], pipeline: psycopg.Pipeline, *statements: str) -> None:
    """Send these and a Sync; psycopg raises as soon as it reads the error, which may be before the last is sent."""
    try:
        for statement in statements:
            connection.execute(statement.encode())
    except psycopg.Error:
        with contextlib.suppress(psycopg.errors.PipelineAborted):
            pipeline.sync()
        raise
    pipeline.sync()


@pytest.mark.parametrize("by", ["gateway", "direct"])
def test_a_pipeline_with_an_error_in_the_middle(stack: Stack, by: str) -> None:
    dsn = stack.wire_dsn("devin") if by == "gateway" else stack.demo.admin_dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        with connection.pipeline() as pipeline:
            first = connection.execute("SELECT 'first'")
            pipeline.sync()
            with pytest.raises(psycopg.errors.DivisionByZero):
                synced(connection, pipeline, "SELECT 1/0", "SELECT 'skipped'")
            last = connection.execute("SELECT 'last'")
        assert (first.fetchone(), last.fetchone()) == (("first",), ("last",))
        assert connection.execute("SELECT 'after'").fetchone() == ("after",)


def test_a_pipeline_with_a_refusal_in_the_middle(stack: Stack, agent: psycopg.Connection[Any]) -> None:
    with agent.pipeline() as pipeline:
        agent.execute("SELECT 'first'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            synced(agent, pipeline, "DROP TABLE orders", "SELECT 'behind the refusal'")
        last = agent.execute("SELECT 'last'")
    assert last.fetchone() == ("last",)
    assert all(r["status"] == "skipped" for r in intents(stack, "%behind the refusal%"))


@pytest.mark.parametrize("round_", range(20))
def test_a_batch_that_fails_while_its_rest_is_still_being_decided(agent: psycopg.Connection[Any], round_: int) -> None:
    with agent.pipeline() as pipeline:
        for n in range(round_):
            agent.execute("SELECT %s::int", (n,))
        late = [f"SELECT {n}, {round_}" for n in range(20)]  # never decided before: deciding takes its time
        with pytest.raises(psycopg.errors.DivisionByZero):
            synced(agent, pipeline, "SELECT 1/0", *late)
    assert agent.execute("SELECT 'after'").fetchone() == ("after",)


def test_a_long_pipeline_keeps_its_order(agent: psycopg.Connection[Any]) -> None:
    with agent.pipeline():
        cursors = [agent.execute("SELECT %s::int", (n,)) for n in range(500)]
    assert [c.fetchone() for c in cursors] == [(n,) for n in range(500)]


def test_server_side_cursors_page_and_stay_masked(stack: Stack) -> None:
    with psycopg.connect(stack.wire_dsn("devin")) as connection, connection.cursor("paging") as cursor:
        cursor.itersize = 100
        cursor.execute("SELECT id, ssn FROM customers ORDER BY id LIMIT 350")
        found = cursor.fetchall()
    assert [r[0] for r in found] == list(range(1, 351))
    assert all(set(r[1][:-4]) == {"*"} for r in found)


def test_a_named_cursor_that_ran_nothing_is_closed_in_its_transaction(agent: psycopg.Connection[Any]) -> None:
    with agent.transaction():
        with agent.cursor("unused"):
            pass  # at its end psycopg asks `pg_cursors` whether there is one
        assert agent.execute("SELECT 1").fetchone() == (1,)


def test_streamed_rows_arrive_one_by_one(agent: psycopg.Connection[Any]) -> None:
    cursor = agent.cursor(row_factory=rows.scalar_row)
    assert sum(1 for _ in cursor.stream("SELECT g FROM generate_series(1, 20000) g")) == 20000


def test_copy_out_in_text_and_binary_is_masked(stack: Stack, agent: psycopg.Connection[Any]) -> None:
    raw = {ssn for (ssn,) in stack.direct("SELECT ssn FROM customers")}
    for options in ("", " (FORMAT binary)", " (FORMAT csv, HEADER)"):
        with agent.cursor().copy(f"COPY (SELECT id, ssn FROM customers) TO STDOUT{options}") as copy:
            data = b"".join(bytes(block) for block in copy)
        assert len(data) > 10_000
        assert not any(ssn.encode() in data for ssn in raw)


def test_copy_in_and_its_abort(stack: Stack, dba: psycopg.Connection[Any]) -> None:
    dba.execute("CREATE TABLE copied (id int, body text)")
    try:
        with dba.cursor().copy("COPY copied FROM STDIN") as copy:
            for n in range(5000):
                copy.write_row((n, "x" * 100))
        assert dba.execute("SELECT count(*) FROM copied").fetchone() == (5000,)
        with pytest.raises(RuntimeError, match="changed my mind"):
            change_my_mind(dba)
        assert dba.execute("SELECT count(*) FROM copied").fetchone() == (5000,)
    finally:
        dba.execute("DROP TABLE copied")
    assert [r["status"] for r in intents(stack, "COPY copied%")] == ["completed", "cancelled"]


def change_my_mind(dba: psycopg.Connection[Any]) -> None:
    with dba.cursor().copy("COPY copied FROM STDIN") as copy:
        copy.write_row((1, "half"))
        raise RuntimeError("changed my mind")


def test_a_transaction_that_made_a_table_can_use_it(stack: Stack) -> None:
    with psycopg.connect(stack.wire_dsn("grace")) as connection:
        connection.execute("CREATE TABLE made_here (id int)")
        connection.execute("INSERT INTO made_here VALUES (1)")
        assert connection.execute("SELECT id FROM made_here").fetchone() == (1,)
        connection.rollback()
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT id FROM made_here")


def test_notifications_reach_a_listener(stack: Stack, dba: psycopg.Connection[Any]) -> None:
    with psycopg.connect(stack.wire_dsn("ada"), autocommit=True) as listener:
        listener.execute("LISTEN orders")
        dba.execute("NOTIFY orders, 'new'")
        [heard] = listener.notifies(timeout=10, stop_after=1)
    assert (heard.channel, heard.payload) == ("orders", "new")


def test_a_cancel_from_another_thread(stack: Stack, agent: psycopg.Connection[Any]) -> None:
    import threading

    active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '% cancelled_by_driver'"

    def cancel() -> None:
        until(lambda: stack.direct(active + " AND pid <> pg_backend_pid()") == [(1,)], "it did not start")
        agent.cancel_safe(timeout=10)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(psycopg.errors.QueryCanceled):
        agent.execute("SELECT count(*) FROM generate_series(1, 1000000000) cancelled_by_driver")
    thread.join(10)
    assert agent.execute("SELECT 1").fetchone() == (1,)


def test_a_wrong_key_cancels_nothing(stack: Stack, agent: psycopg.Connection[Any]) -> None:
    import socket

    from wire.frontend import CancelRequest

    with socket.create_connection((stack.host, stack.port), timeout=10) as guess:
        guess.sendall(CancelRequest(agent.info.backend_pid, b"\0\0\0\0").encode())
        assert guess.recv(100) == b""
    assert agent.execute("SELECT 1").fetchone() == (1,)


def test_parameter_status_reports_what_a_driver_needs(agent: psycopg.Connection[Any]) -> None:
    status = agent.info.parameter_status
    assert status("client_encoding") == "UTF8"
    assert status("standard_conforming_strings") == "on"
    assert agent.info.server_version >= 150000
    agent.execute("SET application_name = 'renamed'")
    assert status("application_name") == "renamed"


@pytest.mark.parametrize(
    "statement", ["SET client_encoding = 'LATIN1'", "SET standard_conforming_strings = off", "SET ROLE shop_owner"]
)
def test_settings_that_would_blind_the_gateway_are_refused(agent: psycopg.Connection[Any], statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        agent.execute(sql.SQL(statement))
    assert agent.info.encoding == "utf-8"


# -- asyncpg: everything prepared, everything binary -----------------------------------------------------


@pytest.fixture
async def pool(stack: Stack) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(
        host=stack.host, port=stack.port, user="devin", password=stack.tokens["devin"], database=stack.database,
        ssl=False, min_size=1, max_size=4,
    ) as made:  # fmt: skip
        yield made


async def test_asyncpg_fetches_binary_values(pool: asyncpg.Pool) -> None:
    found = await pool.fetchrow("SELECT $1::int, $2::text[], $3::timestamptz, 1.5::numeric, $4::date", 7, ["a", None],
                                datetime(2026, 11, 24, tzinfo=UTC), date(2026, 1, 1))  # fmt: skip
    assert tuple(found) == (7, ["a", None], datetime(2026, 11, 24, tzinfo=UTC), Decimal("1.5"), date(2026, 1, 1))


async def test_asyncpg_sees_masks(pool: asyncpg.Pool) -> None:
    found = await pool.fetch("SELECT id, email, ssn FROM customers ORDER BY id LIMIT 50")
    assert all(set(r["email"][1:]) == {"*"} and set(r["ssn"][:-4]) == {"*"} for r in found)


async def test_asyncpg_runs_many_at_once(pool: asyncpg.Pool) -> None:
    found = await asyncio.gather(*(pool.fetchval("SELECT $1::int * 2", n) for n in range(200)))
    assert found == [n * 2 for n in range(200)]


async def test_asyncpg_transactions_cursors_and_errors(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        async with connection.transaction():
            seen = [r["id"] async for r in connection.cursor("SELECT id FROM customers ORDER BY id", prefetch=50)]
        assert seen[:3] == [1, 2, 3]
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("TRUNCATE orders")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetchval("SELECT 1/$1::int", 0)
        assert await connection.fetchval("SELECT 1") == 1


async def test_asyncpg_copies_out_masked(pool: asyncpg.Pool) -> None:
    blocks: list[bytes] = []

    async def take(block: bytes) -> None:
        blocks.append(block)

    async with pool.acquire() as connection:
        await connection.copy_from_query("SELECT ssn FROM customers", output=take)
    lines = b"".join(blocks).decode().splitlines()
    assert len(lines) > 100
    assert all(set(line[:-4]) == {"*"} for line in lines)


async def test_asyncpg_cancels_at_its_own_time_out(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        with pytest.raises(TimeoutError):
            await connection.fetchval("SELECT count(*) FROM generate_series(1, 1000000000)", timeout=0.3)
        assert await connection.fetchval("SELECT 1") == 1


async def test_asyncpg_reads_user_types(pool: asyncpg.Pool) -> None:
    # Composite and array types make it read pg_type with a query of its own.
    assert await pool.fetchval("SELECT ARRAY['a', 'b']::name[]") == ["a", "b"]
    assert await pool.fetchval("SELECT '{1,2}'::int8[]") == [1, 2]


def test_a_parameter_that_could_be_a_masked_value_is_recorded_as_a_digest(
    stack: Stack, agent: psycopg.Connection[Any], dba: psycopg.Connection[Any]
) -> None:
    [(ssn,)] = stack.direct("SELECT ssn FROM customers WHERE id = 7")
    for binary in ("%t", "%b"):
        agent.execute(f"SELECT id FROM customers WHERE ssn = {binary}", (ssn,))
        dba.execute(f"UPDATE customers SET ssn = {binary} WHERE id = 7", (ssn,))
        with pytest.raises(psycopg.errors.InvalidTextRepresentation, match=ssn):
            dba.execute(f"SELECT id FROM customers WHERE ssn = 'x' AND id = ({binary}::text)::int", (ssn,))
        with pytest.raises(psycopg.errors.InvalidTextRepresentation, match=f"é {ssn}"):
            dba.execute(f"SELECT ('é ' || {binary}::text || id)::int FROM customers WHERE ssn <> 'x'", (ssn,))
    [kept] = stack.audit("SELECT count(*) AS entries FROM entries WHERE body LIKE ?", f"%{ssn}%")
    assert kept["entries"] == 0
    recorded = stack.audit(
        "SELECT subject, json_extract(body, '$.parameters') AS p FROM entries WHERE kind = 'intent'"
        " ORDER BY seq DESC LIMIT 6"
    )
    said = [
        chunk.data
        for row in stack.audit("SELECT data FROM recordings ORDER BY seq DESC LIMIT 8")
        for chunk in unpack(row["data"])
    ]
    assert [data for data in said if ssn.encode() in data] == []  # no error that was recorded quotes it either
    assert any('"é $1'.encode() in data for data in said)
    # Equal values of one person are seen to be equal, and nobody finds another's by sending guesses.
    assert sorted({(row["p"], row["subject"]): row["subject"] for row in recorded}.values()) == ["devin", "grace"]
    assert len({row["p"] for row in recorded}) == 2
    assert recorded[0]["p"].startswith('["hmac-sha256:')


def test_what_an_error_quotes_of_a_row_is_not_in_the_audit(stack: Stack, dba: psycopg.Connection[Any]) -> None:
    """Who reads the audit is not who reads the column."""
    [(ssn,)] = stack.direct("SELECT ssn FROM customers WHERE id = 9")
    for kind in ("int", "regclass"):
        with pytest.raises(psycopg.Error, match=ssn):
            dba.execute(f"SELECT ssn::{kind} FROM customers WHERE id = 9".encode())
    dba.execute("BEGIN")
    dba.execute("DECLARE c CURSOR FOR SELECT ssn::int FROM customers WHERE id = 9")
    with pytest.raises(psycopg.errors.InvalidTextRepresentation, match=ssn):
        dba.execute("FETCH ALL FROM c")
    dba.execute("ROLLBACK")
    dba.execute("SELECT 1")  # the outcomes before it are durable
    [kept] = stack.audit("SELECT count(*) AS entries FROM entries WHERE body LIKE ?", f"%{ssn}%")
    assert kept["entries"] == 0


@pytest.mark.parametrize(("kind", "value"), [("int[]", "{{1,{0}}}"), ("json", '{{"ssn": {0}}}'), ("date", "{0}")])
def test_nor_is_a_part_of_it_that_an_error_quotes(
    stack: Stack, dba: psycopg.Connection[Any], kind: str, value: str
) -> None:
    [(ssn,)] = stack.direct("SELECT ssn FROM customers WHERE id = 8")
    with pytest.raises(psycopg.Error):
        dba.execute(f"SELECT id, (%t::text)::{kind} FROM customers WHERE ssn <> 'x'", (value.format(ssn),))
    dba.execute("SELECT 1")  # the outcome before it is durable
    [kept] = stack.audit("SELECT count(*) AS entries FROM entries WHERE body LIKE ?", f"%{ssn}%")
    assert kept["entries"] == 0
    [row] = stack.audit(
        "SELECT data FROM recordings JOIN entries USING (seq) WHERE body ->> '$.sqlstate' LIKE '22%'"
        " ORDER BY seq DESC LIMIT 1"
    )
    assert [chunk for chunk in unpack(row["data"]) if ssn.encode() in chunk.data] == []
