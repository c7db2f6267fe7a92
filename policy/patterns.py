"""Patterns of object names: `schema.name`, `*` for any run of characters, parts in double quotes as they are.

Matching is case-sensitive and part by part, so that a dot inside a name never counts as a separator.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_PART = re.compile(r'"(?P<quoted>(?:[^"]|"")+)"|(?P<plain>[^".\s]+)')


class PatternError(ValueError):
    """The text is no pattern; the message says why."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern of a fixed number of parts; the single `*` stands for everything."""

    text: str
    parts: tuple[str, ...]  # regular expressions
    _compiled: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", tuple(re.compile(p, re.DOTALL) for p in self.parts))

    def matches(self, names: Sequence[str]) -> bool:
        """Whether names, part by part, fit."""
        return len(names) == len(self._compiled) and all(
            compiled.fullmatch(name) is not None for compiled, name in zip(self._compiled, names, strict=True)
        )

    def fits_first(self, names: Sequence[str]) -> bool:
        """Whether names fit the first parts: a quick no for all the columns of a relation."""
        return all(
            compiled.fullmatch(name) is not None
            for compiled, name in zip(self._compiled[: len(names)], names, strict=True)
        )

    @property
    def is_everything(self) -> bool:
        """Whether this is the single `*`."""
        return self.text == "*"


def wildcard(text: str) -> re.Pattern[str]:
    """A name that is no object's, and so has no parts: `*` stands for any run of characters, dots among them."""
    return re.compile(_starred(text), re.DOTALL)


def parse_pattern(text: str, parts: int, form: str) -> Pattern:
    """Read a pattern that must have this many parts. Raises PatternError; `form` shows how one looks."""
    if text == "*":
        return Pattern(text, (".*",) * parts)
    found = _parts(text)
    if found is None or len(found) != parts:
        raise PatternError(f"`{text}` is no pattern of the form `{form}`")
    return Pattern(text, tuple(_expression(*part) for part in found))


def parse_path_pattern(text: str, parts: int, form: str) -> tuple[Pattern, tuple[str, ...]]:
    """Read a pattern after which a path of keys may follow, in which `*` has no meaning. Raises PatternError."""
    found = _parts(text)
    if found is None or len(found) <= parts:
        return parse_pattern(text, parts, form), ()
    path = found[parts:]
    if any(not quoted and "*" in word for word, quoted in path):
        raise PatternError(f"`{text}`: the keys of a path cannot be patterns")
    return Pattern(text, tuple(_expression(*part) for part in found[:parts])), tuple(word for word, _ in path)


def _parts(text: str) -> list[tuple[str, bool]] | None:
    """The words of a dotted text, and whether each was quoted; None where it is none."""
    found: list[tuple[str, bool]] = []
    at = 0
    while match := _PART.match(text, at):
        quoted = match["quoted"]
        found.append((match["plain"], False) if quoted is None else (quoted.replace('""', '"'), True))
        at = match.end()
        if at == len(text):
            return found
        if text[at] != ".":
            return None
        at += 1
    return None


def _expression(word: str, quoted: bool) -> str:
    return re.escape(word) if quoted else _starred(word)


def _starred(word: str) -> str:
    return ".*".join(map(re.escape, word.split("*")))
