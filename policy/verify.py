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
        same = _Comparison(replacements, numbers).same(original, statement.get("stmt"))
    except (NotAnalysableError, ValueError, RecursionError):
        same = False
    if not same:
        raise NotAnalysableError(
            "rewrite.unverified",
            "the masked form of the statement cannot be proved to mean the same",
            cure="Write it in a simpler way, with an alias for each relation.",
        )


class _Comparison:
    """The tree of a rewrite, without positions, beside the original's. Neither is copied: they may be large."""

    def __init__(self, replacements: Mapping[int, Replacement], numbers: Mapping[str, int]) -> None:
        self._replacements = replacements
        self._numbers = numbers

    def same(self, one: Any, two: Any) -> bool:
        """Whether `two` is what `one` must have become."""
        if isinstance(one, dict):
            return isinstance(two, dict) and self._same_node(one, two)
        if isinstance(one, list):
            return isinstance(two, list) and len(one) == len(two) and all(map(self.same, one, two))
        return bool(one == two)

    def _same_node(self, one: Node, two: Node) -> bool:
        var = one.get("RangeVar")
        if var is not None and (replacement := self._replacements.get(id(var))):
            query = _generated(self._numbers[replacement.select])
            return self._same_fields({"RangeSubselect": {"subquery": query, "alias": replacement.alias}}, two)
        relation = one.get("relation")
        if isinstance(relation, dict) and (replacement := self._replacements.get(id(relation))):
            kept = {key: value for key, value in one.items() if key not in ("relation", "attlist")}
            return self._same_fields(kept | {"query": _generated(self._numbers[replacement.select])}, two)
        return self._same_fields(one, two)

    def _same_fields(self, one: Node, two: Node) -> bool:
        compared = 0
        for key, value in one.items():
            if key in PLACES:
                continue
            if key not in two:
                return False
            # Each field has one type in the grammar, so that no 1 can stand for a true.
            if not (self.same(value, two[key]) if isinstance(value, (dict, list)) else value == two[key]):
                return False
            compared += 1
        return compared == len(two)


def _generated(number: int) -> Node:
    """What stands for a generated subquery in both trees; the grammar knows no such node."""
    return {"Generated": number}


@lru_cache(maxsize=256)
def _json(select: str) -> bytes:
    """The parser's text of a generated subquery's node; the same few come back with every statement."""
    whole = json_without_places(select.encode())
    return whole.partition(b'"stmts":[{"stmt":')[2].removesuffix(b"}]}")
