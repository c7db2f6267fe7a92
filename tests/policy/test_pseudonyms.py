"""The key of `hash` masks: which statements carry it, and that nothing that people see shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy.catalog import Column, Relation, RelationKind
from policy.check import Severity, check
from policy.document import DocumentError
from policy.engine import decide
from policy.explain import explain
from policy.load import load_policy
from policy.model import Decision, Effect
from policy.pseudonyms import BLANK, MaskKey
from tests.policy.corpus import policy_of
from tests.policy.sample import CATALOG, MASK_KEY, PRINCIPALS, facts

POLICY = policy_of("tests/policy/policies/kinds.yaml")
PEOPLE, OTHERS = MASK_KEY.subkey("people"), MASK_KEY.subkey("default")


def decided(sql: str, prepared: dict[str, Decision] | None = None) -> Decision:
    return decide(POLICY, PRINCIPALS["devin"], replace(facts(), prepared=prepared or {}), sql.encode())


def test_a_read_carries_the_keys_of_its_pools_and_shows_none() -> None:
    decision = decided("SELECT ssn, card FROM customers")
    rewrite = decision.verdict.rewrite
    assert rewrite is not None
    assert rewrite.secrets == PEOPLE.secrets | OTHERS.secrets
    assert all(secret in rewrite.sql for secret in rewrite.secrets)
    for shown in (rewrite.shown, repr(rewrite.secrets and rewrite.masked), explain(decision)):
        assert not any(secret.decode() in shown for secret in rewrite.secrets)
    assert "…key…" in rewrite.shown


def test_pools_have_keys_of_their_own() -> None:
    assert PEOPLE.secrets.isdisjoint(OTHERS.secrets)
    assert MASK_KEY.subkey("people") == PEOPLE
    assert MaskKey(b"another key of the very same length!!").subkey("people") != PEOPLE


@pytest.mark.parametrize(
    "sql",
    [
        "EXPLAIN VERBOSE SELECT ssn FROM customers WHERE ssn = 'x'",
        "DELETE FROM tickets USING customers c WHERE c.id = tickets.customer_id AND tickets.id = 7",
        "WITH d AS (DELETE FROM tickets WHERE id = 7 RETURNING customer_id) SELECT c.name FROM customers c, d",
    ],
)
def test_what_others_could_read_back_carries_a_key_that_is_none(sql: str) -> None:
    rewrite = decided(sql).verdict.rewrite
    assert rewrite is not None
    assert BLANK.inner.encode() in rewrite.sql
    assert not rewrite.secrets
    assert not any(secret in rewrite.sql for secret in PEOPLE.secrets | OTHERS.secrets)


def test_a_prepared_statement_with_a_key_is_executed_and_not_explained() -> None:
    prepared = {"p": decided("PREPARE p AS SELECT ssn FROM customers")}
    executed = decided("EXECUTE p", prepared)
    assert executed.verdict.effect is Effect.ALLOW
    assert executed.verdict.rewrite is not None
    assert executed.verdict.rewrite.secrets >= PEOPLE.secrets
    for sql in ("EXPLAIN EXECUTE p", "EXPLAIN ANALYZE EXECUTE p"):
        refused = decided(sql, prepared)
        assert refused.verdict.reasons[0].code == "mask.explain"


def test_without_a_key_a_hash_mask_refuses_and_check_says_so() -> None:
    keyless = replace(facts(), mask_key=None)
    decision = decide(POLICY, PRINCIPALS["devin"], keyless, b"SELECT name FROM customers")
    assert decision.verdict.effect is Effect.DENY
    assert decision.verdict.reasons[0].code == "mask.impossible"
    assert "mask_key_file" in decision.verdict.reasons[0].text
    assert [p.severity for p in check(POLICY, CATALOG)] == [Severity.ERROR] * 3
    assert check(POLICY, CATALOG, MASK_KEY) == []


def test_views_that_show_statements_texts_are_not_readable_in_any_schema() -> None:
    view = Relation(90001, "public", "pg_stat_statements", RelationKind.VIEW, (Column(1, "query", "text", 25),))
    above = replace(view, oid=90002, name="slow", reads=frozenset((90001,)))
    catalog = replace(CATALOG, relations=CATALOG.relations | {90001: view, 90002: above})
    for name in ("public.pg_stat_statements", "slow"):
        decision = decide(POLICY, PRINCIPALS["devin"], facts(catalog=catalog), f"TABLE {name}".encode())
        assert decision.verdict.reasons[0].code == "catalog.refused"


def test_a_short_key_is_refused_and_a_key_has_no_repr() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        MaskKey(b"x" * 31)
    assert "key of the tests" not in repr(MASK_KEY)
    assert PEOPLE.inner not in repr(PEOPLE)


def test_paths_are_masked_each_by_its_own_kind_and_named() -> None:
    text = (
        "rules: [{name: r, effect: allow, actions: [select]}]\n"
        "masks:\n"
        "  - {columns: [public.customers.notes.card], with: redact}\n"
        "  - {columns: [public.customers.notes.card], with: {partial: {keep_last: 4}}}\n"
        "  - {columns: [public.customers.notes.*], with: hash}\n"
    )
    with pytest.raises(DocumentError, match="the keys of a path cannot be patterns"):
        load_policy(text, "p.yaml")
    policy = load_policy(text.replace("notes.*", "notes.phone.home"), "p.yaml")
    rewrite = decide(policy, PRINCIPALS["devin"], facts(), b"TABLE customers").verdict.rewrite
    assert rewrite is not None
    assert [(str(m), m.kind) for m in rewrite.masked] == [
        ("public.customers.notes.card", "redact"),
        ("public.customers.notes.phone.home", "hash"),
    ]
    whole = policy_of("tests/policy/policies/card.yaml")
    assert whole.masks[0].path == ()


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("{range: {}}", "a range has buckets of a `size` (numbers) or of `days` (dates); give one of them"),
        ("{range: {size: 10, days: 7}}", "give one of them"),
        ("{range: {size: 0}}", "greater than 0"),
        ("{truncate: century}", "input should be 'minute'"),
        ("{hash: {key: abc}}", "unknown key `key`; known keys: pool"),
        ("hashed", "`hashed`"),
        ("{truncate: day, hash: {}}", "a mask has one kind; give one of partial, hash, range and truncate"),
        ("{partial: null}", "a mask has one kind"),
    ],
)
def test_a_wrong_mask_is_refused_with_its_place(entry: str, complaint: str) -> None:
    with pytest.raises(DocumentError) as caught:
        load_policy(f"masks:\n  - columns: [a.b.c]\n    with: {entry}\n", "p.yaml")
    assert str(caught.value).startswith("p.yaml:3:")
    assert complaint in str(caught.value)


def test_a_path_takes_no_kind_that_needs_another_type() -> None:
    with pytest.raises(DocumentError) as caught:
        load_policy("masks:\n  - columns: [a.b.c.d]\n    with: {truncate: day}\n", "p.yaml")
    assert str(caught.value) == (
        "p.yaml:3:11: `truncate` cannot mask a value inside jsonb; use `null`, `redact`, `partial` or `hash`"
    )


@pytest.mark.parametrize(
    ("who", "sql", "effect"),
    [
        ("devin", "ALTER DOMAIN code SET DEFAULT 'guess'", Effect.DENY),
        ("devin", "ALTER DOMAIN code DROP DEFAULT", Effect.ALLOW),
        ("grace", "ALTER DOMAIN code SET DEFAULT 'guess'", Effect.ALLOW),
    ],
)
def test_no_guess_comes_among_pseudonyms_by_the_default_of_their_domain(who: str, sql: str, effect: Effect) -> None:
    customers = CATALOG.relation("public", "customers")
    assert customers is not None
    columns = tuple(replace(c, type_oid=20_000) if c.name == "ssn" else c for c in customers.columns)
    relations = {**CATALOG.relations, customers.oid: replace(customers, columns=columns)}
    catalog, policy = replace(CATALOG, relations=relations), policy_of("tests/policy/policies/guesses.yaml")
    assert decide(policy, PRINCIPALS[who], facts(catalog=catalog), sql.encode()).verdict.effect is effect
