"""A policy against a catalog: masks that hide nothing or cannot work, rules that never win."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from policy.catalog import Catalog, Column, Relation, RelationKind
from policy.conditions import implies
from policy.filters import RowFilter
from policy.masking import Masking
from policy.masks import Keys, Mask, MaskKind, UnmaskableError, expression
from policy.model import Effect
from policy.names import is_system, nearest
from policy.patterns import Pattern
from policy.pseudonyms import MaskKey
from policy.rules import DetectEntry, Policy, Rule


class Severity(StrEnum):
    """`error`: statements will be refused because of it. `warning`: it is not what it seems."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding, with its place in the policy file. `str()` is `file:line:column: severity: text; cure`."""

    severity: Severity
    source: str
    line: int
    column: int
    text: str
    cure: str | None = None

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}:{self.column}: {self.severity.value}: {self.text}"
        return f"{place}; {self.cure}" if self.cure else place


def check(
    policy: Policy,
    catalog: Catalog | None = None,
    mask_key: MaskKey | None = None,
    connections: Sequence[str] | None = None,
) -> list[Problem]:
    """Everything wrong with a policy that loaded, by place; without a catalog only what the file itself shows.

    `connections` are the names of all there are, where they are known.
    """
    keys = mask_key.subkey if mask_key is not None else None
    problems = [*_void_rules(policy), *_rules_that_trust_clients(policy), *_void_detection(policy, connections)]
    if catalog is not None:
        problems += (problem for rule in policy.rules for problem in _column_problems(policy, rule, catalog))
        problems += (problem for mask in policy.masks for problem in _mask_problems(policy, mask, catalog, keys))
        problems += _copies(policy, catalog)
        problems += (p for row_filter, _ in policy.rows for p in _filter_problems(policy, row_filter, catalog))
    return sorted(problems, key=lambda p: (p.line, p.column, p.text))


def _column_problems(policy: Policy, rule: Rule, catalog: Catalog) -> Iterator[Problem]:
    for pattern in rule.columns:
        if not any(_matching(pattern, catalog)):
            text = f"the rule `{rule.name}`: no column matches `{pattern.text}`"
            yield Problem(Severity.WARNING, policy.source, *rule.place, text, _meant(pattern, catalog))


def _meant(pattern: Pattern, catalog: Catalog) -> str | None:
    names = [f"{r.qualified}.{c.name}" for r in catalog.relations.values() if not is_system(r) for c in r.columns]
    near = nearest(pattern.text, names)
    return f"did you mean `{near}`?" if near else None


def _mask_problems(policy: Policy, mask: Mask, catalog: Catalog, keys: Keys) -> Iterator[Problem]:
    line, column = mask.place
    found = list(_matching(mask.columns, catalog))
    if not found:
        yield Problem(
            Severity.WARNING,
            policy.source,
            line,
            column,
            f"no column matches `{mask.columns.text}`",
            _meant(mask.columns, catalog),
        )
    for relation, one in found:
        if mask.kind is MaskKind.CLEAR:
            if not _is_computed(relation, one):
                yield Problem(
                    Severity.ERROR,
                    policy.source,
                    line,
                    column,
                    f"`clear` is for columns that are computed, and `{relation.qualified}.{one.name}` is not one",
                    "use `unless` of the mask to excuse somebody",
                )
            continue
        try:
            expression((mask,), one, keys)
        except UnmaskableError as error:
            yield Problem(Severity.ERROR, policy.source, line, column, f"`{relation.qualified}`: {error}")


def _copies(policy: Policy, catalog: Catalog) -> Iterator[Problem]:
    """Columns that hold values of masked ones, by a foreign key, and are not masked."""
    masking = Masking(policy, None, catalog)
    for relation in catalog.relations.values():
        own, names = masking.columns(relation), {column.number: column.name for column in relation.columns}
        for number, masks in masking.referring(relation).items():
            if number not in own and number in names:
                yield Problem(
                    Severity.WARNING,
                    policy.source,
                    *masks[0].place,
                    f"`{relation.qualified}.{names[number]}` refers to a masked column, so it holds its values, and it"
                    " is not masked",
                    "mask it too",
                )


def _is_computed(relation: Relation, column: Column) -> bool:
    if relation.kind in (RelationKind.VIEW, RelationKind.MATERIALIZED_VIEW):
        return column.origin is None
    return bool(column.computed_from)


