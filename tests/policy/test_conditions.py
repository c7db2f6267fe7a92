"""Conditions of rules: rows, times, doors and alternatives; what is not known is answered strictly."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.check import check
from policy.conditions import When, Window, implies
from policy.engine import decide
from policy.load import load_policy
from policy.model import Action, Circumstances, Decision, Demand, Effect, ObjectKind, ObjectName
from tests.policy.sample import PRINCIPALS, facts

DEMAND = Demand(Action.UPDATE, ObjectName(ObjectKind.RELATION, "public", "tickets"))
MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
OFFICE = Window(time(8), time(18), frozenset(range(5)), ZoneInfo("Europe/Berlin"))
NIGHT = Window(time(22), time(6), frozenset((4,)), ZoneInfo("UTC"))  # from Friday to Saturday


@pytest.mark.parametrize(
    ("window", "day", "clock", "holds"),
    [
        (OFFICE, 23, (6, 59), False),  # 07:59 in Berlin
        (OFFICE, 23, (7, 0), True),
        (OFFICE, 23, (16, 59), True),
        (OFFICE, 23, (17, 0), False),
        (OFFICE, 28, (12, 0), False),  # a Saturday
        (NIGHT, 27, (21, 59), False),
        (NIGHT, 27, (22, 0), True),
        (NIGHT, 28, (5, 59), True),
        (NIGHT, 28, (6, 0), False),
        (NIGHT, 27, (3, 0), False),  # the night from Thursday
    ],
)
def test_a_window_is_kept_by_its_own_zones_clocks(
    window: Window, day: int, clock: tuple[int, int], holds: bool
) -> None:
    assert window.holds(MONDAY.replace(day=day, hour=clock[0], minute=clock[1])) is holds


LEAVES = st.builds(
    When,
    bounded=st.none() | st.booleans(),
    rows_at_most=st.none() | st.integers(0, 5),
    rows_over=st.none() | st.integers(0, 5),
    window=st.none() | st.sampled_from([OFFICE, NIGHT]),
    doors=st.sampled_from([frozenset(), frozenset(("mcp",)), frozenset(("mcp", "wire"))]),
)
WHENS = st.builds(lambda leaf, inner: replace(leaf, any_of=tuple(inner)), LEAVES, st.lists(LEAVES, max_size=2))
KNOWN = st.builds(
    Circumstances,
    rows=st.integers(0, 6),
    now=st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC)),
    door=st.sampled_from(["mcp", "wire"]),
)


@given(WHENS, KNOWN, st.sets(st.sampled_from(["rows", "now", "door"])), st.booleans())
def test_to_know_less_is_never_laxer(when: When, known: Circumstances, forgotten: set[str], bounded: bool) -> None:
    demand = replace(DEMAND, bounded=bounded)
    less = replace(known, **dict.fromkeys(forgotten))
    truth = when.holds(demand, known, False)
    assert when.holds(demand, less, True) >= truth  # of a rule that denies
    assert when.holds(demand, less, False) <= truth  # of a rule that allows


@given(WHENS, WHENS, KNOWN, st.booleans())
def test_what_implies_holds_wherever_the_other_does(
    narrow: When, wide: When, known: Circumstances, bounded: bool
) -> None:
    demand = replace(DEMAND, bounded=bounded)
    if implies(narrow, wide) and narrow.holds(demand, known, False):
        assert wide.holds(demand, known, False)


POLICY = load_policy(
    """
rules:
  - {name: read, effect: allow, actions: [select]}
  - {name: few, effect: allow, actions: [insert, update, delete], when: {bounded: true, rows_at_most: 10}}
  - name: many
    effect: approve
    actions: [update, delete]
    when: {any_of: [{bounded: false}, {rows_over: 10}]}
    approvers: {groups: [dba]}
  - {name: never, effect: deny, actions: [delete], when: {rows_over: 100}}
