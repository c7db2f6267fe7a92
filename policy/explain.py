"""A decision in words: the verdict, each demand with the rule that decided it, the text that runs."""

from __future__ import annotations

from collections.abc import Iterator

from policy.model import Decision, Effect


def explain(decision: Decision) -> str:
    """Several lines of plain text, for people."""
    return "\n".join(_lines(decision))


def _lines(decision: Decision) -> Iterator[str]:
    verdict = decision.verdict
    yield f"verdict: {verdict.effect}"
    for reason in sorted(verdict.reasons, key=lambda r: -r.effect):
        rule = f"  [{reason.rule}]" if reason.rule else ""
        yield f"  {reason.effect}: {reason.text}{rule}"
        if reason.cure and reason.effect is Effect.DENY:
            yield f"      {reason.cure}"
    for terms in verdict.terms:
        who = ", ".join(terms.names)
        yield f"approval: {terms.quorum} of {who}, within {terms.expires}  [{terms.rule}]"
    if verdict.rewrite is not None:
        for column in verdict.rewrite.masked:
            yield f"masked: {column} by {column.kind}  [{column.rule}]"
        for entry in verdict.rewrite.filtered:
            yield f"some rows of {entry}"
        if (detection := verdict.rewrite.detection) is not None:
            yield f"looks for {detection} in what is delivered  [{', '.join(detection.labels)}]"
        if verdict.rewrite.splices:
            yield f"runs: {verdict.rewrite.shown}"
