"""A coarse index of the entries: which blocks of 4,096 hold something of a kind, session, subject or connection.

It is written with the entries and costs them next to nothing; what is in a block is found by reading it. A row too
many costs a look. One too few would hide entries from who searches: the verifier names it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence

from audit.entry import Entry

SIZE = 4096
NAMES = ("kind", "session", "subject", "connection")

# For the entries of a file that is made at once.
_FILL = "INSERT INTO blocks SELECT DISTINCT (seq - 1) / {size}, '{name}', {name} FROM entries WHERE {name} IS NOT NULL"
_HOLDING = "SELECT DISTINCT block FROM blocks WHERE block BETWEEN ? AND ? AND name = ? AND value "
_ONE, _OF_MANY = "= ?", "IN (SELECT value FROM json_each(?))"

_Label = tuple[int, str, str | None, str | None, str | None]  # block, kind, session, subject, connection

# Columns by name, with the values of which one must be there: an entry has the one or the other.
Either = Mapping[str, Sequence[str]]


class Listing:
    """Lists what entries are of as they are appended, and remembers what it has listed of the block at hand.

    What it remembers counts if the next entries follow the very last one that it listed: a transaction that was rolled
    back, or another process that wrote, makes it begin anew.
    """

    def __init__(self) -> None:
        self._head = b""
        self._block = -1
        self._labels: set[_Label] = set()

    def write(self, db: sqlite3.Connection, entries: Sequence[Entry]) -> None:
        """Add what these entries are of, in the caller's transaction."""
        if not entries:
            return
        if entries[0].prev != self._head:
            self._labels.clear()
        labels = {((one.seq - 1) // SIZE, one.kind, one.session, one.subject, one.connection) for one in entries}
        rows = {
            (block, name, value)
            for block, *values in labels - self._labels
            for name, value in zip(NAMES, values, strict=True)
            if value is not None
        }
        db.executemany("INSERT OR IGNORE INTO blocks (block, name, value) VALUES (?, ?, ?)", rows)
        last = entries[-1]
        if (block := (last.seq - 1) // SIZE) != self._block:
            self._labels, self._block = set(), block
        self._labels |= {label for label in labels if label[0] == block}
        self._head = last.hash


def fill(db: sqlite3.Connection) -> None:
    """Make the index of a file that has none yet, in the caller's transaction."""
    for name in NAMES:
        db.execute(_FILL.format(size=SIZE, name=name))


def spans(db: sqlite3.Connection, first: int, last: int, wanted: Sequence[Either]) -> Iterator[tuple[int, int]]:
    """The stretches of the entries `first` to `last` that may hold what is wanted, the newest first.

    Every one of `wanted` must be in a block for it to be read.
    """
    if last < first:
        return
    if not wanted:
        yield first, last
        return
    within = (first - 1) // SIZE, (last - 1) // SIZE
    found = set.intersection(*(_holding(db, within, either) for either in wanted))
    for high, low in _runs(sorted(found, reverse=True)):
        yield max(first, low * SIZE + 1), min(last, (high + 1) * SIZE)


def _holding(db: sqlite3.Connection, within: tuple[int, int], either: Either) -> set[int]:
    found: set[int] = set()
    for name, values in either.items():
        # One is given as it is: for JSON's functions a text ends at its first NUL.
        one, value = (_ONE, values[0]) if len(values) == 1 else (_OF_MANY, json.dumps(list(values)))
        found.update(block for (block,) in db.execute(_HOLDING + one, (*within, name, value)))
    return found


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(highest, lowest) of each run of blocks that follow each other; they come in falling order."""
    begin = 0
    for at, block in enumerate(blocks):
        if at + 1 == len(blocks) or blocks[at + 1] != block - 1:
            yield blocks[begin], block
            begin = at + 1
