"""The proof of a rewrite: parsed again, it differs from the original by the generated subqueries and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from policy.parse import Node, NotAnalysableError, statements

_PLACES: Final = frozenset(
    ("location", "list_start", "list_end", "rexpr_list_start", "rexpr_list_end", "name_location")
)


@dataclass(frozen=True, slots=True)
class Replacement:
    """`select` stands where a RangeVar stood, under this alias; with None it is the query of a COPY."""

    select: str
    alias: Node | None


class _DifferentError(Exception):
    pass


def verify(original: Node, sql: bytes, replacements: Mapping[int, Replacement]) -> None:
    """Raise NotAnalysableError `rewrite.unverified` unless `sql` is `original` with these replacements.

    `replacements` are by the identity of the RangeVar's node in `original`. Positions do not count.
    """
    try:
        [(_, _, tree)] = statements(sql)
        _Comparison(replacements).same(original, tree)
    except (_DifferentError, NotAnalysableError, ValueError, RecursionError):
        raise NotAnalysableError(
            "rewrite.unverified",
            "the masked form of the statement cannot be proved to mean the same",
            cure="Write it in a simpler way, with an alias for each relation.",
        ) from None


class _Comparison:
    def __init__(self, replacements: Mapping[int, Replacement]) -> None:
        self._replacements = replacements

    def same(self, one: Any, two: Any) -> None:
        if isinstance(one, dict):
            if not isinstance(two, dict):
                raise _DifferentError
            self._same_node(one, two)
        elif isinstance(one, list):
            if not isinstance(two, list) or len(one) != len(two):
                raise _DifferentError
            for left, right in zip(one, two, strict=True):
                self.same(left, right)
        elif one != two or type(one) is not type(two):
            raise _DifferentError

    def _same_node(self, one: Node, two: Node) -> None:
        var = one.get("RangeVar")
        if var is not None and (replacement := self._replacements.get(id(var))):
            subquery = {"RangeSubselect": {"subquery": _parsed(replacement.select), "alias": replacement.alias}}
            self._same_fields(subquery, two)
            return
        relation = one.get("relation")
        if isinstance(relation, dict) and (replacement := self._replacements.get(id(relation))):
            copy = {k: v for k, v in one.items() if k not in ("relation", "attlist")}
            self._same_fields(copy | {"query": _parsed(replacement.select)}, two)
            return
        self._same_fields(one, two)

    def _same_fields(self, one: Node, two: Node) -> None:
        if one.keys() - _PLACES != two.keys() - _PLACES:
            raise _DifferentError
        for key, value in one.items():
            if key not in _PLACES:
                self.same(value, two[key])


@lru_cache(maxsize=256)
def _parsed(select: str) -> Node:
    """The tree of a generated subquery; the same few come back with every statement."""
    [(_, _, tree)] = statements(select.encode())
    return tree
