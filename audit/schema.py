"""The shape of the audit file: makes it, recognises it, and refuses one that is foreign or was altered."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

from audit.errors import AuditUnavailable

# "CNTS": marks the file as ours, so that nothing else is ever written into (`PRAGMA application_id`).
APPLICATION_ID = 0x434E5453
VERSION = 6
# The write-ahead log is cut back to this after a long reader let it grow.
_WAL_BYTES = 64 * 1024 * 1024
# After so many pages (16 MB) the log is moved into the file. SQLite's own 1,000 move the same few index pages so often
# that a full batch of entries takes nearly twice as long.
_WAL_PAGES = 4000
# As many are kept in memory: a batch changes more pages of the indexes than SQLite's own 2 MB hold, and letting go of
# what a segment holds takes a quarter longer with those.
_CACHE_PAGES = 4000


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """A write transaction; it waits for other processes' first. Rolled back whole if the block raises."""
    if db.in_transaction:  # a rollback failed: nothing of that is believed either
        db.execute("ROLLBACK")
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except BaseException:
        # A failed COMMIT may leave the transaction open: nothing of it is believed.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def make(path: Path) -> None:
    """Make an empty file that only its owner may read, unless there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # or a power cut could take the file's name away, and with it every entry
    finally:
        os.close(folder)


def prepare(db: sqlite3.Connection, path: Path, busy_seconds: float) -> None:
    """Set a connection up for writing, and fill an empty file. Raises AuditUnavailable, sqlite3.Error."""
    db.execute("BEGIN")  # reads only, of one moment: a file that is not ours stays as it is
    try:
        _recognise(db, path)
    finally:
        db.execute("ROLLBACK")
    db.execute("PRAGMA cell_size_check = ON")
    _set_wal(db, path, busy_seconds)
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA secure_delete = ON")  # what is shredded is overwritten
    db.execute(f"PRAGMA cache_size = {_CACHE_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
    with transaction(db):
        if _recognise(db, path):
            fill(db)
        _check_schema(db, path)


def fill(db: sqlite3.Connection) -> None:
    """Make an empty database a store of ours, in the caller's transaction."""
    for statement in statements():
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {VERSION}")


def _recognise(db: sqlite3.Connection, path: Path) -> bool:
    """True for an empty file, False for a store of ours; raises AuditUnavailable for anything else."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if (application, version) == (0, 0) and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
        return True
    if application != APPLICATION_ID:
        raise AuditUnavailable(f"`{path}` is another program's database, not an audit store; name another file")
    if version != VERSION:
        raise AuditUnavailable(
            f"`{path}` is an audit store of version {version}, and this program writes version {VERSION};"
            " use the program that wrote it, or start a new file"
        )
    return False


def _set_wal(db: sqlite3.Connection, path: Path, busy_seconds: float) -> None:
    # Changing the journal mode does not wait for a lock by itself as everything else does.
    deadline = time.monotonic() + busy_seconds
    mode = ""
    while not mode:
        try:
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() >= deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise AuditUnavailable(
            f"`{path}` cannot have a write-ahead log (its journal mode stays `{mode}`);"
            " keep the audit on a local file system"
        )


def statements() -> Iterator[str]:
    """The statements of schema.sql, one by one: `executescript` would commit the caller's transaction."""
    statement = ""
    for line in resources.files("audit").joinpath("schema.sql").read_text(encoding="utf-8").splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a store whose tables, views or triggers somebody has changed, or added to: a trigger could eat entries."""
    with contextlib.closing(sqlite3.connect(":memory:")) as fresh:
        for statement in statements():
            fresh.execute(statement)
        ours = objects(fresh)
    found = objects(db)
    for name, expected in ours.items():
        if found.get(name) != expected:
            state = "was altered" if name in found else "is missing"
            raise AuditUnavailable(
                f"`{path}`: the {expected[0]} `{name}` {state};"
                " keep the file as evidence, verify it, and start a new one"
            )
    for name, (kind, table, _) in found.items():
        # Whatever table it is on: SQLite takes `ENTRIES` for ours, and a table called `json_each` for its own.
        if kind != "index" and name not in ours:
            raise AuditUnavailable(
                f"`{path}`: the {kind} `{name}` on `{table}` is not ours; drop it, then verify the file"
            )


def objects(db: sqlite3.Connection) -> Mapping[str, tuple[str, str, str]]:
    """(type, table, SQL) of every table, index, view and trigger by name."""
    sql = (
        "SELECT name, type, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        " AND (type <> 'table' OR name NOT IN ('sqlite_stat1', 'sqlite_stat4', 'sqlite_sequence'))"
    )
    return {name: (kind, table, text) for name, kind, table, text in db.execute(sql)}
