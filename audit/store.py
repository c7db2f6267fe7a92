"""The only writer of the audit file: appends batches to the chain, durably, in one transaction each.

Several processes may share the file: each transaction takes SQLite's write lock first and reads the head
of the chain inside it, so the chain cannot fork.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from audit import chain
from audit.approvals import Change, Conflict, apply
from audit.entry import Draft, Entry

# "CNTS": marks the file as ours, so that nothing else is ever written into (`PRAGMA application_id`).
APPLICATION_ID = 0x434E5453
SCHEMA_VERSION = 1
# How long a transaction waits for another process's lock before it is refused.
_BUSY_SECONDS = 5.0


class AuditUnavailable(Exception):  # noqa: N818 - a state of the world, named as DESIGN.md names it
    """The store cannot be opened or written. The text says what, where and the cure."""


@dataclass(frozen=True, slots=True)
class Item:
    """One entry to append, and the change of an approval that happens with it or not at all."""

    draft: Draft
    change: Change | None = None


Unit = Sequence[Item]  # appended together or not at all


def _now() -> datetime:
    return datetime.now(UTC)


class Store:
    """An open audit file. One thread at a time may append."""

    def __init__(self, path: Path, db: sqlite3.Connection, clock: Callable[[], datetime]) -> None:
        self.path = path
        self._db = db
        self._clock = clock
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], datetime] = _now) -> Store:
        """Open the file, or make it with mode 600. Raises AuditUnavailable."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                _prepare(db, path)
            except BaseException:
                db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise AuditUnavailable(_sentence(path, error)) from None
        return cls(path, db, clock)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def head(self) -> tuple[int, bytes]:
        """(seq, hash) of the newest entry; (0, GENESIS) of an empty store."""
        with self._lock:
            seq, hash_, _ = self._head()
            return seq, hash_

    def append(self, units: Sequence[Unit]) -> list[Sequence[Entry] | Conflict]:
        """Append units in order, all in one durable transaction; a unit whose change conflicts is left out.

        Raises AuditUnavailable where nothing could be written, ValueError or TypeError for a body that is
        not JSON: then nothing of the call is in the store.
        """
        with self._lock:
            try:
                return self._append(units)
            except sqlite3.Error as error:
                raise AuditUnavailable(_sentence(self.path, error)) from None

    def _append(self, units: Sequence[Unit]) -> list[Sequence[Entry] | Conflict]:
        results: list[Sequence[Entry] | Conflict] = []
        with _transaction(self._db):
            seq, prev, last = self._head()
            # The chain's time never goes backwards, whatever the clock does.
            time = max(self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"), last)
            for unit in units:
                entries: list[Entry] = []
                at, before = seq, prev
                for item in unit:
                    at += 1
                    entry = chain.link(before, at, time, item.draft)
                    before = entry.hash
                    entries.append(entry)
                try:
                    self._insert(unit, entries)
                except Conflict as conflict:
                    results.append(conflict)
                    continue
                seq, prev = at, before
                results.append(entries)
        # If we crash before COMMIT returned, nothing was promised; after it, everything is on disk.
        return results

    def _insert(self, unit: Unit, entries: Sequence[Entry]) -> None:
        changes = [item.change for item in unit if item.change is not None]
        if changes:
            self._db.execute("SAVEPOINT unit")
            try:
                for change in changes:
                    apply(self._db, change)
            except Conflict:
                self._db.execute("ROLLBACK TO unit")
                self._db.execute("RELEASE unit")
                raise
            self._db.execute("RELEASE unit")
        self._db.executemany(
            "INSERT INTO entries (seq, time, kind, session, subject, connection, body, prev, hash)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(e.seq, e.time, e.kind, e.session, e.subject, e.connection, e.body, e.prev, e.hash) for e in entries],
        )

    def _head(self) -> tuple[int, bytes, str]:
        row = self._db.execute("SELECT seq, hash, time FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        return (row[0], row[1], row[2]) if row else (0, chain.GENESIS, "")

    def dangling(self) -> list[tuple[str, str | None, str | None, str | None, str]]:
        """(statement, session, subject, connection, instance) of every intent without an outcome, oldest first."""
        with self._lock:
            return self._db.execute(
                "SELECT i.statement, i.session, i.subject, i.connection, i.body ->> '$.instance' FROM entries i"
                " WHERE i.kind = 'intent' AND NOT EXISTS"
                " (SELECT 1 FROM entries o WHERE o.statement = i.statement AND o.kind = 'outcome') ORDER BY i.seq"
            ).fetchall()


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # A failed COMMIT may leave the transaction open: nothing of it is believed.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    with _transaction(db):
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if (application, version) == (0, 0) and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
            _create(db)
        elif application != APPLICATION_ID:
            raise AuditUnavailable(f"`{path}` is not an audit store of ours; name another file")
        elif version != SCHEMA_VERSION:
            raise AuditUnavailable(
                f"`{path}` is an audit store of version {version}, and this program writes {SCHEMA_VERSION};"
                " use the program that wrote it, or start a new file"
            )


def _create(db: sqlite3.Connection) -> None:
    script = resources.files("audit").joinpath("schema.sql").read_text(encoding="utf-8")
    statement = ""
    for line in script.splitlines(keepends=True):  # executescript() would commit our transaction
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


_CURES = {
    "SQLITE_FULL": "the disk is full; make room and it goes on by itself",
    "SQLITE_BUSY": "another process holds its lock; find and stop what does",
    "SQLITE_LOCKED": "another connection holds its lock; find and stop what does",
    "SQLITE_READONLY": "it is read-only; give the gateway write permission",
    "SQLITE_IOERR": "the disk fails; check it, then verify the audit",
    "SQLITE_CORRUPT": "it is damaged; keep it, verify it, and start a new file",
    "SQLITE_NOTADB": "it is not an SQLite file; name another one",
    "SQLITE_CANTOPEN": "it cannot be opened; check the folder and its permissions",
}


def _sentence(path: Path, error: sqlite3.Error | OSError) -> str:
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    known = next((cure for prefix, cure in _CURES.items() if name.startswith(prefix)), "")
    return f"`{path}`: {error} ({name})" + (f"; {known}" if known else "")
