"""Questions to a parse tree as a whole: which words, which columns, which stars."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from policy.parse import Node


class Tree:
    """What the checks ask of one tree, gathered in one walk: a statement may name a thousand relations."""

    def __init__(self, tree: Node) -> None:
        self.tree = tree
        self.words: set[str] = set()  # that could be a name: all strings but constants
        self.tags: set[str] = set()
        # Column references by their first word; by their first two, where there are more, with the place.
        self.columns: dict[str, set[tuple[str, ...]]] = {}
        self.qualified: dict[tuple[str, str], int | None] = {}
        # The words before each star of a column list; whether one opens a row (`(x).*`); whether a join makes rows of
        # its own: by a name, or by comparing all columns of equal names.
        self.stars: set[tuple[str, ...]] = set()
        self.holds_row_star = False
        self.joins_rows = False
        # By exact types, which are those that the parser's JSON has: this sees every node of every masked statement.
        todo: list[Any] = [tree]
        while todo:
            one = todo.pop()
            if type(one) is list:
                for item in one:
                    if type(item) is str:
                        self.words.add(item)
                    elif type(item) is dict or type(item) is list:
                        todo.append(item)
                continue
            self.tags.update(one)
            if len(one) == 1:  # a node has its tag alone beside it
                self._note(one)
            for key, value in one.items():
                kind = type(value)
                if kind is str:
                    self.words.add(value)
                elif kind is list or (kind is dict and key != "A_Const"):
                    todo.append(value)
        self.holds_star = "A_Star" in self.tags

    def _note(self, node: Node) -> None:
        if "ColumnRef" in node:
            self._note_column(node["ColumnRef"])
        elif "A_Indirection" in node:
            steps = node["A_Indirection"]["indirection"]
            self.holds_row_star = self.holds_row_star or any("A_Star" in step for step in steps)
        elif "JoinExpr" in node:
            join = node["JoinExpr"]
            self.joins_rows = self.joins_rows or "alias" in join or "isNatural" in join

    def _note_column(self, body: Node) -> None:
        fields = body["fields"]
        words = tuple([field["String"]["sval"] for field in fields if "String" in field])  # a star ends one early
        if words:
            self.columns.setdefault(words[0], set()).add(words)
        if "A_Star" in fields[-1]:
            self.stars.add(words)
        if len(fields) > 2 and len(words) > 1:
            self.qualified.setdefault((words[0], words[1]), body.get("location"))


def row_name(var: Node) -> str:
    """The name under which a RangeVar's row is known."""
    name: str = var.get("alias", {}).get("aliasname", var["relname"])
    return name


def nodes(value: Any) -> Iterator[Node]:
    """Every dict of the tree."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            yield one
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)
