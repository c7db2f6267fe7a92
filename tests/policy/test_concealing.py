"""Which statements have parameters that could be masked values, and so are recorded as digests; whoever runs them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy.catalog import ForeignKey
from policy.engine import decide
from tests.policy.corpus import policy_of
from tests.policy.sample import CATALOG, PRINCIPALS, facts

CONCEALED = [
    "SELECT id FROM customers WHERE ssn = $1",
    "SELECT id, ssn FROM customers WHERE id = $1",
    "SELECT * FROM customers WHERE id = $1",
    "SELECT id FROM customers AS c (a, b, c, d) WHERE d = $1",
    "SELECT id FROM customers AS c WHERE c = $1",
    "SELECT id FROM customers AS c WHERE to_jsonb(c) ->> $1 = $2",
    "SELECT 1 WHERE $1 IN (TABLE customers)",
    "UPDATE customers SET ssn = $1 WHERE id = $2",
    "UPDATE customers SET name = $1 WHERE id = $2 RETURNING *",
    "INSERT INTO customers VALUES ($1, $2)",
    "INSERT INTO customers (id, ssn) VALUES ($1, $2)",
    "INSERT INTO orders (id) SELECT id FROM customers WHERE ssn LIKE $1",
    "SELECT order_total($1)",  # nobody can say here what somebody else's function does with it
    "SELECT id FROM nowhere WHERE id = $1",
    "SELEC $1",
]
CLEAR = [
    "SELECT $1::text",
    "SELECT id, name FROM customers WHERE id = $1",
    "SELECT count(*) FROM orders WHERE id = $1",
    "UPDATE customers SET name = $1 WHERE id = $2",
    "INSERT INTO customers (id, name) VALUES ($1, $2)",
    "SELECT c.name FROM customers c JOIN orders o ON o.customer_id = c.id WHERE o.id = $1",
]


@pytest.mark.parametrize("who", ["devin", "grace"])
@pytest.mark.parametrize("sql", CONCEALED)
def test_parameters_that_could_be_masked_values_are_concealed(sql: str, who: str) -> None:
    assert decide(policy_of("server/sample/policy.yaml"), PRINCIPALS[who], facts(), sql.encode()).conceals


@pytest.mark.parametrize("who", ["devin", "grace"])
@pytest.mark.parametrize("sql", CLEAR)
def test_other_parameters_are_not(sql: str, who: str) -> None:
    assert not decide(policy_of("server/sample/policy.yaml"), PRINCIPALS[who], facts(), sql.encode()).conceals


def test_parameters_that_meet_a_column_which_refers_to_a_masked_one_are_concealed() -> None:
    customers, tickets = CATALOG.relation("public", "customers"), CATALOG.relation("public", "tickets")
    assert customers is not None
    assert tickets is not None
    key = ForeignKey(tickets.oid, frozenset({3}), customers.oid, frozenset({4}), "a", "a")
    catalog = replace(CATALOG, relations={**CATALOG.relations, tickets.oid: replace(tickets, refers_by=(key,))})
    policy = policy_of("server/sample/policy.yaml")
    for sql, conceals in ((b"SELECT id FROM tickets WHERE subject = $1", True), (b"SELECT $1 FROM tickets", False)):
        assert decide(policy, PRINCIPALS["grace"], facts(catalog=catalog), sql).conceals is conceals
