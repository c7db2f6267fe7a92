"""The proof of a rewrite: parsed again, it differs from the original by the generated subqueries and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from policy.parse import PLACES, Node, NotAnalysableError, json_without_places


@dataclass(frozen=True, slots=True)
class Replacement:
    """`select` stands where a RangeVar stood, under this alias; with None it is the query of a COPY."""

    select: str
    alias: Node | None


def verify(original: Node, sql: bytes, replacements: Mapping[int, Replacement]) -> None:
    """Raise NotAnalysableError `rewrite.unverified` unless `sql` is `original` with these replacements.

    `replacements` are by the identity of the RangeVar's node in `original`. Positions do not count.
    """
    numbers = {select: n for n, select in enumerate({r.select for r in replacements.values()})}
    try:
        found = json_without_places(sql)
        # What was generated is compared as the parser's own text, in which no constant looks like a node.
        for select in sorted(numbers, key=len, reverse=True):
            found = found.replace(_json(select), json.dumps(_generated(numbers[select])).encode())
        [statement] = json.loads(found)["stmts"]
        # Each field has one type in the grammar, so that no 1 can stand for a true.
        same = _Expected(replacements, numbers).tree(original) == statement.get("stmt")
    except (NotAnalysableError, ValueError, RecursionError):
        same = False
    if not same:
        raise NotAnalysableError(
            "rewrite.unverified",
            "the masked form of the statement cannot be proved to mean the same",
            cure="Write it in a simpler way, with an alias for each relation.",
        )


class _Expected:
    """The tree that a rewrite must have, made from the original's; without positions."""

    def __init__(self, replacements: Mapping[int, Replacement], numbers: Mapping[str, int]) -> None:
        self._replacements = replacements
        self._numbers = numbers

    def tree(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._node(value)
        if isinstance(value, list):
            return [self.tree(item) for item in value]
        return value

    def _node(self, node: Node) -> Node:
        var = node.get("RangeVar")
        if var is not None and (replacement := self._replacements.get(id(var))):
            query = _generated(self._numbers[replacement.select])
            return {"RangeSubselect": {"subquery": query, "alias": self.tree(replacement.alias)}}
        relation = node.get("relation")
        if isinstance(relation, dict) and (replacement := self._replacements.get(id(relation))):
            kept = {key: value for key, value in node.items() if key not in ("relation", "attlist")}
            return self._fields(kept) | {"query": _generated(self._numbers[replacement.select])}
        return self._fields(node)

    def _fields(self, node: Node) -> Node:
        return {
            key: self.tree(value) if isinstance(value, (dict, list)) else value
            for key, value in node.items()
            if key not in PLACES
        }


def _generated(number: int) -> Node:
    """What stands for a generated subquery in both trees; the grammar knows no such node."""
    return {"Generated": number}


@lru_cache(maxsize=256)
def _json(select: str) -> bytes:
    """The parser's text of a generated subquery's node; the same few come back with every statement."""
    whole = json_without_places(select.encode())
    return whole.partition(b'"stmts":[{"stmt":')[2].removesuffix(b"}]}")
