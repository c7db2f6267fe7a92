"""Functions called by what they do, at both doors: what a body was when it was decided is what it does."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.doors.mcp_calls import client, text
from tests.stack import Stack, running_stack, use_policy

SETUP = """
CREATE FUNCTION public.open_tickets() RETURNS bigint LANGUAGE sql STABLE
    AS 'SELECT count(*) FROM tickets WHERE status = ''open''';
CREATE FUNCTION public.cards() RETURNS text LANGUAGE sql STABLE AS 'SELECT string_agg(ssn, '','') FROM customers';
CREATE FUNCTION public.employees() RETURNS bigint LANGUAGE sql STABLE RETURN (SELECT count(*) FROM hr.employees);
CREATE FUNCTION public.closes() RETURNS void LANGUAGE sql AS 'UPDATE tickets SET status = ''closed''';
CREATE FUNCTION public.any_xml(text) RETURNS xml LANGUAGE sql AS 'SELECT query_to_xml($1, true, true, '''')';
CREATE TABLE hr.tickets AS SELECT * FROM tickets WHERE status = 'open' LIMIT 1;
GRANT ALL ON ALL TABLES IN SCHEMA public, hr TO PUBLIC; GRANT USAGE ON SCHEMA hr TO PUBLIC;
"""
POLICY = """
rules:
  - {name: calls, effect: allow, actions: [call], functions: ["public.*"], bodies: analysed}
  - {name: reads, effect: allow, actions: [select], relations: ["public.*"]}
  - {name: builds, effect: allow, actions: [create, alter], schemas: [public], who: {users: [grace]}}
masks:
  - {columns: [public.customers.ssn], with: redact, unless: {users: [grace]}}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("bodies")) as running:
        running.direct(SETUP)
        policy = tmp_path_factory.mktemp("policy") / "policy.yaml"
        policy.write_text(POLICY, encoding="utf-8")
        use_policy(running, policy)
        yield running


def connected(stack: Stack, who: str = "devin") -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(stack.wire_dsn(who), autocommit=True)


async def test_both_doors_call_what_may_be_done_and_refuse_the_rest(stack: Stack) -> None:
    before = stack.direct("SELECT md5(string_agg(t::text, '' ORDER BY id)) FROM tickets t")
    secrets = [ssn for (ssn,) in stack.direct("SELECT ssn FROM customers WHERE ssn IS NOT NULL")]
    [(count,)] = stack.direct("SELECT count(*) FROM tickets WHERE status = 'open'")
    refused = {
        "SELECT cards()": "masked for you",
        "SELECT employees()": "no rule lets `devin` select `hr.employees`",
        "SELECT closes()": "no rule lets `devin` update `public.tickets`",
        "SELECT any_xml('SELECT ssn FROM customers')": "runs SQL given as text",
        "SELECT set_config('search_path', 'hr', false), open_tickets()": "what names mean",
    }
    async with client(stack, "devin") as mcp:
        answer = await mcp.call_tool("query", {"sql": "SELECT open_tickets() AS n"})
        assert str(count) in text(answer)
        for sql, why in refused.items():
            answer = await mcp.call_tool("query", {"sql": sql})
            assert answer.is_error
            assert why in text(answer)
    with connected(stack) as wire:
        assert wire.execute("SELECT open_tickets()").fetchone() == (count,)
        for sql, why in refused.items():
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=why) as caught:
                wire.execute(sql)
            assert not any(secret in str(caught.value) for secret in secrets)
    assert stack.direct("SELECT md5(string_agg(t::text, '' ORDER BY id)) FROM tickets t") == before


def test_a_body_that_was_replaced_is_judged_anew(stack: Stack) -> None:
    changing = "CREATE OR REPLACE FUNCTION public.changing() RETURNS text LANGUAGE sql STABLE "
    with connected(stack, "grace") as grace, connected(stack) as devin:
        grace.execute(changing + "RETURN (SELECT subject FROM public.tickets LIMIT 1)")
        devin.prepare_threshold = 0
        assert devin.execute("SELECT changing()").fetchone() is not None
        # grace sees everything, so she may write what devin may not run.
        grace.execute(changing + "AS 'SELECT string_agg(ssn, '','') FROM customers'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="masked for you"):
            devin.execute("SELECT changing()")
        # And what she makes in a transaction is nobody else's yet, and hers at once.
        with grace.transaction():
            grace.execute(changing + "RETURN 'fine'")
            assert grace.execute("SELECT changing()").fetchone() == ("fine",)
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="masked for you"):
                devin.execute("SELECT changing()")
        assert devin.execute("SELECT changing()").fetchone() == ("fine",)


def test_a_text_is_read_under_the_search_path_of_the_call(stack: Stack) -> None:
    with connected(stack) as wire:
        wire.execute("PREPARE counted AS SELECT public.open_tickets()")
        wire.execute("EXECUTE counted")
        wire.execute("SET search_path = hr")
        for sql in ("SELECT public.open_tickets()", "EXECUTE counted"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"select `hr\.tickets`"):
                wire.execute(sql)
        wire.execute("RESET search_path")
        # A cursor would read it when it is fetched from, or when its transaction commits.
        for hold in ("", "WITH HOLD "):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="run it later"), wire.transaction():
                wire.execute(f"DECLARE later CURSOR {hold}FOR SELECT open_tickets()")
