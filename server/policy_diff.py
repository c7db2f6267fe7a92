"""`countersign policy diff`: which recorded statements a new policy would see otherwise. Nothing is run."""

from __future__ import annotations

import getpass
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from audit import search as finder
from audit.entry import Draft, Kind
from audit.search import Found, Query, SearchError
from gateway import explain
from gateway.errors import ConfigurationError
from gateway.model import ClientInfo, principal_body
from gateway.policies import read_policy
from policy.analyse import analyse
from policy.engine import decide
from policy.model import ApprovalTerms, Approver, Circumstances, Effects, Facts, Principal, PrincipalKind
from policy.parse import NotAnalysableError
from policy.rules import Policy
from server.arguments import CONFIG
from server.config import load_config
from server.live_catalog import facts_of
from server.reading import record_reading, store_path
from server.terminal import Terminal
from server.visible import visible

# A look at the text is quicker than its analysis, and what holds neither word is neither.
_PREPARED = re.compile(rb"(?i)prepare|execute")
_MOST = 100_000
_SHOWN_CHARACTERS = 120

_GONE = "their connection is not configured any more"
_INEXACT = "their text is not UTF-8, so that the audit does not hold its exact bytes"
_UNPREPARED = "they EXECUTE what was prepared before the entries that were read"
_OTHER_SCHEMA = "decided against the schema of today, which differs from the one of then"


@dataclass(frozen=True, slots=True)
class Recorded:
    """The entries that tell what was asked."""

    intents: Sequence[Found]
    outcomes: Sequence[Found]
    opened: Sequence[Found]  # sessions


@dataclass(frozen=True, slots=True)
class Asked:
    """A recorded statement: everything that its verdict depended on and that the audit holds."""

    connection: str
    principal: Principal
    text: bytes
    search_path: tuple[str, ...]
    circumstances: Circumstances
    prepare: bytes | None = None  # of an EXECUTE: the PREPARE before it


@dataclass(frozen=True, slots=True)
class Said:
    """What a policy says to it."""

    verdict: str
    rules: tuple[str, ...]  # that decided, or the codes of the reasons
    masks: tuple[str, ...]
    filters: tuple[str, ...]
    approval: tuple[str, ...]
    runs: bytes = field(repr=False)  # with keys of pseudonyms: for comparison only

    def agrees(self, other: Said) -> bool:
        """Whether it comes to the same for whoever asks; which rule says so does not matter to them."""
        return replace(self, rules=()) == replace(other, rules=())


@dataclass(slots=True)
class Replay:
    """What came of deciding recorded statements under two policies."""

    statements: int = 0
    distinct: int = 0
    changed: list[tuple[Asked, int, Said, Said]] = field(default_factory=list)  # with how often it was sent
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


@click.command()
@click.argument("new", type=click.Path(path_type=Path, dir_okay=False))
@CONFIG
@click.option("--store", type=click.Path(path_type=Path, dir_okay=False), help="The audit. [default: the configured]")
@click.option("--since", help="2h, 7d, 2026-11-24, 2026-11-24T10:00 (UTC). [default: all, at most 100,000 statements]")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
@click.pass_context
def diff(
    context: click.Context, new: Path, config_path: Path, store: Path | None, since: str | None, as_json: bool
) -> None:
    """Show which statements of the audit would get another verdict, or other masks, under the policy NEW.

    Each distinct one is decided under the configured policy and under NEW, against the live catalogs. Nothing is
    run; that the audit was read is an entry. Exit status 0: nothing would change. 1: something would. 2: unreadable.
    """
    config = load_config(config_path)
    policies = read_policy(config.policy_path)[0], read_policy(new)[0]
    path = store_path(store, config_path)
    try:
        moment = finder.as_time(since, datetime.now(UTC)) if since else None
        recorded = Recorded(
            intents=finder.search(path, Query(kind=Kind.INTENT, since=moment, limit=_MOST)),
            outcomes=finder.search(path, Query(kind=Kind.OUTCOME, since=moment, limit=_MOST)),
            opened=finder.search(path, Query(kind=Kind.SESSION_OPENED, limit=_MOST)),
        )
    except SearchError as error:
        raise ConfigurationError(str(error)) from None
    query: dict[str, object] = {"policy": policies[1].hash, "since": moment}
    body: dict[str, object] = {"how": "policy diff", "query": query, "found": len(recorded.intents)}
    record_reading(path, Draft(Kind.AUDIT_READ, None, getpass.getuser(), None, body))
    used = {entry.connection for entry in recorded.intents}
    facts = {c.name: replace(facts_of(c), mask_key=config.mask_key) for c in config.connections if c.name in used}
    replay = compare(recorded, facts, *policies)
    if len(recorded.intents) == _MOST:
        replay.notes[f"only the newest {_MOST:,} statements were read; give --since"] = 1
    if as_json:
        click.echo(json.dumps(_report(replay), ensure_ascii=False, indent=2))
    else:
        _show(replay)
    context.exit(1 if replay.changed else 0)


