"""What was signed, for those who take it elsewhere: read-only, beside the writer, and never in its way."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from audit import segments
from audit.errors import AuditUnavailable, unavailable
from audit.proof import Extension, carry_on


class Signed:
    """The checkpoints of a store. Each call raises AuditUnavailable where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after(self, size: int) -> list[tuple[int, str]]:
        """(size, signed note) of every checkpoint over more entries than that, in order.

        Without those in segments that are elsewhere.
        """
        sql = "SELECT size, note FROM checkpoints WHERE size > ? ORDER BY size"
        with self._reading(size) as parts:
            notes = {int(at): str(note) for part in parts for at, note in part.execute(sql, (size,))}
        return sorted(notes.items())

    def newest(self) -> tuple[int, str] | None:
        """(size, signed note) of the newest one."""
        return next(iter(self.latest(1)), None)

    def latest(self, count: int) -> list[tuple[int, str]]:
        """(size, signed note) of so many at most, the newest first: those that the store itself holds."""
        with self._reading() as [db]:
            rows = db.execute("SELECT size, note FROM checkpoints ORDER BY size DESC LIMIT ?", (count,))
            return [(int(at), str(note)) for at, note in rows]

    def note(self, size: int) -> str | None:
        """The signed note over exactly so many entries. Raises AuditUnavailable too if its segment is elsewhere."""
        with self._reading(size) as parts:
            row = self._checkpoint(parts, "note", size)
            return None if row is None else str(row)

    def extension(self, old: int, size: int, note: str) -> Extension | None:
        """That this note over `size` entries carries on the checkpoint over the `old` first; None without that one.

        Reads the hashes of the entries between them, and no others. Raises as `note`.
        """
        if old == 0:
            return Extension(0, (), note)
        if old > size:
            return None
        with self._reading(old) as parts:
            peaks = self._checkpoint(parts, "peaks", old)
            if peaks is None:
                return None
            sql = "SELECT seq, hash FROM entries WHERE seq > ? AND seq <= ?"
            between = dict(row for part in parts for row in part.execute(sql, (old, size)))
            if len(between) != size - old:
                raise self._elsewhere(old)
            return carry_on(old, peaks, [between[seq] for seq in range(old + 1, size + 1)], note)

    def _checkpoint(self, parts: Sequence[sqlite3.Connection], column: str, size: int) -> Any:
        """A column of the checkpoint over so many entries; None where there never was one."""
        for db in parts:
            if row := db.execute(f"SELECT {column} FROM checkpoints WHERE size = ?", (size,)).fetchone():  # noqa: S608
                return row[0]
        # A segment's checkpoints are in it from its first entry on, up to the one over its last.
        known = [db.execute("SELECT min(seq) FROM entries").fetchone()[0] for db in parts]
        if size < min((first for first in known if first is not None), default=0):
            raise self._elsewhere(size)
        return None

    def _elsewhere(self, size: int) -> AuditUnavailable:
        return AuditUnavailable(
            f"audit store `{self.path}`: the checkpoint over {size} entries, or what follows it, is in a segment"
            " that is elsewhere: bring it back"
        )

    @contextlib.contextmanager
    def _reading(self, since: int | None = None) -> Iterator[Sequence[sqlite3.Connection]]:
        """The store, and the segments that are here where there is more to read `since` so many entries."""
        try:
            uri = f"{Path(self.path).absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
                whole = (
                    since is None or since >= db.execute("SELECT coalesce(max(last), 0) FROM segments").fetchone()[0]
                )
                if whole:
                    yield [db]
                    return
            with segments.parts(self.path) as parts:
                yield [part.db for part in parts]
        except sqlite3.Error as error:
            raise unavailable(self.path, error) from None
