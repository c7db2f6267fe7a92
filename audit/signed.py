"""What was signed, for those who take it elsewhere: read-only, beside the writer, and never in its way."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from audit.errors import unavailable
from audit.proof import Extension, carry_on


class Signed:
    """The checkpoints of a store. Each call raises AuditUnavailable where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after(self, size: int) -> list[tuple[int, str]]:
        """(size, signed note) of every checkpoint over more entries than that, in order."""
        with self._reading() as db:
            rows = db.execute("SELECT size, note FROM checkpoints WHERE size > ? ORDER BY size", (size,))
            return [(int(at), str(note)) for at, note in rows]

    def newest(self) -> tuple[int, str] | None:
        """(size, signed note) of the newest one."""
        return next(iter(self.latest(1)), None)

    def latest(self, count: int) -> list[tuple[int, str]]:
        """(size, signed note) of so many, the newest first."""
        with self._reading() as db:
            rows = db.execute("SELECT size, note FROM checkpoints ORDER BY size DESC LIMIT ?", (count,))
            return [(int(at), str(note)) for at, note in rows]

    def note(self, size: int) -> str | None:
        """The signed note over exactly so many entries."""
        with self._reading() as db:
            row = db.execute("SELECT note FROM checkpoints WHERE size = ?", (size,)).fetchone()
            return str(row[0]) if row else None

    def extension(self, old: int, size: int, note: str) -> Extension | None:
        """That this note over `size` entries carries on the checkpoint over the `old` first; None without that one.

        Reads the hashes of the entries between them, and no others.
        """
        if old == 0:
            return Extension(0, (), note)
        with self._reading() as db:
            row = db.execute("SELECT peaks FROM checkpoints WHERE size = ?", (old,)).fetchone()
            if row is None or old > size:
                return None
            between = db.execute("SELECT hash FROM entries WHERE seq > ? AND seq <= ? ORDER BY seq", (old, size))
            return carry_on(old, row[0], [hash_ for (hash_,) in between], note)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            uri = f"{Path(self.path).absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
                yield db
        except sqlite3.Error as error:
            raise unavailable(self.path, error) from None
