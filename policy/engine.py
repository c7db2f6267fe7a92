"""The engine: policy, principal, facts and a text in, a decision out. A function of its arguments that never raises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from policy.analyse import analyse
from policy.bodies import Bodies, moved_names
from policy.columns import with_columns
from policy.copying import copy_out
from policy.filtering import Filtering
from policy.masking import Masking
from policy.memory import without_collector
from policy.model import (
    Analysis,
    ApprovalTerms,
    Decision,
    Demand,
    Effect,
    Facts,
    Principal,
    Reason,
    Rewrite,
    Verdict,
)
from policy.parse import NotAnalysableError, base_text, split
from policy.reading import Reading
from policy.rewrite import rewrite
from policy.rules import Judgement, Policy, judge
from policy.sideways import could_meet_masks, is_countable, is_plan, is_streamed, runs_unseen

_LARGE_TEXT_BYTES = 64 * 1024

__all__ = ["NotAnalysableError", "decide", "split"]


def decide(policy: Policy, principal: Principal, facts: Facts, text: bytes) -> Decision:
    """The verdict on the text of exactly one statement; a text without one is an allow of kind `Empty`.

    Every refusal is a value: what cannot be analysed, what no rule allows, what cannot be masked soundly,
    and a failure of this code itself (code `internal`).
    """
    if len(text) < _LARGE_TEXT_BYTES:
        return _decide(policy, principal, facts, text)
    with without_collector():
        return _decide(policy, principal, facts, text)


def _decide(policy: Policy, principal: Principal, facts: Facts, text: bytes) -> Decision:
    analysis: Analysis | None = None
    counts = streams = False
    conceals = bool(policy.masks)  # what cannot be analysed may name anything
    try:
        reading = analyse(facts, text)
        if reading is None:
            base = base_text(text)
            return _decision(policy, facts, Verdict(Effect.ALLOW, (), Rewrite(base)), Analysis(base, "Empty", ()))
        analysis = reading.analysis
        if conceals := conceals and analysis.parameters > 0:
            conceals = could_meet_masks(reading, Masking(policy, None, facts.catalog))
        if analysis.effects.executes is not None:
            return _decide_execute(policy, principal, facts, reading)
        countable, streamed = is_countable(reading), is_streamed(reading)
        if not countable and not streamed:
            # Nobody will be told how many rows it changed or returned: any number. A plan has none.
            rows = 0 if is_plan(reading) else None
            facts = replace(facts, circumstances=replace(facts.circumstances, rows=rows))
        verdict, analysis, asked = _verdict(policy, principal, facts, reading)
        counts, streams = asked and countable, asked and streamed
    except NotAnalysableError as error:
        verdict = Verdict(Effect.DENY, (error.reason,))
    except Exception as error:
        # Fail closed: the gateway must be able to record a refusal, whatever we got wrong.
        verdict = Verdict(
            Effect.DENY,
            (
                Reason(
                    Effect.DENY,
                    "internal",
                    f"the policy engine failed on this statement ({type(error).__name__})",
                    cure="Report the statement; it was not run.",
                ),
            ),
        )
    decision = _decision(policy, facts, verdict, analysis, counts)
    return decision._replace(streams=streams, conceals=conceals) if streams or conceals else decision


def _verdict(policy: Policy, principal: Principal, facts: Facts, reading: Reading) -> tuple[Verdict, Analysis, bool]:
    """The verdict, what it is about, and whether a condition on the number of rows was asked for it."""
    judged = _judged(policy, principal, facts, reading)
    judgement, analysis = judged.judgement, judged.analysis
    if judged.refusal is not None:
        return Verdict(Effect.DENY, (judged.refusal, *judgement.reasons)), analysis, judgement.counts
    if judgement.effect is Effect.DENY:
        return Verdict(Effect.DENY, judgement.reasons), analysis, judgement.counts
    try:
        rewritten = _rewritten(policy, principal, facts, reading)
        rewritten = _searched(policy, principal, facts, reading, rewritten)
    except NotAnalysableError as error:
        return Verdict(Effect.DENY, (error.reason, *judgement.reasons)), analysis, judgement.counts
    if judgement.withheld:
        rewritten = replace(rewritten, withheld=True)
    return _allowed(judgement, rewritten), analysis, judgement.counts


class _Judged(NamedTuple):
    """What the rules say to a statement and to the bodies of the functions that it calls by what they do."""

    judgement: Judgement
    analysis: Analysis  # bodies included
    refusal: Reason | None = None


def _judged(policy: Policy, principal: Principal, facts: Facts, reading: Reading) -> _Judged:
    analysis, connection = reading.analysis, facts.connection
    demands = analysis.demands
    if policy.by_column:
        demands = with_columns(reading, Masking(policy, principal, facts.catalog))
    judgement = judge(policy, principal, connection, demands, facts.circumstances)
    if runs_unseen(reading) and _hides(policy, principal, facts):
        judgement = judgement._replace(withheld=True)
    if not judgement.opened:
        return _Judged(judgement, analysis)
    # Nobody counts the rows that a function changes: any number.
    unknown = replace(facts.circumstances, rows=None)
    bodies, every = Bodies(facts, reading), list(analysis.demands)
    todo = [(demand, facts.search_path) for demand in judgement.opened]
    refusal: Reason | None = None

    def merged() -> Analysis:
        return _merged(analysis, [inner.analysis for _, inner in bodies.readings], every)

    try:
        while todo and judgement.effect is not Effect.DENY:
            for opened in bodies.open(*todo.pop()):
                every += opened.demands
                further = judge(policy, principal, connection, opened.demands, unknown)
                judgement = judgement.joined(further)
                todo += [(demand, opened.path) for demand in further.opened]
        bodies.check_names(moved=judgement.trusts or merged().effects.moves_names)
        if policy.masks or policy.rows:
            bodies.check_shown(Masking(policy, principal, facts.catalog), Filtering(policy, principal, facts))
    except NotAnalysableError as error:
        refusal = error.reason
    whole = merged()
    late = replace(whole.effects, late_names=bodies.late is not None)
    return _Judged(judgement, whole._replace(effects=late), refusal)


def _hides(policy: Policy, principal: Principal, facts: Facts) -> bool:
    """Whether anything is hidden from the principal: then what runs unseen may meet it, and errors quote it."""
    return (
        policy.by_column
        or Masking(policy, principal, facts.catalog).any_column()
        or Filtering(policy, principal, facts).any_relation()
    )


def _merged(outer: Analysis, inner: Sequence[Analysis], demands: Sequence[Demand]) -> Analysis:
    """The analysis of a statement together with what the bodies of its functions do."""
    effects = [outer.effects, *(one.effects for one in inner)]
    return outer._replace(
        demands=tuple(dict.fromkeys(demands)),
        relations=outer.relations.union(*(one.relations for one in inner)),
        effects=replace(
            outer.effects,
            writes=any(e.writes for e in effects),
            search_path=any(e.search_path for e in effects),
            session=any(e.session for e in effects),
            moves_names=any(e.moves_names for e in effects),
        ),
    )


def _rewritten(policy: Policy, principal: Principal, facts: Facts, reading: Reading) -> Rewrite:
    if not policy.masks and not policy.rows:
        return Rewrite(reading.analysis.text)
    masking, filtering = Masking(policy, principal, facts.catalog), Filtering(policy, principal, facts)
    return rewrite(reading, masking, filtering, facts.mask_key)


def _searched(policy: Policy, principal: Principal, facts: Facts, reading: Reading, rewritten: Rewrite) -> Rewrite:
    """The same with what is looked for in what it delivers. Raises NotAnalysableError `detect.copy`."""
    if (detection := policy.detection(principal, facts.connection)) is None:
        return rewritten
    detection = replace(
        detection,
        forms=facts.catalog.forms,
        subtypes=facts.catalog.subtypes,
        copy=copy_out(reading, rewritten.sql),
    )
    return replace(rewritten, detection=detection)


def _allowed(judgement: Judgement, rewritten: Rewrite) -> Verdict:
    return Verdict(judgement.effect, judgement.reasons, rewritten, judgement.terms)


def _decide_execute(policy: Policy, principal: Principal, facts: Facts, reading: Reading) -> Decision:
    """EXECUTE demands what was prepared, judged again under today's policy, names and masks.

    PostgreSQL plans a prepared statement again under the current search path, so what it means may have
    changed since: unless the PREPARE would be rewritten to the very same text now, it is refused.
    """
    analysis = reading.analysis
    name = analysis.effects.executes or ""
    prepared = facts.prepared.get(name)
    if prepared is None or prepared.analysis is None or prepared.verdict.rewrite is None:
        refusal = _refusal("prepared.unknown", f'prepared statement "{name}" does not exist', "PREPARE it first.")
        return _decision(policy, facts, Verdict(Effect.DENY, (refusal,)), analysis)
    uncounted = replace(facts.circumstances, rows=None)
    again = decide(policy, principal, replace(facts, prepared={}, circumstances=uncounted), prepared.analysis.text)
    judged = _judged(policy, principal, facts, reading)
    own, inner = judged.judgement, again.analysis or prepared.analysis
    merged = _merged(judged.analysis, [inner], (*judged.analysis.demands, *inner.demands))
    reasons = (*again.verdict.reasons, *own.reasons)
    effect = max(again.verdict.effect, own.effect)
    then = again.verdict.rewrite
    late = inner.effects.late_names and (own.trusts or judged.analysis.effects.moves_names)
    late_refusal = moved_names(f'"{name}"').reason if late else None
    if (stop := judged.refusal or late_refusal) is not None:
        return _decision(policy, facts, Verdict(Effect.DENY, (stop, *reasons)), merged)
    if effect is Effect.DENY or then is None:
        return _decision(policy, facts, Verdict(Effect.DENY, reasons), merged)
    if then.sql != prepared.verdict.rewrite.sql or inner.means_other(prepared.analysis, facts.catalog):
        stale = _refusal(
            "prepared.stale",
            f'the policy or the schema has changed since "{name}" was prepared',
            f"DEALLOCATE {name} and prepare it again.",
        )
        return _decision(policy, facts, Verdict(Effect.DENY, (stale, *reasons)), merged)
    if analysis.relations and (then.origins or policy.masks or policy.rows):
        outer = _rewritten(policy, principal, facts, reading)
    else:
        outer = Rewrite(analysis.text)
    if analysis.kind == "ExplainStmt" and then.secrets:
        shows = _refusal(
            "mask.explain",
            f'the plan of "{name}" would show how its pseudonyms are made',
            "EXPLAIN the statement itself, without EXECUTE.",
        )
        return _decision(policy, facts, Verdict(Effect.DENY, (shows, *reasons)), merged)
    combined = replace(
        outer,
        masked=tuple(dict.fromkeys((*outer.masked, *then.masked))),
        origins=outer.origins | then.origins,
        filtered=tuple(dict.fromkeys((*outer.filtered, *then.filtered))),
        secrets=outer.secrets | then.secrets,
        withheld=own.withheld or then.withheld,
    )
    combined = _searched(policy, principal, facts, reading, combined)
    terms = _unique((*again.verdict.terms, *own.terms))
    return _decision(policy, facts, Verdict(effect, reasons, combined, terms), merged)


def _refusal(code: str, text: str, cure: str) -> Reason:
    return Reason(Effect.DENY, code, text, cure=cure)


def _unique(terms: Sequence[ApprovalTerms]) -> tuple[ApprovalTerms, ...]:
    return tuple(sorted(dict.fromkeys(terms), key=lambda t: t.rule))


def _decision(
    policy: Policy, facts: Facts, verdict: Verdict, analysis: Analysis | None, counts: bool = False
) -> Decision:
    return Decision(verdict, analysis, policy.hash, facts.catalog.epoch, counts)
