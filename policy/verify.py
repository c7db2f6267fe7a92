"""The proof of a rewrite: parsed again, it differs from the original by the generated subqueries and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from policy.parse import Node, NotAnalysableError, parser_json, without_places


@dataclass(frozen=True, slots=True)
class Replacement:
    """`select` stands where the RangeVar `var` stood, under its name or alias; if it `copies`, where COPY names it."""

    var: Node
    select: str
    copies: bool


_NAMED: Final = re.compile(r'"(RangeVar|relation)":(?=\{)')
_DECODER: Final = json.JSONDecoder()
_BEFORE: Final = re.compile(rb'^\{"version":[0-9]+,"stmts":\[\{"stmt":')
_AFTER: Final = re.compile(rb'(?:,"stmt_location":[0-9]+)?(?:,"stmt_len":[0-9]+)?\}\]\}$')
_AFTER_BYTES: Final = 64  # more than it has: two numbers up to the limit of a text


def verify(original: bytes, sql: bytes, replacements: Mapping[int, Replacement]) -> None:
    """Raise NotAnalysableError unless `sql` is the `original` with these replacements.

    `original` is the parser's own text of the tree, and what it must have become is compared with the text of the
    tree of `sql`, byte for byte but for places. `replacements` are by the location of the RangeVar. In neither text
    could a constant look like a node: quotes within it are escaped.
    """
    try:
        expected = without_places(_replaced(original.decode("utf-8"), replacements).encode("utf-8"))
        same = _statement(expected) == _statement(without_places(parser_json(sql)))
    except (NotAnalysableError, ValueError, RecursionError):
        same = False
    if not same:
        raise NotAnalysableError(
            "rewrite.unverified",
            "the masked form of the statement cannot be proved to mean the same",
            cure="Write it in a simpler way, with an alias for each relation.",
        )


def _replaced(original: str, replacements: Mapping[int, Replacement]) -> str:
    """What the original must have become. A shared subtree shows one place of the text twice."""
    pieces, at = [], 0
    for named in _NAMED.finditer(original):
        var, end = _DECODER.raw_decode(original, named.end())
        replacement = replacements.get(var.get("location"))
        if replacement is None or replacement.var != var or replacement.copies is not (named[1] == "relation"):
            continue
        query = _json(replacement.select)
        if replacement.copies:
            pieces += [original[at : named.start()], f'"query":{query}']
            if original.startswith(',"attlist":', end):
                _, end = _DECODER.raw_decode(original, end + len(',"attlist":'))
        else:
            alias = _alias(original[named.end() : end])
            pieces += [original[at : named.start()], f'"RangeSubselect":{{"subquery":{query},"alias":{alias}}}']
        at = end
    return "".join([*pieces, original[at:]])


def _alias(var: str) -> str:
    """The alias of a RangeVar, or the one that its name stands for, as the parser writes it."""
    key = '"alias":'
    if (start := var.find(key + "{")) >= 0:
        _, end = _DECODER.raw_decode(var, start + len(key))
        return var[start + len(key) : end]
    key = '"relname":'
    start = var.index(key) + len(key)
    _, end = _DECODER.raw_decode(var, start)
    return f'{{"aliasname":{var[start:end]}}}'


def _statement(text: bytes) -> bytes:
    """The parser's text of the only statement. Raises ValueError where it is not of that form."""
    before, after = _BEFORE.search(text), _AFTER.search(text, max(0, len(text) - _AFTER_BYTES))
    if before is None or after is None:
        raise ValueError("not the text of one statement")
    return text[before.end() : after.start()]


@lru_cache(maxsize=256)
def _json(select: str) -> str:
    """The parser's text of a generated subquery's node; the same few come back with every statement."""
    return _statement(without_places(parser_json(select.encode()))).decode("utf-8")
