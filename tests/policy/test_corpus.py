"""The corpus against `decide()`, without a server."""

from __future__ import annotations

import pytest

from policy.engine import decide
from policy.model import Effect
from tests.policy.corpus import Case, load_cases, policy_of
from tests.policy.sample import PRINCIPALS, facts

CASES = load_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_verdict_is_as_the_corpus_says(case: Case) -> None:
    decision = decide(policy_of(case.policy), PRINCIPALS[case.who], facts(case.path), case.sql.encode())
    verdict = decision.verdict
    deciding = [r for r in verdict.reasons if r.effect is verdict.effect]
    assert str(verdict.effect) == case.decision, (case.note, [r.text for r in deciding])
    if case.reasons is not None:
        assert {r.code for r in deciding} == set(case.reasons), case.note
    assert (verdict.rewrite is None) == (verdict.effect is Effect.DENY)
    if case.rewritten is not None:
        assert verdict.rewrite is not None
        assert verdict.rewrite.sql.decode() == case.rewritten
    for reason in verdict.reasons:
        assert reason.code != "internal", reason.text
        assert reason.text[0] in "`" or not reason.text[0].isupper() or reason.text.split()[0].isupper(), reason.text
        assert not reason.text.endswith(".")


def test_the_corpus_is_large_and_mixed() -> None:
    decisions = [case.decision for case in CASES]
    assert len(CASES) >= 250
    assert min(decisions.count(d) for d in ("allow", "approve", "deny")) >= 10
