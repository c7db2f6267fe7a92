"""A witness outside the store: a file that only grows, best on another machine's disk or with `chattr +a` set.

It holds the signed notes themselves, one after the other, and nothing else: `verify --checkpoint` reads it as it is.
Whoever rewrites the store, or puts back an older copy of it, would have to rewrite this file as well.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from audit.checkpoint import Checkpoint
from audit.errors import AuditUnavailable, unavailable
from audit.note import Note, NoteError, PublicKey, open_note, split_notes

# The newest note is looked for in the last so many bytes; a note of ours has about 250.
_TAIL_BYTES = 64 * 1024


class FileWitness:
    """An append-only file of checkpoints. Where it is `required`, nothing runs while it does not take them."""

    def __init__(self, path: Path, *, required: bool = False) -> None:
        self.path = path
        self.required = required

    def newest(self) -> str | None:
        """The newest note of the file; None where there is none yet. Raises AuditUnavailable."""
        try:
            with open(self.path, "rb") as file:
                return self._newest(file.fileno())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unavailable(self.path, error) from None

    def size(self) -> int:
        """How many entries its newest note covers, 0 without one. Raises AuditUnavailable."""
        return self._size(self.newest())

    def add(self, notes: Sequence[tuple[int, str]]) -> None:
        """Append those of these (size, note) that are newer than the file's own, durably. Raises AuditUnavailable.

        Several processes may share the file.
        """
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                seen = self._size(self._newest(descriptor))
                data = "".join(note for size, note in notes if size > seen).encode()
                if os.write(descriptor, data) != len(data):
                    raise AuditUnavailable(
                        f"the witness `{self.path}` took only a part of a note; make room on its disk"
                    )
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unavailable(self.path, error) from None

    def check(self, keys: Collection[PublicKey], notes: Sequence[tuple[int, str]]) -> None:
        """Hold the store's keys and (size, note) to what the file has seen. Raises AuditUnavailable.

        What was witnessed was stored before, so a note that the store lacks means that it was rolled back,
        rewritten or replaced.
        """
        newest = self.newest()
        if newest is None:
            return
        try:
            seen = Checkpoint.parse(open_note(newest, keys))
        except NoteError as error:
            raise AuditUnavailable(
                f"the witness `{self.path}` is not this audit's: {error}; the audit's file was replaced, or another"
                " audit's witness is named"
            ) from None
        stored = dict(notes)
        if seen.size not in stored or Checkpoint.parse(open_note(stored[seen.size], keys)) != seen:
            raise AuditUnavailable(
                f"the witness `{self.path}` has seen {seen.size} entries, and the audit's file does not hold the same:"
                " it was rolled back or rewritten; keep both as evidence, and restore the file"
            )

    def _size(self, note: str | None) -> int:
        try:
            return Checkpoint.parse(Note.parse(note).text).size if note is not None else 0
        except NoteError as error:
            raise AuditUnavailable(f"the witness `{self.path}`: {error}; cut it off, or name another file") from None

    def _newest(self, descriptor: int) -> str | None:
        size = os.fstat(descriptor).st_size
        if size == 0:
            return None
        tail = os.pread(descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode("utf-8", "replace")
        notes = split_notes(tail)
        if not notes or not tail.endswith(notes[-1]):
            raise AuditUnavailable(
                f"the witness `{self.path}` does not end with a whole signed note; cut the torn end off or name another"
            )
        return notes[-1]
