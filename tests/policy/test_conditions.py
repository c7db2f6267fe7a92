"""Conditions of rules: rows, times, doors and alternatives; what is not known is answered strictly."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from ipaddress import ip_network
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.check import check
from policy.conditions import When, Window, implies
from policy.document import DocumentError
from policy.engine import decide
from policy.load import load_policy
from policy.model import Action, Circumstances, Decision, Demand, Effect, ObjectKind, ObjectName
from policy.patterns import parse_pattern
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
    networks=st.sampled_from([(), (ip_network("10.0.0.0/8"),)]),
    clients=st.sampled_from([(), (parse_pattern("psql*", 1, "client"),)]),
    age_at_most=st.none() | st.integers(0, 3).map(lambda hours: timedelta(hours=hours)),
    age_over=st.none() | st.integers(0, 3).map(lambda hours: timedelta(hours=hours)),
)
WHENS = st.builds(lambda leaf, inner: replace(leaf, any_of=tuple(inner)), LEAVES, st.lists(LEAVES, max_size=2))
KNOWN = st.builds(
    Circumstances,
    rows=st.integers(0, 6),
    now=st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC)),
    door=st.sampled_from(["mcp", "wire"]),
    address=st.sampled_from(["10.1.2.3", "::ffff:10.1.2.3", "192.0.2.1", "fd00::1%eth0"]),
    client=st.sampled_from(["psql", "psql 18", "x"]),
    age=st.integers(0, 4).map(lambda hours: timedelta(hours=hours)),
)


@given(WHENS, KNOWN, st.sets(st.sampled_from(["rows", "now", "door", "address", "client", "age"])), st.booleans())
def test_to_know_less_is_never_laxer(when: When, known: Circumstances, forgotten: set[str], bounded: bool) -> None:
    demand = DEMAND._replace(bounded=bounded)
    less = replace(known, **dict.fromkeys(forgotten))
    truth = when.holds(demand, known, False)
    assert when.holds(demand, less, True) >= truth  # of a rule that denies
    assert when.holds(demand, less, False) <= truth  # of a rule that allows


@given(WHENS, WHENS, KNOWN, st.booleans())
def test_what_implies_holds_wherever_the_other_does(
    narrow: When, wide: When, known: Circumstances, bounded: bool
) -> None:
    demand = DEMAND._replace(bounded=bounded)
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
    hours = {policy.standing(Circumstances(now=MONDAY.replace(hour=hour))): hour for hour in range(24)}
    assert len(hours) == 3
    for moment, effect in ((MONDAY.replace(hour=9), Effect.ALLOW), (MONDAY.replace(hour=19), Effect.DENY)):
        asked = replace(facts(), circumstances=Circumstances(now=moment))
        assert decide(policy, PRINCIPALS["devin"], asked, b"SELECT id FROM orders").verdict.effect is effect


SESSIONS = load_policy(
    """
rules:
  - {name: inside, effect: allow, actions: [select], when: {networks: [10.0.0.0/8, "fd00::/8"], session_at_most: 8h}}
  - {name: not-psql, effect: deny, actions: [select], relations: [public.tickets], when: {clients: ["psql*"]}}
  - name: long-sessions-wait
    effect: approve
    actions: [select]
    relations: [public.orders]
    when: {session_over: 1h}
    approvers: {groups: [dba]}
""",
    "sessions.yaml",
)


@pytest.mark.parametrize(
    ("relation", "address", "client", "hours", "effect"),
    [
        ("orders", "10.1.2.3", "psql", 0, Effect.ALLOW),
        ("orders", "::ffff:10.1.2.3", "psql", 0, Effect.ALLOW),
        ("orders", "fd00::1%eth0", "psql", 0, Effect.ALLOW),
        ("orders", "192.0.2.1", "psql", 0, Effect.DENY),
        ("orders", "nonsense", "psql", 0, Effect.DENY),
        ("orders", None, "psql", 0, Effect.DENY),
        ("orders", "10.1.2.3", "psql", 2, Effect.APPROVE),
        ("orders", "10.1.2.3", "psql", 9, Effect.APPROVE),
        ("customers", "10.1.2.3", "psql", 9, Effect.DENY),
        ("customers", "10.1.2.3", "psql", None, Effect.DENY),
        ("tickets", "10.1.2.3", "psql", 0, Effect.DENY),
        ("tickets", "10.1.2.3", "pgcli", 0, Effect.ALLOW),
        ("tickets", "10.1.2.3", None, 0, Effect.DENY),
    ],
)
def test_facts_of_the_session_decide(
    relation: str, address: str | None, client: str | None, hours: int | None, effect: Effect
) -> None:
    age = None if hours is None else timedelta(hours=hours)
    known = replace(facts(), circumstances=Circumstances(address=address, client=client, age=age))
    assert decide(SESSIONS, PRINCIPALS["devin"], known, f"SELECT id FROM {relation}".encode()).verdict.effect is effect


def test_sessions_of_the_same_facts_share_decisions_and_others_do_not() -> None:
    young, old = (Circumstances(address="10.0.0.1", client="x", age=timedelta(hours=h)) for h in (0, 2))
    assert SESSIONS.standing(young) == SESSIONS.standing(replace(young, age=timedelta(minutes=5)))
    assert SESSIONS.standing(young) != SESSIONS.standing(old)
    assert SESSIONS.standing(young) != SESSIONS.standing(replace(young, address=None))


def test_check_warns_of_trust_in_what_a_client_calls_itself() -> None:
    policy = load_policy("rules:\n  - {name: a, effect: allow, actions: [select], when: {clients: [psql]}}\n", "p")
    [problem] = check(policy)
    assert "it may call itself anything" in problem.text
    assert check(SESSIONS) == []


@pytest.mark.parametrize(
    ("when", "text"),
    [("networks: [10.0.0.1/8]", "`10.0.0.1/8` is no network"), ("clients: [a.b]", "`a.b` is no pattern")],
)
def test_conditions_that_cannot_be_read_name_their_place(when: str, text: str) -> None:
    with pytest.raises(DocumentError, match=text) as error:
        load_policy(f"rules:\n  - name: a\n    effect: deny\n    actions: [select]\n    when: {{{when}}}\n", "p.yaml")
    assert str(error.value).startswith("p.yaml:5:")
