"""The engine as a function: always a value, whatever the text; prepared statements; user code in the catalog."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policy import functions
from policy.catalog import Function, Volatility
from policy.engine import decide
from policy.explain import explain
from policy.load import load_policy
from policy.model import Decision, Effect, Facts, Transaction
from policy.parse import MAX_TEXT_BYTES
from tests.policy.corpus import load_cases, policy_of
from tests.policy.sample import CATALOG, PRINCIPALS, facts

POLICY = policy_of("examples/policy.yaml")
CARD = policy_of("tests/policy/policies/card.yaml")


def _decide(sql: str | bytes, known: Facts | None = None, who: str = "devin", policy: Any = POLICY) -> Decision:
    text = sql.encode() if isinstance(sql, str) else sql
    return decide(policy, PRINCIPALS[who], known or facts(), text)


def _codes(decision: Decision) -> list[str]:
    return [r.code for r in decision.verdict.reasons if r.effect is decision.verdict.effect]


@given(st.binary(max_size=200))
@example(b"SELECT $9999999999999")
@example(b"\xef\xbb\xbfSELECT 1")
@example(b'SELECT * FROM U&"\\D800"')
def test_bytes_of_any_kind_get_a_verdict(text: bytes) -> None:
    assert "internal" not in _codes(_decide(text))


@given(st.lists(st.sampled_from([w for case in load_cases() for w in case.sql.split(" ")]), max_size=25))
def test_words_of_the_corpus_in_any_order_get_a_verdict(words: list[str]) -> None:
    assert "internal" not in _codes(_decide(" ".join(words), policy=CARD))


@given(st.sampled_from([c.sql for c in load_cases()]), st.sampled_from([c.sql for c in load_cases()]), st.data())
def test_halves_of_the_corpus_get_a_verdict(one: str, two: str, data: st.DataObject) -> None:
    cut, other = data.draw(st.integers(0, len(one))), data.draw(st.integers(0, len(two)))
    decision = _decide(one[:cut] + two[other:], policy=CARD)
    assert "internal" not in _codes(decision)
    assert explain(decision)


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT * FROM orders WHERE id IN (" + b",".join(b"%d" % i for i in range(100_000)) + b")",
        b"SELECT '" + b"x" * (MAX_TEXT_BYTES - 100) + b"'",
        b"INSERT INTO tickets (id) VALUES " + b",".join(b"(%d)" % i for i in range(50_000)),
    ],
    ids=["list", "literal", "values"],
)
def test_large_statements_are_decided(text: bytes) -> None:
    assert _decide(text).verdict.effect is Effect.ALLOW


@pytest.mark.parametrize(
    "text",
    [b"SELECT " + b"1+" * 100_000 + b"1", b"SELECT " + b"1+" * 3_000 + b"1", b"x" * (MAX_TEXT_BYTES + 1)],
    ids=["200 KB", "6 KB", "over 1 MiB"],
)
def test_what_is_too_deep_or_too_long_is_refused(text: bytes) -> None:
    assert _codes(_decide(text)) in (["text.deep"], ["text.large"], ["text.long"])


@pytest.mark.parametrize("space", [chr(c) for c in range(0x80, 0x3100) if unicodedata.category(chr(c)) == "Zs"])
def test_unicode_spaces_separate_nothing(space: str) -> None:
    assert _decide(f"SELECT * FROM hr{space}.employees").verdict.effect is Effect.DENY


# -- prepared statements --------------------------------------------------------------------------------


def _prepared(sql: str, known: Facts | None = None, who: str = "devin", policy: Any = POLICY) -> Facts:
    decision = _decide(sql, known, who, policy)
    assert decision.analysis is not None
    name = decision.analysis.effects.prepares
    assert name is not None
    return replace(known or facts(), prepared=MappingProxyType({name: decision}))


def test_execute_demands_what_was_prepared() -> None:
    known = _prepared("PREPARE p AS UPDATE tickets SET status = 'x'")
    decision = _decide("EXECUTE p", known)
    assert decision.verdict.effect is Effect.APPROVE
    assert decision.verdict.terms
    assert decision.analysis is not None
    assert "update public.tickets" in [str(d) for d in decision.analysis.demands]
    assert decision.analysis.effects.writes


def test_execute_of_a_masked_read_knows_what_it_hides() -> None:
    known = _prepared("PREPARE p AS SELECT * FROM customers")
    rewrite = _decide("EXECUTE p", known).verdict.rewrite
    assert rewrite is not None
    assert rewrite.sql == b"EXECUTE p"
    assert {m.column for m in rewrite.masked} == {"email", "ssn", "card", "notes"}
    assert rewrite.origins


def test_execute_is_judged_by_the_policy_of_today() -> None:
    known = _prepared("PREPARE p AS SELECT ssn FROM customers", who="grace")
    stricter = load_policy("rules:\n  - {name: x, effect: deny, actions: ['*']}", "p.yaml")
    assert _codes(_decide("EXECUTE p", known, "grace", stricter)) == ["rule.matched"]


def test_execute_is_refused_once_the_masks_have_changed() -> None:
    known = _prepared("PREPARE p AS SELECT ssn FROM customers", policy=CARD)
    assert "prepared.stale" in _codes(_decide("EXECUTE p", known, policy=POLICY))


def test_execute_is_judged_by_the_search_path_of_today() -> None:
    known = _prepared("PREPARE p AS SELECT * FROM orders")
    moved = replace(known, search_path=("pg_catalog", "hr"))
    assert _codes(_decide("EXECUTE p", moved)) == ["relation.unknown"]


def test_the_arguments_of_execute_are_walked() -> None:
    known = _prepared("PREPARE p AS SELECT id FROM orders WHERE id = $1")
    assert _codes(_decide("EXECUTE p ((SELECT max(id) FROM hr.employees))", known)) == ["rule.none"]


# -- user code ------------------------------------------------------------------------------------------


def _function(name: str, arguments: str = "", schema: str = "public", volatility: str = "v") -> Function:
    return Function(90000 + len(name), schema, name, "f", Volatility(volatility), "plpgsql", arguments)


def _with(*added: Function, operators: dict[tuple[str, str], tuple[int, ...]] | None = None) -> Facts:
    table = dict(CATALOG.functions)
    for function in added:
        key = (function.schema, function.name)
        table[key] = (*table.get(key, ()), function)
    return facts(catalog=replace(CATALOG, functions=table, operators=operators or {}))


def test_a_user_function_needs_a_rule() -> None:
    assert _codes(_decide("SELECT f()", _with(_function("f")))) == ["rule.none"]
    assert _codes(_decide("SELECT f()", _with(_function("f")), "ada")) == ["rule.matched"]


def test_a_volatile_user_function_may_have_changed_the_search_path() -> None:
    analysis = _decide("SELECT f()", _with(_function("f")), "ada").analysis
    assert analysis is not None
    assert analysis.effects.search_path
    assert analysis.effects.writes


def test_a_user_function_that_shadows_a_builtin_counts() -> None:
    known = _with(_function("lower", "citext"))
    assert _codes(_decide("SELECT lower(subject) FROM tickets", known)) == ["rule.none"]
    assert _decide("SELECT pg_catalog.lower(subject) FROM tickets", known).verdict.effect is Effect.ALLOW


def test_a_volatile_function_of_the_server_that_nobody_reviewed_is_refused() -> None:
    new = Function(9999, "pg_catalog", "pg_brand_new", "f", Volatility.VOLATILE, "internal")
    assert _codes(_decide("SELECT pg_brand_new()", _with(new))) == ["function.refused"]


def test_an_overload_that_takes_another_number_of_arguments_does_not_count() -> None:
    known = _with(replace(_function("lower", "text, text"), least=2, most=2))
    assert _decide("SELECT lower(subject) FROM tickets", known).verdict.effect is Effect.ALLOW
    assert _codes(_decide("SELECT lower(subject, 'x') FROM tickets", known)) == ["rule.none"]


def test_an_overload_of_a_builtin_that_an_extension_brought_is_as_harmless_as_the_builtin() -> None:
    brought = replace(_function("sum", "vector", volatility="i"), extension="vector")
    assert _decide("SELECT sum(total) FROM orders", _with(brought)).verdict.effect is Effect.ALLOW
    assert _codes(_decide("SELECT public.sum(total) FROM orders", _with(brought))) == ["rule.none"]
    volatile = replace(brought, volatility=Volatility.VOLATILE)
    assert _codes(_decide("SELECT sum(total) FROM orders", _with(volatile))) == ["rule.none"]


@pytest.mark.parametrize(
    "sql", ["SELECT t.leak FROM tickets t", "SELECT (t).leak FROM tickets t", "SELECT leak(t) FROM tickets t"]
)
def test_a_function_of_a_row_is_a_call_in_every_notation(sql: str) -> None:
    assert _codes(_decide(sql, _with(_function("leak", "tickets")))) == ["rule.none"]


def test_a_function_of_a_scalar_is_a_call_where_from_holds_a_function() -> None:
    known = _with(_function("leak", "integer, n integer"))
    assert _codes(_decide("SELECT x.leak FROM generate_series(1, 2) x", known)) == ["rule.none"]


def test_a_user_function_named_like_a_builtin_notifier_is_a_call() -> None:
    known = _with(_function("pg_notify", "text, text"))
    assert "call public.pg_notify" in [
        str(r.demand) for r in _decide("SELECT pg_notify('a', 'b')", known).verdict.reasons
    ]


def test_a_column_is_no_call_of_a_function_of_the_same_name() -> None:
    assert (
        _decide("SELECT t.status FROM tickets t", _with(_function("status", "integer"))).verdict.effect is Effect.ALLOW
    )


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 = 2",
        "SELECT 1 OPERATOR(public.=) 2",
        "SELECT CASE 1 WHEN 2 THEN 3 END",
        "SELECT 1 IN (2, 3)",
        "SELECT 1 = ANY (ARRAY[2])",
        "SELECT 1 IN (SELECT 2)",
        "SELECT nullif(1, 2)",
        "SELECT 1 FROM orders a JOIN orders b USING (id)",
        "SELECT 1 FROM orders a NATURAL JOIN orders b",
    ],
)
def test_a_user_defined_operator_is_a_call(sql: str) -> None:
    same = _function("same", "integer, integer")
    known = _with(same, operators={("public", "="): (same.oid,)})
    assert _codes(_decide(sql, known)) == ["rule.none"]


def test_an_operator_with_its_database_is_refused() -> None:
    same = _function("same", "integer, integer")
    known = _with(same, operators={("public", "="): (same.oid,)})
    assert _codes(_decide("SELECT 1 OPERATOR(shop.public.=) 2", known)) == ["name.database"]


def test_writes_to_a_relation_with_rewrite_rules_are_refused() -> None:
    tickets = CATALOG.relation("public", "tickets")
    assert tickets is not None
    ruled = replace(CATALOG, relations=CATALOG.relations | {tickets.oid: replace(tickets, rules=True)})
    assert _codes(_decide("DELETE FROM tickets WHERE id = 1", facts(catalog=ruled))) == ["relation.rules"]


def test_a_name_that_would_mean_another_relation_after_a_drop_is_refused() -> None:
    tickets = CATALOG.relation("public", "tickets")
    assert tickets is not None
    mine = replace(tickets, oid=99_001, schema="hr", family=frozenset((99_001,)))
    two = facts(("pg_catalog", "hr", "public"), replace(CATALOG, relations=CATALOG.relations | {mine.oid: mine}))
    assert _codes(_decide("SELECT * FROM tickets", two, who="grace")) == ["name.ambiguous"]
    assert _codes(_decide("DROP TABLE tickets", two, who="grace")) == ["name.ambiguous"]
    assert _decide("SELECT * FROM public.tickets, hr.tickets", two, who="grace").verdict.effect is Effect.ALLOW


def test_a_drop_with_cascade_demands_the_views_behind_it() -> None:
    decision = _decide("DROP TABLE customers CASCADE", who="grace")
    assert decision.analysis is not None
    demanded = {str(d) for d in decision.analysis.demands}
    assert {"drop public.customers", "drop public.customer_orders", "drop public.customer_contacts"} <= demanded


def test_every_volatile_function_of_the_server_is_known_or_refused() -> None:
    """The curated lists name no function twice, and what they do not name is refused by `decide`."""
    volatile = {
        f.name
        for (schema, _), overloads in CATALOG.functions.items()
        if schema == "pg_catalog"
        for f in overloads
        if f.volatility is Volatility.VOLATILE
    }
    both = [n for n in volatile if functions.refusal_of_function(n) and functions.is_harmless_volatile(n)]
    assert both == []
    for name in sorted(volatile):
        decision = _decide(f'SELECT pg_catalog."{name}"(1, 2)')
        allowed = functions.is_harmless_volatile(name)
        assert (decision.verdict.effect is Effect.ALLOW) == allowed, name


# -- effects --------------------------------------------------------------------------------------------

EFFECTS: list[tuple[str, dict[str, object]]] = [
    ("SELECT 1", {"writes": False}),
    ("BEGIN", {"transaction": Transaction.BEGIN, "search_path": False}),
    ("COMMIT", {"transaction": Transaction.COMMIT, "search_path": True}),
    ("ROLLBACK TO a", {"transaction": Transaction.ROLLBACK, "search_path": True}),
    ("SET search_path = x", {"search_path": True, "session": True}),
    ("SET TimeZone = 'UTC'", {"search_path": False, "session": True}),
    ("RESET ALL", {"search_path": True}),
    ("DISCARD ALL", {"search_path": True, "deallocates": ""}),
    ("DEALLOCATE ALL", {"deallocates": ""}),
    ("DEALLOCATE p", {"deallocates": "p"}),
    ("PREPARE p AS SELECT 1", {"prepares": "p", "session": True}),
    ("COPY tickets FROM STDIN", {"copy_in": True, "writes": True}),
    ("COPY tickets TO STDOUT", {"copy_out": True, "writes": False}),
    ("DROP TABLE tickets", {"catalog": True, "writes": True}),
    ("CREATE SCHEMA x", {"catalog": True, "search_path": True}),
    ("EXPLAIN DELETE FROM tickets", {"writes": False}),
    ("EXPLAIN ANALYZE DELETE FROM tickets", {"writes": True}),
    ("EXPLAIN (ANALYZE off) DELETE FROM tickets", {"writes": False}),
    ("WITH x AS (DELETE FROM tickets RETURNING id) SELECT * FROM x", {"writes": True}),
    ("SELECT id FROM tickets FOR UPDATE", {"writes": True}),
]


@pytest.mark.parametrize(("sql", "expected"), EFFECTS)
def test_a_statement_says_what_it_leaves_behind(sql: str, expected: dict[str, object]) -> None:
    analysis = _decide(sql, who="grace").analysis
    assert analysis is not None
    assert {key: getattr(analysis.effects, key) for key in expected} == expected


def test_the_highest_parameter_is_counted() -> None:
    analysis = _decide("SELECT $2::int + $7::int").analysis
    assert analysis is not None
    assert analysis.parameters == 7


def test_explain_says_verdict_rule_and_text() -> None:
    lines = explain(_decide("SELECT card FROM customers", policy=CARD)).splitlines()
    assert lines[0] == "verdict: allow"
    assert "everyone-reads (card.yaml:3)" in lines[1]
    assert lines[-1].startswith("runs: SELECT card FROM (SELECT")


def test_a_failure_of_our_own_is_a_deny_that_names_it() -> None:
    broken = replace(facts(), search_path=None)  # type: ignore[arg-type]  # what must never be
    decision = _decide("SELECT * FROM orders", broken)
    assert _codes(decision) == ["internal"]
    assert "TypeError" in decision.verdict.reasons[0].text
