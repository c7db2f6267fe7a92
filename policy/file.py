"""The policy file as it is written: pydantic models of its YAML, and their JSON Schema."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from ipaddress import ip_network
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from policy.buckets import Unit
from policy.columns import COLUMNED
from policy.detectors import Kind
from policy.model import Action, PrincipalKind
from policy.patterns import PatternError, parse_pattern
from policy.rules import RecordingMode

_DURATION = re.compile(r"(\d+)\s*([smhd])")
_CLOCK = r"^([01]\d|2[0-3]):[0-5]\d$"
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
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
    days: Annotated[list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]], Field(min_length=1)] = list(DAYS)
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

    @property
    def counts_rows(self) -> bool:
        """Whether a number of rows is asked about anywhere in it."""
        own = self.rows_at_most is not None or self.rows_over is not None
        return own or any(one.counts_rows for one in self.any_of or ())


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
        if self.when is not None and self.when.counts_rows and not set(self.actions) <= _COUNTED:
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


def policy_schema() -> dict[str, Any]:
    """The JSON Schema of policy files, for editors."""
    schema = PolicyFile.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Countersign policy"} | schema
