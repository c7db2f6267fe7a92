"""What holds for every statement and every policy: deny is monotone, order never shows, no allow is unproved."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.engine import decide
from policy.load import load_policy
from policy.model import Action, Effect, Rewrite
from policy.parse import statements
from policy.patterns import parse_pattern
from policy.rules import Policy, Rule, Selector
from policy.tree import nodes
from tests.policy.corpus import load_cases, policy_of
from tests.policy.sample import PRINCIPALS, facts
from tests.policy.statements import mutated, readings

# Rules and masks that overlap, of each effect and kind: whatever decided between them by its place would show.
OVERLAPPING = """
rules:
  - {name: b, effect: allow, actions: [select, explain, lock], relations: ["public.*"]}
  - {name: a, effect: allow, actions: ["*"], who: {groups: [ai-agents]}}
  - {name: d, effect: approve, actions: [delete, drop], approvers: {groups: [dba]}, quorum: 2}
  - {name: c, effect: approve, actions: [delete, update], approvers: {users: [ada]}, expires: 5m}
  - {name: e, effect: deny, actions: [drop, truncate], relations: [public.orders]}
  - {name: f, effect: deny, actions: [insert], relations: ["public.o*"], who: {kinds: [agent]}}
masks:
  - {columns: [public.customers.card], with: redact}
  - {columns: ["public.*.card"], with: {hash: {pool: one}}}
  - {columns: [public.customers.card], with: {hash: {pool: two}}}
  - {columns: [public.customers.email], with: {hash: {pool: two}}}
  - {columns: ["public.customers.e*"], with: {hash: {pool: one}}}
  - {columns: [public.customers.ssn], with: {partial: {keep_first: 2, keep_last: 2}}}
  - {columns: ["*.customers.ssn"], with: {partial: {keep_last: 4}}}
  - {columns: [public.customers.notes.a], with: redact}
  - {columns: [public.customers.notes.b], with: null}
  - {columns: [public.tickets.created_at], with: {range: {days: 7}}}
  - {columns: [public.tickets.created_at], with: {truncate: month}}
rows:
  - {relations: [public.tickets], filter: id < 100}
  - {relations: ["public.t*"], filter: "status = 'open'"}
"""
DOCUMENT = yaml.safe_load(OVERLAPPING)
DEMO = policy_of("examples/policy.yaml")
POLICIES = (DEMO, policy_of("tests/policy/policies/card.yaml"), load_policy(OVERLAPPING, "overlapping.yaml"))
PEOPLE = st.sampled_from(sorted(PRINCIPALS))
TEXTS = st.one_of(readings(), st.sampled_from([case.sql for case in load_cases()]))
TOKENS = (
    "customers", "public.", "card", "*", "(", ")", ",", ".", " AS ", "SELECT ", " FROM ", " ONLY ", "TABLE ", "'", '"',
    "--", "/*", "*/", "$$", ";", "U&", " UESCAPE '!'", "\\", "\x00", "\u00a0", "WITH customers AS (", " UNION ",
    "EXPLAIN ", "EXPLAIN ANALYZE ", "PREPARE p AS ", "DECLARE c CURSOR FOR ", " FOR UPDATE", "$1", "::text", "hr.",
)  # fmt: skip
READS = frozenset((Action.SELECT, Action.CALL, Action.EXPLAIN))
MASKED = frozenset({"customers", "customer_contacts", "customer_orders", "employees"})

checked = settings(
    max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@st.composite
def refusals(draw: st.DrawFn) -> Rule:
    """A rule that denies, about anything and anybody."""
    pattern = parse_pattern(
        draw(st.sampled_from(["*", "public.*", "*.customers", "public.tickets", "pg_catalog.*"])), 2, ""
    )
    selectors = draw(st.sampled_from([(), (Selector("relation", (pattern,)),), (Selector("function", (pattern,)),)]))
    model = draw(st.sampled_from(DEMO.rules))
    actions = draw(st.sets(st.sampled_from(list(Action)), min_size=1))
    return replace(
        model, name="refusal", label="refusal", effect=Effect.DENY, actions=frozenset(actions), selectors=selectors
    )


@checked
@given(text=TEXTS, who=PEOPLE, policy=st.sampled_from(POLICIES), refusal=refusals())
def test_a_further_deny_rule_never_makes_a_verdict_milder(text: str, who: str, policy: Policy, refusal: Rule) -> None:
    before = decide(policy, PRINCIPALS[who], facts(), text.encode()).verdict
    stricter = replace(policy, rules=(*policy.rules, refusal))
    after = decide(stricter, PRINCIPALS[who], facts(), text.encode()).verdict
    assert after.effect >= before.effect
    if after.effect is not Effect.DENY:
        assert after.rewrite == before.rewrite


@cache
def reordered(rules: tuple[int, ...], masks: tuple[int, ...], rows: tuple[int, ...]) -> Policy:
    """The overlapping policy's file with its entries in another order."""
    orders = {"rules": rules, "masks": masks, "rows": rows}
    return load_policy(
        yaml.safe_dump({key: [DOCUMENT[key][i] for i in order] for key, order in orders.items()}), "o.yaml"
    )


