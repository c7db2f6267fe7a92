"""Which recordings have had their time: by age, and by the size of them all. Read-only, beside the writer."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from audit import segments
from audit.entry import Draft, Kind
from audit.errors import unavailable
from audit.recording import Shred
from audit.search import first_at, stamp
from audit.segments import Part
from audit.store import Item

# At most so many recordings a transaction, so that no statement's intent waits long for the disk.
_AT_ONCE = 500

_OLDEST = "SELECT min(seq), max(seq) FROM (SELECT seq FROM recordings WHERE seq < ? ORDER BY seq LIMIT ?)"
# The newest recording that does not fit any more, if all from there on are counted from the newest backwards.
_BEYOND = (
    "SELECT max(seq) FROM (SELECT seq, sum(length(data)) OVER (ORDER BY seq DESC) AS together FROM recordings"
    " WHERE seq < ?)"
    " WHERE together > ?"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long recordings are kept, and how many bytes of them; None: without limit."""

    age: timedelta | None = None
    size: int | None = None


def due(path: Path, limits: Limits, now: datetime) -> Item | None:
    """The entry that shreds the oldest recordings beyond the limits, some hundreds at a time; None where all may stay.

    Raises `audit.errors.AuditUnavailable`.
    """
    try:
        with segments.parts(path) as parts:
            if limits.age is not None:
                for part in reversed(parts):
                    before = min(first_at(part.db, stamp(now - limits.age)), part.below)
                    if item := _oldest(part.db, before, f"older than {_told(limits.age)}"):
                        return item
            return None if limits.size is None else _too_many(parts, limits.size)
    except sqlite3.Error as error:
        raise unavailable(path, error) from None


def _too_many(parts: Sequence[Part], size: int) -> Item | None:
    """The oldest recordings that do not fit any more, if those of all parts are counted from the newest backwards."""
    room, why = size, f"more than {size} bytes of recordings"
    for at, part in enumerate(parts):
        [total] = part.db.execute("SELECT total(length(data)) FROM recordings WHERE seq < ?", (part.below,)).fetchone()
        if total <= room:
            room -= total
            continue
        for older in reversed(parts[at + 1 :]):
            if item := _oldest(older.db, older.below, why):
                return item
        [last] = part.db.execute(_BEYOND, (part.below, room)).fetchone()
        return _oldest(part.db, last + 1, why)
    return None


def _oldest(db: sqlite3.Connection, before: int, why: str) -> Item | None:
    first, last = db.execute(_OLDEST, (before, _AT_ONCE)).fetchone()
    if first is None:
        return None
    return Item(Draft(Kind.RECORDING_SHREDDED, None, None, None, {"why": why}), Shred(first, last))


def _told(age: timedelta) -> str:
    return f"{age / timedelta(days=1):g} days"


def shredding(who: str, seq: int, why: str) -> Item:
    """The entry that shreds the one recording of the outcome `seq`, on somebody's word."""
    return Item(Draft(Kind.RECORDING_SHREDDED, None, who, None, {"why": why}), Shred(seq, seq))
