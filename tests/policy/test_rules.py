"""Rules: strictest wins, order never matters, deny is monotone, patterns are exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.document import DocumentError
from policy.engine import decide
from policy.load import load_policy
from policy.model import Action, Demand, Effect, ObjectKind, ObjectName, Users
from policy.patterns import PatternError, parse_pattern
from policy.rules import Policy, Rule, judge
from tests.policy.corpus import policy_of
from tests.policy.sample import PRINCIPALS, facts

POLICY = policy_of("examples/policy.yaml")
NAMES = st.sampled_from(["customers", "orders", "tickets", "orders_2026_01", "employees", "pg_class", "order_total"])
DEMANDS = st.builds(
    Demand,
    action=st.sampled_from(list(Action)),
    object=st.builds(
        ObjectName,
        kind=st.sampled_from(list(ObjectKind)),
        schema=st.sampled_from(["public", "hr", "pg_catalog"]),
        name=NAMES,
    ),
    builtin=st.booleans(),
    bounded=st.booleans(),
)
PEOPLE = st.sampled_from(sorted(PRINCIPALS))


@given(order=st.permutations(POLICY.rules), demands=st.lists(DEMANDS, max_size=6), who=PEOPLE)
def test_the_order_of_rules_never_matters(order: list[Rule], demands: list[Demand], who: str) -> None:
    shuffled = replace(POLICY, rules=tuple(order))
    assert judge(shuffled, PRINCIPALS[who], "shop", demands) == judge(POLICY, PRINCIPALS[who], "shop", demands)


@given(demands=st.lists(DEMANDS, max_size=6), more=DEMANDS, who=PEOPLE)
def test_a_further_demand_never_makes_a_verdict_milder(demands: list[Demand], more: Demand, who: str) -> None:
    before = judge(POLICY, PRINCIPALS[who], "shop", demands).effect
    assert judge(POLICY, PRINCIPALS[who], "shop", [*demands, more]).effect >= before


@given(demands=st.lists(DEMANDS, min_size=1, max_size=4), who=PEOPLE)
def test_a_deny_rule_for_everything_denies_everything_that_is_not_builtin(demands: list[Demand], who: str) -> None:
    never = next(rule for rule in POLICY.rules if rule.name == "agents-never-drop")
    everyone = replace(never, name="never", who=None, actions=frozenset(Action), selectors=())
    judged = judge(replace(POLICY, rules=(*POLICY.rules, everyone)), PRINCIPALS[who], "shop", demands)
    assert (judged.effect is Effect.DENY) == any(not d.builtin for d in demands)


def test_no_rules_deny_with_a_reason_for_each_demand() -> None:
    name = ObjectName(ObjectKind.RELATION, "public", "orders")
    judged = judge(Policy("", "", (), ()), PRINCIPALS["ada"], "shop", [Demand(Action.SELECT, name)])
    assert [(r.effect, r.code) for r in judged.reasons] == [(Effect.DENY, "rule.none")]


def test_a_refusal_says_what_the_rules_for_this_principal_are_about() -> None:
    name = ObjectName(ObjectKind.RELATION, "hr", "employees")
    [reason] = judge(POLICY, PRINCIPALS["devin"], "shop", [Demand(Action.SELECT, name)]).reasons
    assert reason.text == "no rule lets `devin` select `hr.employees`"
    assert reason.cure is not None
    assert "select, explain public.*" in reason.cure


PATTERNS: list[tuple[str, tuple[str, ...], bool]] = [
    ("public.*", ("public", "orders"), True),
    ("public.*", ("public.evil", "orders"), False),
    ("public.*", ("Public", "orders"), False),
    ("public.orders", ("public", "orders"), True),
    ("public.orders", ("public", "orders_old"), False),
    ("public.orders_*", ("public", "orders_2026"), True),
    ("*.orders", ("hr", "orders"), True),
    ("*", ("hr", "orders"), True),
    ("*.*", ("a\nb", "c"), True),
    ('"a.b"."c*"', ("a.b", "c*"), True),
    ('"a.b"."c*"', ("a.b", "cd"), False),
    ("a+.b", ("aa", "b"), False),
]


@pytest.mark.parametrize(("pattern", "name", "matches"), PATTERNS)
def test_patterns_match_part_by_part(pattern: str, name: tuple[str, ...], matches: bool) -> None:
    assert parse_pattern(pattern, 2, "schema.name").matches(name) is matches


@pytest.mark.parametrize("text", ["", "a", "a.b.c", "a.", ".b", "a b.c", 'a."b', "a..b"])
def test_a_text_that_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(PatternError):
        parse_pattern(text, 2, "schema.name")


ELSEWHERE = replace(PRINCIPALS["ada"], issuer="https://other.example")


@pytest.mark.parametrize(
    ("who", "ours", "theirs"),
    [
        ("users: [ada]", True, True),
        ("users: [ada@example.com]", True, True),
        ("users: [{subject: ada, issuer: 'https://issuer.example'}]", True, False),
        ("users: [{subject: ada, issuer: 'https://other.example'}, grace]", False, True),
        ("users: [ada], issuers: ['https://issuer.example']", True, False),
        ("issuers: ['https://other.example']", False, True),
    ],
)
def test_a_subject_of_another_issuer_is_somebody_else_where_the_policy_says_so(
    who: str, ours: bool, theirs: bool
) -> None:
    rule = f"{{name: a, effect: allow, actions: [select], who: {{{who}}}}}"
    mask = f"{{columns: [public.customers.card], with: redact, unless: {{{who.partition(', issuers')[0]}}}}}"
    policy = load_policy(f"rules:\n  - {rule}\n" + (f"masks:\n  - {mask}\n" if "users" in who else ""), "policy.yaml")
    for principal, meant in ((PRINCIPALS["ada"], ours), (ELSEWHERE, theirs)):
        verdict = decide(policy, principal, facts(), b"SELECT card FROM customers").verdict
        assert (verdict.effect is Effect.ALLOW) is meant
        if verdict.rewrite is not None and "users" in who:
            assert not verdict.rewrite.masked


def test_a_person_needs_both_parts() -> None:
    with pytest.raises(DocumentError, match="the key `issuer` is missing"):
        load_policy("rules: [{name: a, effect: deny, actions: [select], who: {users: [{subject: ada}]}}]\n", "p.yaml")


@pytest.mark.parametrize(
    ("subject", "email", "named"),
    [
        ("x", "ada@example.com", True),
        ("x", "ADA@Example.COM", True),  # a rule that denies is not left by typing capitals
        ("x", "ad\u0430@example.com", False),  # a Cyrillic letter
        ("x", "\u212aay@example.com", False),  # the Kelvin sign, which Unicode lowers to a k
        ("kay@example.com", None, True),
        ("KAY@example.com", None, False),  # subjects are what they are
        ("GRACE", None, False),
        ("x", "grace", False),
    ],
)
def test_people_are_named_by_exact_subjects_and_by_addresses_in_any_case(
    subject: str, email: str | None, named: bool
) -> None:
    users = Users(frozenset(("Ada@example.com", "kay@example.com", "grace")))
    assert (replace(PRINCIPALS["ada"], subject=subject, email=email) in users) is named
