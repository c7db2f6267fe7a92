"""A policy file read into a frozen `Policy`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import time, timedelta
from ipaddress import ip_network
from pathlib import PurePath
from typing import Any
from zoneinfo import ZoneInfo

from policy.buckets import Unit
from policy.conditions import ALWAYS, When, Window
from policy.document import Document, parse_document, validate
from policy.file import (
    DAYS,
    ApproversFile,
    DetectFile,
    ExemptFile,
    HashFile,
    KindFile,
    LimitsFile,
    MaskFile,
    PartialFile,
    PersonFile,
    PolicyFile,
    RangeFile,
    RecordedFile,
    RowsFile,
    RuleFile,
    WhenFile,
    WhoFile,
)
from policy.filters import FilterError, RowFilter, read_condition
from policy.limits import Limits
from policy.masks import Mask, MaskKind
from policy.model import NOTHING_KNOWN, Action, ApprovalTerms, Approver, Effect, Users
from policy.patterns import Pattern, PatternError, parse_path_pattern, parse_pattern
from policy.rules import DetectEntry, LimitEntry, Policy, RecordingEntry, Rule, Selector, Who


def load_policy(text: str, source: str) -> Policy:
    """Read a policy file. Raises DocumentError with file, line, column and the cure."""
    document = parse_document(text, source)
    file = validate(PolicyFile, document)
    place = PurePath(source).name
    rules: list[Rule] = []
    seen: dict[str, int] = {}
    for index, rule in enumerate(file.rules):
        line = document.locate(("rules", index))[0]
        if rule.name in seen:
            first = document.locate(("rules", seen[rule.name]))[0]
            raise document.error(
                ("rules", index, "name"),
                f"the rule `{rule.name}` stands on line {first} already",
                "name it differently",
            )
        seen[rule.name] = index
        rules.append(_as_rule(document, rule, index, f"{rule.name} ({place}:{line})"))
    masks = tuple(
        mask
        for index, entry in enumerate(file.masks)
        for mask in _as_masks(document, entry, index, f"mask ({place}:{document.locate(('masks', index))[0]})")
    )
    filters = tuple(
        (row_filter, _as_who(entry.who))
        for index, entry in enumerate(file.rows)
        for row_filter in _as_filters(document, entry, index, f"rows ({place}:{document.locate(('rows', index))[0]})")
    )
    numbers = (n for rule in rules for part in rule.when.parts() for n in (part.rows_at_most, part.rows_over))
    conditions = tuple(part for rule in rules for part in rule.when.parts() if part.standing(NOTHING_KNOWN))
    return Policy(
        hash=_digest(file),
        source=source,
        rules=tuple(rules),
        masks=masks,
        rows=filters,
        thresholds=tuple(sorted({number for number in numbers if number is not None})),
        conditions=conditions,
        limits=_as_limits(document, file),
        recordings=_as_recordings(document, file),
        auditors=tuple(who for who in map(_as_who, file.auditors) if who is not None),
        operators=tuple(who for who in map(_as_who, file.operators) if who is not None),
        detect=_as_detect(document, file),
    )


def _digest(file: PolicyFile) -> str:
    """SHA-256 of what the policy says: comments, layout and the spelling of defaults do not count."""
    canonical = file.model_dump(mode="json", by_alias=True)
    return hashlib.sha256(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _as_rule(document: Document, rule: RuleFile, index: int, label: str) -> Rule:
    effect = Effect[rule.effect.upper()]
    path = ("rules", index)
    read = _reader(document, path)
    selectors: list[Selector] = []
    if rule.relations:
        selectors.append(Selector("relation", read("relations", rule.relations, 2, "schema.relation")))
    if rule.functions:
        selectors.append(Selector("function", read("functions", rule.functions, 2, "schema.function")))
    if rule.schemas:
        selectors.append(Selector("schema", read("schemas", rule.schemas, 1, "schema")))
    if rule.channels:
        selectors.append(Selector("channel", read("channels", rule.channels, 1, "channel")))
    actions = frozenset(Action) if "*" in rule.actions else frozenset(a for a in rule.actions if a != "*")
    return Rule(
        name=rule.name,
        label=label,
        path=path,
        effect=effect,
        who=_as_who(rule.who),
        connections=read("connections", rule.connections or (), 1, "connection"),
        actions=actions,
        selectors=tuple(selectors),
        when=_as_when(rule.when),
        terms=_as_terms(rule, label),
        place=document.locate(path),
        columns=read("columns", rule.columns or (), 3, "schema.relation.column"),
        analysed=rule.bodies is not None,
    )


def _as_terms(rule: RuleFile, label: str) -> ApprovalTerms | None:
    if rule.approvers is None:
        return None
    glass = rule.break_glass
    if not isinstance(glass, ApproversFile):
        glass = ApproversFile(groups=glass, users=None)
    return ApprovalTerms(
        groups=frozenset(rule.approvers.groups or ()),
        users=_as_approvers(rule.approvers),
        quorum=rule.quorum or 1,
        expires=rule.expires or timedelta(minutes=30),
        rule=label,
        owner_may_approve=bool(rule.owner_may_approve),
        break_glass=frozenset(glass.groups or ()),
        break_glass_users=_as_approvers(glass),
        fresh=rule.fresh,
        acr=frozenset(rule.acr or ()),
    )


def _as_approvers(file: ApproversFile) -> frozenset[Approver]:
    users = file.users or ()
    return frozenset(Approver(u) if isinstance(u, str) else Approver(u.subject, u.issuer) for u in users)


def _reader(
    document: Document, path: Sequence[str | int]
) -> Callable[[str, Sequence[str], int, str], tuple[Pattern, ...]]:
    def read(key: str, texts: Sequence[str], parts: int, form: str) -> tuple[Pattern, ...]:
        return tuple(_pattern(document, (*path, key, i), text, parts, form) for i, text in enumerate(texts))

    return read


def _pattern(document: Document, path: Sequence[str | int], text: str, parts: int, form: str) -> Pattern:
    try:
        return parse_pattern(text, parts, form)
    except PatternError as error:
        raise document.error(path, str(error), f"write it like `{form}`, with `*` for any run of characters") from None


def _as_users(people: list[str | PersonFile] | None) -> Users:
    named = people or ()
    return Users(
        names=frozenset(one for one in named if isinstance(one, str)),
        people=frozenset((one.subject, one.issuer) for one in named if isinstance(one, PersonFile)),
    )


def _as_who(who: WhoFile | None) -> Who | None:
    if who is None:
        return None
    return Who(
        users=_as_users(who.users),
        issuers=frozenset(who.issuers or ()),
        groups=frozenset(who.groups or ()),
        kinds=frozenset(who.kinds or ()),
        on_behalf_of=frozenset(who.on_behalf_of or ()),
    )


def _as_masks(document: Document, entry: MaskFile, index: int, label: str) -> list[Mask]:
    path = ("masks", index)
    exempt = entry.unless or ExemptFile(groups=None, users=None)
    masks = []
    for i, text in enumerate(entry.columns):
        columns, keys = _column_pattern(document, (*path, "columns", i), text)
        masks.append(
            Mask(
                columns=columns,
                path=keys,
                **_how(entry),
                exempt_groups=frozenset(exempt.groups or ()),
                exempt_users=_as_users(exempt.users),
                label=label,
                place=document.locate((*path, "columns", i)),
            )
        )
        if keys and masks[-1].kind not in (MaskKind.NULL, MaskKind.REDACT, MaskKind.PARTIAL, MaskKind.HASH):
            raise document.error(
                (*path, "with"),
                f"`{masks[-1].kind.value}` cannot mask a value inside jsonb",
                "use `null`, `redact`, `partial` or `hash`",
            )
    return masks


def _as_filters(document: Document, entry: RowsFile, index: int, label: str) -> list[RowFilter]:
    path = ("rows", index)
    try:
        condition = read_condition(entry.filter)
    except FilterError as error:
        message, _, cure = str(error).partition("; ")
        raise document.error((*path, "filter"), message, cure or None) from None
    read = _reader(document, path)
    return [
        RowFilter(pattern, condition, label, document.locate((*path, "relations", i)))
        for i, pattern in enumerate(read("relations", entry.relations, 2, "schema.relation"))
    ]


def _as_when(when: WhenFile | None) -> When:
    if when is None:
        return ALWAYS
    window = None
    if when.time is not None:
        start, end = (time.fromisoformat(text) for text in (when.time.from_, when.time.to))
        days = frozenset(DAYS.index(day) for day in when.time.days)
        window = Window(start, end, days, ZoneInfo(when.time.timezone))
    return When(
        bounded=when.bounded,
        rows_at_most=when.rows_at_most,
        rows_over=when.rows_over,
        window=window,
        doors=frozenset(when.doors or ()),
        networks=tuple(ip_network(text) for text in when.networks or ()),
        clients=tuple(parse_pattern(text, 1, "client") for text in when.clients or ()),
        age_at_most=when.session_at_most,
        age_over=when.session_over,
        any_of=tuple(_as_when(one) for one in when.any_of or ()),
    )


def _as_limits(document: Document, file: PolicyFile) -> tuple[LimitEntry, ...]:
    return tuple(
        LimitEntry(
            *_concern(document, ("limits", index), entry),
            Limits(
                rows=entry.rows,
                size=entry.bytes,
                timeout=entry.statement_timeout,
                statements_per_minute=entry.statements_per_minute,
                rows_per_day=entry.rows_per_day,
            ),
        )
        for index, entry in enumerate(file.limits)
    )


def _as_recordings(document: Document, file: PolicyFile) -> tuple[RecordingEntry, ...]:
    return tuple(
        RecordingEntry(*_concern(document, ("recordings", index), entry), entry.mode)
        for index, entry in enumerate(file.recordings)
    )


def _concern(
    document: Document, path: tuple[str | int, ...], entry: LimitsFile | RecordedFile | DetectFile
) -> tuple[Who | None, tuple[Pattern, ...]]:
    """Whom an entry is about, and where."""
    return _as_who(entry.who), _reader(document, path)("connections", entry.connections or (), 1, "connection")


def _as_detect(document: Document, file: PolicyFile) -> tuple[DetectEntry, ...]:
    entries = []
    for index, entry in enumerate(file.detect):
        place = document.locate(("detect", index))
        exempt = entry.unless or ExemptFile(groups=None, users=None)
        entries.append(
            DetectEntry(
                *_concern(document, ("detect", index), entry),
                kinds=frozenset(entry.kinds),
                exempt_groups=frozenset(exempt.groups or ()),
                exempt_users=_as_users(exempt.users),
                label=f"detect ({PurePath(document.source).name}:{place[0]})",
                place=place,
            )
        )
    return tuple(entries)


def _how(entry: MaskFile) -> dict[str, Any]:
    """The fields of a Mask that `with` says."""
    match entry.with_:
        case KindFile(partial=PartialFile() as partial):
            return {"kind": MaskKind.PARTIAL, "keep_first": partial.keep_first, "keep_last": partial.keep_last}
        case KindFile(hash=HashFile() as hashed):
            return {"kind": MaskKind.HASH, "pool": hashed.pool}
        case KindFile(range=RangeFile() as buckets):
            return {"kind": MaskKind.RANGE, "size": buckets.size, "days": buckets.days}
        case KindFile(truncate=Unit() as unit):
            return {"kind": MaskKind.TRUNCATE, "unit": unit}
        case "hash":
            return {"kind": MaskKind.HASH, "pool": HashFile().pool}
        case kind:
            return {"kind": MaskKind(kind or "null")}  # a bare `null` in YAML


def _column_pattern(document: Document, path: Sequence[str | int], text: str) -> tuple[Pattern, tuple[str, ...]]:
    form = "schema.relation.column"
    try:
        return parse_path_pattern(text, 3, form)
    except PatternError as error:
        raise document.error(
            path, str(error), f"write it like `{form}`, with keys of a jsonb column after it if need be"
        ) from None
