"""Conditions on the number of rows, at both doors: the estimate decides early, the count binds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import asyncpg
import psycopg
import pytest

from tests.doors.mcp_calls import call, client, error, query
from tests.doors.test_recordings import complete
from tests.policy.corpus import ROOT
from tests.stack import Stack, running_stack, use_policy
from wire import backend

# Always true, and the planner expects each to hold for one row in 200: together, for none.
DOUBTS = " AND ".join(f"(id + {n}) % 1 = 0" for n in range(4))
MISJUDGED = f"UPDATE tickets SET status = 'closed' WHERE {DOUBTS} AND id = ANY (string_to_array('{{}}', ',')::int[])"


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("counted")) as stack:
        use_policy(stack, ROOT / "tests/policy/policies/counted.yaml")
        stack.direct("ANALYZE tickets")
        yield stack


@pytest.fixture
def ids(counted: Stack) -> list[int]:
    counted.direct("UPDATE tickets SET status = 'open'")
    return [id for (id,) in counted.direct("SELECT id FROM tickets ORDER BY id")]


def misjudged(ids: list[int]) -> str:
    return MISJUDGED.format(",".join(map(str, ids)))


def seen(stack: Stack) -> int:
    return int(stack.direct("SELECT count(*) FROM tickets WHERE status = 'closed'")[0][0])


def outcomes(stack: Stack) -> list[tuple[str, int]]:
    rows = stack.audit("SELECT status, rows FROM statements WHERE sql LIKE 'UPDATE%' ORDER BY seq DESC LIMIT 1")
    return [(row["status"], row["rows"]) for row in rows]


def test_psql_changes_few_rows_and_hears_the_tag(counted: Stack, ids: list[int]) -> None:
    done = counted.psql("devin", misjudged(ids[:3]) + " RETURNING id")
    assert done.stdout.rstrip().endswith("UPDATE 3"), done.stderr
    assert "(3 rows)" in done.stdout
    assert seen(counted) == 3
    assert outcomes(counted) == [("completed", 3)]


def test_a_count_beyond_the_limit_rolls_back_in_autocommit(counted: Stack, ids: list[int]) -> None:
    done = counted.psql("devin", misjudged(ids[:7]))
    assert "the statement changes 7 rows: the rule `many` wants approval" in done.stderr
    assert "UPDATE" not in done.stdout
    assert seen(counted) == 0
    assert outcomes(counted)[0][0] == "failed"


def test_a_count_beyond_the_limit_fails_the_clients_transaction(counted: Stack, ids: list[int]) -> None:
    with psycopg.connect(counted.wire_dsn("devin")) as connection:
        connection.execute(misjudged(ids[:2]))
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="changes 6 rows"):
            connection.execute(misjudged(ids[:6]))
        assert connection.info.transaction_status is psycopg.pq.TransactionStatus.INERROR
        connection.rollback()
        assert seen(counted) == 0
        connection.execute(misjudged(ids[:2]))
        connection.commit()
    assert seen(counted) == 2


def test_prepared_statements_are_counted_each_time(counted: Stack, ids: list[int]) -> None:
    sql = f"UPDATE tickets SET status = 'closed' WHERE {DOUBTS.replace('%', '%%')} AND id = ANY (%s::int[])"
    with psycopg.connect(counted.wire_dsn("devin"), autocommit=True) as connection:
        for many in (1, 2, 3):
            assert connection.execute(sql, (ids[:many],), prepare=True).rowcount == many
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="changes 4 rows"):
            connection.execute(sql, (ids[:4],), prepare=True)
        assert connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
        assert connection.execute(sql, ([ids[4]],), prepare=True).rowcount == 1
    assert seen(counted) == 4


def test_an_error_of_postgresqls_is_told_as_ever(counted: Stack, ids: list[int]) -> None:
    done = counted.psql("devin", f"UPDATE tickets SET status = 'x' WHERE id = {ids[0]} AND no_such = 1")
    assert 'column "no_such" does not exist' in done.stderr
    assert "^" in done.stderr
    with psycopg.connect(counted.wire_dsn("devin"), autocommit=True) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("UPDATE tickets SET status = (1 / (id - id))::text WHERE id = %s", (ids[0],))
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_the_estimate_decides_before_anything_runs(counted: Stack, ids: list[int]) -> None:
    done = counted.psql("devin", "DELETE FROM tickets WHERE id > 0")
    assert "the rule `never` does not let `devin` delete" in done.stderr
    assert len(counted.direct("SELECT id FROM tickets")) == len(ids)


def test_several_in_one_message_are_refused(counted: Stack, ids: list[int]) -> None:
    done = counted.psql("devin", f"SELECT 1; UPDATE tickets SET status = 'closed' WHERE id = {ids[0]}")
    assert "cannot be part of several" in done.stderr
    assert seen(counted) == 0


async def test_mcp_commits_few_and_rolls_back_many(counted: Stack, ids: list[int]) -> None:
    answer = await query(counted, "devin", misjudged(ids[:3]) + " RETURNING id")
    assert (answer["tag"], answer["row_count"]) == ("UPDATE 3", 3)
    assert seen(counted) == 3
    refused = error(await call(counted, "devin", "query", sql=misjudged(ids[:5])))
    assert "the statement changes 5 rows" in refused["what"]
    assert seen(counted) == 3
    assert outcomes(counted)[0][0] == "failed"


async def test_sent_again_it_is_decided_by_the_count(counted: Stack, ids: list[int]) -> None:
    async with client(counted, "devin") as connected:
        first = await connected.call_tool("query", {"sql": misjudged(ids[:8])})
        assert first.is_error
        second = await connected.call_tool("query", {"sql": misjudged(ids[:8])})
        assert not second.is_error
        assert second.structured_content["status"] == "pending"
    assert seen(counted) == 0


async def test_parts_of_a_counted_result_are_refused(counted: Stack, ids: list[int]) -> None:
    connection = await asyncpg.connect(
        host=counted.host, port=counted.port, user="devin", password=counted.tokens["devin"],
        database=counted.database, ssl=False,
    )  # fmt: skip
    try:
        async with connection.transaction():
            cursor = await connection.cursor(misjudged(ids[:9]) + " RETURNING id")
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="cannot be fetched in parts"):
                await cursor.fetch(1)
    finally:
        await connection.close()
    assert seen(counted) == 0


def test_the_recording_of_a_counted_write_ends_as_the_clients_answer_did(counted: Stack, ids: list[int]) -> None:
    counted.psql("devin", misjudged(ids[:2]) + " RETURNING 'let through'")
    described, *rows, tag = complete(counted, "%let through%")
    assert isinstance(described, backend.RowDescription)
    assert (len(rows), tag) == (2, backend.CommandComplete("UPDATE 2"))
    counted.psql("devin", misjudged(ids[:7]) + " RETURNING 'taken back'")
    last = complete(counted, "%taken back%")[-1]
    assert isinstance(last, backend.ErrorResponse)
    assert "changes 7 rows" in last.fields["M"]


async def test_at_the_mcp_door_too(counted: Stack, ids: list[int]) -> None:
    await query(counted, "devin", misjudged(ids[:2]) + " RETURNING 'let through by mcp'")
    assert complete(counted, "%let through by mcp%")[-1] == backend.CommandComplete("UPDATE 2")
    error(await call(counted, "devin", "query", sql=misjudged(ids[:7]) + " RETURNING 'taken back by mcp'"))
    last = complete(counted, "%taken back by mcp%")[-1]
    assert isinstance(last, backend.ErrorResponse)
    assert "changes 7 rows" in last.fields["M"]


async def test_a_migration_changes_no_more_rows_than_its_rules_let_it(counted: Stack, ids: list[int]) -> None:
    policy = (ROOT / "tests/policy/policies/counted.yaml").read_text(encoding="utf-8")
    alter = (
        "  - {name: schema, effect: approve, actions: [create, alter], approvers: {groups: [developers]}}\n"
        "  - {name: much, effect: deny, actions: [update], when: {rows_over: 6}}\n"
    )
    counted.demo.config.policy_path.write_text(policy + alter, encoding="utf-8")
    counted.call(counted.app.hall.gateway.policies.reload)
    try:
        async with client(counted, "devin") as devin:

            async def propose(rows: int) -> Any:
                sql = f"ALTER TABLE tickets ADD COLUMN note text; {misjudged(ids[:rows])}"
                return await devin.call_tool("propose_migration", {"title": "notes", "sql": sql})

            counts = error(await propose(4))
            assert "statement 2 of the migration: the statement changes 4 rows" in counts["what"]
            pending = (await propose(4)).structured_content["pending"]
            assert "many" in pending["why"], "it is decided by the count by now"
            assert "`dba`" in pending["who"]
            assert "changes 7 rows" in error(await propose(7))["what"]
            assert "much" in error(await propose(7))["what"]
    finally:
        use_policy(counted, ROOT / "tests/policy/policies/counted.yaml")
    assert seen(counted) == 0


async def test_an_approval_of_few_rows_is_none_of_the_people_who_are_asked_about_many(
    counted: Stack, ids: list[int]
) -> None:
    policy = (
        "rules:\n  - {name: read, effect: allow, actions: [select]}\n"
        "  - {name: any, effect: approve, actions: [update], approvers: {groups: [developers]}}\n"
        "  - {name: many, effect: approve, actions: [update], when: {rows_over: 3}, approvers: {groups: [dba]}}\n"
    )
    counted.demo.config.policy_path.write_text(policy, encoding="utf-8")
    counted.call(counted.app.hall.gateway.policies.reload)
    try:
        token = counted.demo.issuer.token("olga", groups=("developers",))
        async with client(counted, "devin") as devin, client(counted, "olga", token=token) as olga:
            pending = (await devin.call_tool("query", {"sql": misjudged(ids[1:6])})).structured_content["pending"]
            assert "dba" not in pending["who"], "the planner expects none"
            vote = {"id": pending["id"], "digest": pending["digest"]}
            assert not (await olga.call_tool("approve", vote)).is_error
            refused = error(await devin.call_tool("await_approval", {"id": pending["id"]}))
            assert "the statement changes 5 rows" in refused["what"]
    finally:
        use_policy(counted, ROOT / "tests/policy/policies/counted.yaml")
    assert seen(counted) == 0
