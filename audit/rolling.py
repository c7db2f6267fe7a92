"""Rolls a store: seals its entries as a segment, copies them into a file of their own, and lets them go here.

Each step is durable before the next one, and a roll that was cut off is taken up where it stopped, by the next roll:

1. sealed: one transaction signs all entries, and appends the entry that says so, with what the segment's follower
   needs to be read alone.
2. copied: the segment is written under another name, read back, verified and synced. Others go on writing.
3. named: it gets its name, which is synced. From here on the entries are in two files.
4. let go: they are deleted from the store, some at a time.

If we crash after 1 or 2, the entries are in the store alone, and the copy is made anew; after 3, in both; within 4,
some in both. At every moment each entry is in a file that readers look into.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from audit import blocks, schema, segments
from audit.errors import AuditUnavailable, unavailable
from audit.keys import sync_folder
from audit.note import Signer
from audit.search import stamp
from audit.segments import Segment
from audit.store import Store
from audit.verify import Unreadable, verify

# Entries a transaction that lets go (some 30 ms). Where others wrote meanwhile, they then have the store to themselves
# for so much longer than it took; where nobody did, for as many seconds as SQLite waits between two tries for the lock.
_AT_ONCE = 1000
_REST = 2.0
_MOMENT = 0.025
# What stays free beside a segment, or as much as is in it: the log may take that while entries are let go.
_ROOM_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """When a store is rolled: as soon as it uses so many bytes, or its oldest entry is so old; None: never for that."""

    size: int | None = None
    age: timedelta | None = None


class Disk:
    """What a roll does to files beside SQLite's own: the port at which tests let it fail."""

    def copy(self, store: Path, segment: Segment, draft: Path) -> None:
        """Write the segment's entries into a new file. Raises sqlite3.Error, OSError."""
        draft.unlink(missing_ok=True)
        schema.make(draft)
        with contextlib.closing(sqlite3.connect(f"{draft.as_uri()}?mode=rw", uri=True, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = OFF")  # nobody relies on this file before it is synced and named
            db.execute("PRAGMA synchronous = OFF")
            db.execute("ATTACH ? AS live", (f"{store.as_uri()}?mode=ro",))
            db.execute("BEGIN")
            schema.fill(db)
            span = (segment.first, segment.last)
            for table in ("entries", "recordings"):
                names = ", ".join(_COLUMNS[table])
                copied = f"SELECT {names} FROM live.{table} WHERE seq BETWEEN ? AND ? ORDER BY seq"  # noqa: S608 - constants
                db.execute(f"INSERT INTO {table} ({names}) {copied}", span)
            blocks.fill(db)
            db.execute("INSERT INTO checkpoints SELECT * FROM live.checkpoints WHERE size BETWEEN ? - 1 AND ?", span)
            db.execute("INSERT INTO segments SELECT * FROM live.segments WHERE last = ?", (segment.last,))
            db.execute("COMMIT")

    def free(self, folder: Path) -> int:
        """Bytes that there is room for. Raises OSError."""
        return shutil.disk_usage(folder).free

    def sync(self, path: Path) -> None:
        """Make a file's bytes survive a power cut. Raises OSError."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def name(self, draft: Path, path: Path) -> None:
        """Give the segment its name. Raises OSError."""
        draft.rename(path)

    def sync_names(self, path: Path) -> None:
        """Make the names in the file's folder survive a power cut, and the folder's own. Raises OSError."""
        sync_folder(path)
        sync_folder(path.parent)


_COLUMNS = {
    "entries": ("seq", "time", "kind", "session", "subject", "connection", "statement", "body", "prev", "hash"),
    "recordings": ("seq", "data"),
}


def due(path: Path, limits: Limits, now: datetime) -> bool:
    """Whether the store is to be rolled now, or a roll of it was cut off. Raises AuditUnavailable."""
    try:
        with contextlib.closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
            used = _used(db)
            [sealed] = db.execute("SELECT coalesce(max(last), 0) FROM segments").fetchone()
            oldest = db.execute("SELECT seq, time FROM entries ORDER BY seq LIMIT 1").fetchone()
    except sqlite3.Error as error:
        raise unavailable(path, error) from None
    if oldest is None:
        return False
    if oldest[0] <= sealed:
        return True
    full = limits.size is not None and used >= limits.size
    return full or (limits.age is not None and oldest[1] <= stamp(now - limits.age))


def roll(
    path: Path,
    key: Callable[[], Signer],
    *,
    stopped: Callable[[], bool] = lambda: False,
    disk: Disk | None = None,
) -> Segment | None:
    """Take up a roll that was cut off, or make one; None where there is nothing to seal, or another process rolls.

    Others may write meanwhile, in this process or another. Where `stopped`, it is cut off between two steps. Raises
    AuditUnavailable.
    """
    path = Path(path).resolve()
    with _turn(path) as ours:
        if not ours:
            return None
        with contextlib.closing(Store.open(path)) as store:
            segment = store.unmoved() or store.seal(key())
            if segment is None:
                return None
            try:
                _put(store.path, segment, disk or Disk())
            except (OSError, sqlite3.Error) as error:
                raise unavailable(segment.path, error) from None
            head = store.head()
            while not stopped():
                before = time.monotonic()
                if not store.let_go(segment, _AT_ONCE):
                    return segment
                taken, was, head = time.monotonic() - before, head, store.head()
                time.sleep(max(_REST * taken, _MOMENT) if head != was else _MOMENT)
            return None


def _put(store: Path, segment: Segment, disk: Disk) -> None:
    """Step 2 and 3. A file that has the name is whole, as it was synced before; its name may not be synced yet."""
    if segment.path.exists():
        _require_whole(segment.path, segment, store)
    else:
        _require_all(store, segment)
        segments.folder(store).mkdir(mode=0o700, exist_ok=True)
        _require_room(store, segment, disk)
        draft = segment.path.with_name(f".{segment.path.name}.partial")
        try:
            disk.copy(store, segment, draft)
            disk.sync(draft)
            _require_whole(draft, segment, store)
            disk.name(draft, segment.path)
        finally:
            draft.unlink(missing_ok=True)  # a half one must not take the room that the next statements need
    disk.sync_names(segment.path)
    with contextlib.closing(sqlite3.connect(f"{segment.path.as_uri()}?mode=rw", uri=True)) as db, db:
        # What was shredded here while it was copied. Later shredding finds the segment by its name.
        db.execute("PRAGMA secure_delete = ON")
        db.execute("ATTACH ? AS live", (f"{store.as_uri()}?mode=ro",))
        if db.execute(_LACKING, (segment.last,)).fetchone() is not None:
            raise _not_what_was_sealed(segment.path, "recordings are not in it")
        db.execute(
            "DELETE FROM recordings WHERE seq NOT IN (SELECT seq FROM live.recordings)"
            " AND seq >= (SELECT min(seq) FROM live.entries)"
        )


def _require_room(store: Path, segment: Segment, disk: Disk) -> None:
    """Both are there for a while, and the last room is for the entries of what runs."""
    with contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as db:
        used = _used(db)
    needed = used + min(used, _ROOM_BYTES)
    if (free := disk.free(segment.path.parent)) < needed:
        raise AuditUnavailable(
            f"the segment `{segment.path}` needs room for {needed:,} bytes, and there are {free:,}: the audit store is"
            " not rolled until there is room; make some, or move older segments elsewhere"
        )


def _used(db: sqlite3.Connection) -> int:
    """Bytes of a store that are in use."""
    pages, free, size = (
        db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _require_all(store: Path, segment: Segment) -> None:
    with contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as db:
        [first] = db.execute("SELECT min(seq) FROM entries").fetchone()
    if first != segment.first:
        raise AuditUnavailable(
            f"the segment `{segment.path}` was moved before the store had let go of all that is in it;"
            " put it back until the roll is done"
        )


_LACKING = "SELECT 1 FROM live.recordings WHERE seq <= ? AND seq NOT IN (SELECT seq FROM main.recordings) LIMIT 1"


def _require_whole(path: Path, segment: Segment, store: Path) -> None:
    """Refuse a file that is not, to the last hash, what the store's entry says was sealed."""
    with contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as db:
        [head] = db.execute("SELECT lower(hex(prev)) FROM entries WHERE seq = ?", (segment.last + 1,)).fetchone()
    try:
        report = verify(path, jobs=2)  # a large one in other processes: this one has statements to record
    except Unreadable as error:
        raise AuditUnavailable(f"the segment cannot be read back: {error}; nothing was deleted") from None
    if not report.ok or (report.since, report.entries, report.signed) != (segment.first, segment.last, segment.last):
        raise _not_what_was_sealed(path, report.problem or f"it holds the entries {report.since} to {report.entries}")
    if report.head != head:
        raise _not_what_was_sealed(path, "it is of another history than the store's")


def _not_what_was_sealed(path: Path, why: str) -> AuditUnavailable:
    return AuditUnavailable(
        f"the segment `{path}` is not what was sealed: {why}; nothing was deleted: verify the store, and move the"
        " segment away to have it made anew"
    )


@contextlib.contextmanager
def _turn(store: Path) -> Iterator[bool]:
    """Whether we are the one that rolls."""
    path = store.with_name(f"{store.name}.roll.lock")
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unavailable(path, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def roll_if_due(
    path: Path, key: Callable[[], Signer], limits: Limits, stopped: Callable[[], bool] = lambda: False
) -> Segment | None:
    """Roll the store where its time has come, or a roll was cut off. Raises AuditUnavailable."""
    return roll(path, key, stopped=stopped) if due(path, limits, datetime.now(UTC)) else None
