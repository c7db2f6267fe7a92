"""The policy file: pydantic models of its YAML, read into a frozen `Policy`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from datetime import time, timedelta
from decimal import Decimal
from ipaddress import ip_network
from pathlib import PurePath
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from policy.buckets import Unit
from policy.columns import COLUMNED
from policy.conditions import ALWAYS, When, Window
from policy.detectors import Kind
from policy.document import Document, parse_document, validate
from policy.filters import FilterError, RowFilter, read_condition
from policy.limits import Limits
from policy.masks import Mask, MaskKind
from policy.model import NOTHING_KNOWN, Action, ApprovalTerms, Approver, Effect, PrincipalKind, Users
from policy.patterns import Pattern, PatternError, parse_path_pattern, parse_pattern
from policy.rules import DetectEntry, LimitEntry, Policy, RecordingEntry, RecordingMode, Rule, Selector, Who

__all__ = ["Policy", "load_policy", "policy_schema"]

_DURATION = re.compile(r"(\d+)\s*([smhd])")
_CLOCK = r"^([01]\d|2[0-3]):[0-5]\d$"
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_COUNTED: Final = frozenset((Action.SELECT, Action.INSERT, Action.UPDATE, Action.DELETE))
_APPROVAL_KEYS: Final = frozenset(
    ("approvers", "quorum", "expires", "owner_may_approve", "break_glass", "fresh", "acr")
)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _as_duration(value: object) -> object:
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    raise ValueError(f"`{value}` is no duration; write it like 45s, 30m, 2h or 1d")


Duration = Annotated[
    timedelta,
    BeforeValidator(_as_duration, json_schema_input_type=Annotated[str, Field(pattern=r"^\d+\s*[smhd]$")]),
]
Names = Annotated[list[str], Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PersonFile(_Model):
    """A person by subject and issuer: two issuers may know the same subject."""

    subject: Annotated[str, Field(min_length=1)]
    issuer: Annotated[str, Field(min_length=1)]


People = Annotated[list[str | PersonFile], Field(min_length=1)]


class WhoFile(_Model):
    """Who a rule is about. Keys are ANDed, the entries of one key ORed; leave `who` out for everyone."""

    users: People | None = Field(None, description="subjects or e-mail addresses, or {subject, issuer}")
    issuers: Names | None = Field(None, description="who vouches for them: issuers of tokens")
    groups: Names | None = None
    kinds: list[PrincipalKind] | None = None
    on_behalf_of: Names | None = Field(None, description="subjects of the humans that agents work for")

    @model_validator(mode="after")
    def _says_something(self) -> WhoFile:
        if not self.model_fields_set:
            raise ValueError("`who` says nobody; leave it out for everyone, or name users, groups or kinds")
        return self


class WindowFile(_Model):
    """Times of the week, such as `{from: "08:00", to: "18:00", days: [mon, tue], timezone: Europe/Berlin}`."""

    from_: Annotated[str, Field(alias="from", pattern=_CLOCK)]
    to: Annotated[str, Field(pattern=_CLOCK, description="excluded; not after `from`: on the day after")]
    days: Annotated[list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]], Field(min_length=1)] = list(_DAYS)
    timezone: str = "UTC"

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"`{name}` is no time zone; write one like Europe/Berlin or UTC") from None
        return name


class WhenFile(_Model):
    """Conditions, all of which must hold."""

    bounded: bool | None = Field(None, description="whether an UPDATE or DELETE pins the rows that it means")
    rows_at_most: Annotated[int, Field(ge=0)] | None = Field(None, description="rows changed or returned")
    rows_over: Annotated[int, Field(ge=0)] | None = Field(None, description="the complement of rows_at_most")
    time: WindowFile | None = None
    doors: Annotated[list[Literal["mcp", "wire"]], Field(min_length=1)] | None = None
    networks: Names | None = Field(None, description="of the client's address, such as 10.0.0.0/8")
    clients: Names | None = Field(None, description="patterns of what the client calls itself, which may be anything")
    session_at_most: Duration | None = Field(None, description="how long the session has been open")
    session_over: Duration | None = Field(None, description="the complement of session_at_most")
    any_of: Annotated[list[WhenFile], Field(min_length=1)] | None = Field(None, description="one of these must hold")

    @field_validator("networks")
    @classmethod
    def _are_networks(cls, networks: list[str] | None) -> list[str] | None:
        for text in networks or ():
            try:
                ip_network(text)
            except ValueError:
                raise ValueError(f"`{text}` is no network; write one like 10.0.0.0/8, 192.0.2.7 or fd00::/8") from None
        return networks

    @field_validator("clients")
    @classmethod
    def _are_patterns(cls, clients: list[str] | None) -> list[str] | None:
        for text in clients or ():
            try:
                parse_pattern(text, 1, "client")
            except PatternError as error:
                raise ValueError(f"{error}; write it like `psql*`, and names with dots or spaces in quotes") from None
        return clients

    @model_validator(mode="after")
    def _says_something(self) -> WhenFile:
        if not self.model_fields_set:
            raise ValueError("`when` holds no condition; leave it out, or give one")
        return self


class ApproversFile(_Model):
    """Who may say yes."""

    groups: Names | None = None
    users: People | None = Field(None, description="subjects at the issuer of whoever asks, or {subject, issuer}")

    @model_validator(mode="after")
    def _says_something(self) -> ApproversFile:
        if not self.model_fields_set:
            raise ValueError("this names nobody; give groups or users")
        return self


class RuleFile(_Model):
    """One rule. Order never matters: for each demand the strictest matching rule wins."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$", max_length=80)]
    effect: Literal["allow", "approve", "deny"]
    who: WhoFile | None = None
    connections: Names | None = None
    actions: Annotated[list[Action | Literal["*"]], Field(min_length=1)]
    relations: Names | None = Field(None, description="patterns schema.name")
    functions: Names | None = Field(None, description="patterns schema.name")
    schemas: Names | None = Field(None, description="patterns of schemas: these, and all that lies in them")
    channels: Names | None = Field(None, description="patterns of LISTEN and NOTIFY channels")
    columns: Names | None = Field(None, description="patterns schema.relation.column; for select, insert and update")
    bodies: Literal["analysed"] | None = Field(
        None, description="let functions in the language SQL be called if all that their bodies do is allowed"
    )
    when: WhenFile | None = None
    approvers: ApproversFile | None = None
    quorum: Annotated[int, Field(ge=1, le=20)] | None = None
    expires: Duration | None = None
    owner_may_approve: bool | None = Field(None, description="whether the human an agent works for may approve")
    break_glass: Names | ApproversFile | None = Field(
        None, description="groups (or {groups, users}) of which one person may decide alone, in an emergency"
    )
    fresh: Duration | None = Field(None, description="how old the login of whoever says yes may be")
    acr: Names | None = Field(None, description="authentication context classes, one of which that login must have")

    @model_validator(mode="after")
    def _approval_fits(self) -> RuleFile:
        said = _APPROVAL_KEYS & self.model_fields_set
        if self.when is not None and _as_when(self.when).counts_rows and not set(self.actions) <= _COUNTED:
            raise ValueError(
                "`rows_at_most` and `rows_over` count the rows that a write changes or a read returns; "
                "give them to rules whose actions are select, insert, update and delete only"
            )
        if self.bodies is not None and (self.effect != "allow" or self.actions != [Action.CALL]):
            raise ValueError("`bodies` is about calls that are allowed; give it `effect: allow` and `actions: [call]`")
        if self.columns is not None and not set(self.actions) <= COLUMNED:
            raise ValueError("`columns` are read and written; give them to rules about select, insert and update only")
        if self.columns is not None and {"relations", "functions", "schemas", "channels"} & self.model_fields_set:
            raise ValueError("a rule about `columns` is about nothing else; write another rule for the rest")
        if self.effect == "approve" and self.approvers is None:
            raise ValueError("an approve rule must say who approves; add `approvers`")
        if self.effect != "approve" and said:
            raise ValueError(f"`{min(said)}` belongs to rules with `effect: approve`; remove it")
        return self


