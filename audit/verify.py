#!/usr/bin/env python3
"""Verifies an audit store offline, alone: standard library only, imports nothing of ours, writes nothing.

    python verify.py audit.db [--json]

Exit status: 0 the chain holds; 1 it does not, and the first bad entry is named; 2 the file cannot be read.
This file restates the format of SPEC.md on purpose: it can be handed to an auditor by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import sqlite3
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

APPLICATION_ID = 0x434E5453
VERSION = 2
GENESIS = hashlib.sha256(b"countersign audit chain v1\n").digest()

# SHA-256 of the SQL of all our tables, indexes, views and triggers, sorted by name: a view that hides
# rows or a trigger that eats them is no edit of an entry, and yet what people would be shown.
SCHEMA = "f299ade3a9edd576eeeec783e74669a2202551f76793635606da09083bca2253"

_OBJECTS = (
    "SELECT name, type, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL AND"
    " (tbl_name IN ('entries', 'checkpoints', 'approval_records', 'approval_votes', 'statements', 'sessions',"
    " 'approvals'))"
    " AND (type <> 'index' OR name IN ('entries_by_statement', 'entries_by_subject', 'entries_by_session',"
    " 'entries_by_session_life', 'entries_by_key', 'approval_records_by_state')) ORDER BY name"
)


class Unreadable(Exception):  # noqa: N818 - the name of an exit status
    """The file is no audit store that this program can read."""


@dataclass(frozen=True)
class Report:
    """What was found. `problem` is None when everything holds; `bad_seq` names the first bad entry, if it is one.

    `entries` counts those that hold, `first` and `last` are their times, `head` is the last one's hash (hex),
    `open_statements` the intents among them that have no outcome (yet).
    """

    path: str
    entries: int
    first: str | None
    last: str | None
    head: str
    open_statements: int
    bad_seq: int | None = None
    problem: str | None = None

    @property
    def ok(self) -> bool:
        """True when no problem was found."""
        return self.problem is None


_length = struct.Struct(">I").pack
_number = struct.Struct(">Q").pack


def _field(data: bytes | None) -> bytes:
    return b"\xff\xff\xff\xff" if data is None else _length(len(data)) + data


def entry_hash(prev: bytes, seq: int, *fields: str | None) -> bytes:
    """SHA-256 as SPEC.md says: prev, seq (8 bytes, big-endian), then each field length-prefixed (4 bytes)."""
    encoded = (None if text is None else text.encode("utf-8") for text in fields)
    return hashlib.sha256(prev + _number(seq) + b"".join(map(_field, encoded))).digest()


def verify(path: Path, progress: Callable[[int], None] | None = None) -> Report:
    """Walk the chain from entry 1 to the head. Raises Unreadable. `progress` hears the count now and then."""
    path = Path(path)
    if not path.is_file():
        raise Unreadable(f"`{path}` is not a file")
    try:
        while True:
            with _open(path) as (db, immutable):
                report = _verify(db, path, progress)
            if report.ok or not (immutable and _wal(path).exists()):
                return report
            # A gateway began to write while we took the file for a still one: look again, beside it.
    except (sqlite3.Error, OSError) as error:
        raise Unreadable(f"`{path}` cannot be read: {error}") from None


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[sqlite3.Connection, bool]]:
    """A read-only connection (and whether it takes the file for unchanging), leaving no file beside the store."""
    path = path.resolve()
    with contextlib.ExitStack() as stack:
        immutable = not _wal(path).exists()
        if not immutable and not path.with_name(path.name + "-shm").exists():
            # A copy with its log but without the log's index: SQLite would make one beside the evidence.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="verify-")))
            shutil.copy(_wal(path), folder / "copy.db-wal")
            path = Path(shutil.copy(path, folder / "copy.db"))
        uri = f"{path.as_uri()}?mode=ro{'&immutable=1' if immutable else ''}"
        db = stack.enter_context(contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)))
        yield db, immutable


def _verify(db: sqlite3.Connection, path: Path, progress: Callable[[int], None] | None) -> Report:
    db.execute("BEGIN")  # one consistent view, also while a gateway writes
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise Unreadable(f"`{path}` is not an audit store")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        raise Unreadable(f"`{path}` is of version {version}; this verifier knows version {VERSION}")
    walk = _Walk()
    problem: str | None
    bad: int | None = None
    try:
        if (problem := walk.chain(db, progress)) is not None:
            bad = walk.bad
        else:
            problem = _schema_problem(db) or walk.approvals_problem(db) or _damage(db)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        bad, problem = walk.seq + 1, f"it, or what follows, cannot be read: {error} (damaged or overwritten)"
    return Report(
        path=str(path),
        entries=walk.seq,
        first=walk.first.decode("utf-8", "replace") or None,
        last=walk.last.decode("utf-8", "replace") or None,
        head=walk.head.hex(),
        open_statements=_open_statements(db) if problem is None else 0,
        bad_seq=bad,
        problem=problem,
    )


def schema_digest(db: sqlite3.Connection) -> str:
    """SHA-256 (hex) of the definitions of everything of ours in the file, and of any trigger on our tables."""
    return hashlib.sha256(json.dumps(db.execute(_OBJECTS).fetchall()).encode("utf-8")).hexdigest()


def _schema_problem(db: sqlite3.Connection) -> str | None:
    if schema_digest(db) == SCHEMA:
        return None
    return "every entry holds, but a table, view, index or trigger of ours was altered, and views show what they like"


def _damage(db: sqlite3.Connection) -> str | None:
    """Stored values of another type than declared, indexes that do not agree with their rows, broken pages."""
    [found] = db.execute("PRAGMA integrity_check(1)").fetchone()
    return None if found == "ok" else f"SQLite finds the file inconsistent: {found}"


def _open_statements(db: sqlite3.Connection) -> int:
    sql = (
        "SELECT count(*) FROM entries i WHERE i.statement IS NOT NULL AND i.kind = 'intent' AND NOT EXISTS"
        " (SELECT 1 FROM entries o WHERE o.statement = i.statement AND o.kind = 'outcome')"
    )
    return int(db.execute(sql).fetchone()[0])


@dataclass
class _Walk:
    """Where the walk along the chain is, and what the chain has said of approvals so far."""

    seq: int = 0
    head: bytes = GENESIS
    first: bytes = b""
    last: bytes = b""
    bad: int = 0
    states: dict[str, str] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)
    votes: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def chain(self, db: sqlite3.Connection, progress: Callable[[int], None] | None) -> str | None:
        """Check every entry; the first problem, with `bad` set, or None."""
        db.text_factory = bytes  # the very bytes that are stored
        try:
            rows = db.execute(
                "SELECT seq, time, kind, session, subject, connection, body, prev, hash FROM entries ORDER BY seq"
            )
            for row in rows:
                if (problem := self._step(*row)) is not None:
                    return problem
                if progress is not None and self.seq % 10_000 == 0:
                    progress(self.seq)
        finally:
            db.text_factory = str
        return None

    def _step(
        self,
        number: int,
        time: bytes,
        kind: bytes,
        session: bytes | None,
        subject: bytes | None,
        connection: bytes | None,
        body: bytes,
        prev: bytes,
        hash_: bytes,
    ) -> str | None:
        self.bad = number
        if number != self.seq + 1:
            if number < 1:
                return "there is no such entry: the first is 1 (inserted)"
            self.bad = self.seq + 1
            return f"it is missing; the next one is {number} (deleted)"
        digest = hashlib.sha256(prev + _number(number) + _field(time) + _field(kind))
        digest.update(_field(session) + _field(subject) + _field(connection))
        digest.update(_field(body))
        if digest.digest() != hash_:
            return "its contents do not match its hash (edited)"
        if prev != self.head:
            return (
                f"it does not follow entry {number - 1}"
                " (that one was edited and re-hashed, or one was inserted, deleted or reordered here)"
            )
        if time < self.last:
            return f"its time {time.decode('utf-8', 'replace')} is before that of the entry before it"
        if kind.startswith(b"approval.") and (problem := self._replay(body)) is not None:
            return problem
        self.seq, self.head, self.last = number, hash_, time
        self.first = self.first or time
        return None

    def _replay(self, body: bytes) -> str | None:
        """Carry out on our own books what an approval's entry says it did."""
        match json.loads(body).get("change"):
            case {"approval": str(id_), "record": str(digest)}:
                if id_ in self.states:
                    return f"approval {id_} was asked for twice"
                self.states[id_], self.records[id_] = "requested", digest
            case {"approval": str(id_), "from": str(expect), "to": str(become)}:
                if self.states.get(id_) != expect:
                    return f"approval {id_} goes from `{expect}`, but it was `{self.states.get(id_, 'unknown')}`"
                self.states[id_] = become
            case {"approval": str(id_), "issuer": str(issuer), "subject": str(subject), "vote": str(digest)}:
                self.votes[id_, issuer, subject] = digest
        return None

    def approvals_problem(self, db: sqlite3.Connection) -> str | None:
        """The tables of approvals are a working copy: they must be exactly what the chain makes of them."""
        states: dict[str, str] = {}
        for id_, state, record in db.execute("SELECT id, state, record FROM approval_records"):
            states[id_] = state
            if _sha256(record) != self.records.get(id_, _sha256(record)):
                return f"the record of approval {id_} is not the one that was asked for"
        for id_ in sorted(states.keys() | self.states.keys()):
            told, stored = self.states.get(id_), states.get(id_)
            if told is None or stored is None:
                return f"approval {id_} is in the {'table' if told is None else 'chain'} only"
            if told != stored:
                return f"approval {id_} is `{told}` in the chain but `{stored}` in the table"
        votes = db.execute("SELECT approval, issuer, subject, vote FROM approval_votes")
        stored_votes = {(id_, issuer, subject): _sha256(vote) for id_, issuer, subject, vote in votes}
        for key in sorted(stored_votes.keys() | self.votes.keys()):
            if stored_votes.get(key) != self.votes.get(key):
                return f"the vote of `{key[2]}` on approval {key[0]} is not the one in the chain"
        return None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """The command line of this file."""
    parser = argparse.ArgumentParser(description="Verify an audit store offline.")
    parser.add_argument("store", type=Path)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    try:
        report = verify(options.store)
    except Unreadable as error:
        print(f"unreadable: {error}", file=sys.stderr)  # noqa: T201 - a command's output
        return 2
    text = json.dumps({**asdict(report), "ok": report.ok}) if options.json else sentence(report)
    print(text)  # noqa: T201 - a command's output
    return 0 if report.ok else 1


def sentence(report: Report) -> str:
    """The report for people."""
    if report.problem is not None:
        where = f"entry {report.bad_seq}: " if report.bad_seq is not None else ""
        return f"NOT INTACT  {where}{report.problem}\n{report.entries} entries before it hold."
    span = f", {report.first} to {report.last}" if report.entries else ""
    lines = [
        f"intact      {report.entries} entries{span}",
        f"head        {report.head}",
    ]
    if report.open_statements:
        lines.append(f"running     {report.open_statements} statements have no outcome yet")
    lines.append("            Without a checkpoint from elsewhere, entries cut off at the end cannot be seen.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
