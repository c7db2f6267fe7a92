"""Rules against demands: the strictest matching rule wins, no match is a deny, order never matters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from policy.conditions import When, Window
from policy.detection import NOTHING, Detection
from policy.detectors import Kinds
from policy.filters import RowFilter
from policy.limits import Limits, strictest
from policy.masks import Mask
from policy.model import (
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
)
from policy.patterns import Pattern

_BUILTIN_CATALOG: Final = "builtin: catalog-read"
_BUILTIN_FUNCTIONS: Final = "builtin: harmless-functions"
_CURE_RULES: Final = 4
# What works in a transaction that is read only.
_READING: Final = frozenset((Action.SELECT, Action.EXPLAIN, Action.LISTEN, Action.NOTIFY))


@dataclass(frozen=True, slots=True)
class Who:
    """Principals: each set that is not empty must hold the principal. `users` are subjects or e-mail addresses."""

    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    kinds: frozenset[PrincipalKind] = frozenset()
    on_behalf_of: frozenset[str] = frozenset()

    def includes(self, principal: Principal) -> bool:
        """Whether this principal is meant."""
        return (
            (not self.users or principal.subject in self.users or principal.email in self.users)
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
    analysed: bool = False  # lets functions be called by what their bodies do

    def concerns(self, principal: Principal, connection: str) -> bool:
        """Whether the rule is about this principal on this connection."""
        if self.who is not None and not self.who.includes(principal):
            return False
        return not self.connections or any(p.matches((connection,)) for p in self.connections)

    def matches(self, demand: Demand, circumstances: Circumstances = NOTHING_KNOWN) -> bool:
        """Whether the rule is about this demand, and its conditions hold."""
        return self.covers(demand) and self.when.holds(demand, circumstances, self.effect is not Effect.ALLOW)

    def covers(self, demand: Demand) -> bool:
        """Whether the rule is about this demand, whatever its conditions say."""
        if demand.action not in self.actions or (self.analysed and not demand.functions):
            return False
        if demand.builtin:
            # What PostgreSQL brings along is touched only by rules that spell its schema out.
            return any(s.names(demand.object) for s in self.selectors)
        return not self.selectors or any(s.matches(demand.object) for s in self.selectors)

    @property
    def describes(self) -> str:
        """What the rule is about, such as `select, explain public.*`."""
        actions = ", ".join(a.value for a in Action if a in self.actions) if len(self.actions) < len(Action) else "*"
        objects = ", ".join(p.text for s in self.selectors for p in s.patterns) or "anything"
        condition = " and ".join(filter(None, (str(self.when), "by what their bodies do" if self.analysed else "")))
        return f"{actions} {objects} ({condition})" if condition else f"{actions} {objects}"


@dataclass(frozen=True, slots=True)
class LimitEntry:
    """One entry of the file: limits, and whom they are for."""

    limits: Limits
    who: Who | None
    connections: tuple[Pattern, ...]

    def concerns(self, principal: Principal, connection: str) -> bool:
        """Whether the limits are for this principal on this connection."""
        if self.who is not None and not self.who.includes(principal):
            return False
        return not self.connections or any(p.matches((connection,)) for p in self.connections)


@dataclass(frozen=True, slots=True)
class DetectEntry:
    """One entry of the file: what to look for in what is delivered, for whom, on which connections.

    `unless` is whoever is excused from it: members of any of the groups, or any of the users.
    """

    kinds: Kinds
    who: Who | None
    connections: tuple[Pattern, ...]
    exempt_groups: frozenset[str]
    exempt_users: frozenset[str]
    label: str
    place: tuple[int, int] = (1, 1)

    def concerns(self, principal: Principal, connection: str) -> bool:
        """Whether it looks at what this principal gets on this connection."""
        if self.who is not None and not self.who.includes(principal):
            return False
        if self.connections and not any(p.matches((connection,)) for p in self.connections):
            return False
        return not is_exempt(principal, self.exempt_groups, self.exempt_users)


def is_exempt(principal: Principal, groups: frozenset[str], users: frozenset[str]) -> bool:
    """Whether an `unless` of these groups and users excuses the principal."""
    return (
        not groups.isdisjoint(principal.groups)
        or principal.subject in users
        or (principal.email is not None and principal.email in users)
    )


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """A loaded policy. `hash` is the SHA-256 of what it says."""

    hash: str
    source: str
    rules: tuple[Rule, ...]
    masks: tuple[Mask, ...]
    rows: tuple[tuple[RowFilter, Who | None], ...] = ()
    windows: tuple[Window, ...] = ()  # of all rules' conditions
    thresholds: tuple[int, ...] = ()  # the numbers of rows that conditions name, in order
    limits: tuple[LimitEntry, ...] = ()
    auditors: tuple[Who, ...] = ()  # who may read the audit through the gateway
    operators: tuple[Who, ...] = ()  # who may see and end everybody's sessions
    detect: tuple[DetectEntry, ...] = ()

    def limits_of(self, principal: Principal, connection: str) -> Limits:
        """The strictest of all limits that are about this principal on this connection."""
        return strictest(entry.limits for entry in self.limits if entry.concerns(principal, connection))

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

    def moment(self, now: datetime) -> tuple[bool, ...]:
        """What of a moment this policy's verdicts depend on: decisions of equal ones are equal."""
        return tuple([window.holds(now) for window in self.windows])


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the rules say to some demands, with every reason."""

    effect: Effect
    reasons: tuple[Reason, ...]
    terms: tuple[ApprovalTerms, ...]
    counts: bool = False  # a condition on the number of rows was asked
    opened: tuple[Demand, ...] = ()  # calls that are allowed if all that their bodies demand is
    trusts: bool = False  # whether a user function may run, whatever its body does

    def joined(self, other: Judgement) -> Judgement:
        """What the rules say to the demands of both; which calls are still to be opened is the other's to say."""
        return Judgement(
            max(self.effect, other.effect),
            tuple(dict.fromkeys((*self.reasons, *other.reasons))),
            tuple(sorted(dict.fromkeys((*self.terms, *other.terms)), key=lambda t: t.rule)),
            self.counts,
            other.opened,
            self.trusts or other.trusts,
        )