def compare(recorded: Recorded, facts: Mapping[str, Facts], old: Policy, new: Policy) -> Replay:
    """Decide each distinct statement of these entries under both policies."""
    replay = Replay()
    sent: dict[tuple[object, ...], tuple[Asked, int]] = {}  # as it was sent last, and how often
    for asked in _statements(recorded, facts, replay):
        # Moments and sessions that both policies see alike are one, and so are counts of rows that neither asks about.
        counted = asked.circumstances.rows if any(r.when.counts_rows for p in (old, new) for r in p.rules) else None
        timeless = replace(asked, circumstances=Circumstances(counted, door=asked.circumstances.door))
        key = (timeless, old.standing(asked.circumstances), new.standing(asked.circumstances))
        sent[key] = (asked, sent[key][1] + 1 if key in sent else 1)
    replay.distinct = len(sent)
    for asked, times in sent.values():
        before, after = (_said(policy, asked, facts[asked.connection]) for policy in (old, new))
        if not before.agrees(after):
            replay.changed.append((asked, times, before, after))
    return replay


def _statements(recorded: Recorded, facts: Mapping[str, Facts], replay: Replay) -> Iterator[Asked]:
    """What was asked, in order; what cannot be asked again is counted with its reason."""
    rows = {outcome.statement: json.loads(outcome.body).get("rows") or 0 for outcome in recorded.outcomes}
    opened = {entry.session: entry.time for entry in recorded.opened}
    prepared: dict[tuple[str | None, str], bytes] = {}  # by session and name
    for entry in recorded.intents:
        body = json.loads(entry.body)
        if body.get("rehearsal") or body.get("approval"):
            continue  # the gateway's own run of a statement that was asked before
        replay.statements += 1
        known, text = facts.get(entry.connection or ""), body["text"].encode()
        if known is None:
            replay.left_out[_GONE] += 1
            continue
        if hashlib.sha256(text).hexdigest() != body["sha256"]:
            replay.left_out[_INEXACT] += 1
            continue
        if body["catalog"] != known.catalog.epoch:
            replay.notes[_OTHER_SCHEMA] += 1
        count = rows.get(entry.statement, 0)  # a statement that did not run counts as one that changes few
        now, client = datetime.fromisoformat(entry.time), ClientInfo(**body["client"])
        age = now - datetime.fromisoformat(opened[entry.session]) if entry.session in opened else None
        then = Circumstances(count, now, body["door"], client.host, client.name, age)
        principal, path = _principal(body["principal"]), tuple(body["search_path"])
        asked = Asked(known.connection, principal, text, path, then)
        if _PREPARED.search(text):
            effects = _effects(replace(known, search_path=path), text)
            if effects.prepares is not None:
                prepared[entry.session, effects.prepares] = text
            if effects.executes is not None:
                if (prepare := prepared.get((entry.session, effects.executes))) is None:
                    replay.left_out[_UNPREPARED] += 1
                    continue
                asked = replace(asked, prepare=prepare)
        yield asked


def _principal(body: Mapping[str, Any]) -> Principal:
    """As `gateway.model.principal_body` wrote it down."""
    return Principal(
        body["subject"],
        body["issuer"],
        PrincipalKind(body["kind"]),
        frozenset(body["groups"]),
        body["email"],
        on_behalf_of=body["on_behalf_of"],
        human_issuer=body.get("human_issuer"),
    )


def _effects(facts: Facts, text: bytes) -> Effects:
    try:
        reading = analyse(facts, text)
    except NotAnalysableError:
        reading = None
    return reading.analysis.effects if reading is not None else Effects()


