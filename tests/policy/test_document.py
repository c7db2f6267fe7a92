"""Policy files that are wrong: each complaint names line, column and the cure."""

from __future__ import annotations

import pytest

from policy.document import DocumentError, parse_document
from policy.file import policy_schema
from policy.load import load_policy
from tests.policy.corpus import ROOT

RULE = "rules:\n  - name: a\n    effect: allow\n    actions: [select]\n"

WRONG: list[tuple[str, str]] = [
    ("rules: [", "p.yaml:1:9: "),
    ("rules:\n\t- a", "p.yaml:2:1: "),
    ("rulez: []", "p.yaml:1:1: unknown key `rulez`; did you mean `rules`?"),
    ("rules: []\nrules: []", "p.yaml:2:1: the key `rules` stands here twice; keep one of them"),
    ("version: 2", "p.yaml:1:10: `2`: input should be 1"),
    ("rules: !!python/object:os.system {}", "p.yaml:1:8: the tag"),
    ("? [a]\n: 1", "p.yaml:1:3: a key must be a word"),
    (RULE + "    efect: deny", "p.yaml:5:5: unknown key `efect`; did you mean `effect`?"),
    (RULE + "    when: {bound: true}", "p.yaml:5:12: unknown key `bound`; did you mean `bounded`?"),
    (RULE + "    when: {}", "p.yaml:5:11: `when` holds no condition; leave it out, or give one"),
    (RULE + "    when: {time: {from: '8:00', to: '18:00'}}", "p.yaml:5:25: `8:00`: string should match pattern"),
    (
        RULE + "    when: {time: {from: '08:00', to: '18:00', timezone: Mars/Olympus}}",
        "p.yaml:5:57: `Mars/Olympus` is no time zone; write one like Europe/Berlin or UTC",
    ),
    (
        RULE.replace("[select]", "[drop]") + "    when: {any_of: [{bounded: true}, {rows_at_most: 1}]}",
        "p.yaml:2:5: `rows_at_most` and `rows_over` count the rows that a write changes or a read returns; give them",
    ),
    (RULE + "    when: {any_of: [{bound: true}]}", "p.yaml:5:22: unknown key `bound`; did you mean `bounded`?"),
    (RULE.replace("allow", "alow"), "p.yaml:3:13: `alow`: input should be 'allow', 'approve' or 'deny'"),
    (RULE.replace("select", "selct"), "p.yaml:4:15: `selct`"),
    (RULE.replace("allow", "approve"), "p.yaml:2:5: an approve rule must say who approves; add `approvers`"),
    (RULE + "    quorum: 2", "p.yaml:2:5: `quorum` belongs to rules with `effect: approve`; remove it"),
    (RULE + "    who: {}", "p.yaml:5:10: `who` says nobody; leave it out for everyone, or name users, groups or kinds"),
    (RULE + "    relations: [orders]", "p.yaml:5:17: `orders` is no pattern of the form `schema.relation`"),
    (RULE + "    relations: [a.b.c]", "p.yaml:5:17: `a.b.c` is no pattern"),
    (RULE + RULE.split("\n", 1)[1], "p.yaml:5:11: the rule `a` stands on line 2 already; name it differently"),
    ("limits: [{who: {users: [a]}}]", "p.yaml:1:10: the entry limits nothing; give rows, bytes, statement_timeout"),
    ("limits: [{rows: many}]", "p.yaml:1:17: `many`: "),
    ("limits: [{rows: 5, row: 6}]", "p.yaml:1:20: unknown key `row`; did you mean `rows`?"),
    ("masks:\n  - columns: [a.b.c]", "p.yaml:2:5: the key `with` is missing; add it"),
    ("masks:\n  - columns: [a.b]\n    with: null", "p.yaml:2:15: `a.b` is no pattern of the form"),
    ("masks:\n  - columns: [a.b.c]\n    with: {partial: {keep: 3}}", "p.yaml:3:22: unknown key `keep`"),
    (
        RULE.replace("allow", "approve") + "    approvers: {groups: [x]}\n    expires: soon",
        "p.yaml:6:14: `soon` is no duration; write it like 45s, 30m, 2h or 1d",
    ),
]


@pytest.mark.parametrize(("text", "expected"), WRONG)
def test_a_wrong_policy_is_refused_with_place_and_cure(text: str, expected: str) -> None:
    with pytest.raises(DocumentError) as caught:
        load_policy(text, "p.yaml")
    assert str(caught.value).startswith(expected)


def test_aliases_may_be_used_and_bombs_may_not() -> None:
    assert parse_document("a: &x [1]\nb: *x", "p").data == {"a": [1], "b": [1]}
    levels = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 9))
    with pytest.raises(DocumentError, match="too large"):
        parse_document(f"l0: &l0 [x]\n{levels}", "p")


def test_a_self_referring_alias_is_refused() -> None:
    with pytest.raises(DocumentError, match="too large"):
        parse_document("a: &x [*x]", "p")


def test_an_empty_file_is_a_policy_that_allows_nothing() -> None:
    assert load_policy("", "p").rules == ()


def test_the_hash_is_of_what_the_policy_says_and_not_of_its_layout() -> None:
    text = (ROOT / "examples/policy.yaml").read_text(encoding="utf-8")
    policy = load_policy(text, "a.yaml")
    assert policy.hash == load_policy("# a comment\n" + text, "b.yaml").hash
    assert policy.hash != load_policy(text.replace("quorum: 1", "quorum: 2"), "a.yaml").hash


def test_rules_name_their_file_and_line_without_its_folder() -> None:
    policy = load_policy(RULE, "/etc/countersign/policy.yaml")
    assert policy.rules[0].label == "a (policy.yaml:2)"


def test_the_schema_knows_every_key() -> None:
    schema = policy_schema()
    known = {"version", "rules", "masks", "rows", "limits", "recordings", "auditors", "operators", "detect"}
    assert set(schema["properties"]) == known
    assert "with" in schema["$defs"]["MaskFile"]["properties"]
