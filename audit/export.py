"""The entries as JSON lines, in order: read-only, beside the writer, and checkable without the store."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from audit import segments
from audit.entry import Draft, Kind
from audit.errors import unavailable


def lines(path: Path, after: int = 0) -> Iterator[tuple[int, str]]:
    """The seq of each entry after seq `after`, and the entry as one line of JSON without its line end.

    `prev` and `hash` are hexadecimal. `body` is the stored text, embedded as it is and last: whoever cuts it
    out of the line has the very bytes that were hashed. Raises `audit.errors.AuditUnavailable`.
    """
    sql = (
        "SELECT body, seq, time, kind, session, subject, connection, lower(hex(prev)) AS prev,"
        " lower(hex(hash)) AS hash FROM entries WHERE seq > ? AND seq < ? ORDER BY seq"
    )
    try:
        with segments.parts(path) as parts:
            for part in reversed(parts):
                rows = part.db.execute(sql, (after, part.below))
                names = [column[0] for column in rows.description[1:]]
                for body, *row in rows:
                    head = json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, separators=(",", ":"))
                    yield row[0], f'{head[:-1]},"body":{body}}}'
    except sqlite3.Error as error:
        raise unavailable(path, error) from None


def follow(path: Path, after: int, wait: Callable[[], bool]) -> Iterator[tuple[int, str]]:
    """As `lines`, and then what is written from here on: `wait` pauses before each look and ends it with False.

    Raises `audit.errors.AuditUnavailable`.
    """
    while True:
        for seq, line in lines(path, after):
            yield seq, line
            after = seq
        if not wait():
            return


def reading(reader: str, after: int, *, follow: bool) -> Draft:
    """The entry that says who exported: it is written first, and so a part of what is exported."""
    return Draft(Kind.AUDIT_READ, None, reader, None, {"how": "export", "query": {"after": after, "follow": follow}})
