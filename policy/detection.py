"""What is looked for in what a statement delivers, and how what was found is hidden: by as many bytes. Pure.

Hidden values stay what they were around what is hidden: framing, quoting and the syntax of JSON, arrays, records and
COPY never change, and a number stays a number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from policy.detectors import ESCAPE, Kind, Kinds, Span, find
from policy.forms import Form

NOTHING: Final[Kinds] = frozenset()
# A row that is larger is not searched, and so not delivered: a search takes up to a second for a MiB.
MOST_SEARCHED_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class CopyOut:
    """How COPY TO STDOUT writes rows, as far as finding values in them needs it.

    `query` is a statement with the same columns. The others are the options DELIMITER, QUOTE, ESCAPE and NULL.
    """

    query: bytes
    csv: bool
    delimiter: bytes
    quote: bytes = b'"'
    escape: bytes = b'"'
    null: bytes = b"\\N"


@dataclass(frozen=True, slots=True)
class Detection:
    """The kinds to look for in what a statement delivers, by which entries of the policy (`labels`).

    `forms` and `subtypes` (of ranges) are the catalog's, by type OID. `copy` is set for a COPY that delivers.
    """

    kinds: Kinds
    labels: tuple[str, ...] = ()
    forms: Mapping[int, Form] = field(default_factory=dict, repr=False, compare=False)
    subtypes: Mapping[int, int] = field(default_factory=dict, repr=False, compare=False)
    copy: CopyOut | None = None

    def __str__(self) -> str:
        return ", ".join(sorted(self.kinds))


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """How many of a kind were hidden in one column of a result; in its messages, where `column` is empty."""

    column: str
    kind: Kind
    count: int

    def __str__(self) -> str:
        return f"{self.column or 'messages'}: {self.count} {self.kind}"


class Findings:
    """Counts what is hidden of one statement's result. Never keeps a value."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, Kind]] = Counter()

    def note(self, column: str, spans: list[Span]) -> None:
        """These were hidden in a value of the column."""
        for kind in _outermost(spans):
            self._counts[column, kind] += 1

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __iter__(self) -> Iterator[Found]:
        return iter(sorted(Found(column, kind, count) for (column, kind), count in self._counts.items()))


def hide(value: bytes, kinds: Kinds) -> tuple[bytes, list[Span]]:
    """A value in its text form with what is found in it hidden, and the spans. The length is the same.

    Nothing can be found in it afterwards, also where one thing was only told from another once that was hidden.
    """
    spans = found = find(value, kinds)
    while found:
        hidden = bytearray(value)
        for span in found:
            part = value[span.start : span.end]
            hidden[span.start : span.end] = _as_number(part) if _stands_as_number(value, span) else _starred(part)
        touching = any(_touches(value, span) for span in found)
        value = bytes(hidden)
        found = find(value, kinds) if touching else []
        spans = sorted(spans + found) if found else spans
    return value, spans


def hide_text(text: str, kinds: Kinds, findings: Findings | None = None) -> str:
    """As `hide`, for a message of the server's."""
    if not kinds:
        return text
    hidden, spans = hide(text.encode("utf-8", "surrogatepass"), kinds)
    if not spans:
        return text
    if findings is not None:
        findings.note("", spans)
    return hidden.decode("utf-8", "surrogatepass")


def _outermost(spans: list[Span]) -> Iterator[Kind]:
    """The kinds of spans that lie in no span before them."""
    covered = 0
    for span in spans:
        if span.end > covered:
            covered = span.end
            yield span.kind


_WORD: Final = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.+-%/=@\\")


def _touches(value: bytes, span: Span) -> bool:
    """Whether something else could begin or end where the span does."""
    return (span.start > 0 and (value[span.start - 1] in _WORD or value[span.start - 1] > 0x7F)) or (
        span.end < len(value) and (value[span.end] in _WORD or value[span.end] > 0x7F)
    )


# White space and what separates groups, labels and lines stays: it shows what was there.
_KEPT: Final = frozenset(b" -.@\x7f") | frozenset(range(0x20))
_STARS: Final = bytes(byte if byte in _KEPT else ord("*") for byte in range(256))
_ESCAPES: Final = re.compile(rb"\\*" + ESCAPE.pattern)


def _starred(part: bytes) -> bytes:
    hidden = part.translate(_STARS)
    if b"\\" not in part:
        return hidden
    kept = bytearray(hidden)
    for escape in _ESCAPES.finditer(part):
        kept[escape.start() : escape.end()] = escape[0]
    return bytes(kept)


def _as_number(part: bytes) -> bytes:
    """The smallest number of as many digits: it fits every type that the number itself fitted."""
    return b"1" + b"0" * (len(part) - 1)


# A number of JSON, of an array or a record, or a value that is a number as a whole. Escapes are white space there.
_BEFORE_NUMBER: Final = re.compile(rb"(?:\A|[\[{(,:;])(?:\s|\\+[nrt]){0,200}-?\Z")
_AFTER_NUMBER: Final = re.compile(rb"(?:\.\d+)?(?:[eE][+-]?\d+)?(?:\s|\\+[nrt]){0,200}(?:[\]}),;]|\Z)")
_STRUCTURE: Final = re.compile(rb"\s*[\[{(]")
_LOOK_BACK: Final = 256


def _stands_as_number(value: bytes, span: Span) -> bool:
    if not value[span.start : span.end].isdigit() or _AFTER_NUMBER.match(value, span.end) is None:
        return False
    start = max(0, span.start - _LOOK_BACK)
    before = value[start : span.start]
    if _BEFORE_NUMBER.search(before) is None:
        return False
    return _STRUCTURE.match(value) is not None or not before.strip(b" \t\r\n-")
