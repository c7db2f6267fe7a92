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


def parse_pattern(text: str, parts: int, form: str) -> Pattern:
    """Read a pattern that must have this many parts. Raises PatternError; `form` shows how one looks."""
    if text == "*":
        return Pattern(text, (".*",) * parts)
    found: list[str] = []
    at = 0
    while match := _PART.match(text, at):
        quoted = match["quoted"]
        if quoted is not None:
            found.append(re.escape(quoted.replace('""', '"')))
        else:
            found.append(".*".join(map(re.escape, match["plain"].split("*"))))
        at = match.end()
        if at == len(text) or text[at] != ".":
            break
        at += 1
    if at != len(text) or len(found) != parts:
        raise PatternError(f"`{text}` is no pattern of the form `{form}`")
    return Pattern(text, tuple(found))
