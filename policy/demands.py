"""The demands of one statement, in the order in which the walk comes upon them."""

from __future__ import annotations

from policy.model import Action, Demand, ObjectName


class Demands:
    """What was demanded so far; the same twice counts once, an unbounded one as unbounded."""

    __slots__ = ("_noted", "unseen")

    def __init__(self) -> None:
        self._noted: dict[tuple[object, ...], Demand] = {}
        self.unseen: set[tuple[Action, ObjectName]] = set()  # demanded by what the text does not name, too

    def note(
        self,
        action: Action,
        name: ObjectName,
        *,
        oid: int | None = None,
        location: int = 0,
        builtin: bool = False,
        bounded: bool = True,
        via: str | None = None,
        functions: tuple[int, ...] = (),
    ) -> None:
        """Note a demand."""
        if via is not None:
            self.unseen.add((action, name))
        key = (action, name.kind, name.schema, name.name, bounded, functions)
        if key not in self._noted:
            self._noted[key] = Demand(action, name, oid, location, builtin, bounded, via, functions)

    @property
    def all(self) -> tuple[Demand, ...]:
        """Each of them once."""
        return tuple(self._noted.values())