def _said(policy: Policy, asked: Asked, facts: Facts) -> Said:
    then = replace(facts, search_path=asked.search_path, circumstances=asked.circumstances)
    if asked.prepare is not None:
        prepared = decide(policy, asked.principal, then, asked.prepare)
        names = prepared.analysis.effects.prepares if prepared.analysis else None
        then = replace(then, prepared={names or "": prepared})
    decision = decide(policy, asked.principal, then, asked.text)
    deciding, rewrite = explain.deciding_reasons(decision), decision.verdict.rewrite
    return Said(
        verdict=str(decision.verdict.effect),
        rules=tuple(dict.fromkeys(reason.rule or reason.code for reason in deciding)),
        masks=tuple(sorted({f"{m} ({m.kind})" for m in rewrite.masked})) if rewrite else (),
        # The place in the file is not what the filter says.
        filters=tuple(sorted({entry.partition(":")[0] for entry in rewrite.filtered})) if rewrite else (),
        approval=tuple(sorted(_terms(terms) for terms in decision.verdict.terms)),
        runs=rewrite.sql if rewrite else b"",
    )


def _terms(terms: ApprovalTerms) -> str:
    said = [f"{terms.quorum} of {', '.join(terms.names)}, within {terms.expires}"]
    said += [f"a login no older than {terms.fresh}"] if terms.fresh is not None else []
    said += [f"a login of the class {' or '.join(sorted(terms.acr))}"] if terms.acr else []
    said += ["the owner may approve"] if terms.owner_may_approve else []
    glass = _people(terms.break_glass, terms.break_glass_users)
    return ", ".join([*said, f"alone in an emergency: {glass}"] if glass else said)


def _people(groups: frozenset[str], users: frozenset[Approver]) -> str:
    return ", ".join([*sorted(groups), *sorted(map(str, users))])


def _report(replay: Replay) -> dict[str, Any]:
    return {
        "statements": replay.statements,
        "distinct": replay.distinct,
        "changed": [
            {
                "connection": asked.connection,
                "principal": principal_body(asked.principal),
                "door": asked.circumstances.door,
                "text": asked.text.decode(),
                "times": times,
                "old": _fields(before),
                "new": _fields(after),
            }
            for asked, times, before, after in replay.changed
        ],
        "left_out": dict(replay.left_out),
        "notes": dict(replay.notes),
    }


def _fields(said: Said) -> dict[str, object]:
    return {name: value for name, value in asdict(said).items() if name != "runs"}


def _show(replay: Replay) -> None:
    console = Terminal(soft_wrap=True)
    for asked, times, before, after in replay.changed:
        words = " ".join(asked.text.decode().split())
        short = words if len(words) <= _SHOWN_CHARACTERS else f"{words[: _SHOWN_CHARACTERS - 1]}…"
        often = f", {times} times" if times > 1 else ""
        heading = f"{asked.principal.subject} on {asked.connection} ({asked.circumstances.door}{often}): {short}"
        # What clients sent must not reach the terminal as control sequences, nor look like something else.
        console.print(visible(heading), style="bold")
        for sign, style, said, other in (("-", "red", before, after), ("+", "green", after, before)):
            for line in _in_words(said, other):
                console.print(f"  {sign} {visible(line)}", style=style)
    console.print(f"{replay.statements} statements, {replay.distinct} distinct: {len(replay.changed)} would change")
    for reason, count in replay.left_out.items():
        console.print(f"  {count} could not be asked again: {reason}")
    for note, count in replay.notes.items():
        console.print(f"  {count} statements: {note}" if note == _OTHER_SCHEMA else f"  {note}")


def _in_words(said: Said, other: Said) -> Iterator[str]:
    """The verdict with the rules behind it, and what else is not as in the other."""
    yield f"{said.verdict}: {', '.join(said.rules)}" if said.rules else said.verdict
    alike = (said.masks, said.filters) == (other.masks, other.filters)
    if alike and said.runs != other.runs and "deny" not in (said.verdict, other.verdict):
        yield "with another form of the same masks or row filters"
    yield from (f"masked: {mask}" for mask in said.masks if mask not in other.masks)
    yield from (f"only some rows of {relation}" for relation in said.filters if relation not in other.filters)
    yield from (f"approval: {terms}" for terms in said.approval if terms not in other.approval)
