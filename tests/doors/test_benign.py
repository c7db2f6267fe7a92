"""What tools and analysts send, through both doors: where nothing is masked, the answers are PostgreSQL's own."""

from __future__ import annotations

from typing import Any

import psycopg

from policy.engine import decide
from tests.doors.mcp_calls import answer as structured
from tests.doors.mcp_calls import client
from tests.policy.corpus import Case, load_cases, policy_of
from tests.policy.sample import PRINCIPALS, facts
from tests.stack import Stack

BENIGN = [case for case in load_cases() if case.id.startswith("benign-")]


def compares(case: Case) -> bool:
    """Whether the case is a query of tables without masks that says the same each time, and to everybody."""
    decision = decide(policy_of(case.policy), PRINCIPALS[case.who], facts(), case.sql.encode())
    assert decision.analysis is not None
    assert decision.verdict.rewrite is not None, case
    reads = decision.analysis.kind == "SelectStmt" and not decision.analysis.effects.writes
    tables = any(not demand.builtin for demand in decision.analysis.demands)
    return reads and tables and not decision.verdict.rewrite.masked and "$" not in case.sql and "pg_" not in case.sql


COMPARED = [case for case in BENIGN if compares(case)]


def test_the_corpus_of_benign_statements_is_large() -> None:
    assert len({case.sql for case in BENIGN}) >= 100  # and more than 140 that psql and pg_dump send, in test_benign
    assert {case.decision for case in BENIGN} == {"allow"}
    assert len(COMPARED) >= 45


async def test_results_are_those_of_a_direct_connection(stack: Stack) -> None:
    upstream = stack.demo.config.connections[0]
    dsn = f"host={upstream.host} port={upstream.port} dbname={upstream.database} user={upstream.user}"
    with (
        psycopg.connect(dsn, password=upstream.password, autocommit=True) as direct,
        psycopg.connect(stack.wire_dsn("devin"), autocommit=True) as through,
    ):
        async with client(stack, "devin") as mcp:
            for case in COMPARED:
                wanted = answer(direct, case.sql)
                assert answer(through, case.sql) == wanted, case
                told = structured(await mcp.call_tool("query", {"sql": case.sql}))
                # Which JSON a value becomes is told in tests/server/test_values.py.
                assert len(told["rows"]) == len(wanted) or told["truncated"], case


def answer(connection: psycopg.Connection[Any], sql: str) -> list[tuple[str | None, ...]]:
    """Every value as text; rows in an order of their own, since few of the queries ask for one."""
    cursor = connection.execute(sql.encode())
    result = cursor.pgresult
    assert result is not None
    values = [
        tuple(
            None if (value := result.get_value(row, column)) is None else value.decode()
            for column in range(result.nfields)
        )
        for row in range(result.ntuples)
    ]
    return sorted(values, key=repr)
