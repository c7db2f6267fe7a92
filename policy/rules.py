"""Rules against demands: the strictest matching rule wins, no match is a deny, order never matters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from policy.conditions import ALWAYS, When
from policy.detection import NOTHING, Detection
from policy.detectors import Kinds
from policy.filters import RowFilter
from policy.limits import Limits, strictest
from policy.masks import Mask
from policy.model import (
    NOBODY,
    NOTHING_KNOWN,
    Action,
    ApprovalTerms,
    Circumstances,
    Demand,
    Effect,
    ObjectKind,
    ObjectName,
    Principal,
    PrincipalKind,
    Reason,
    Users,
)
from policy.patterns import Pattern

RecordingMode = Literal["off", "metadata", "full"]
RECORDING_MODES: Final[tuple[RecordingMode, ...]] = ("off", "metadata", "full")  # each more than the one before

_BUILTIN_CATALOG: Final = "builtin: catalog-read"
_BUILTIN_FUNCTIONS: Final = "builtin: harmless-functions"
_CURE_RULES: Final = 4
_KNOWN_DEMANDS: Final = 256
# What works in a transaction that is read only.
_READING: Final = frozenset((Action.SELECT, Action.EXPLAIN, Action.LISTEN, Action.NOTIFY))


@dataclass(frozen=True, slots=True)
class Who:
    """Principals: each set that is not empty must hold the principal."""

    users: Users = NOBODY
    issuers: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    kinds: frozenset[PrincipalKind] = frozenset()
    on_behalf_of: frozenset[str] = frozenset()

    def includes(self, principal: Principal) -> bool:
        """Whether this principal is meant."""
        return (
            (not self.users or principal in self.users)
            and (not self.issuers or principal.issuer in self.issuers)
            and (not self.groups or not self.groups.isdisjoint(principal.groups))
            and (not self.kinds or principal.kind in self.kinds)
            and (not self.on_behalf_of or principal.on_behalf_of in self.on_behalf_of)
        )


@dataclass(frozen=True, slots=True)
class Selector:
    """Patterns for one kind of object; `schema` means the schemas and everything that lies in them."""

    kind: Literal["relation", "function", "schema", "channel"]
    patterns: tuple[Pattern, ...]

    def matches(self, name: ObjectName) -> bool:
        """Whether the object is meant."""
        return any(pattern.matches(words) for words in (self._words(name),) if words for pattern in self.patterns)

    def names(self, name: ObjectName) -> bool:
        """Whether the object is meant by a pattern that spells its schema out."""
        words = self._words(name)
        return words is not None and any(p.parts[0] == re.escape(words[0]) and p.matches(words) for p in self.patterns)

    def _words(self, name: ObjectName) -> tuple[str, ...] | None:
        if self.kind == "schema":
            schema = name.name if name.kind is ObjectKind.SCHEMA else name.schema
            return (schema,) if schema else None
        if name.kind.value != self.kind:
            return None
        return (name.schema or "", name.name) if self.kind != "channel" else (name.name,)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the file. No selectors means every object. `label` is the name with its place."""

    name: str
    label: str
    path: tuple[str | int, ...]
    effect: Effect
    who: Who | None
    connections: tuple[Pattern, ...]
    actions: frozenset[Action]
    selectors: tuple[Selector, ...]
    when: When
    terms: ApprovalTerms | None
    place: tuple[int, int] = (1, 1)
    columns: tuple[Pattern, ...] = ()  # schema.relation.column; with them the rule is about nothing else
    analysed: bool = False  # lets functions be called by what their bodies do

    def concerns(self, principal: Principal, connection: str) -> bool:
        """Whether the rule is about this principal on this connection."""
        if self.who is not None and not self.who.includes(principal):
            return False
        return not self.connections or any(p.matches((connection,)) for p in self.connections)

    def applies(self, demand: Demand, circumstances: Circumstances) -> bool:
        """Whether the conditions hold; what is not known is answered by what is stricter."""
        return self.when is ALWAYS or self.when.holds(demand, circumstances, self.effect is not Effect.ALLOW)

    def covers(self, demand: Demand) -> bool:
        """Whether the rule is about this demand as a whole, whatever its conditions say."""
        if self.columns or demand.action not in self.actions or (self.analysed and not demand.functions):
            return False
        if demand.builtin:
            # What PostgreSQL brings along is touched only by rules that spell its schema out.
            return any(s.names(demand.object) for s in self.selectors)
        return not self.selectors or any(s.matches(demand.object) for s in self.selectors)

    def covers_columns(self, demand: Demand) -> bool:
        """Whether the rule is about some columns of the relation that is demanded, and about what is done to it."""
        return demand.action in self.actions and self.fits_relation(demand)

    def fits_relation(self, demand: Demand) -> bool:
        """Whether the rule is about some columns of the relation that is demanded."""
        name = demand.object
        if name.kind is not ObjectKind.RELATION or name.schema is None:
            return False
        # What PostgreSQL brings along is touched only by rules that spell its schema out.
        own = [p for p in self.columns if not demand.builtin or p.parts[0] == re.escape(name.schema)]
        return any(pattern.fits_first((name.schema, name.name)) for pattern in own)

    def names_column(self, demand: Demand, column: str) -> bool:
        """Whether the rule is about this column of it."""
        return any(p.matches((demand.object.schema or "", demand.object.name, column)) for p in self.columns)

    @property
    def describes(self) -> str:
        """What the rule is about, such as `select, explain public.*`."""
        actions = ", ".join(a.value for a in Action if a in self.actions) if len(self.actions) < len(Action) else "*"
        patterns = [*(p for s in self.selectors for p in s.patterns), *self.columns]
        objects = ", ".join(p.text for p in patterns) or "anything"
        condition = " and ".join(filter(None, (str(self.when), "by what their bodies do" if self.analysed else "")))
        return f"{actions} {objects} ({condition})" if condition else f"{actions} {objects}"


