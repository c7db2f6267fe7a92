"""The policy file: pydantic models of its YAML, read into a frozen `Policy`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from policy.document import Document, parse_document, validate
from policy.masks import Mask, MaskKind
from policy.model import Action, ApprovalTerms, Effect, PrincipalKind
from policy.patterns import Pattern, PatternError, parse_pattern
from policy.rules import Policy, Rule, Selector, Who

__all__ = ["Policy", "load_policy", "policy_schema"]

_DURATION = re.compile(r"(\d+)\s*([smhd])")
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


class WhoFile(_Model):
    """Who a rule is about. Keys are ANDed, the entries of one key ORed; leave `who` out for everyone."""

    users: Names | None = Field(None, description="subjects or e-mail addresses")
    groups: Names | None = None
    kinds: list[PrincipalKind] | None = None
    on_behalf_of: Names | None = Field(None, description="subjects of the humans that agents work for")

    @model_validator(mode="after")
    def _says_something(self) -> WhoFile:
        if not self.model_fields_set:
            raise ValueError("`who` says nobody; leave it out for everyone, or name users, groups or kinds")
        return self


class WhenFile(_Model):
    """Conditions on a demand."""

    bounded: bool | None = Field(None, description="whether an UPDATE or DELETE pins the rows that it means")


class ApproversFile(_Model):
    """Who may say yes."""

    groups: Names | None = None
    users: Names | None = None

    @model_validator(mode="after")
    def _says_something(self) -> ApproversFile:
        if not self.model_fields_set:
            raise ValueError("`approvers` names nobody; give groups or users")
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
    when: WhenFile | None = None
    approvers: ApproversFile | None = None
    quorum: Annotated[int, Field(ge=1, le=20)] | None = None
    expires: Duration | None = None
    owner_may_approve: bool | None = Field(None, description="whether the human an agent works for may approve")

    @model_validator(mode="after")
    def _approval_fits(self) -> RuleFile:
        said = {"approvers", "quorum", "expires", "owner_may_approve"} & self.model_fields_set
        if self.effect == "approve" and self.approvers is None:
            raise ValueError("an approve rule must say who approves; add `approvers`")
        if self.effect != "approve" and said:
            raise ValueError(f"`{min(said)}` belongs to rules with `effect: approve`; remove it")
        return self


class PartialFile(_Model):
    """How much of a text stays readable."""

    keep_first: Annotated[int, Field(ge=0, le=100)] = 0
    keep_last: Annotated[int, Field(ge=0, le=100)] = 0


class PartialMaskFile(_Model):
    """`{partial: {keep_last: 4}}`."""

    partial: PartialFile


class ExemptFile(_Model):
    """Who sees the column as it is: members of any of the groups, or any of the users."""

    groups: Names | None = None
    users: Names | None = None


class MaskFile(_Model):
    """One mask for columns by pattern."""

    columns: Annotated[Names, Field(description="patterns schema.relation.column")]
    with_: Annotated[Literal["null", "redact", "clear"] | PartialMaskFile | None, Field(alias="with")]
    unless: ExemptFile | None = None


class PolicyFile(_Model):
    """A policy."""

    version: Literal[1] = 1
    rules: list[RuleFile] = []
    masks: list[MaskFile] = []
    auditors: Annotated[
        list[WhoFile], Field(description="who may search the audit; each entry as `who` of a rule, any of them")
    ] = []


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
    auditors = tuple(who for who in map(_as_who, file.auditors) if who is not None)
    return Policy(hash=_digest(file), source=source, rules=tuple(rules), masks=masks, auditors=auditors)


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
    terms = None
    if rule.approvers is not None:
        terms = ApprovalTerms(
            groups=frozenset(rule.approvers.groups or ()),
            users=frozenset(rule.approvers.users or ()),
            quorum=rule.quorum or 1,
            expires=rule.expires or timedelta(minutes=30),
            rule=label,
            owner_may_approve=bool(rule.owner_may_approve),
        )
    return Rule(
        name=rule.name,
        label=label,
        path=path,
        effect=effect,
        who=_as_who(rule.who),
        connections=read("connections", rule.connections or (), 1, "connection"),
        actions=actions,
        selectors=tuple(selectors),
        bounded=rule.when.bounded if rule.when else None,
        terms=terms,
        place=document.locate(path),
    )


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


def _as_who(who: WhoFile | None) -> Who | None:
    if who is None:
        return None
    return Who(
        users=frozenset(who.users or ()),
        groups=frozenset(who.groups or ()),
        kinds=frozenset(who.kinds or ()),
        on_behalf_of=frozenset(who.on_behalf_of or ()),
    )


def _as_masks(document: Document, entry: MaskFile, index: int, label: str) -> list[Mask]:
    path = ("masks", index)
    keep_first = keep_last = 0
    if isinstance(entry.with_, PartialMaskFile):
        kind = MaskKind.PARTIAL
        keep_first, keep_last = entry.with_.partial.keep_first, entry.with_.partial.keep_last
    else:
        kind = MaskKind(entry.with_ or "null")  # a bare `null` in YAML
    exempt = entry.unless or ExemptFile(groups=None, users=None)
    return [
        Mask(
            columns=_pattern(document, (*path, "columns", i), text, 3, "schema.relation.column"),
            kind=kind,
            keep_first=keep_first,
            keep_last=keep_last,
            exempt_groups=frozenset(exempt.groups or ()),
            exempt_users=frozenset(exempt.users or ()),
            label=label,
            place=document.locate((*path, "columns", i)),
        )
        for i, text in enumerate(entry.columns)
    ]