def _filter_problems(policy: Policy, row_filter: RowFilter, catalog: Catalog) -> Iterator[Problem]:
    line, column = row_filter.place
    user = [relation for relation in catalog.relations.values() if not is_system(relation)]
    found = [relation for relation in user if row_filter.relations.matches((relation.schema, relation.name))]
    if not found:
        near = nearest(row_filter.relations.text, [relation.qualified for relation in user])
        yield Problem(
            Severity.WARNING,
            policy.source,
            line,
            column,
            f"no relation matches `{row_filter.relations.text}`",
            f"did you mean `{near}`?" if near else None,
        )
    for relation in found:
        names = [one.name for one in relation.columns]
        for missing in sorted(row_filter.condition.columns - set(names)):
            near = nearest(missing, names)
            yield Problem(
                Severity.ERROR,
                policy.source,
                line,
                column,
                f"the filter names `{missing}`, which is no column of `{relation.qualified}`",
                f"did you mean `{near}`?" if near else f"its columns: {', '.join(names)}",
            )
    for schema, name in sorted(row_filter.condition.relations):
        if catalog.relation(schema, name) is None:
            near = nearest(f"{schema}.{name}", [relation.qualified for relation in user])
            yield Problem(
                Severity.ERROR,
                policy.source,
                line,
                column,
                f"the filter reads `{schema}.{name}`, which does not exist",
                f"did you mean `{near}`?" if near else None,
            )


def _matching(pattern: Pattern, catalog: Catalog) -> Iterator[tuple[Relation, Column]]:
    for relation in catalog.relations.values():
        if is_system(relation) or not pattern.fits_first((relation.schema, relation.name)):
            continue
        for column in relation.columns:
            if pattern.matches((relation.schema, relation.name, column.name)):
                yield relation, column


def _rules_that_trust_clients(policy: Policy) -> Iterator[Problem]:
    for rule in policy.rules:
        if rule.effect is Effect.ALLOW and any(part.clients for part in rule.when.parts()):
            text = f"the rule `{rule.name}` allows by what the client calls itself, and it may call itself anything"
            cure = "ask for `clients` in rules that deny or want approval"
            yield Problem(Severity.WARNING, policy.source, *rule.place, text, cure)


def _void_rules(policy: Policy) -> Iterator[Problem]:
    for rule in policy.rules:
        for stricter in policy.rules:
            if stricter.effect > rule.effect and _covers(stricter, rule):
                yield Problem(
                    Severity.WARNING,
                    policy.source,
                    *rule.place,
                    f"the rule `{rule.name}` can never win: `{stricter.name}` is about all of it and stricter",
                    "narrow the stricter rule, for instance by `when`",
                )
                break


def _void_detection(policy: Policy, connections: Sequence[str] | None) -> Iterator[Problem]:
    for entry in policy.detect:
        if (why := _void(entry, policy.detect, connections)) is not None:
            yield Problem(Severity.WARNING, policy.source, *entry.place, f"this entry {why[0]}", why[1])


def _void(
    entry: DetectEntry, entries: Sequence[DetectEntry], connections: Sequence[str] | None
) -> tuple[str, str] | None:
    """Why an entry of `detect` never makes a difference, and the cure; None where it may."""
    who = entry.who
    if who is not None and (
        (who.groups and who.groups <= entry.exempt_groups) or (who.users and who.users <= entry.exempt_users)
    ):
        return "looks at nobody: its `unless` excuses everyone in its `who`", "narrow `unless`"
    if connections is not None and entry.connections:
        patterns = [pattern.text for pattern in entry.connections]
        if not any(pattern.matches((name,)) for pattern in entry.connections for name in connections):
            known = f"configured are {', '.join(sorted(connections))}"
            return f"is about no connection: `{'`, `'.join(patterns)}` matches none", known
    wider = [other for other in entries if other is not entry and _looks_wider(other, entry)]
    if wider:
        return f"adds nothing to that on line {wider[0].place[0]}", "remove it, or let it look for something else"
    return None


def _looks_wider(wide: DetectEntry, narrow: DetectEntry) -> bool:
    """Whether `wide` surely looks for all that `narrow` does; of two that say the same the first does."""
    if replace(wide, label="", place=(0, 0)) == replace(narrow, label="", place=(0, 0)):
        return wide.place < narrow.place
    return (
        narrow.kinds <= wide.kinds
        and (wide.who is None or wide.who == narrow.who)
        and (not wide.connections or wide.connections == narrow.connections)
        and wide.exempt_groups <= narrow.exempt_groups
        and wide.exempt_users <= narrow.exempt_users
    )


def _covers(wide: Rule, narrow: Rule) -> bool:
    """Whether `wide` surely matches whatever `narrow` does; a no may be a not-sure."""
    if wide.who is not None and wide.who != narrow.who:
        return False
    if wide.connections and wide.connections != narrow.connections:
        return False
    if not implies(narrow.when, wide.when):
        return False
    if not narrow.actions <= wide.actions:
        return False
    if wide.columns:
        return bool(narrow.columns) and {p.text for p in narrow.columns} <= {p.text for p in wide.columns}
    if not wide.selectors:
        return True
    wide_patterns = {(s.kind, p.text) for s in wide.selectors for p in s.patterns}
    narrow_patterns = {(s.kind, p.text) for s in narrow.selectors for p in s.patterns}
    return bool(narrow_patterns) and all(
        (kind, text) in wide_patterns or (kind, "*") in wide_patterns for kind, text in narrow_patterns
    )
