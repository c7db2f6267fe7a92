"""The entries in order, for other systems: read-only, beside the writer; as JSON lines checkable without the store."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from audit import segments, texts
from audit.entry import Draft, Kind
from audit.errors import AuditUnavailable, unavailable

# So many entries are read at once: a reader that is slow must not hold the store's log for long.
_AT_ONCE = 1000

_ENTRIES = (
    "SELECT seq, time, kind, session, subject, connection, statement, lower(hex(prev)), lower(hex(hash)), body,"
    " CASE WHEN kind = 'outcome' THEN (SELECT i.body FROM {partners} i"
    "  WHERE i.statement = e.statement AND i.kind = 'intent') END"
    " FROM entries e WHERE seq > ? AND seq < ? ORDER BY seq LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class Exported:
    """An entry as it is handed over: hashes in hexadecimal, and for an outcome the body of its intent."""

    seq: int
    time: str
    kind: str
    session: str | None
    subject: str | None
    connection: str | None
    statement: str | None
    prev: str
    hash: str
    body: str
    intent: str | None

    def without_texts(self) -> Exported:
        """The same, less what people, agents and databases said: see `audit.texts`."""
        intent = None if self.intent is None else texts.leave_out(self.intent)
        return replace(self, body=texts.leave_out(self.body), intent=intent)


@dataclass(frozen=True, slots=True)
class Place:
    """How far an export came: the seq and hash (hexadecimal) of the last entry that was handed over."""

    seq: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read what `text` wrote. Raises ValueError."""
        match json.loads(text):
            case {"seq": int(seq), "hash": str(hash_)}:
                return cls(seq, hash_)
        raise ValueError("it must be a JSON object with `seq` and `hash`")

    @property
    def text(self) -> str:
        """As it is kept in a file."""
        return json.dumps(asdict(self)) + "\n"


def line(entry: Exported) -> str:
    """The entry as one line of JSON without its line end.

    `body` is the stored text, embedded as it is and last: whoever cuts it out of the line has the very bytes that
    were hashed (unless texts were left out).
    """
    told = {name: value for name, value in asdict(entry).items() if name not in ("body", "intent")}
    head = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    return f'{head[:-1]},"body":{entry.body}}}'


Gap = Callable[[int, int], None]


def _no_gap(first: int, last: int) -> None:
    """Say nothing."""


def entries(path: Path, after: int = 0, gap: Gap = _no_gap) -> Iterator[Exported]:
    """Each entry after seq `after`, in the segments that are here too. Raises `audit.errors.AuditUnavailable`.

    `gap` hears of the entries, first and last, that are left out: their segments are elsewhere.
    """
    while rows := _next_after(path, after):
        for row in rows:
            if row.seq > after + 1:
                gap(after + 1, row.seq - 1)
            yield row
            after = row.seq


def _next_after(path: Path, after: int) -> list[Exported]:
    """The next entries of one part of the audit. What it reads from is closed again: nobody is held up in between."""
    try:
        with segments.parts(path) as parts:
            for at in reversed(range(len(parts))):
                sql = _ENTRIES.format(partners=segments.partners(parts, at))
                if rows := parts[at].db.execute(sql, (after, parts[at].below, _AT_ONCE)).fetchall():
                    return [Exported(*row) for row in rows]
        return []
    except sqlite3.Error as error:
        raise unavailable(path, error) from None


def follow(path: Path, after: int, wait: Callable[[], bool], gap: Gap = _no_gap) -> Iterator[Exported | None]:
    """As `entries`, and then what is written from here on; None where there is nothing more for now.

    `wait` pauses before each further look and ends it with False. Raises `audit.errors.AuditUnavailable`.
    """
    while True:
        for entry in entries(path, after, gap):
            yield entry
            after = entry.seq
        yield None
        if not wait():
            return


def check_place(path: Path, place: Place) -> None:
    """Hold the store to what was handed over before. Raises AuditUnavailable where it holds another entry there."""
    found = next(entries(path, place.seq - 1), None)
    if found is None or (found.seq, found.hash) != (place.seq, place.hash):
        raise AuditUnavailable(
            f"audit store `{path}`: entry {place.seq} is not the one that was exported before: the file was rolled back"
            " or rewritten, or is another; compare it with its witness, or start over with another state file"
        )


def reading(
    reader: str,
    after: int,
    *,
    follow: bool,
    how: str = "jsonl",
    without_texts: bool = False,
    to: str | None = None,
) -> Draft:
    """The entry that says who exported, in which format (`how`) and `to` where, if to a network address.

    It is written first, and so a part of what is exported.
    """
    query: dict[str, object] = {"after": after, "follow": follow, "format": how}
    query |= {"without_texts": True} if without_texts else {}
    query |= {"to": to} if to is not None else {}
    return Draft(Kind.AUDIT_READ, None, reader, None, {"how": "export", "query": query})
