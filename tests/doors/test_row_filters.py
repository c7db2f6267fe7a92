"""Row filters at the doors, on a real server: no statement, error or lock tells of a hidden row."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.doors.mcp_calls import query
from tests.policy.corpus import ROOT
from tests.stack import Stack, running_stack, use_policy

SHOWN = "total < 100"


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("rows")) as stack:
        use_policy(stack, ROOT / "tests/policy/policies/rows.yaml")
        yield stack


def said(stack: Stack, sql: str, who: str = "devin") -> str:
    done = stack.psql(who, sql, "-At")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM orders",
        "SELECT sum(total), max(total) FROM orders",
        "SELECT count(*) FROM orders a JOIN orders b USING (id)",
        "SELECT count(*) FROM (SELECT id FROM orders FOR UPDATE) AS locked",
        "SELECT count(*) FROM orders WHERE total >= 100",
        "SELECT count(*) FROM customers c WHERE EXISTS (SELECT FROM orders o WHERE o.customer_id = c.id)",
        "WITH o AS (TABLE orders) SELECT count(*) FROM o",
    ],
)
def test_an_agent_sees_what_a_table_of_the_shown_rows_would_hold(filtered: Stack, sql: str) -> None:
    if "FOR UPDATE" not in sql:  # of a common table expression it is refused
        visible = (
            f"WITH orders AS (SELECT * FROM public.orders WHERE {SHOWN}), customers AS (SELECT * FROM public.customers "
            "WHERE id <= 20 OR email = 'devin@example.com' OR name = 'devin') "
        )
        expected = "|".join(str(v) for v in filtered.direct(visible + sql.replace("WITH o AS", ", o AS"))[0])
    else:
        expected = str(filtered.direct(f"SELECT count(*) FROM orders WHERE {SHOWN}")[0][0])
    assert said(filtered, sql) == expected
    assert said(filtered, "SELECT count(*) FROM orders", "ada") == str(
        filtered.direct("SELECT count(*) FROM orders")[0][0]
    )


def test_no_condition_of_a_client_runs_on_a_hidden_row(filtered: Stack) -> None:
    # Cheaper than the filter: without a barrier the planner would ask it first.
    [(hidden,)] = filtered.direct("SELECT max(id) FROM customers")
    leak = f"SELECT count(*) FROM customers WHERE 1 / (id - {hidden}) > 0"
    assert filtered.psql("ada", leak).returncode != 0, "the oracle works where rows are not hidden"
    assert said(filtered, leak) == "0"
    for setting in ("enable_seqscan", "enable_indexscan", "enable_bitmapscan"):
        done = filtered.psql("devin", None, "-c", f"SET {setting} = off", "-c", leak)
        assert done.returncode == 0, done.stderr


def test_copy_and_cursors_show_the_same_rows(filtered: Stack) -> None:
    ids = sorted(str(id) for (id,) in filtered.direct(f"SELECT id FROM orders WHERE {SHOWN}"))
    assert sorted(said(filtered, "COPY (SELECT id FROM orders) TO STDOUT").split()) == ids
    whole = filtered.psql("devin", None, "-At", "-q", "-c", "BEGIN", "-c", "DECLARE c CURSOR FOR SELECT id FROM orders",
                          "-c", "FETCH ALL FROM c")  # fmt: skip
    assert sorted(whole.stdout.split()) == ids


async def test_the_mcp_door_shows_the_same_rows_and_the_audit_says_that_some_were_hidden(filtered: Stack) -> None:
    answer = await query(filtered, "devin", "SELECT count(*) FROM orders")
    assert [[str(v) for v in row] for row in answer["rows"]] == [[said(filtered, "SELECT count(*) FROM orders")]]
    assert any("only some rows of public.orders" in message for message in answer["messages"])
    bodies = filtered.audit("SELECT body FROM entries WHERE kind = 'outcome' ORDER BY seq DESC LIMIT 5")
    assert any("public.orders: rows (policy.yaml:" in str(row["body"]) for row in bodies)