@dataclass(frozen=True, slots=True)
class Concern:
    """Whom an entry of the file is about, and where; nobody named is everybody."""

    who: Who | None
    connections: tuple[Pattern, ...]

    def concerns(self, principal: Principal, connection: str) -> bool:
        """Whether it is about this principal on this connection."""
        if self.who is not None and not self.who.includes(principal):
            return False
        return not self.connections or any(p.matches((connection,)) for p in self.connections)


@dataclass(frozen=True, slots=True)
class LimitEntry(Concern):
    """One entry of the file: limits, and whom they are for."""

    limits: Limits


@dataclass(frozen=True, slots=True)
class RecordingEntry(Concern):
    """One entry of the file: how much is recorded of what these principals are sent."""

    mode: RecordingMode


@dataclass(frozen=True, slots=True)
class DetectEntry(Concern):
    """One entry of the file: what to look for in what is delivered, for whom, on which connections.

    `unless` is whoever is excused from it: members of any of the groups, or any of the users.
    """

    kinds: Kinds
    exempt_groups: frozenset[str]
    exempt_users: Users
    label: str
    place: tuple[int, int] = (1, 1)

    def concerns(self, principal: Principal, connection: str) -> bool:
        """Whether it looks at what this principal gets on this connection."""
        if not Concern.concerns(self, principal, connection):
            return False
        return not is_exempt(principal, self.exempt_groups, self.exempt_users)


