"""Decides when a checkpoint is due: after so many seconds, so many entries, and at the end. Runs in the writer.

A checkpoint that fails is tried again, logged each time, and told by one entry for as long as it goes on failing.
Entries are written all the same: an unsigned entry is evidence too, only weaker. Where a witness is required, nothing
new is begun until it has taken a checkpoint again (`blocked`); what runs still gets its outcome.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from audit.entry import Draft, Kind
from audit.errors import AuditUnavailable
from audit.note import Signer
from audit.sealing import require
from audit.store import Item, Store
from audit.witness import FileWitness

log = logging.getLogger(__name__)

# While a required witness keeps everybody waiting, it is asked again so soon.
_BLOCKED_RETRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Rhythm:
    """A checkpoint is due when something new was written and either is reached."""

    seconds: float = 60.0
    entries: int = 1000


class Notary:
    """Signs a store's entries in time, and hands the notes to its witnesses."""

    def __init__(
        self,
        store: Store,
        key: Callable[[], Signer],
        *,
        rhythm: Rhythm | None = None,
        witnesses: Sequence[FileWitness] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`key` is asked each time, so that a rotation by another process is followed."""
        self._store = store
        self._key = key
        self._rhythm = rhythm or Rhythm()
        self._witnesses = witnesses
        self._clock = clock
        self._tried = clock()
        self._new = 0  # entries since the last try
        self._open = True  # something may be unsigned: another process's entries, at first
        self._failing = False
        self.blocked: str | None = None  # why nothing may begin

    def start(self) -> None:
        """Check the key and what the witnesses have seen, before anything is written. Raises AuditUnavailable."""
        keys = self._store.public_keys()
        require(keys, self._key())
        notes = self._store.notes()
        for witness in self._witnesses:
            witness.check(keys, notes)
        if any(witness.required for witness in self._witnesses):
            self.seal()  # known from the start, not from the first checkpoint on

    def wrote(self, entries: int) -> None:
        """So many entries were appended."""
        self._new += entries
        self._open = True

    def due_in(self) -> float | None:
        """Seconds until a checkpoint is due (0 or less: now); None while everything is signed."""
        if not self._open:
            return None
        if self._new >= self._rhythm.entries:
            return 0.0
        pause = self._rhythm.seconds if self.blocked is None else min(_BLOCKED_RETRY_SECONDS, self._rhythm.seconds)
        return self._tried + pause - self._clock()

    def seal(self) -> None:
        """Make a checkpoint and hand it to the witnesses. Never raises: see above."""
        self._tried, self._new = self._clock(), 0
        problem = None
        try:
            self._store.checkpoint(self._key())
            self._open = False
        except AuditUnavailable as error:
            problem = f"no checkpoint could be made: {error}"
        except Exception as error:  # a bug of ours must not end the thread that writes the entries
            log.exception("a checkpoint failed")
            problem = f"no checkpoint could be made: internal error: {type(error).__name__}"
        blocked = problem if any(witness.required for witness in self._witnesses) else None
        for witness in self._witnesses:
            try:
                self._hand(witness)
            except AuditUnavailable as error:
                problem, self._open = f"a witness did not take a checkpoint: {error}", True
                if witness.required:
                    blocked = f"a required witness did not take a checkpoint: {error}"
        self.blocked, self._open = blocked, self._open or blocked is not None
        self._tell(problem)

    def _hand(self, witness: FileWitness) -> None:
        """Everything that it lacks, so that it catches up after a failure."""
        if notes := self._store.notes(after=witness.size()):
            witness.add(notes)

    def _tell(self, problem: str | None) -> None:
        if problem is None:
            self._failing = False
            return
        log.error("%s", problem)
        if self._failing:
            return
        self._failing = True
        try:
            self._store.append([[Item(Draft(Kind.CHECKPOINT_FAILED, None, None, None, {"reason": problem}))]])
        except AuditUnavailable as error:
            log.error("and that could not be recorded: %s", error)