ORDERS = st.tuples(*(st.permutations(range(len(DOCUMENT[key]))).map(tuple) for key in ("rules", "masks", "rows")))


@checked
@given(text=TEXTS, who=PEOPLE, order=ORDERS)
def test_the_order_of_a_policy_file_never_shows(
    text: str, who: str, order: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
) -> None:
    one, two = (
        decide(policy, PRINCIPALS[who], facts(), text.encode()).verdict for policy in (POLICIES[2], reordered(*order))
    )
    # Labels name lines of the file, which did change.
    assert [(r.effect, r.code, r.text, r.demand) for r in one.reasons] == [
        (r.effect, r.code, r.text, r.demand) for r in two.reasons
    ]
    assert one.effect is two.effect
    assert {replace(t, rule="") for t in one.terms} == {replace(t, rule="") for t in two.terms}
    assert (one.rewrite and one.rewrite.sql) == (two.rewrite and two.rewrite.sql)


def assert_proved(rewrite: Rewrite, base: bytes) -> None:
    """By another way than `policy.verify`: undone it is the text, and no masked relation stands outside the splices."""
    undone, places, shift = rewrite.sql, [], 0
    for splice in rewrite.splices:
        places.append(range(splice.start + shift, splice.start + shift + len(splice.replacement)))
        shift += len(splice.replacement) - (splice.end - splice.start)
    for splice, place in zip(reversed(rewrite.splices), reversed(places), strict=True):
        undone = undone[: place.start] + base[splice.start : splice.end] + undone[place.stop :]
    assert undone == base
    found = [node for _, _, tree in statements(rewrite.sql) for node in nodes(tree)]
    ctes = {node["ctename"] for node in found if "ctename" in node}
    outside = [
        node["relname"]
        for node in found
        if node.get("relname") in MASKED - ctes and not any(node.get("location", 0) in place for place in places)
    ]
    assert not outside, rewrite.shown


def assert_sound(text: bytes) -> None:
    """Decided without an accident, and proved where it may run and reads."""
    decision = decide(DEMO, PRINCIPALS["devin"], facts(), text)
    verdict, analysis = decision.verdict, decision.analysis
    assert "internal" not in {reason.code for reason in verdict.reasons}
    assert (verdict.rewrite is None) == (verdict.effect is Effect.DENY)
    if (
        analysis is None or analysis.kind == "LockStmt"
    ):  # LOCK … IN ACCESS SHARE MODE demands to read, and reads nothing
        return
    if verdict.rewrite is not None and {d.action for d in analysis.demands} <= READS:
        assert_proved(verdict.rewrite, analysis.text)


@checked
@given(text=TEXTS)
def test_what_is_allowed_is_proved(text: str) -> None:
    assert_sound(text.encode())


@settings(parent=checked, max_examples=500)
@given(text=mutated(TEXTS, TOKENS))
def test_what_is_left_of_a_mutated_text_is_decided_and_proved(text: bytes) -> None:
    assert_sound(text)


@checked
@given(text=st.binary(max_size=200))
def test_any_bytes_are_decided(text: bytes) -> None:
    assert_sound(text)
