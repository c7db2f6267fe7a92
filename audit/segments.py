"""A store's sealed segments: where they lie, and reading across them and the store. Read-only, but for shredding.

A segment is a store by itself, which nobody writes any more: see SPEC.md. It may be moved elsewhere; what is not here
is left out, and whoever reads says so.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from audit.errors import AuditUnavailable, unavailable
from audit.schema import APPLICATION_ID

_NAME = re.compile(r"(\d{12,})-(\d{12,})\.db")


@dataclass(frozen=True, slots=True)
class Segment:
    """The entries `first` to `last`, which were sealed, and where they belong: `path` may not be there (any more)."""

    first: int
    last: int
    path: Path


@dataclass(frozen=True, slots=True)
class Part:
    """A store or a segment, open for reading; its entries are those with a seq below `below`."""

    path: Path
    db: sqlite3.Connection
    below: int


def folder(store: Path) -> Path:
    """Where the segments of a store lie."""
    return store.with_name(f"{store.name}.segments")


def segment(store: Path, first: int, last: int) -> Segment:
    """The segment of these entries. Its name is for people, and sorts."""
    return Segment(first, last, folder(store) / f"{first:012}-{last:012}.db")


def here(store: Path) -> Sequence[Segment]:
    """The segments that are in the store's folder, in order."""
    found = [(match, path) for path in folder(store).glob("*.db") if (match := _NAME.fullmatch(path.name))]
    return sorted((Segment(int(m[1]), int(m[2]), path) for m, path in found), key=lambda one: one.last)


def sealed(store: Path) -> Sequence[Segment]:
    """All segments that the store says were sealed, wherever they are, in order. Raises AuditUnavailable."""
    with _told(store), _opened(store) as db:
        return [segment(store, *row) for row in db.execute("SELECT first, last FROM segments ORDER BY last")]


def elsewhere(store: Path) -> Sequence[Segment]:
    """The sealed segments that are not in the store's folder, in order. Raises AuditUnavailable."""
    return [one for one in sealed(store) if not one.path.is_file()]


@contextlib.contextmanager
def parts(store: Path) -> Iterator[Sequence[Part]]:
    """The store and the segments that are here, the newest first, each of one moment.

    Raises AuditUnavailable for what is no store, sqlite3.Error for one that cannot be read.
    """
    store = Path(store).absolute()
    with contextlib.ExitStack() as stack:
        db = stack.enter_context(_opened(store))
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise AuditUnavailable(f"`{store}` is not an audit store; name another file")
        db.execute("BEGIN")
        # The store first: what a roll moves from now on is then in both, and counts once.
        [below] = db.execute("SELECT min(seq) FROM entries").fetchone()
        found = [Part(store, db, _ALL)]
        for one in reversed(here(store)):
            db = stack.enter_context(_opened(one.path))
            found.append(Part(one.path, db, _ALL if below is None else below))
            below = one.first
        yield found


_ALL = 1 << 62


def partners(found: Sequence[Part], at: int) -> str:
    """The table in which a part's statements find their other entry: it may be in the part before or after it."""
    if len(found) == 1:
        return "entries"
    db, tables = found[at].db, ["main.entries"]
    for number, name in ((at - 1, "newer"), (at + 1, "older")):
        if 0 <= number < len(found):
            db.execute(f"ATTACH ? AS {name}", (f"{found[number].path.as_uri()}?mode=ro",))
            tables.append(f"{name}.entries")
    union = " UNION ALL ".join(f"SELECT kind, statement, body FROM {table}" for table in tables)  # noqa: S608 - constants
    db.execute(f"CREATE TEMP VIEW partners AS {union}")
    return "partners"


def holds_recordings(store: Path, first: int, last: int) -> bool:
    """Whether a segment that is here holds a recording of these entries. Raises AuditUnavailable."""
    for one in _overlapping(store, first, last):
        with _told(one.path), _opened(one.path) as db:
            if db.execute("SELECT 1 FROM recordings WHERE seq BETWEEN ? AND ? LIMIT 1", (first, last)).fetchone():
                return True
    return False


def shred(store: Path, first: int, last: int) -> None:
    """Delete these recordings from the segments that are here, after the entry that says so. Raises AuditUnavailable.

    If we crash before, the entry says more than is true: whoever asked was not told that it is done, and asks again.
    """
    for one in _overlapping(store, first, last):
        with _told(one.path), contextlib.closing(sqlite3.connect(f"{one.path.as_uri()}?mode=rw", uri=True)) as db, db:
            db.execute("PRAGMA secure_delete = ON")
            db.execute("DELETE FROM recordings WHERE seq BETWEEN ? AND ?", (first, last))


def _overlapping(store: Path, first: int, last: int) -> Sequence[Segment]:
    return [one for one in here(store.absolute()) if one.first <= last and first <= one.last]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    uri = path.absolute().as_uri()
    if path.with_name(f"{path.name}-journal").exists():
        # Who shredded in it was killed: only who may write it can make it whole again.
        with contextlib.closing(sqlite3.connect(f"{uri}?mode=rw", uri=True)) as db:
            db.execute("SELECT 1 FROM sqlite_master").fetchone()
    with contextlib.closing(sqlite3.connect(f"{uri}?mode=ro", uri=True, isolation_level=None)) as db:
        yield db


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise unavailable(path, error) from None


def check_place(store: Path, db: sqlite3.Connection) -> None:
    """Refuse to write into a sealed segment, or a store that is older than its segments. Raises AuditUnavailable."""
    found = here(store)  # first: another process may be sealing one, and names it after it has said so
    [last] = db.execute("SELECT coalesce(max(last), 0) FROM segments").fetchone()
    [newest] = db.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()
    if last and newest <= last:
        raise AuditUnavailable(f"`{store}` is a sealed segment: nothing is written into it any more; name the store")
    beyond = [one for one in found if one.last > last]
    if beyond:
        raise AuditUnavailable(
            f"`{beyond[-1].path}` was sealed after the newest entry of the audit store `{store}`: that was replaced by"
            " an older copy; keep both as evidence, and restore the store"
        )
