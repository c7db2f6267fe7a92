"""What the analysis hands to the rewrite: the tree, and each relation where the statement names it. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import NamedTuple

from policy.catalog import ForeignKey, Relation
from policy.model import Action, Analysis, ObjectName
from policy.parse import Node
from policy.tree import Tree


class Role(Enum):
    """What a statement does with a relation that it names."""

    SOURCE = "source"  # rows are read from it
    TARGET = "target"  # INSERT, UPDATE, DELETE, MERGE
    COPY_OUT = "copy out"
    COPY_IN = "copy in"
    STRUCTURE = "structure"  # definition, privileges, maintenance


class Reference(NamedTuple):
    """A RangeVar that means a relation of the catalog. `var` is the tree's own node."""

    var: Node
    relation: Relation
    role: Role
    sampled: bool = False  # under TABLESAMPLE

    @property
    def location(self) -> int:
        """Byte offset of the name."""
        location: int = self.var.get("location", 0)
        return location


@dataclass(frozen=True)
class Reading:
    """An analysis with what the rewrite needs besides: the tree, and each relation where it stands.

    `stores` says what keeps the result of a query as data or definition (`CREATE TABLE AS` …), or None.
    """

    analysis: Analysis
    tree: Node
    text_of_tree: bytes  # the parser's own; empty where nothing of it will be rewritten
    references: tuple[Reference, ...]
    stores: str | None = None
    unseen: frozenset[tuple[Action, ObjectName]] = frozenset()  # demanded by what the text does not name, too
    keys: frozenset[ForeignKey] = frozenset()  # that refer to what it deletes or changes, at all levels

    @property
    def changes(self) -> bool:
        """Whether it is anything but a query that only reads, and calls nothing that could do more."""
        return self.analysis.kind != "SelectStmt" or self.analysis.effects.writes

    @cached_property
    def mentions(self) -> Tree:
        """What stands anywhere in the tree."""
        return Tree(self.tree)
