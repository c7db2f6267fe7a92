"""What a witness outside the store is, and the plainest: a file that only grows, best on another machine's disk.

Whoever rewrites the store, or puts back an older copy of it, would have to rewrite what its witnesses hold as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from audit.checkpoint import Checkpoint
from audit.entry import Draft, Kind
from audit.errors import AuditUnavailable, unavailable
from audit.note import Note, NoteError, PublicKey, open_note, split_notes
from audit.signed import Signed

# The newest note is looked for in the last so many bytes; a note of ours has about 250.
_TAIL_BYTES = 64 * 1024


def shown(url: str) -> str:
    """The address without what could be a secret in it: user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class WitnessAway(AuditUnavailable):
    """The witness cannot be reached or used now; it may well hold what it should."""


class Witness(Protocol):
    """Who keeps checkpoints where the store's keeper cannot change them. Called on one thread at a time."""

    name: str  # as entries and logs tell of it: no secret in it
    required: bool  # whether nothing new runs while it does not take checkpoints
    every: float  # seconds between two hand-overs at least

    def check(self, keys: Collection[PublicKey], signed: Signed) -> None:
        """Hold the store to what the witness has seen. Raises AuditUnavailable; WitnessAway if it cannot be asked."""

    def take(self, signed: Signed) -> Mapping[str, object] | None:
        """Take what it lacks, at least the newest. What is to be written down of it, if anything. Raises as `check`."""


def statement_of(witness: Witness, said: Mapping[str, object]) -> Draft:
    """The entry that keeps what a witness said of a checkpoint."""
    return Draft(Kind.CHECKPOINT_WITNESSED, None, None, None, {"witness": witness.name, **said})


def conflict(name: str, size: int) -> AuditUnavailable:
    """The error where a witness has seen what the store does not hold."""
    return AuditUnavailable(
        f"the witness `{name}` has seen {size} entries, and the audit's file does not hold the same:"
        " it was rolled back or rewritten; keep both as evidence, and restore the file"
    )


def held(name: str, note: str, keys: Collection[PublicKey], signed: Signed) -> None:
    """Hold the store to a note that a witness has. Raises AuditUnavailable.

    What was witnessed was stored before, so a note that the store lacks means that it was rolled back, rewritten or
    replaced.
    """
    try:
        seen = Checkpoint.parse(open_note(note, keys))
    except NoteError as error:
        raise AuditUnavailable(
            f"the witness `{name}` is not this audit's: {error}; the audit's file was replaced, or another audit's"
            " witness is named"
        ) from None
    stored = signed.note(seen.size)
    if stored is None or Checkpoint.parse(open_note(stored, keys)) != seen:
        raise conflict(name, seen.size)


class FileWitness:
    """An append-only file of checkpoints: the signed notes, one after the other, and nothing else."""

    every = 0.0

    def __init__(self, path: Path, *, required: bool = False) -> None:
        self.path = path
        self.name = str(path)
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
                before = os.fstat(descriptor).st_size
                if os.write(descriptor, data) != len(data):
                    with contextlib.suppress(OSError):  # nothing could be added to a torn note
                        os.ftruncate(descriptor, before)
                    raise AuditUnavailable(
                        f"the witness `{self.path}` took only a part of a note; make room on its disk"
                    )
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unavailable(self.path, error) from None

    def check(self, keys: Collection[PublicKey], signed: Signed) -> None:
        """Hold the store to what the file has seen. Raises AuditUnavailable."""
        if (newest := self.newest()) is not None:
            held(self.name, newest, keys, signed)

    def take(self, signed: Signed) -> None:
        """Append everything that it lacks, so that it catches up after a failure. Raises AuditUnavailable."""
        if notes := signed.after(self.size()):
            self.add(notes)

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
