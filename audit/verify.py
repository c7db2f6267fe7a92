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
import sqlite3
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

APPLICATION_ID = 0x434E5453
GENESIS = hashlib.sha256(b"countersign audit chain v1\n").digest()

# What a state of an approval needs as its last transition in the chain.
_STATE_OF_KIND = {
    "approval.requested": "requested",
    "approval.approved": "approved",
    "approval.denied": "denied",
    "approval.expired": "expired",
    "approval.withdrawn": "cancelled",
    "approval.consumed": "consumed",
    "approval.void": "void",
}


class Unreadable(Exception):  # noqa: N818 - the name of an exit status
    """The file is no audit store that this program can read."""


@dataclass(frozen=True)
class Report:
    """What was found. `bad_seq` and `problem` are None when everything holds."""

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


def entry_hash(prev: bytes, seq: int, *fields: str | None) -> bytes:
    """SHA-256 as SPEC.md says: prev, seq (8 bytes, big-endian), then each field length-prefixed (4 bytes)."""
    parts = [prev, struct.pack(">Q", seq)]
    for field in fields:
        if field is None:
            parts.append(b"\xff\xff\xff\xff")
        else:
            data = field.encode("utf-8")
            parts.append(struct.pack(">I", len(data)))
            parts.append(data)
    return hashlib.sha256(b"".join(parts)).digest()


def verify(path: Path, progress: Callable[[int], None] | None = None) -> Report:
    """Walk the chain from entry 1 to the head. Raises Unreadable. `progress` hears the count now and then."""
    if not path.is_file():
        raise Unreadable(f"`{path}` is not a file")
    with contextlib.closing(_open(path)) as db:
        try:
            if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise Unreadable(f"`{path}` is not an audit store")
            db.execute("BEGIN")  # one consistent view, also while the gateway writes
            return _walk(db, str(path), progress)
        except sqlite3.DatabaseError as error:
            raise Unreadable(f"`{path}` cannot be read: {error}") from None


def _open(path: Path) -> sqlite3.Connection:
    """Read-only, and without touching a copy that has no write-ahead log beside it."""
    wal = path.with_name(path.name + "-wal")
    mode = "mode=ro" if wal.exists() else "mode=ro&immutable=1"
    uri = path.absolute().as_uri() + "?" + mode
    db = sqlite3.connect(uri, uri=True, isolation_level=None)
    db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return db


def _walk(db: sqlite3.Connection, path: str, progress: Callable[[int], None] | None) -> Report:
    seq, prev, last_time, first_time = 0, GENESIS, "", None
    open_statements: set[str] = set()
    approvals: dict[str, str] = {}

    def report(bad: int | None = None, problem: str | None = None) -> Report:
        return Report(path, seq, first_time, last_time or None, prev.hex(), len(open_statements), bad, problem)

    rows = db.execute(
        "SELECT seq, time, kind, session, subject, connection, body, prev, hash FROM entries ORDER BY seq"
    )
    for number, time, kind, session, subject, connection, body, stored_prev, stored_hash in rows:
        if number != seq + 1:
            return report(seq + 1, f"entry {seq + 1} is missing; the next one is {number} (deleted)")
        try:
            computed = entry_hash(stored_prev, number, time, kind, session, subject, connection, body)
        except (UnicodeError, AttributeError, TypeError, struct.error):
            return report(number, "its stored values are not of the format's types (edited)")
        if computed != stored_hash:
            return report(number, "its contents do not match its hash (edited)")
        if stored_prev != prev:
            return report(number, "it does not follow the entry before it (inserted, deleted, reordered or re-hashed)")
        if time < last_time:
            return report(number, f"its time {time} is before that of the entry before it, {last_time}")
        seq, prev, last_time = number, stored_hash, time
        first_time = first_time or time
        _note(kind, body, open_statements, approvals)
        if progress is not None and number % 10_000 == 0:
            progress(number)
    wrong = _approvals_problem(db, approvals)
    return report(None, wrong) if wrong else report()


def _note(kind: str, body: str, open_statements: set[str], approvals: dict[str, str]) -> None:
    if kind == "intent":
        open_statements.add(json.loads(body).get("statement", ""))
    elif kind == "outcome":
        open_statements.discard(json.loads(body).get("statement", ""))
    elif kind in _STATE_OF_KIND:
        approvals[json.loads(body).get("approval", "")] = _STATE_OF_KIND[kind]


def _approvals_problem(db: sqlite3.Connection, chained: dict[str, str]) -> str | None:
    """The table of approvals is a working copy: it must agree with what the chain says of each."""
    stored = dict(db.execute("SELECT id, state FROM approval_records"))
    for approval, state in chained.items():
        if stored.get(approval) != state:
            return f"approval {approval} is `{state}` in the chain but `{stored.get(approval, 'missing')}` in the table"
    for approval in stored.keys() - chained.keys():
        return f"approval {approval} is in the table but not in the chain"
    return None


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
    lines = [
        f"intact      {report.entries} entries, {report.first} to {report.last}",
        f"head        {report.head}",
    ]
    if report.open_statements:
        lines.append(f"running     {report.open_statements} statements have no outcome yet")
    lines.append("            Without a checkpoint from elsewhere, entries cut off at the end cannot be seen.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
