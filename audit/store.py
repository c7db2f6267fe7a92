"""The only writer of the audit file: appends batches to the chain, durably, in one transaction each.

Several processes may share the file: each transaction takes SQLite's write lock first and reads the head
of the chain inside it, so the chain cannot fork. (Reading it costs 5 µs; caching it would save nothing.)
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from audit import chain, recording, sealing
from audit.approvals import Change, Conflict, account, apply
from audit.entry import BodyError, Draft, Entry, Kind, as_text
from audit.errors import AuditUnavailable, unavailable
from audit.note import NoteError, PublicKey, Signer
from audit.proof import Extension, Proof, extend, prove
from audit.recording import Recording, Shred
from audit.schema import make, prepare, transaction

__all__ = ["AuditUnavailable", "Item", "Open", "Store", "Unit"]

# How long a transaction waits for another process's lock before it is refused.
BUSY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Item:
    """One entry to append, and what happens with it or not at all: to an approval, or to recordings."""

    draft: Draft
    change: Change | Recording | Shred | None = None


Unit = Sequence[Item]  # appended together or not at all


@dataclass(frozen=True, slots=True)
class Open:
    """Something begun that has no end in the chain yet: a `statement`, or (None) a session."""

    statement: str | None
    session: str | None
    subject: str | None
    connection: str | None
    instance: str


def _now() -> datetime:
    return datetime.now(UTC)


class Store:
    """An open audit file. Its methods may be called from any thread; they take turns."""

    def __init__(self, path: Path, db: sqlite3.Connection, clock: Callable[[], datetime]) -> None:
        self.path = path
        self._db = db
        self._clock = clock
        self._lock = threading.Lock()
        # The log has the path's name too, and the newest entries are in it alone.
        self._files = {file: _identity(file) for file in (path, path.with_name(f"{path.name}-wal"))}
        self._seen: tuple[int, bytes] | None = None

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], datetime] = _now, busy_seconds: float = BUSY_SECONDS) -> Store:
        """Open the file, or make it with mode 600. A file that is not ours is never touched. Raises AuditUnavailable.

        Links are followed: one file has one name, whatever path leads to it.
        """
        try:
            path = Path(path).resolve()
            make(path)
            # The file is there by now; `mode=rw` keeps SQLite from making another one with other rights.
            uri = f"{path.as_uri()}?mode=rw"
            db = sqlite3.connect(uri, uri=True, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
            try:
                prepare(db, path, busy_seconds)
            except BaseException:
                db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise unavailable(path, error) from None
        return cls(path, db, clock)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def head(self) -> tuple[int, bytes]:
        """(seq, hash) of the newest entry; (0, GENESIS) of an empty store."""
        with self._lock, _told(self.path):
            seq, hash_, _ = self._head()
            return seq, hash_

    def append(self, units: Sequence[Unit]) -> list[Sequence[Entry] | Conflict]:
        """Append units in order, all in one durable transaction; a unit whose change conflicts is left out.

        The answer has one element per unit: its entries, on disk, or the Conflict. Raises AuditUnavailable
        where nothing could be written, ValueError for a draft that is not JSON or a change that is not
        legal: then nothing of the call is in the store.
        """
        sealed = [[(item, *_body(item)) for item in unit] for unit in units]  # before anybody has to wait for us
        results: list[Sequence[Entry] | Conflict] = []
        with self._lock, _told(self.path), transaction(self._db):
            seq, prev, last = self._head()
            now = self._time(last)
            appended: list[Entry] = []
            recordings: list[tuple[int, bytes]] = []
            for unit in sealed:
                entries: list[Entry] = []
                before = prev
                for at, (item, body, _) in enumerate(unit, seq + 1):
                    entries.append(chain.link(before, at, now, item.draft, body))
                    before = entries[-1].hash
                try:
                    self._apply([item.change for item, _, _ in unit])
                except Conflict as conflict:
                    results.append(conflict)
                    continue
                recordings += [(at, data) for at, (_, _, data) in enumerate(unit, seq + 1) if data is not None]
                seq, prev = seq + len(entries), before
                results.append(entries)
                appended += entries
            self._insert(appended)
            self._db.executemany("INSERT INTO recordings (seq, data) VALUES (?, ?)", recordings)
            self._check_in_place()
        self._seen = (seq, prev) if seq else None
        # If we crash before COMMIT returned, nothing was promised; after it, everything is on disk. A COMMIT
        # that reports failure may yet be found on disk after a power cut: an intent then stands for a
        # statement that never ran, and the next start closes it as `unknown`. The other way round never is.
        return results

    def checkpoint(self, signer: Signer) -> str | None:
        """Sign all entries there are, durably; the first time, an entry names the key. Returns the signed note.

        None if the newest checkpoint covers them already. Raises AuditUnavailable, also for a key that is not
        the audit's (`audit.sealing.WrongKey`) and for entries that do not carry on what was signed before.
        """
        with self._lock, _told(self.path), transaction(self._db):
            seq, prev, last = self._head()
            now = self._time(last)
            if not sealing.keys(self._db):
                entry = chain.link(prev, seq + 1, now, sealing.created(signer))
                self._insert([entry])
            note = sealing.seal(self._db, signer, now)
            self._check_in_place()
            return note

    def rotate(self, old: Signer, new: Signer) -> None:
        """Hand over to another key: a checkpoint by the old one, the entry signed by both, a checkpoint by the new.

        All or nothing. Raises AuditUnavailable, also where `old` is not the audit's key.
        """
        self.checkpoint(old)
        with self._lock, _told(self.path), transaction(self._db):
            seq, prev, last = self._head()
            now = self._time(last)
            sealing.require(sealing.keys(self._db), old)
            self._insert([chain.link(prev, seq + 1, now, sealing.rotated(old, new))])
            sealing.seal(self._db, new, now)
            self._check_in_place()

    def public_keys(self) -> list[PublicKey]:
        """The public keys that the chain names, the present one last. Raises AuditUnavailable."""
        with self._lock, _told(self.path):
            return sealing.keys(self._db)

    def notes(self, after: int = 0) -> list[tuple[int, str]]:
        """(size, signed note) of every checkpoint over more than `after` entries, in order."""
        with self._lock, _told(self.path):
            sql = "SELECT size, note FROM checkpoints WHERE size > ? ORDER BY size"
            return [(int(size), str(note)) for size, note in self._db.execute(sql, (after,))]

    def prove(self, seq: int) -> Proof | None:
        """That an entry is among those that the newest checkpoint covers; None where it is not, or is not there.

        Reads the hashes of all entries: a second for a million. Raises AuditUnavailable.
        """
        with self._lock, _told(self.path):
            newest = self._db.execute("SELECT size, note FROM checkpoints ORDER BY size DESC LIMIT 1").fetchone()
            if newest is None or not 1 <= seq <= newest[0]:
                return None
            rows = self._db.execute("SELECT hash FROM entries WHERE seq <= ? ORDER BY seq", newest[:1])
            return prove([hash_ for (hash_,) in rows], seq, newest[1])

    def extension(self, old: int, size: int, note: str) -> Extension | None:
        """That the first `old` of the `size` entries under this note are the older ones; None without so many entries.

        Reads the hashes of all entries, as `prove`. Raises AuditUnavailable.
        """
        with self._lock, _told(self.path):
            rows = self._db.execute("SELECT hash FROM entries WHERE seq <= ? ORDER BY seq", (size,)).fetchall()
        return extend([hash_ for (hash_,) in rows], old, note) if 1 <= old <= size == len(rows) else None

    def settle_log(self) -> bool:
        """Move the log into the file and empty it, so that what was shredded is in neither. False while others read.

        Raises AuditUnavailable.
        """
        with self._lock, _told(self.path):
            return bool(self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)

    def outcome_of(self, statement: str) -> int | None:
        """The seq of a statement's outcome; None where there is none."""
        with self._lock, _told(self.path):
            sql = "SELECT seq FROM entries WHERE statement = ? AND kind = 'outcome' AND statement IS NOT NULL"
            row = self._db.execute(sql, (statement,)).fetchone()
        return int(row[0]) if row else None

    def open_statements(self) -> list[Open]:
        """Every intent without an outcome, the oldest first."""
        return self._open(
            "SELECT i.statement, i.session, i.subject, i.connection, coalesce(i.body ->> '$.instance', '')"
            " FROM entries i WHERE i.statement IS NOT NULL AND i.kind = 'intent' AND NOT EXISTS"
            " (SELECT 1 FROM entries o WHERE o.statement = i.statement AND o.kind = 'outcome') ORDER BY i.seq"
        )

    def open_sessions(self) -> list[Open]:
        """Every session that was opened and not closed, the oldest first."""
        return self._open(
            "SELECT NULL, o.session, o.subject, o.connection, coalesce(o.body ->> '$.instance', '')"
            " FROM entries o WHERE o.kind = 'session.opened' AND o.kind IN ('session.opened', 'session.closed')"
            " AND NOT EXISTS (SELECT 1 FROM entries c WHERE c.session = o.session AND c.kind = 'session.closed'"
            "  AND c.kind IN ('session.opened', 'session.closed'))"  # said twice: it names the partial index
            " ORDER BY o.seq"
        )

    def _open(self, sql: str) -> list[Open]:
        with self._lock, _told(self.path):
            rows = self._db.execute(sql).fetchall()
        return [Open(*row) for row in rows]

    def _check_in_place(self) -> None:
        """Refuse where the path names another file by now, or none: ours would take entries that nobody finds."""
        for file, identity in self._files.items():
            if _identity(file) != identity:
                raise AuditUnavailable(
                    f"audit store `{file}` was moved, replaced or deleted while this process writes it;"
                    " put it back, or keep it as evidence and restart"
                )

    def _apply(self, changes: Sequence[Change | Recording | Shred | None]) -> None:
        """Carry out the changes of one unit, all or none. Raises Conflict."""
        if all(change is None or isinstance(change, Recording) for change in changes):
            return  # a recording is put beside its entry, and conflicts with nothing
        self._db.execute("SAVEPOINT unit")
        try:
            for change in changes:
                match change:
                    case Shred(first, last):
                        self._shred(first, last)
                    case None | Recording():
                        pass
                    case _:
                        apply(self._db, change)
        except Conflict:
            self._db.execute("ROLLBACK TO unit")
            raise
        finally:
            if self._db.in_transaction:  # SQLite itself rolls everything back on a full disk
                self._db.execute("RELEASE unit")

    def _shred(self, first: int, last: int) -> None:
        if not self._db.execute("DELETE FROM recordings WHERE seq BETWEEN ? AND ?", (first, last)).rowcount:
            which = f"entry {first} has" if first == last else f"the entries {first} to {last} have"
            raise Conflict(f"{which} no recording (any more)")

    def _insert(self, entries: Sequence[Entry]) -> None:
        self._db.executemany(
            "INSERT INTO entries (seq, time, kind, session, subject, connection, body, prev, hash)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            entries,
        )

    def _time(self, last: str) -> str:
        """The chain's time never goes backwards, whatever the clock does."""
        return max(self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"), last)

    def _head(self) -> tuple[int, bytes, str]:
        if self._seen is not None:
            # What this process wrote must still be there: a file put back, or rewritten, under us is not carried on.
            seq, expected = self._seen
            found = self._db.execute("SELECT hash FROM entries WHERE seq = ?", (seq,)).fetchone()
            if found is None or found[0] != expected:
                raise AuditUnavailable(
                    f"audit store `{self.path}`: entry {seq}, which this process wrote, is gone or"
                    " another; the file was rolled back or rewritten: keep it as evidence, compare it with its witness"
                )
        row = self._db.execute("SELECT seq, hash, time FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        return (row[0], row[1], row[2]) if row else (0, chain.GENESIS, "")


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file a path names now: device and inode; None where it names none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _body(item: Item) -> tuple[str, bytes | None]:
    """The entry's body, with what tells its change in full, and the recording to store with it."""
    kind, body, data = item.draft.kind, item.draft.body, None
    match item.change:
        case None:
            return as_text(body), None
        case Recording() as made:
            data, size = recording.pack(made.chunks)
            fits, key, told = kind == Kind.OUTCOME, "recording", recording.account(made, data, size)
        case Shred(first, last):
            fits, key, told = kind == Kind.RECORDING_SHREDDED, "shredded", {"first": first, "last": last}
        case _:
            fits, key, told = kind.startswith("approval."), "change", account(item.change)
    if not fits:
        raise BodyError(f"a change that `{key}` tells does not go with the kind `{kind}`")
    if key in body:
        raise BodyError(f"the key `{key}` of such an entry is written by the store itself; leave it out")
    return as_text({**body, key: told}), data


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise unavailable(path, error) from None
    except NoteError as error:
        raise AuditUnavailable(f"audit store `{path}`: {error}") from None
