"""Temporary tables at the wire door: names mean what PostgreSQL means by them, at every moment of a session."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from tests.doors.mcp_calls import client, text
from tests.policy.corpus import ROOT
from tests.stack import Stack, running_stack, use_policy

Wire = psycopg.Connection[tuple[object, ...]]
SETUP = """
GRANT TEMPORARY ON DATABASE shop TO countersign_gateway;
CREATE FUNCTION public.makes(text) RETURNS void LANGUAGE plpgsql AS 'BEGIN EXECUTE $1; END';
CREATE FUNCTION public.tickets_text() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM tickets';
CREATE DOMAIN public.small AS int CHECK (VALUE < 10);
"""
POLICY = (ROOT / "tests/policy/policies/temporary.yaml").read_text(encoding="utf-8")
CALLS = """
  - {name: trusted, effect: allow, actions: [call], functions: [public.makes]}
  - {name: by-body, effect: allow, actions: [call], functions: [public.tickets_text], bodies: analysed}
  - {name: writes, effect: allow, actions: [update], relations: [public.tickets]}
masks:"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("temporary")) as running:
        running.direct(SETUP)
        policy = tmp_path_factory.mktemp("policy") / "policy.yaml"
        policy.write_text(POLICY.replace("\nmasks:", CALLS), encoding="utf-8")
        use_policy(running, policy)
        yield running


@pytest.fixture
def wire(stack: Stack) -> Iterator[Wire]:
    with psycopg.connect(stack.wire_dsn("devin"), autocommit=True) as connection:
        yield connection


def value(wire: Wire, sql: str) -> Any:
    row = wire.execute(sql.encode()).fetchone()
    assert row is not None
    return row[0]


def missing(wire: Wire, sql: str) -> bool:
    """Whether the gateway says that a relation is not there."""
    try:
        wire.execute(sql.encode())
    except psycopg.Error as error:
        return "does not exist" in str(error)
    return False


def test_a_temporary_table_is_worked_with_like_any_other(wire: Wire) -> None:
    wire.execute("CREATE TEMP TABLE work (id serial PRIMARY KEY, customer int, note text DEFAULT 'none')")
    wire.execute("CREATE INDEX work_customer ON work (customer)")
    wire.execute("INSERT INTO work (customer) SELECT customer_id FROM tickets WHERE id <= 3")
    with wire.cursor() as cursor, cursor.copy("COPY work (customer, note) FROM STDIN") as copy:
        copy.write_row((1, "copied"))
    assert value(wire, "SELECT count(*) FROM work w JOIN tickets t ON t.customer_id = w.customer WHERE t.id <= 3") >= 3
    wire.execute("UPDATE pg_temp.work SET note = 'x' WHERE id = 1")
    wire.execute("DELETE FROM work WHERE note = 'none'")
    assert value(wire, "SELECT count(*) FROM work") == 2
    wire.execute("ALTER TABLE work ADD COLUMN more int DEFAULT 5")
    assert value(wire, "SELECT max(more) FROM work") == 5
    wire.execute("ANALYZE work")
    wire.execute("ALTER TABLE work RENAME TO worked")
    assert missing(wire, "SELECT 1 FROM work")
    with pytest.raises(InsufficientPrivilege, match="hide the type of that name"):
        wire.execute("ALTER TABLE worked RENAME TO text")
    wire.execute("TRUNCATE worked")
    wire.execute("DROP TABLE worked")
    assert missing(wire, "SELECT 1 FROM worked")
    assert value(wire, "SELECT count(*) FROM tickets") > 0


