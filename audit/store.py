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

from audit import blocks, chain, recording, sealing, segments, unfinished
from audit.approvals import Change, Conflict, account, apply
from audit.entry import BodyError, Draft, Entry, Kind, Open, as_text
from audit.errors import AuditUnavailable, unavailable
from audit.merkle import SIZE, Hashes, Tree
from audit.note import NoteError, PublicKey, Signer
from audit.proof import Extension, Proof, extend, prove
from audit.recording import Recording, Shred
from audit.schema import make, prepare, transaction
from audit.segments import Part, Segment

__all__ = ["AuditUnavailable", "Item", "Open", "Store", "Unit"]

# How long a transaction waits for another process's lock before it is refused.
BUSY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Item:
    """One entry to append, and what happens with it or not at all: to an approval, or to recordings."""

    draft: Draft
    change: Change | Recording | Shred | None = None


Unit = Sequence[Item]  # appended together or not at all


_SEALED = "SELECT coalesce(max(last), 0) FROM segments"


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
        self._growth = sealing.Growth()
        self._listing = blocks.Listing()

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
                segments.check_place(path, db)
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
            self._put("INSERT INTO recordings (seq, data) VALUES (?, ?)", recordings)
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
                self._insert([chain.link(prev, seq + 1, now, sealing.created(signer))])
            note = sealing.seal(self._db, signer, now, self._growth)
            self._check_in_place()
            return note

    def seal(self, signer: Signer) -> Segment | None:
        """End a segment with the newest entry: a checkpoint over it, and the entry that says so. All or nothing.

        None where there is nothing to seal since the last one. They stay until `let_go`. Raises AuditUnavailable.
        """
        self.checkpoint(signer)
        with self._lock, _told(self.path), transaction(self._db):
            seq, prev, last = self._head()
            now = self._time(last)
            [before] = self._db.execute(_SEALED).fetchone()
            if seq <= before + 1 or self._unmoved() is not None:
                return None
            segment = segments.segment(self.path, before + 1, seq)
            sealing.seal(self._db, signer, now, self._growth)  # what was appended just now
            began = [*unfinished.statements(self._db), *unfinished.sessions(self._db)]
            draft = sealing.segment_sealed(self._db, segment, began)
            entry = chain.link(prev, seq + 1, now, draft)
            self._insert([entry])
            self._db.execute(
                "INSERT INTO segments SELECT body ->> '$.segment.last', body ->> '$.segment.first', time,"
                " body ->> '$.segment.root' FROM entries WHERE seq = ?",
                (entry.seq,),
            )
            self._check_in_place()
        self._seen = (entry.seq, entry.hash)
        return segment

    def unmoved(self) -> Segment | None:
        """The segment that was sealed and whose entries are still here (some, or all). Raises AuditUnavailable."""
        with self._lock, _told(self.path):
            return self._unmoved()

    def let_go(self, segment: Segment, at_once: int) -> bool:
        """Delete some entries that a segment holds; whether there are more. Raises AuditUnavailable.

        For who has just seen the segment's file to be whole, and its name to be durable.
        """
        with self._lock, _told(self.path), transaction(self._db):
            [first] = self._db.execute("SELECT min(seq) FROM entries").fetchone()
            last = min(first + at_once - 1, segment.last)
            self._db.execute("DELETE FROM recordings WHERE seq <= ?", (last,))
            self._db.execute("DELETE FROM entries WHERE seq <= ?", (last,))
            self._db.execute("DELETE FROM blocks WHERE block < ?", (last // blocks.SIZE,))
            if last == segment.last:
                self._db.execute("DELETE FROM checkpoints WHERE size < ?", (last,))
            self._check_in_place()
            return bool(last < segment.last)

    def _unmoved(self) -> Segment | None:
        sql = "SELECT first, last FROM segments WHERE last >= (SELECT min(seq) FROM entries) ORDER BY last LIMIT 1"
        row = self._db.execute(sql).fetchone()
        return None if row is None else segments.segment(self.path, *row)

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
            sealing.seal(self._db, new, now, self._growth)
            self._check_in_place()

    def public_keys(self) -> list[PublicKey]:
        """The public keys that the chain names, the present one last. Raises AuditUnavailable."""
        with self._lock, _told(self.path):
            return sealing.keys(self._db)

    def notes(self, after: int = 0) -> list[tuple[int, str]]:
        """(size, signed note) of every checkpoint over more than `after` entries, in order.

        Without those in segments that are elsewhere. Raises AuditUnavailable.
        """
        sql = "SELECT size, note FROM checkpoints WHERE size > ? ORDER BY size"
        with self._lock, _told(self.path):
            if after >= self._db.execute(_SEALED).fetchone()[0]:
                return [(int(size), str(note)) for size, note in self._db.execute(sql, (after,))]
        with _told(self.path), segments.parts(self.path) as found:
            notes = {int(size): str(note) for part in found for size, note in part.db.execute(sql, (after,))}
        return sorted(notes.items())

    def prove(self, seq: int) -> Proof | None:
        """That an entry is among those that a checkpoint covers; None where it is not, or is not here.

        The newest one that can be reached: what lies between may be elsewhere. Reads the hashes of all entries of the
        segments between the two: a second for a million. Raises AuditUnavailable.
        """
        with _told(self.path), segments.parts(self.path) as found:
            known = _hashes(found, seq)
            sql = "SELECT size, note FROM checkpoints WHERE size BETWEEN ? AND ? ORDER BY size DESC LIMIT 1"
            notes = [part.db.execute(sql, (seq, known.size)).fetchone() for part in found] if known else []
        newest = max((row for row in notes if row is not None), default=None)
        return None if newest is None or known is None else prove(known.up_to(newest[0]), seq, newest[1])

    def extension(self, old: int, size: int, note: str) -> Extension | None:
        """That the first `old` of the `size` entries under this note are the older ones; None without so many entries.

        Reads the hashes as `prove` does. Raises AuditUnavailable.
        """
        if not 1 <= old <= size:
            return None
        with _told(self.path), segments.parts(self.path) as found:
            known = _hashes(found, old)
        return extend(known.up_to(size), old, note) if known is not None and known.size >= size else None

    def settle_log(self) -> bool:
        """Move the log into the file and empty it, so that what was shredded is in neither. False while others read.

        Raises AuditUnavailable.
        """
        with self._lock, _told(self.path):
            return bool(self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)

    def outcome_of(self, statement: str) -> int | None:
        """The seq of a statement's outcome, here or in a segment that is here; None where there is none."""
        sql = "SELECT seq FROM entries WHERE statement = ? AND kind = 'outcome' AND statement IS NOT NULL"
        with _told(self.path), segments.parts(self.path) as found:
            rows = [row for part in found for row in part.db.execute(sql, (statement,))]
        return int(rows[0][0]) if rows else None

    def open_statements(self) -> Sequence[Open]:
        """Every intent without an outcome, the oldest first. Raises AuditUnavailable."""
        with self._lock, _told(self.path):
            return unfinished.statements(self._db)

    def open_sessions(self) -> Sequence[Open]:
        """Every session that was opened and not closed, the oldest first. Raises AuditUnavailable."""
        with self._lock, _told(self.path):
            return unfinished.sessions(self._db)

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
        here = self._db.execute("DELETE FROM recordings WHERE seq BETWEEN ? AND ?", (first, last)).rowcount
        if not here and not segments.holds_recordings(self.path, first, last):
            which = f"entry {first} has" if first == last else f"the entries {first} to {last} have"
            raise Conflict(f"{which} no recording (any more)")

    def _insert(self, entries: Sequence[Entry]) -> None:
        self._put(
            "INSERT INTO entries (seq, time, kind, session, subject, connection, statement, body, prev, hash)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            entries,
        )
        self._listing.write(self._db, entries)
        self._growth.wrote(entries)

    def _put(self, sql: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Insert all of these rows: a trigger that was added while we run could leave some out."""
        if rows and (taken := self._db.executemany(sql, rows).rowcount) != len(rows):
            raise AuditUnavailable(
                f"audit store `{self.path}` took {taken} of {len(rows)} rows: it was altered while this process writes"
                " it; keep the file as evidence, and verify it"
            )

    def _time(self, last: str) -> str:
        """The chain's time never goes backwards, whatever the clock does."""
        return max(self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"), last)

    def _head(self) -> tuple[int, bytes, str]:
        if self._seen is not None:
            # What this process wrote must still be there: a file put back, or rewritten, under us is not carried on.
            seq, expected = self._seen
            found = self._db.execute("SELECT hash FROM entries WHERE seq = ?", (seq,)).fetchone()
            [sealed] = self._db.execute(_SEALED).fetchone() if found is None else [0]
            if seq > sealed and (found is None or found[0] != expected):
                raise AuditUnavailable(
                    f"audit store `{self.path}`: entry {seq}, which this process wrote, is gone or"
                    " another; the file was rolled back or rewritten: keep it as evidence, compare it with its witness"
                )
        row = self._db.execute("SELECT seq, hash, time FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        return (row[0], row[1], row[2]) if row else (0, chain.GENESIS, "")


def _hashes(found: Sequence[Part], seq: int) -> Hashes | None:
    """The hashes from the file that holds an entry on, as far as nothing is missing; None where it is not here."""
    hashes: list[bytes] = []
    tree: Tree | None = None
    for part in reversed(found):
        rows = part.db.execute("SELECT seq, hash FROM entries WHERE seq < ? ORDER BY seq", (part.below,)).fetchall()
        if not rows or rows[-1][0] < seq:
            continue
        if tree is None:
            sql = "SELECT size, peaks FROM checkpoints WHERE size = ?"
            size, peaks = part.db.execute(sql, (rows[0][0] - 1,)).fetchone() or (0, b"")
            tree = Tree(size, [peaks[at : at + SIZE] for at in range(0, len(peaks), SIZE)])
        if rows[0][0] != tree.size + len(hashes) + 1:
            break
        hashes += [hash_ for _, hash_ in rows]
    return None if tree is None or tree.size >= seq else Hashes(hashes, tree.size, tree.peaks)


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
            data, size = recording.pack(made.chunks, made.salt)
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