def judge(
    policy: Policy,
    principal: Principal,
    connection: str,
    demands: Sequence[Demand],
    circumstances: Circumstances = NOTHING_KNOWN,
) -> Judgement:
    """The strictest over all demands; none is an allow."""
    rules = [rule for rule in policy.rules if rule.concerns(principal, connection)]
    effect, reasons, terms, opened, trusts = Effect.ALLOW, [], [], [], False
    counting = [rule for rule in rules if rule.when.counts_rows]
    for demand in demands:
        matching = [rule for rule in rules if rule.matches(demand, circumstances)]
        reason = _reason(principal, rules, matching, demand)
        reasons.append(reason)
        effect = max(effect, reason.effect)
        if demand.functions and matching and reason.effect is not Effect.DENY:
            by_body = reason.effect is Effect.ALLOW and all(rule.analysed for rule in matching)
            opened += [demand] if by_body else []
            trusts = trusts or not by_body
        if reason.effect is Effect.APPROVE:
            terms += [rule.terms for rule in matching if rule.terms is not None]
    unique = sorted(dict.fromkeys(terms), key=lambda t: t.rule)
    counts = any(rule.covers(demand) for rule in counting for demand in demands)
    return Judgement(effect, tuple(reasons), tuple(unique), counts, tuple(opened), trusts)


def _reason(principal: Principal, rules: list[Rule], matching: list[Rule], demand: Demand) -> Reason:
    if not matching:
        if demand.builtin:
            rule = _BUILTIN_FUNCTIONS if demand.action is Action.CALL else _BUILTIN_CATALOG
            return Reason(Effect.ALLOW, "builtin", f"`{demand}` is harmless", rule=rule, demand=demand)
        return Reason(
            Effect.DENY,
            "rule.none",
            f"no rule lets `{principal.subject}` {_spoken(demand)}",
            demand=demand,
            cure=_cure(rules, demand),
            location=demand.location or None,
        )
    # The strictest; a rule that trusts a function before one that asks for its body; among equals the name
    # decides, so that the order of the file does not show.
    deciding = max(matching, key=lambda r: (r.effect, not r.analysed, [-ord(c) for c in r.name]))
    says = {Effect.ALLOW: "lets", Effect.APPROVE: "wants approval before", Effect.DENY: "does not let"}
    cure = {
        Effect.ALLOW: None,
        Effect.APPROVE: None,
        Effect.DENY: f"Whoever may change the rule `{deciding.name}` can allow it.",
    }
    who = f"`{principal.subject}`"
    verb = _spoken(demand) if deciding.effect is not Effect.APPROVE else f"may {_spoken(demand)}"
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


def _spoken(demand: Demand) -> str:
    every = "" if demand.bounded else " without saying which rows"
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
    return f"The rules for this principal are about: {could}."