def test_names_follow_transactions(wire: Wire) -> None:
    there = "SELECT count(*) FROM t"
    wire.execute("BEGIN")
    wire.execute("CREATE TEMP TABLE t AS SELECT id FROM tickets WHERE id < 3")
    assert value(wire, there) == 2
    wire.execute("ROLLBACK")
    assert missing(wire, there)
    wire.execute("CREATE TEMP TABLE t (id int) ON COMMIT DROP")
    assert missing(wire, there)
    wire.execute("BEGIN")
    wire.execute("CREATE TEMP TABLE t (id int) ON COMMIT DROP")
    wire.execute("SAVEPOINT s")
    wire.execute("DROP TABLE t")
    assert missing(wire, there)
    wire.execute("ROLLBACK TO s")
    assert value(wire, there) == 0
    wire.execute("COMMIT")
    assert missing(wire, there)
    for discard in ("DISCARD TEMP", "DISCARD ALL"):
        wire.execute("CREATE TEMP TABLE t (id int)")
        assert value(wire, there) == 0
        wire.execute(discard.encode())
        assert missing(wire, there)
    with wire.pipeline():
        wire.execute("CREATE TEMP TABLE t (id int)")
        answer = wire.execute("SELECT count(*) FROM t")
        assert answer.fetchone() == (0,)
    wire.execute("DROP TABLE t")


def test_a_temporary_table_hides_another_and_shows_only_its_own_rows(stack: Stack, wire: Wire) -> None:
    secrets = {card for (card,) in stack.direct("SELECT card FROM customers WHERE card IS NOT NULL")}
    with pytest.raises(InsufficientPrivilege, match="would store the result as data"):
        wire.execute("CREATE TEMP TABLE customers AS SELECT * FROM customers")
    wire.execute("CREATE TEMP TABLE customers (id int, card text)")
    with pytest.raises(InsufficientPrivilege, match="store masks as data"):
        wire.execute("INSERT INTO customers SELECT id, card FROM public.customers")
    wire.execute("INSERT INTO customers VALUES (1, 'mine')")
    # Whole, since decisions are kept by it: who chooses the names could find two that collide in a part of it.
    digests = [session.temporary.digest for session in stack.app.hall.gateway.sessions.list() if session.temporary]
    assert {len(bytes.fromhex(digest)) for digest in digests} == {32}
    assert wire.execute("SELECT card FROM customers").fetchall() == [("mine",)]
    seen = {card for (card,) in wire.execute("SELECT card FROM public.customers").fetchall()}
    assert seen == {None}
    assert secrets
    # Its row type hides the other's, and a set path decides which of the two is meant.
    assert value(wire, "SELECT (ROW(1, 'x')::customers).card") == "x"
    wire.execute("SET search_path = public, pg_temp")
    assert {card for (card,) in wire.execute("SELECT card FROM customers").fetchall()} == {None}
    wire.execute("RESET search_path")
    assert wire.execute("SELECT card FROM customers").fetchall() == [("mine",)]
    wire.execute("CREATE TEMP TABLE tickets (id int)")
    with pytest.raises(InsufficientPrivilege, match="more than one relation"):
        wire.execute("SELECT tickets_text()")


def test_what_was_prepared_does_not_lend_its_verdict_to_what_hides_it(stack: Stack, wire: Wire) -> None:
    before = stack.direct("SELECT md5(string_agg(t::text, '' ORDER BY id)) FROM tickets t")
    wire.prepare_threshold = 0
    wire.execute("CREATE TEMP TABLE any_table (id int)")
    statement = "UPDATE tickets SET status = 'closed' WHERE id = -1"
    wire.execute(statement)
    wire.execute("PREPARE p AS UPDATE tickets SET status = 'closed' WHERE id = -1")
    wire.execute("EXECUTE p")
    wire.execute("CREATE TEMP TABLE tickets (id int, status text)")
    for again in (statement, "EXECUTE p"):
        with pytest.raises(psycopg.Error, match="has changed since"):
            wire.execute(again)
    wire.execute("DROP TABLE pg_temp.tickets")
    wire.execute(statement)
    # What is gone is no hindrance: PostgreSQL reads the names anew.
    for _ in range(2):
        wire.execute("CREATE TEMP TABLE loop (id int)")
        wire.execute("INSERT INTO loop VALUES (1)")
        wire.execute("DROP TABLE loop")
    assert stack.direct("SELECT md5(string_agg(t::text, '' ORDER BY id)) FROM tickets t") == before


