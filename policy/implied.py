"""What a statement sets off without naming it: triggers, defaults, checks, casts, and what foreign keys do.

PostgreSQL runs all of it with the statement; so all of it is demanded, or the statement is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Final

from policy.calls import Calls
from policy.catalog import Event, ForeignKey, Relation, RelationKind
from policy.demands import Demands
from policy.model import Action, ObjectKind, ObjectName
from policy.names import Names, check_known, is_system

_EVENTS: Final = {
    Action.SELECT: Event.READ,
    Action.INSERT: Event.INSERT,
    Action.UPDATE: Event.UPDATE,
    Action.DELETE: Event.DELETE,
    Action.TRUNCATE: Event.TRUNCATE,
    Action.ALTER: Event.BUILD,
    Action.MAINTAIN: Event.BUILD,
}
_WRITES: Final = Event.INSERT | Event.UPDATE | Event.DELETE | Event.TRUNCATE
_OF_QUERY: Final = {RelationKind.VIEW: Event.READ | _WRITES, RelationKind.MATERIALIZED_VIEW: Event.BUILD}
_QUERIES: Final = tuple(_OF_QUERY)
_RECORD: Final = 2249  # pg_type.oid of `record`: columns of any type


class Implied:
    """The unseen part of one statement."""

    __slots__ = (
        "_anything",
        "_calls",
        "_catalog",
        "_demand",
        "_names",
        "_present",
        "_ran",
        "keys",
    )

    def __init__(self, names: Names, calls: Calls, demands: Demands) -> None:
        self._names = names
        self._catalog = names.catalog
        self._calls = calls
        self._demand = demands.note
        self._ran: set[tuple[int, Event]] = set()
        self._present: set[int] = set()
        self._anything = False
        self.keys: set[ForeignKey] = set()  # that are held against what the statement changes

    def demand_on(
        self,
        action: Action,
        relation: Relation,
        location: int,
        *,
        bounded: bool = True,
        via: str | None = None,
    ) -> None:
        """Note a demand on a relation, and what runs unseen when it is met."""
        system = is_system(relation)
        self._demand(
            action,
            ObjectName(ObjectKind.RELATION, relation.schema, relation.name),
            oid=relation.oid,
            location=location,
            builtin=system and action in (Action.SELECT, Action.EXPLAIN),
            bounded=bounded,
            via=via,
        )
        if not system:
            self.on(action, relation, location)

    def on(self, action: Action, relation: Relation, location: int) -> None:
        """Note what runs when this is done to a relation."""
        event = _EVENTS.get(action)
        if event is None:
            return
        if event is Event.UPDATE and relation.kind is RelationKind.PARTITIONED:
            event |= Event.INSERT | Event.DELETE  # a row that moves to another partition
        if self._catalog.casts:
            self._note_columns(relation)
        self._run(relation, event, location)

    def _run(self, relation: Relation, event: Event, location: int) -> None:
        """The code of a relation, of its heirs where rows are written, and of what a view stands for."""
        if not relation.code and not relation.children and relation.kind not in _QUERIES:
            check_known(relation, location)
            return
        reached = self._catalog.heirs(relation) if event & (_WRITES | Event.BUILD) else [relation]
        for one in reached:
            if (one.oid, event) in self._ran:
                continue
            self._ran.add((one.oid, event))
            check_known(one, location)
            for code in one.code:
                if code.on & event:
                    self._calls.behind((code.function,), f"{code.by} of `{one.qualified}`", location)
            # A view stands for what it reads, a materialised one while it is refreshed.
            if event & _OF_QUERY.get(one.kind, Event(0)):
                for oid in one.reads:
                    if below := self._catalog.relations.get(oid):
                        self._run(below, event & _WRITES | Event.READ, location)

    def row_changes(self, action: Action, relation: Relation, location: int, changed: Iterable[str] | None) -> None:
        """What foreign keys do to other relations when rows of this one are deleted or updated.

        `changed` is the names of the columns that an update sets; None where it is not known.
        """
        reached = self._catalog.beneath(relation, None if changed is None else set(changed))
        todo = [(action, heir, columns) for table, columns in reached for heir in self._catalog.heirs(table)]
        seen: set[tuple[int, Action]] = set()
        while todo:
            done, one, columns = todo.pop()
            for key in one.referenced_by:
                if done is Action.UPDATE and not _changes(one, columns, key.key):
                    continue
                self.keys.add(key)
                follows, referencing = _follows(done, key), self._catalog.relations.get(key.referencing)
                if follows is None or referencing is None or (referencing.oid, follows) in seen:
                    continue
                seen.add((referencing.oid, follows))
                self.demand_on(follows, referencing, location, via="a foreign key")
                heirs = self._catalog.heirs(referencing)
                todo += [(follows, heir, frozenset(column.name for column in heir.columns)) for heir in heirs]

    def truncated(self, relations: Iterable[Relation]) -> list[Relation]:
        """The relations that TRUNCATE … CASCADE empties besides these: whatever references them, all levels."""
        found = [heir for relation in relations for heir in self._catalog.heirs(relation)]
        seen = {one.oid for one in found}
        further = []
        for one in found:
            for key in one.referenced_by:
                referencing = self._catalog.relations.get(key.referencing)
                if referencing is not None and referencing.oid not in seen:
                    seen.add(referencing.oid)
                    further.append(referencing)
                    found += self._catalog.heirs(referencing)
        return further

    # -- types ------------------------------------------------------------------------------------------

    def note_type(self, words: list[str], location: int) -> None:
        """A type is named: its checks may run, and values of it exist."""
        for found in self._names.types(words):
            self._present |= found.parts
            self._calls.behind(found.code, f"the type `{'.'.join(words)}`", location)

    def note_parameter(self) -> None:
        """A parameter may be of any type."""
        self._anything = True

    def settle(self) -> None:
        """Demand the user-defined casts that could happen between the types at hand.

        Built-in types are always at hand: a literal can be of any. No contexts are told apart.
        """
        if not self._catalog.casts:
            return
        for oid in self._calls.results:
            if found := self._catalog.type(oid):
                self._present |= found.parts
        anything = self._anything or _RECORD in self._calls.results
        for cast in self._catalog.casts:
            ends = [oid for oid in (cast.source, cast.target) if self._catalog.type(oid) is not None]
            if anything or all(oid in self._present for oid in ends):
                self._calls.behind((cast.function,), "a user-defined cast")

    def _note_columns(self, relation: Relation) -> None:
        for oid in (relation.row_type, *(column.type_oid for column in relation.columns)):
            if found := self._catalog.type(oid):
                self._present |= found.parts


def _changes(relation: Relation, names: Set[str], key: Set[int]) -> bool:
    """Whether setting these columns may change a key, by what is generated from them too."""
    numbers = {column.number for column in relation.columns if column.name in names}
    return any(c.number in key and (c.number in numbers or c.computed_from & numbers) for c in relation.columns)


def _follows(action: Action, key: ForeignKey) -> Action | None:
    """What happens to the referencing rows, or None."""
    if action is Action.DELETE:
        return {"c": Action.DELETE, "n": Action.UPDATE, "d": Action.UPDATE}.get(key.on_delete)
    return Action.UPDATE if key.on_update in ("c", "n", "d") else None
