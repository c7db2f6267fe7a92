"""Row filters: reading them, what they become for a principal, and where their meaning would not be sure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy.catalog import Function, Volatility
from policy.check import Severity, check
from policy.document import DocumentError
from policy.engine import decide
from policy.filters import FilterError, read_condition
from policy.load import load_policy
from policy.model import Effect, Principal, PrincipalKind
from tests.policy.sample import CATALOG, PRINCIPALS, facts

O_BRIEN = Principal(
    "o'brien", "i", PrincipalKind.AGENT, frozenset(("b'", "a\\")), email=None, on_behalf_of="Zoë); DROP TABLE x --"
)
RULES = "rules: [{name: r, effect: allow, actions: ['*']}]\nrows:\n"


def test_attributes_become_quoted_literals_wherever_they_stand() -> None:
    condition = read_condition(
        "a = principal.subject AND b = ANY (principal.groups) -- why\n OR 'ü' = principal . on_behalf_of"
        " OR EXISTS (SELECT FROM hr.staff s WHERE s.email = principal.email AND s.team = team)"
    )
    assert condition.sql(O_BRIEN).replace("       ", "") == (
        "a = (CAST('o''brien' AS pg_catalog.text)) AND b = ANY ((CAST(ARRAY['a\\', 'b'''] AS pg_catalog.text[])))"
        "\n OR 'ü' = (CAST('Zoë); DROP TABLE x --' AS pg_catalog.text))"
        " OR EXISTS (SELECT FROM hr.staff s WHERE s.email = (CAST(NULL AS pg_catalog.text)) AND s.team = team)"
    )
    assert condition.columns == {"a", "b"}
    assert condition.relations == {("hr", "staff")}


WRONG = [
    ("", "cannot be read"),
    ("a =", "cannot be read"),
    ("a = 1; SELECT 1", "more than a condition"),
    ("a = 1 ORDER BY b", "more than a condition"),
    ("a = 1 UNION SELECT 1", "more than a condition"),
    ("a) OR (b", "cannot be read"),
    ("a = $1", "no parameters"),
    ("a = principal.mail", "`principal.mail` is no attribute of a principal; known are `principal.subject`"),
    ("a = principal", "no attribute"),
    ("principal.email.x = a", "no attribute"),
    ("a IN (SELECT b FROM staff)", "`staff` has no schema; write it as `schema.staff`"),
    ("a IN (WITH x AS (SELECT 1) SELECT 1)", "no WITH"),
    ("a IN (SELECT 1 FROM hr.staff FOR UPDATE)", "locks nothing"),
    ("a::mood = 'sad'", "the type `mood` has no schema"),
    ("(row_value).field = 1", "takes no fields of rows"),
    ("a < '02/03/2026'", "`02/03/2026` means what the client's DateStyle says; write dates as 2026-01-31"),
    ("a < date '2.3.26 10:00'", "means what the client's DateStyle says"),
    (
        "a > now() + interval '-1 month 15 days'",
        "means what the client's IntervalStyle says; give each number its sign",
    ),
    ("a > '-1 10:00'", "means what the client's IntervalStyle says"),
    ("to_tsvector(a) @@ to_tsquery('simple', 'x')", "`to_tsvector` searches as the client's settings say"),
    ("a = current_setting('Application_Name')", "`current_setting` is what the client says"),
    ("a = current_setting(b)", "`current_setting` is what the client says"),
]


@pytest.mark.parametrize(
    "value",
    [
        "2026-01-31",
        "2026/01/31 10:00",
        "10.11.12.13",
        "1/2",
        "12-34-5678-90",
        "-1 month",
        "-05:00",
        "1 month 15 days",
        "-1 month +15 days",
    ],
)
def test_what_is_no_doubtful_date_or_interval_stands_in_a_filter(value: str) -> None:
    assert read_condition(f"a = '{value}'").columns == {"a"}


@pytest.mark.parametrize(("text", "why"), WRONG)
def test_what_is_no_condition_is_refused(text: str, why: str) -> None:
    with pytest.raises(FilterError) as caught:
        read_condition(text)
    assert why in str(caught.value)


def test_a_wrong_filter_is_named_with_its_place() -> None:
    with pytest.raises(DocumentError) as caught:
        load_policy(RULES + "  - relations: [public.orders]\n    filter: total <\n", "p.yaml")
    assert str(caught.value).startswith("p.yaml:4:13: the filter cannot be read: syntax error")
    with pytest.raises(DocumentError, match="unknown key `columns`"):
        load_policy(RULES + "  - relations: [public.orders]\n    filter: a\n    columns: [a]\n", "p.yaml")


def test_filters_that_meet_must_all_hold() -> None:
    policy = load_policy(
        RULES + "  - {relations: [public.orders], filter: total < 5}\n"
        "  - {relations: ['public.*'], filter: id > 7 OR id < 3}\n",
        "p.yaml",
    )
    rewrite = decide(policy, PRINCIPALS["devin"], facts(), b"SELECT id FROM orders").verdict.rewrite
    assert rewrite is not None
    assert b"WHERE (id > 7 OR id < 3) AND (total < 5) OFFSET 0)" in rewrite.sql
    assert rewrite.filtered == ("public.orders: rows (p.yaml:3)", "public.orders: rows (p.yaml:4)")


SAME_NAME = load_policy(RULES + "  - {relations: [public.orders], filter: lower(status) = 'paid'}\n", "p.yaml")


def test_a_function_of_a_user_that_could_be_meant_refuses() -> None:
    lower = Function(99001, "public", "lower", "f", Volatility.IMMUTABLE, "sql", "status character varying")
    catalog = replace(CATALOG, functions={**CATALOG.functions, ("public", "lower"): (lower,)})
    text = b"SELECT id FROM public.orders"
    assert decide(SAME_NAME, PRINCIPALS["devin"], facts(), text).verdict.effect is Effect.ALLOW
    elsewhere = facts(path=("pg_catalog",), catalog=catalog)
    assert decide(SAME_NAME, PRINCIPALS["devin"], elsewhere, text).verdict.effect is Effect.ALLOW
    refused = decide(SAME_NAME, PRINCIPALS["devin"], facts(catalog=catalog), text).verdict
    assert refused.reasons[0].code == "rows.path"
    assert "`lower`" in refused.reasons[0].text


def test_an_operator_of_a_user_that_could_be_meant_refuses() -> None:
    text = b"SELECT id FROM public.orders"
    for operator, effect in (("=", Effect.DENY), ("===", Effect.ALLOW)):
        catalog = replace(CATALOG, operators={("public", operator): (99_999,)})
        assert decide(SAME_NAME, PRINCIPALS["devin"], facts(catalog=catalog), text).verdict.effect is effect


def test_a_filter_on_a_column_that_is_not_there_refuses_and_check_says_which() -> None:
    policy = load_policy(
        RULES + "  - {relations: [public.orders], filter: totl < 5 AND id IN (SELECT id FROM public.tikets)}\n"
        "  - {relations: [public.ordrs], filter: 'true'}\n",
        "p.yaml",
    )
    refused = decide(policy, PRINCIPALS["devin"], facts(), b"SELECT id FROM orders").verdict
    assert refused.reasons[0].code == "rows.impossible"
    problems = check(policy, CATALOG)
    assert [(p.severity, p.line) for p in problems] == [
        (Severity.ERROR, 3), (Severity.ERROR, 3), (Severity.WARNING, 4),
    ]  # fmt: skip
    assert [p.cure for p in problems] == [
        "did you mean `total`?",
        "did you mean `public.tickets`?",
        "did you mean `public.orders`?",
    ]


def test_nul_in_an_attribute_refuses() -> None:
    policy = load_policy(RULES + "  - {relations: [public.orders], filter: status = principal.subject}\n", "p.yaml")
    nul = replace(PRINCIPALS["devin"], subject="a\0b")
    assert decide(policy, nul, facts(), b"SELECT id FROM orders").verdict.reasons[0].code == "rows.principal"
