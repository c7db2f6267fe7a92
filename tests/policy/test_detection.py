"""The policy's `detect` entries: whom they are about, what the verdict carries, what is wrong with some."""

from __future__ import annotations

import itertools

import pytest

from policy.check import check
from policy.detection import CopyOut, Detection
from policy.document import DocumentError
from policy.engine import decide
from policy.explain import explain
from policy.load import load_policy
from policy.model import Decision
from policy.rules import Policy
from tests.policy.sample import PRINCIPALS, facts

RULES = "rules: [{name: all, effect: allow, actions: ['*']}]\n"
MASK = "masks: [{columns: [public.customers.ssn], with: redact}]\n"


def policy(*entries: str, more: str = "") -> Policy:
    return load_policy(RULES + more + "detect:\n" + "".join(f"  - {entry}\n" for entry in entries), "p.yaml")


def detection(
    loaded: Policy, who: str, sql: str = "SELECT body FROM tickets", connection: str = "shop"
) -> Detection | None:
    decision = decide(loaded, PRINCIPALS[who], facts(connection=connection), sql.encode())
    assert decision.verdict.rewrite is not None, decision.verdict.reasons
    return decision.verdict.rewrite.detection


def kinds(loaded: Policy, who: str, **more: str) -> set[str]:
    found = detection(loaded, who, **more)
    return set(found.kinds) if found is not None else set()


ENTRIES = (
    "{kinds: [card, ssn], unless: {groups: [dba]}}",
    "{kinds: [email], who: {kinds: [agent]}}",
    "{kinds: [key], connections: ['crm*']}",
    "{kinds: [card], who: {groups: [dba]}, unless: {users: [nobody]}}",
)


def test_what_is_looked_for_is_all_that_any_entry_says_in_any_order() -> None:
    hashes = set()
    for ordered in itertools.permutations(ENTRIES):
        loaded = policy(*ordered)
        hashes.add(loaded.hash)
        assert kinds(loaded, "ada") == {"card", "ssn"}
        assert kinds(loaded, "devin") == {"card", "ssn", "email"}
        assert kinds(loaded, "devin", connection="crm-eu") == {"card", "ssn", "email", "key"}
        assert kinds(loaded, "grace") == {"card"}
    assert load_policy(RULES, "p.yaml").hash not in hashes


def test_without_an_entry_the_verdict_is_what_it_was() -> None:
    assert detection(load_policy(RULES, "p.yaml"), "ada") is None
    assert detection(policy("{kinds: [card], who: {users: [grace]}}"), "ada") is None


def test_masks_stay_first_and_executes_are_searched_too() -> None:
    loaded = policy("{kinds: [ssn]}", more=MASK)
    found = decide(loaded, PRINCIPALS["ada"], facts(), b"SELECT ssn FROM customers").verdict.rewrite
    assert found is not None
    assert (len(found.masked), found.detection is not None) == (1, True)
    prepared: Decision = decide(loaded, PRINCIPALS["ada"], facts(), b"PREPARE p AS SELECT body FROM tickets")
    known = facts()
    known.prepared["p"] = prepared  # type: ignore[index]  # a dict, as the session's is
    executed = decide(loaded, PRINCIPALS["ada"], known, b"EXECUTE p").verdict.rewrite
    assert executed is not None
    assert executed.detection is not None


@pytest.mark.parametrize(
    ("sql", "copy"),
    [
        ("COPY tickets TO STDOUT", CopyOut(b'SELECT * FROM "public"."tickets"', False, b"\t")),
        (
            "COPY tickets (id, body) TO STDOUT CSV HEADER",
            CopyOut(b'SELECT "id", "body" FROM "public"."tickets"', True, b",", null=b""),
        ),
        ("COPY (SELECT (1), '()') TO STDOUT", CopyOut(b"SELECT (1), '()'", False, b"\t")),
        (
            "COPY (TABLE tickets) TO STDOUT (FORMAT csv, DELIMITER '|', QUOTE '''', ESCAPE '\\', NULL 'n/a')",
            CopyOut(b"TABLE tickets", True, b"|", b"'", b"\\", b"n/a"),
        ),
        (
            "COPY tickets TO STDOUT (ENCODING 'UTF-8', FORMAT text)",
            CopyOut(b'SELECT * FROM "public"."tickets"', False, b"\t"),
        ),
    ],
)
def test_a_copy_carries_how_it_writes_rows(sql: str, copy: CopyOut) -> None:
    found = detection(policy("{kinds: [card]}"), "ada", sql)
    assert found is not None
    assert found.copy == copy


def test_a_copy_of_a_masked_table_is_described_with_its_masks() -> None:
    found = detection(policy("{kinds: [card]}", more=MASK), "ada", "COPY customers (id, ssn) TO STDOUT")
    assert found is not None
    assert found.copy is not None
    assert found.copy.query.startswith(b'SELECT "id", "ssn" FROM (SELECT "id"')
    assert b"[redacted]" in found.copy.query


def test_explain_says_what_is_looked_for_and_by_which_entry() -> None:
    loaded = policy("{kinds: [ssn, card]}", "{kinds: [email]}")
    said = explain(decide(loaded, PRINCIPALS["ada"], facts(), b"SELECT 1"))
    assert "looks for card, email, ssn in what is delivered  [detect (p.yaml:3), detect (p.yaml:4)]" in said


@pytest.mark.parametrize(
    ("entry", "place", "message"),
    [
        ("{kinds: [card, phone]}", "3:20", "phone"),
        ("{kinds: []}", "3:13", "must not be empty"),
        ("{who: {users: [x]}}", "3:5", "`kinds` is missing"),
        ("{kinds: [card], unles: {}}", "3:21", "did you mean `unless`"),
        ("{kinds: [card], connections: ['a.b']}", "3:", "connection"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_place(entry: str, place: str, message: str) -> None:
    with pytest.raises(DocumentError) as wrong:
        policy(entry)
    assert str(wrong.value).startswith(f"p.yaml:{place}")
    assert message in str(wrong.value)


@pytest.mark.parametrize(
    ("entries", "warning"),
    [
        (["{kinds: [card], who: {groups: [a]}, unless: {groups: [a, b]}}"], "looks at nobody"),
        (["{kinds: [card], who: {users: [a]}, unless: {users: [a]}}"], "looks at nobody"),
        (["{kinds: [card], connections: [shopp]}"], "is about no connection: `shopp` matches none"),
        (["{kinds: [card, ssn]}", "{kinds: [ssn], who: {users: [a]}}"], "adds nothing to that on line 3"),
        (["{kinds: [ssn]}", "{kinds: [ssn]}"], "adds nothing to that on line 3"),
        (["{kinds: [ssn], unless: {groups: [a]}}", "{kinds: [ssn]}"], "adds nothing to that on line 4"),
        (["{kinds: [ssn], connections: ['sh*']}", "{kinds: [card]}"], None),
        (["{kinds: [ssn], unless: {groups: [a]}}", "{kinds: [ssn], unless: {groups: [b]}}"], None),
    ],
)
def test_policy_check_warns_of_entries_that_make_no_difference(entries: list[str], warning: str | None) -> None:
    found = [str(problem) for problem in check(policy(*entries), connections=["shop", "crm"])]
    assert len(found) == (warning is not None)
    assert warning is None or f"warning: this entry {warning}" in found[0]
