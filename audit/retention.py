"""Which recordings have had their time: by age, and by the size of them all. Read-only, beside the writer."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from audit.entry import Draft, Kind
from audit.errors import unavailable
from audit.recording import Shred
from audit.search import first_at, stamp
from audit.store import Item

# At most so many recordings a transaction, so that no statement's intent waits long for the disk.
_AT_ONCE = 500

_OLDEST = "SELECT min(seq), max(seq) FROM (SELECT seq FROM recordings WHERE seq < ? ORDER BY seq LIMIT ?)"
# The newest recording that does not fit any more, if all from there on are counted from the newest backwards.
_BEYOND = (
    "SELECT max(seq) FROM (SELECT seq, sum(length(data)) OVER (ORDER BY seq DESC) AS together FROM recordings)"
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
        with contextlib.closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
            if limits.age is not None:
                before = first_at(db, stamp(now - limits.age))
                if item := _oldest(db, before, f"older than {_told(limits.age)}"):
                    return item
            if limits.size is not None:
                [total] = db.execute("SELECT total(length(data)) FROM recordings").fetchone()
                if total > limits.size:
                    [last] = db.execute(_BEYOND, (limits.size,)).fetchone()
                    return _oldest(db, last + 1, f"more than {limits.size} bytes of recordings")
            return None
    except sqlite3.Error as error:
        raise unavailable(path, error) from None


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
