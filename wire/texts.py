"""A client's text, the text that runs in its place, and positions between the two. Sans-IO, values only.

Positions are PostgreSQL's: characters, counted from 1. Offsets are bytes, counted from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from policy.model import Rewrite


@dataclass(frozen=True, slots=True)
class Part:
    """One statement: where it lies in the client's text and in the text that runs, and its rewrite."""

    client_start: int
    forwarded_start: int
    rewrite: Rewrite


@dataclass(frozen=True)
class Forwarded:
    """What is sent upstream for a client's text of one or more statements."""

    client: bytes
    sql: bytes
    parts: tuple[Part, ...]

    @cached_property
    def masked(self) -> bool:
        """Whether a rewrite hides something: then error texts must not show values."""
        return any(part.rewrite.hides for part in self.parts)

    def without_secrets(self, text: str) -> str:
        """A text of the server's about this one, with the secrets of rewrites blacked out."""
        for part in self.parts:
            text = part.rewrite.without_secrets(text)
        return text

    def client_position(self, position: int) -> int | None:
        """The client's position of a position in `sql`; None inside text that we generated."""
        offset = offset_at(self.sql, position)
        for part in reversed(self.parts):
            if offset >= part.forwarded_start:
                original = part.rewrite.original_offset(offset - part.forwarded_start)
                return None if original is None else position_at(self.client, part.client_start + original)
        return None


def forward_one(client: bytes, rewrite: Rewrite) -> Forwarded:
    """A text that is one statement as a whole."""
    return Forwarded(client, rewrite.sql, (Part(0, 0, rewrite),))


def forward_all(client: bytes, parts: Sequence[tuple[int, Rewrite]]) -> Forwarded:
    """A text of several statements, given where each begins; they run as one simple query, in order."""
    pieces, placed, at = [], [], 0
    for start, rewrite in parts:
        placed.append(Part(start, at, rewrite))
        pieces.append(rewrite.sql)
        at += len(rewrite.sql) + 1
    return Forwarded(client, b";".join(pieces), tuple(placed))


def position_at(text: bytes, offset: int) -> int:
    """The position of a byte offset."""
    return len(text[:offset].decode(errors="replace")) + 1


def offset_at(text: bytes, position: int) -> int:
    """The byte offset of a position."""
    return len(text.decode(errors="replace")[: position - 1].encode())