def is_exempt(principal: Principal, groups: frozenset[str], users: Users) -> bool:
    """Whether an `unless` of these groups and users excuses the principal."""
    return not groups.isdisjoint(principal.groups) or principal in users


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """A loaded policy. `hash` is the SHA-256 of what it says."""

    hash: str
    source: str
    rules: tuple[Rule, ...]
    masks: tuple[Mask, ...]
    rows: tuple[tuple[RowFilter, Who | None], ...] = ()
    thresholds: tuple[int, ...] = ()  # the numbers of rows that conditions name, in order
    conditions: tuple[When, ...] = ()  # those of all rules that ask about time or session
    limits: tuple[LimitEntry, ...] = ()
    recordings: tuple[RecordingEntry, ...] = ()
    auditors: tuple[Who, ...] = ()  # who may read the audit through the gateway
    operators: tuple[Who, ...] = ()  # who may see and end everybody's sessions
    detect: tuple[DetectEntry, ...] = ()
    by_column: bool = field(init=False)  # whether any rule is about columns

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_column", any(rule.columns for rule in self.rules))

    def limits_of(self, principal: Principal, connection: str) -> Limits:
        """The strictest of all limits that are about this principal on this connection."""
        return strictest(entry.limits for entry in self.limits if entry.concerns(principal, connection))

    def recording_of(self, principal: Principal, connection: str) -> RecordingMode | None:
        """The most that any entry wants recorded of this principal on this connection; None where none says."""
        modes = [entry.mode for entry in self.recordings if entry.concerns(principal, connection)]
        return max(modes, key=RECORDING_MODES.index, default=None)

    def may_write(self, principal: Principal, connection: str) -> bool:
        """Whether any rule lets this principal do more than read there, be it with an approval.

        Calls count as more: what a function does to the data is not in its name.
        """
        return any(
            rule.effect is not Effect.DENY and not rule.actions <= _READING and rule.concerns(principal, connection)
            for rule in self.rules
        )

    def detection(self, principal: Principal, connection: str) -> Detection | None:
        """All that any entry looks for in what this principal gets on this connection; None for nothing."""
        if not self.detect:
            return None
        entries = [entry for entry in self.detect if entry.concerns(principal, connection)]
        if not entries:
            return None
        kinds = NOTHING.union(*(entry.kinds for entry in entries))
        return Detection(kinds, tuple(sorted(entry.label for entry in entries)))

    def standing(self, circumstances: Circumstances) -> tuple[bool | None, ...]:
        """What of time and session this policy's verdicts depend on: decisions of equal ones are equal."""
        return tuple([answer for when in self.conditions for answer in when.standing(circumstances)])


class Judgement(NamedTuple):
    """What the rules say to some demands, with every reason."""

    effect: Effect
    reasons: tuple[Reason, ...]
    terms: tuple[ApprovalTerms, ...]
    counts: bool = False  # a condition on the number of rows was asked
    opened: tuple[Demand, ...] = ()  # calls that are allowed if all that their bodies demand is
    trusts: bool = False  # whether a user function may run, whatever its body does
    withheld: bool = False  # there are rules about columns of a relation that is demanded

    def joined(self, other: Judgement) -> Judgement:
        """What the rules say to the demands of both; which calls are still to be opened is the other's to say."""
        return Judgement(
            max(self.effect, other.effect),
            tuple(dict.fromkeys((*self.reasons, *other.reasons))),
            tuple(sorted(dict.fromkeys((*self.terms, *other.terms)), key=lambda t: t.rule)),
            self.counts,
            other.opened,
            self.trusts or other.trusts,
            self.withheld or other.withheld,
        )


def judge(
    policy: Policy,
    principal: Principal,
    connection: str,
    demands: Sequence[Demand],
    circumstances: Circumstances = NOTHING_KNOWN,
) -> Judgement:
    """The strictest over all demands; none is an allow."""
    concerned = _concerned(policy, principal, connection)
    effect, reasons, terms, opened, trusts = Effect.ALLOW, [], [], [], False
    counts = withheld = False
    for demand in demands:
        about = concerned.about(demand)
        counts, withheld = counts or about.counts, withheld or about.withheld
        said = about.settled
        matching: Sequence[Rule] = about.whole
        if said is not None and demand.via is None and demand.bounded:
            reason = Reason(said.effect, said.code, said.text, said.rule, demand, said.cure, demand.location or None)
        else:
            whole = [rule for rule in about.whole if rule.applies(demand, circumstances)]
            ruled = _ruled(about.narrow, whole, demand, circumstances)
            matching, reason = ruled.matching, _reason(principal, concerned.rules, ruled, demand)
        reasons.append(reason)
        effect = max(effect, reason.effect)
        if demand.functions and matching and reason.effect is not Effect.DENY:
            by_body = reason.effect is Effect.ALLOW and all(rule.analysed for rule in matching)
            opened += [demand] if by_body else []
            trusts = trusts or not by_body
        if reason.effect is Effect.APPROVE:
            terms += [rule.terms for rule in matching if rule.terms is not None]
    unique = sorted(dict.fromkeys(terms), key=lambda t: t.rule) if terms else ()
    return Judgement(effect, tuple(reasons), tuple(unique), counts, tuple(opened), trusts, withheld)