class PartialFile(_Model):
    """How much of a text stays readable."""

    keep_first: Annotated[int, Field(ge=0, le=100)] = 0
    keep_last: Annotated[int, Field(ge=0, le=100)] = 0


class HashFile(_Model):
    """Whose pseudonyms are equal for equal values."""

    pool: Annotated[str, Field(min_length=1, max_length=80)] = "default"


class RangeFile(_Model):
    """How wide a bucket is: `size` for numbers, `days` for dates and moments."""

    size: Annotated[Decimal, Field(gt=0, le=10**18, decimal_places=9)] | None = None
    days: Annotated[int, Field(ge=1, le=36_525)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> RangeFile:
        if (self.size is None) is (self.days is None):
            raise ValueError("a range has buckets of a `size` (numbers) or of `days` (dates); give one of them")
        return self


class KindFile(_Model):
    """A kind of mask with its terms: `{partial: {keep_last: 4}}`, `{truncate: month}`. Exactly one key."""

    partial: PartialFile | None = None
    hash: HashFile | None = None
    range: RangeFile | None = None
    truncate: Unit | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> KindFile:
        if len(self.model_fields_set) != 1 or None in (getattr(self, name) for name in self.model_fields_set):
            raise ValueError("a mask has one kind; give one of partial, hash, range and truncate")
        return self


class ExemptFile(_Model):
    """Who sees the column as it is: members of any of the groups, or any of the users."""

    groups: Names | None = None
    users: People | None = Field(None, description="subjects or e-mail addresses, or {subject, issuer}")


class MaskFile(_Model):
    """One mask for columns by pattern."""

    columns: Annotated[
        Names, Field(description="patterns schema.relation.column, keys of a jsonb column may follow: .key.key")
    ]
    with_: Annotated[Literal["null", "redact", "hash", "clear"] | KindFile | None, Field(alias="with")]
    unless: ExemptFile | None = None


class RowsFile(_Model):
    """Of these relations only the rows that meet the condition are there; leave `who` out for everyone."""

    relations: Annotated[Names, Field(description="patterns schema.name")]
    filter: Annotated[
        str,
        Field(
            max_length=10_000,
            description="a condition in SQL; principal.subject, .email, .groups and .on_behalf_of are the asker's",
        ),
    ]
    who: WhoFile | None = None


class LimitsFile(_Model):
    """How much of what is allowed these principals may have; where several apply, the lowest counts."""

    who: WhoFile | None = None
    connections: Names | None = None
    rows: Annotated[int, Field(ge=0)] | None = Field(None, description="rows of one statement's result")
    bytes: Annotated[int, Field(ge=0)] | None = Field(None, description="bytes of values of one statement's result")
    statement_timeout: Duration | None = Field(None, description="how long one statement may run")
    statements_per_minute: Annotated[int, Field(ge=0)] | None = None
    rows_per_day: Annotated[int, Field(ge=0)] | None = Field(None, description="rows delivered or changed, a UTC day")

    @model_validator(mode="after")
    def _says_something(self) -> LimitsFile:
        if not self.model_fields_set - {"who", "connections"}:
            raise ValueError("the entry limits nothing; give rows, bytes, statement_timeout or another limit")
        return self


def _off(value: object) -> object:
    """YAML 1.1 reads a bare `off` as false."""
    return "off" if value is False else value


class RecordedFile(_Model):
    """How much is recorded of what these principals are sent, whatever the connection says."""

    who: WhoFile | None = None
    connections: Names | None = None
    mode: Annotated[RecordingMode, BeforeValidator(_off)]


class DetectFile(_Model):
    """What to look for in everything that is delivered, and to hide where it is found: a second net behind masks."""

    kinds: Annotated[list[Kind], Field(min_length=1)]
    connections: Names | None = Field(None, description="patterns of connection names; left out: all")
    who: WhoFile | None = None
    unless: ExemptFile | None = None


class PolicyFile(_Model):
    """A policy."""

    version: Literal[1] = 1
    rules: list[RuleFile] = []
    masks: list[MaskFile] = []
    rows: list[RowsFile] = []
    limits: list[LimitsFile] = []
    recordings: list[RecordedFile] = []
    auditors: Annotated[
        list[WhoFile], Field(description="who may search the audit; each entry as `who` of a rule, any of them")
    ] = []
    operators: Annotated[
        list[WhoFile], Field(description="who may see and end sessions of others; each entry as `who` of a rule")
    ] = []
    detect: list[DetectFile] = []


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


def policy_schema() -> dict[str, Any]:
    """The JSON Schema of policy files, for editors."""
    schema = PolicyFile.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Countersign policy"} | schema


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
        days = frozenset(_DAYS.index(day) for day in when.time.days)
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