def test_temporary_objects_of_other_sessions_are_out_of_reach(stack: Stack, wire: Wire) -> None:
    with psycopg.connect(stack.wire_dsn("devin"), autocommit=True) as other:
        other.execute("CREATE TEMP TABLE theirs (id int)")
        [(schema,)] = stack.direct(
            "SELECT nspname FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid WHERE relname = 'theirs'"
        )
        assert missing(wire, "SELECT * FROM theirs")
        wire.execute("CREATE TEMP TABLE mine (id int)")
        with pytest.raises(InsufficientPrivilege, match="another session"):
            wire.execute(f"SELECT * FROM {schema}.theirs".encode())
        wire.execute(f"SET search_path = {schema}, public".encode())
        with pytest.raises(psycopg.Error, match="does not exist"):
            wire.execute("SELECT * FROM theirs")
        assert other.execute(f"SELECT count(*) FROM {schema}.theirs".encode()).fetchone() == (0,)


UNSOUND = [
    ("CREATE DOMAIN pg_temp.odd AS int CHECK (public.makes('DROP TABLE tickets') IS NULL)", "1::odd", "told for sure"),
    ("CREATE TEMP TABLE int4 (id int)", "1::int4", "told for sure"),
    ("CREATE TEMP VIEW v AS SELECT card FROM customers", "* FROM v", "neither a table nor a sequence"),
    ("CREATE TEMP TABLE v () INHERITS (customers)", "* FROM v", "shares rows"),
]


@pytest.mark.parametrize(("made", "read", "why"), UNSOUND, ids=[made for made, _, _ in UNSOUND])
def test_what_a_trusted_function_leaves_there_is_not_read(
    stack: Stack, wire: Wire, made: str, read: str, why: str
) -> None:
    wire.execute("SELECT makes(%s)", (made,))
    with pytest.raises(InsufficientPrivilege, match=why):
        wire.execute(f"SELECT {read}".encode())
    wire.execute("DISCARD TEMP")
    assert value(wire, "SELECT 1::int4 FROM tickets LIMIT 1") == 1


def test_domains_and_defaults_of_temporary_tables_are_demanded(wire: Wire) -> None:
    wire.execute("CREATE TEMP TABLE t (n small)")
    with pytest.raises(psycopg.errors.CheckViolation):
        wire.execute("INSERT INTO t VALUES (11)")
    wire.execute("SELECT makes('CREATE TEMP TABLE d (n int, s text DEFAULT pg_read_file(''x''))')")
    with pytest.raises(InsufficientPrivilege, match="reads files"):
        wire.execute("INSERT INTO d (n) VALUES (1)")
    wire.execute("SELECT makes('CREATE TEMP TABLE e (n int, s bigint DEFAULT tickets_text())')")
    wire.execute("INSERT INTO e (n) VALUES (1)")
    with pytest.raises(InsufficientPrivilege, match="the temporary view `v` cannot be made"):
        wire.execute("CREATE VIEW pg_temp.v AS SELECT * FROM t")


async def test_the_mcp_door_keeps_nothing_temporary(stack: Stack) -> None:
    async with client(stack, "devin") as mcp:
        answer = await mcp.call_tool("query", {"sql": "CREATE TEMP TABLE t (id int)"})
        assert answer.is_error
        assert "leaves something behind" in text(answer)
        # A trusted function may: the session it was made in comes back clean.
        for _ in range(3):
            answer = await mcp.call_tool("query", {"sql": "SELECT makes('CREATE TEMP TABLE tickets (id int)')"})
            assert not answer.is_error, text(answer)
            answer = await mcp.call_tool("query", {"sql": "SELECT count(*) > 10 AS many FROM tickets"})
            assert "true" in text(answer).lower(), text(answer)