@dataclass(frozen=True, slots=True)
class _About:
    """The rules that are about a demand: as a whole, and about columns of it; whether any counts rows, or withholds.

    `settled` is the reason, but for the demand and its place, where no condition and no column has a say in it.
    """

    whole: tuple[Rule, ...]
    narrow: tuple[Rule, ...]
    counts: bool
    withheld: bool
    settled: Reason | None


class _Concerned:
    """The rules about a principal on a connection. What they are about is found once for each action and object."""

    def __init__(self, policy: Policy, principal: Principal, connection: str) -> None:
        self.rules = [rule for rule in policy.rules if rule.concerns(principal, connection)]
        self._principal = principal
        self._known: dict[tuple[object, ...], _About] = {}

    def about(self, demand: Demand) -> _About:
        """The rules that are about it, whatever their conditions say."""
        name = demand.object
        key = (demand.action, name.kind, name.schema, name.name, demand.builtin, not demand.functions)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _KNOWN_DEMANDS:
                self._known.clear()  # names that clients make up must not fill the memory
            known = self._known[key] = self._find(demand)
        return known

    def _find(self, demand: Demand) -> _About:
        whole = tuple(rule for rule in self.rules if rule.covers(demand))
        narrow = tuple(rule for rule in self.rules if rule.columns and rule.covers_columns(demand))
        settled = None
        if not narrow and all(rule.when is ALWAYS for rule in whole):
            plain = Demand(demand.action, demand.object, builtin=demand.builtin)
            settled = _reason(self._principal, self.rules, _Ruled(whole), plain)
        return _About(
            whole,
            narrow,
            counts=any(rule.when.counts_rows for rule in (*whole, *narrow)),
            withheld=any(rule.fits_relation(demand) for rule in self.rules if rule.columns),
            settled=settled,
        )


@lru_cache(maxsize=256)
def _concerned(policy: Policy, principal: Principal, connection: str) -> _Concerned:
    return _Concerned(policy, principal, connection)


class _Ruled(NamedTuple):
    """The rules that decide a demand; where columns are told apart, about which one, and which could be had."""

    matching: Sequence[Rule]
    column: str | None = None
    open: tuple[str, ...] = ()


def _ruled(about: Sequence[Rule], whole: list[Rule], demand: Demand, circumstances: Circumstances) -> _Ruled:
    """The rules that decide: `whole`, which match the relation as such, and those about the columns it touches.

    Of several columns the one with the strictest decides; what wants approval of any is there for all.
    """
    narrow = [rule for rule in about if rule.applies(demand, circumstances)]
    if not narrow:
        return _Ruled(whole)
    if demand.columns is None:
        # It may touch any: nothing that is allowed for some of them suffices.
        return _Ruled([*whole, *(rule for rule in narrow if rule.effect is not Effect.ALLOW)])
    if not demand.columns.names:
        return _Ruled([*whole, *(rule for rule in narrow if rule.effect is Effect.ALLOW)])
    by_column = {
        column: [*whole, *(rule for rule in narrow if rule.names_column(demand, column))]
        for column in sorted(demand.columns.names)
    }
    worst = max(by_column, key=lambda column: _effect(by_column[column]))  # the first of equals
    if _effect(by_column[worst]) is Effect.APPROVE:
        return _Ruled(list(dict.fromkeys(rule for some in by_column.values() for rule in some)), worst)
    could = tuple(column for column, some in by_column.items() if _effect(some) is not Effect.DENY)
    return _Ruled(by_column[worst], worst, could)


