"""Puts decisions into words for the people who meet them: one sentence, the rule behind it, the cure."""

from __future__ import annotations

from policy.model import Decision, Effect, Reason


def deciding_reasons(decision: Decision) -> tuple[Reason, ...]:
    """The reasons as strict as the verdict: those that made it what it is."""
    return tuple(r for r in decision.verdict.reasons if r.effect is decision.verdict.effect)


def refusal(decision: Decision) -> tuple[str, str | None, str | None]:
    """(sentence, detail, cure) of a deny: the first deciding reason leads, the others follow in the detail."""
    reasons = deciding_reasons(decision)
    first = reasons[0]
    lines = [f"rule: {first.rule}"] if first.rule else []
    lines += [f"also: {other.text}" for other in reasons[1:]]
    return first.text, "\n".join(lines) or None, first.cure


def rules(decision: Decision) -> list[str]:
    """The names of the rules that decided, in the order of the demands, each once."""
    return list(dict.fromkeys(r.rule for r in deciding_reasons(decision) if r.rule))


def why_approval(decision: Decision) -> str:
    """Why a statement waits for people, in one line."""
    reasons = [r.text for r in decision.verdict.reasons if r.effect is Effect.APPROVE]
    return "; ".join(dict.fromkeys(reasons))


def who_approves(decision: Decision) -> str:
    """Who can say yes, such as `2 of dba`; several terms are joined by `and`."""
    parts = []
    for terms in decision.verdict.terms:
        who = " or ".join(f"`{name}`" for name in terms.names)
        parts.append(f"{terms.quorum} of {who}" if terms.quorum > 1 else f"one of {who}")
    return " and ".join(parts)