""",
    "p.yaml",
)
UPDATE, DELETE = "UPDATE tickets SET status = 'x' WHERE id = 1", "DELETE FROM tickets WHERE id = 1"


def decided(sql: str, rows: int | None) -> Decision:
    return decide(POLICY, PRINCIPALS["devin"], replace(facts(), circumstances=Circumstances(rows=rows)), sql.encode())


@pytest.mark.parametrize(
    ("sql", "rows", "effect"),
    [
        (UPDATE, 10, Effect.ALLOW),
        (UPDATE, 11, Effect.APPROVE),
        (UPDATE, None, Effect.APPROVE),
        (UPDATE.replace(" WHERE id = 1", ""), 1, Effect.APPROVE),
        (DELETE, 10, Effect.ALLOW),
        (DELETE, 100, Effect.APPROVE),
        (DELETE, 101, Effect.DENY),
        (DELETE, None, Effect.DENY),
    ],
)
def test_the_number_of_rows_decides(sql: str, rows: int | None, effect: Effect) -> None:
    decision = decided(sql, rows)
    assert decision.verdict.effect is effect
    assert decision.counts


@pytest.mark.parametrize(
    "sql",
    [
        "WITH d AS (DELETE FROM tickets WHERE id = 1) SELECT 1",
        "WITH d AS (DELETE FROM tickets WHERE id = 1 RETURNING id) DELETE FROM tickets USING d WHERE tickets.id = 2",
        "PREPARE p AS DELETE FROM tickets WHERE id = 1",
        "EXPLAIN ANALYZE DELETE FROM tickets WHERE id = 1",
    ],
)
def test_what_no_command_tag_counts_may_be_any_number(sql: str) -> None:
    decision = decided(sql, 1)
    assert decision.verdict.effect is Effect.DENY
    assert not decision.counts


EXPORTS = load_policy(
    """\
rules:
  - {name: small, effect: allow, actions: [select], when: {rows_at_most: 10}}
  - {name: large, effect: approve, actions: [select], when: {rows_over: 10}, approvers: {groups: [dba]}}
  - {name: plans, effect: allow, actions: [explain, create, insert]}
""",
    "p.yaml",
)


@pytest.mark.parametrize(
    ("sql", "rows", "effect", "streams"),
    [
        ("SELECT id FROM tickets", 10, Effect.ALLOW, True),
        ("SELECT id FROM tickets", 11, Effect.APPROVE, True),
        ("SELECT id FROM tickets", None, Effect.APPROVE, True),
        ("COPY tickets TO STDOUT", 11, Effect.APPROVE, True),
        ("COPY (SELECT id FROM tickets) TO STDOUT", 10, Effect.ALLOW, True),
        ("DECLARE c CURSOR FOR SELECT id FROM tickets", 10, Effect.ALLOW, True),
        ("EXPLAIN SELECT id FROM tickets", None, Effect.ALLOW, False),
        # What is stored, or passes nobody who could count it, may be any number.
        ("EXPLAIN ANALYZE SELECT id FROM tickets", 1, Effect.APPROVE, False),
        ("CREATE TABLE t AS SELECT id FROM tickets", 1, Effect.APPROVE, False),
        ("PREPARE p AS SELECT id FROM tickets", 1, Effect.APPROVE, False),
    ],
)
def test_the_number_of_rows_that_a_read_returns_decides(
    sql: str, rows: int | None, effect: Effect, streams: bool
) -> None:
    known = replace(facts(), circumstances=Circumstances(rows=rows))
    decision = decide(EXPORTS, PRINCIPALS["devin"], known, sql.encode())
    assert decision.verdict.effect is effect
    assert (decision.streams, decision.counts) == (streams, False)


def test_a_policy_knows_the_numbers_that_its_verdicts_change_at() -> None:
    assert (POLICY.thresholds, EXPORTS.thresholds) == ((10, 100), (10,))


def test_statements_that_no_row_condition_is_about_are_not_counted() -> None:
    assert not decided("SELECT id FROM tickets", None).counts


def test_check_knows_which_conditions_make_a_rule_void() -> None:
    rules = """
rules:
  - {name: few, effect: allow, actions: [update], when: {rows_at_most: 10, doors: [mcp]}}
  - {name: some, effect: deny, actions: [update], when: {any_of: [{rows_at_most: 50}, {bounded: false}]}}
  - {name: other, effect: allow, actions: [update], when: {rows_at_most: 60}}
"""
    assert [(p.line, p.text.split("`")[1]) for p in check(load_policy(rules, "p"))] == [(3, "few")]


def test_a_policy_tells_moments_apart_that_its_windows_tell_apart() -> None:
    rules = """
rules:
  - name: office
    effect: allow
    actions: [select]
    when: {any_of: [{time: {from: "08:00", to: "18:00"}}, {time: {from: "22:00", to: "23:00", days: [mon]}}]}
"""
    policy = load_policy(rules, "p")
    hours = {policy.moment(MONDAY.replace(hour=hour)): hour for hour in range(24)}
    assert len(hours) == 3
    for moment, effect in ((MONDAY.replace(hour=9), Effect.ALLOW), (MONDAY.replace(hour=19), Effect.DENY)):
        asked = replace(facts(), circumstances=Circumstances(now=moment))
        assert decide(policy, PRINCIPALS["devin"], asked, b"SELECT id FROM orders").verdict.effect is effect
