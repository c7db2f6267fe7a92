"""Files of policy cases: what is compared, and where a file is wrong."""

from __future__ import annotations

import pytest

from policy.cases import CasesFile, read_cases, run_case
from policy.document import DocumentError
from tests.policy.corpus import ROOT, policy_of
from tests.policy.sample import facts

HEAD = "who: devin\nprincipals:\n  devin: {kind: agent, groups: [ai-agents]}\ncases:\n"
EXAMPLE = policy_of("examples/policy.yaml")


def test_the_examples_cases_are_as_the_examples_policy_says() -> None:
    file = ROOT / "examples/policy-cases.yaml"
    named, cases = read_cases(file.read_text(encoding="utf-8"), file.name)
    assert named == "policy.yaml"
    assert len(cases) >= 8
    assert [run_case(case, EXAMPLE, facts()) for case in cases] == [[]] * len(cases)


@pytest.mark.parametrize(
    ("case", "what", "expected", "actual"),
    [
        ("{sql: SELECT 1 FROM orders, decision: deny}", "decision", "deny", "allow"),
        ("{sql: DROP TABLE orders, decision: deny, reasons: [rule.none]}", "reasons", "rule.none", "rule.matched"),
        ("{sql: SELECT 1 FROM orders, decision: allow, rules: [x, a]}", "rules", "a, x", "agents-read"),
        ("{sql: SELECT 1 FROM orders, decision: allow, masked: [a.b.c]}", "masked", "a.b.c", "none"),
        ("{sql: SELECT 1 FROM orders, decision: allow, rewritten: x}", "rewritten", "x", "SELECT 1 FROM orders"),
        ("{sql: SELECT 1 FROM orders, decision: allow, search_path: [hr]}", "decision", "allow", "deny"),
    ],
)
def test_a_difference_is_told(case: str, what: str, expected: str, actual: str) -> None:
    _, [read] = read_cases(HEAD + f"  - {case}\n", "c.yaml")
    [difference] = run_case(read, EXAMPLE, facts())
    assert (difference.what, difference.expected, difference.actual) == (what, expected, actual)
    assert bool(difference.why) is (what == "decision")
    assert read.line == 5


@pytest.mark.parametrize(("rows", "decision"), [("rows: 3, ", "allow"), ("rows: 4, ", "approve"), ("", "approve")])
def test_a_case_says_how_many_rows_change(rows: str, decision: str) -> None:
    counted = policy_of("tests/policy/policies/counted.yaml")
    case = f"  - {{sql: UPDATE tickets SET status = 'x', {rows}decision: {decision}}}\n"
    _, [read] = read_cases(HEAD + case, "c.yaml")
    assert run_case(read, counted, facts()) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            HEAD + "  - {sql: a, decision: maybe}\n",
            "c.yaml:5:24: `maybe`: input",
        ),
        (HEAD + "  - {sql: a, decison: allow}\n", "c.yaml:5:14: unknown key `decison`; did you mean `decision`?"),
        (
            HEAD + "  - {sql: a, decision: allow, who: eve}\n",
            "c.yaml:5:36: `eve` is none of `principals`; known",
        ),
        (
            HEAD.replace("who: devin\n", "") + "  - {sql: a, decision: allow}\n",
            "c.yaml:4:5: the case does not say who asks; add `who` to it, or to the file",
        ),
        (HEAD + "  - {sql: a, decision: allow, at: 2026-01-01T10:00:00}\n", "c.yaml:5:35: "),
        ("principals: {}\ncases: []\n", "c.yaml:2:8: "),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read_cases(text, "c.yaml")
    assert str(caught.value).startswith(complaint)


def test_case_files_have_a_schema() -> None:
    assert {"policy", "who", "principals", "cases"} == set(CasesFile.model_json_schema()["properties"])
