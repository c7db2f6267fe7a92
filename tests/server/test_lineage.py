"""Lineage for people: what the columns of a result come from, and where that cannot be told."""

from __future__ import annotations

import pytest

from server.lineage import LineageUnknownError, OutputColumn, lineage
from tests.policy.sample import CATALOG, PATH

CUSTOMERS = "public.customers"


def known(name: str, *sources: str) -> OutputColumn:
    return OutputColumn(name, sources, whole=True)


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("SELECT c.ssn AS s, 1 FROM customers c", [known("s", f"{CUSTOMERS}.ssn"), known("1")]),
        ("SELECT upper(name) || card AS x FROM customers", [known("x", f"{CUSTOMERS}.card", f"{CUSTOMERS}.name")]),
        ("TABLE hr.headcount", [known("employees", "hr.headcount.employees")]),
        ("SELECT * FROM customer_contacts", [
            known(column, f"public.customer_contacts.{column}") for column in ("id", "name", "email")
        ]),
        ("WITH a AS (SELECT max(card) AS m FROM customers) SELECT m FROM a", [known("m", f"{CUSTOMERS}.card")]),
        ("WITH tickets AS (SELECT card FROM customers) SELECT card FROM tickets", [known("card", f"{CUSTOMERS}.card")]),
        ("SELECT body FROM tickets UNION SELECT card FROM customers", [
            known("body", f"{CUSTOMERS}.card", "public.tickets.body"),
        ]),
        ("SELECT (SELECT max(salary) FROM hr.employees) AS q FROM orders", [known("q", "hr.employees.salary")]),
        ("SELECT to_jsonb(c) AS j FROM customers c", [OutputColumn("j", (), whole=False)]),
    ],
)  # fmt: skip
def test_each_output_column_names_its_sources(sql: str, columns: list[OutputColumn]) -> None:
    assert lineage(sql, CATALOG, PATH) == columns


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("DELETE FROM tickets", "only a query"),
        ("SELEC 1", "sqlglot does not understand"),
        ("SELECT " + "1," * 40_000 + "1", "too long"),
        ("SELECT " + "(" * 3_000 + "1" + ")" * 3_000, "sqlglot does not understand"),
    ],
)
def test_what_has_none_says_why(sql: str, why: str) -> None:
    with pytest.raises(LineageUnknownError, match=why):
        lineage(sql, CATALOG, PATH)