def _effect(matching: Iterable[Rule]) -> Effect:
    return max((rule.effect for rule in matching), default=Effect.DENY)


def _reason(principal: Principal, rules: list[Rule], ruled: _Ruled, demand: Demand) -> Reason:
    matching, column = ruled.matching, ruled.column
    if not matching:
        if demand.builtin and column is None:
            rule = _BUILTIN_FUNCTIONS if demand.action is Action.CALL else _BUILTIN_CATALOG
            return Reason(Effect.ALLOW, "builtin", f"`{demand}` is harmless", rule=rule, demand=demand)
        return Reason(
            Effect.DENY,
            "rule.none",
            f"no rule lets `{principal.subject}` {_spoken(demand, column)}",
            demand=demand,
            cure=_without_column(ruled, demand) + _cure(rules, demand),
            location=demand.location or None,
        )
    # The strictest; a rule that trusts a function before one that asks for its body; among equals the name
    # decides, so that the order of the file does not show.
    deciding = max(matching, key=lambda r: (r.effect, not r.analysed, [-ord(c) for c in r.name]))
    says = {Effect.ALLOW: "lets", Effect.APPROVE: "wants approval before", Effect.DENY: "does not let"}
    cure = {
        Effect.ALLOW: None,
        Effect.APPROVE: None,
        Effect.DENY: f"{_without_column(ruled, demand)}Whoever may change the rule `{deciding.name}` can allow it.",
    }
    who = f"`{principal.subject}`"
    spoken = _spoken(demand, column if deciding.columns else None)
    verb = spoken if deciding.effect is not Effect.APPROVE else f"may {spoken}"
    how = " by what it does" if deciding.analysed else ""
    return Reason(
        deciding.effect,
        "rule.matched",
        f"the rule `{deciding.name}` {says[deciding.effect]} {who} {verb}{how}",
        rule=deciding.label,
        demand=demand,
        cure=cure[deciding.effect],
        location=demand.location or None,
    )


def _without_column(ruled: _Ruled, demand: Demand) -> str:
    """What to write instead where a column is not to be had and others are."""
    if ruled.column is None or demand.columns is None or not ruled.open:
        return ""
    if demand.columns.whole:
        return f"Name the columns that you need, of {', '.join(ruled.open)}. "
    named = "`, `".join(demand.columns.generated or (ruled.column,))
    return f"Leave `{named}` out, also as a name of something else. "


def _spoken(demand: Demand, column: str | None = None) -> str:
    every = "" if demand.bounded else " without saying which rows"
    if column is not None and demand.columns is not None:
        generated = "`, `".join(demand.columns.generated)
        whole = demand.columns.whole or (f"the generated `{generated}`" if generated else None)
        stands = f", which {whole} stands for" if whole else ""
        return f"{demand.action.value} `{demand.object}.{column}`{stands}{every}"
    behind = f", which {demand.via} needs" if demand.via else ""
    return f"{demand.action.value} `{demand.object}`{every}{behind}"


def _cure(rules: Iterable[Rule], demand: Demand) -> str:
    """What the principal could do instead: rules for the same action first."""
    open_rules = [rule for rule in rules if rule.effect is not Effect.DENY]
    if not open_rules:
        return "No rule is about this principal at all: ask whoever keeps the policy."
    open_rules.sort(key=lambda r: (demand.action not in r.actions, r.name))
    could = "; ".join(
        f"{rule.describes}{' (with approval)' if rule.effect is Effect.APPROVE else ''}"
        for rule in open_rules[:_CURE_RULES]
    )
    return f"The rules for this principal are about: {could}. Whoever keeps the policy can add one."
