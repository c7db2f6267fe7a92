"""Decides when a checkpoint is due: after so many seconds, so many entries, and at the end. Runs in the writer.

A checkpoint that fails is tried again, logged each time, and told by one entry for as long as it goes on failing; so
is each witness that fails, which is tried by its courier, on another thread. Entries are written all the same: an
unsigned entry is evidence too, only weaker. Where a witness is required, nothing new is begun until it has taken a
checkpoint again (`blocked`); what runs still gets its outcome.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from audit.courier import PATIENCE_SECONDS, Courier
from audit.entry import Draft, Kind
from audit.errors import AuditUnavailable
from audit.note import Signer
from audit.sealing import require
from audit.signed import Signed
from audit.store import Item, Store
from audit.witness import Witness, WitnessAway, statement_of

log = logging.getLogger(__name__)

# While a checkpoint that a required witness needs cannot be made, it is tried again so soon.
_BLOCKED_RETRY_SECONDS = 2.0
# How long the end waits for the witnesses to take the last checkpoint.
_LAST_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Rhythm:
    """A checkpoint is due when something new was written and either is reached."""

    seconds: float = 60.0
    entries: int = 1000


class Notary:
    """Signs a store's entries in time, and has the notes taken to its witnesses."""

    def __init__(
        self,
        store: Store,
        key: Callable[[], Signer],
        *,
        rhythm: Rhythm | None = None,
        witnesses: Sequence[Witness] = (),
        clock: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """`key` is asked each time, so that a rotation by another process is followed.

        A witness that has not answered for `patience` seconds counts as failed.
        """
        self._store = store
        self._key = key
        self._rhythm = rhythm or Rhythm()
        self._signed = Signed(store.path)
        self._patience = patience
        self._couriers = [Courier(witness, self._signed, lambda: self.news(), patience) for witness in witnesses]
        self._required = any(witness.required for witness in witnesses)
        self._clock = clock
        self._tried = clock()
        self._new = 0  # entries since the last try
        self._open = True  # something may be unsigned: another process's entries, at first
        self._unsigned: str | None = None  # why no checkpoint could be made
        self._untold: list[Draft] = []
        self.news: Callable[[], None] = lambda: None  # called, on any thread, when `due_in` has become 0

    @property
    def blocked(self) -> str | None:
        """Why nothing may begin; None where it may."""
        if not self._required:
            return None
        if self._unsigned is not None:
            return self._unsigned
        for courier in self._couriers:
            if courier.witness.required and (problem := courier.problem) is not None:
                return f"a required witness did not take a checkpoint: {problem}"
        return None

    def start(self) -> None:
        """Check the key and what the witnesses have seen, before anything is written. Raises AuditUnavailable.

        One that cannot be reached now is held to it when it can, unless it is required.
        """
        keys = self._store.public_keys()
        require(keys, self._key())
        for courier in self._couriers:
            try:
                courier.witness.check(keys, self._signed)
            except WitnessAway as error:
                if courier.witness.required:
                    raise
                log.error("a witness could not be asked what it has seen: %s", error)
        if self._required:
            self.seal()  # known from the start, not from the first checkpoint on

    def wrote(self, entries: int) -> None:
        """So many entries were appended."""
        self._new += entries
        self._open = True

    def due_in(self) -> float | None:
        """Seconds until there is something to `attend` to (0 or less: now); None where there is nothing."""
        times = [due for courier in self._couriers if (due := courier.due_in()) is not None]
        if self._open:
            times.append(self._checkpoint_in())
        return min(times, default=None)

    def attend(self, *, last: bool = False) -> None:
        """Sign what is due, and write down what witnesses said; `last`: sign all there is. Never raises: see above.

        Waits for no witness, but at the `last` a moment for each to take the last checkpoint.
        """
        if last:
            if self._open:
                self._sign()
            self._hurry(_LAST_SECONDS)
            for courier in self._couriers:
                courier.close()
        elif self._open and self._checkpoint_in() <= 0:
            self._sign()
        self._gather()

    def seal(self) -> None:
        """Make a checkpoint now, and wait for the witnesses to take it. Never raises: see above."""
        self._sign()
        self._hurry(self._patience)
        self._gather()

    def _hurry(self, seconds: float) -> None:
        for courier in self._couriers:
            courier.hurry()
        until = time.monotonic() + seconds
        for courier in self._couriers:
            courier.settled(until)

    def _checkpoint_in(self) -> float:
        """Seconds until the next checkpoint is due, while something is unsigned."""
        if self._new >= self._rhythm.entries:
            return 0.0
        waits = self._required and self._unsigned is not None
        pause = min(_BLOCKED_RETRY_SECONDS, self._rhythm.seconds) if waits else self._rhythm.seconds
        return self._tried + pause - self._clock()

    def _sign(self) -> None:
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
        if problem is not None:
            log.error("%s", problem)
            if self._unsigned is None:
                self._untold.append(_failed({"reason": problem}))
        else:
            for courier in self._couriers:
                courier.offer()
        self._unsigned = problem

    def _gather(self) -> None:
        """Write down what there is to tell of witnesses. Such an entry alone makes no new checkpoint due."""
        for courier in self._couriers:
            evidence, problem = courier.gather()
            self._untold += [statement_of(courier.witness, said) for said in evidence]
            if problem is not None:
                reason = f"a witness did not take a checkpoint: {problem}"
                self._untold.append(_failed({"witness": courier.witness.name, "reason": reason}))
        if not self._untold:
            return
        try:
            self._store.append([[Item(draft)] for draft in self._untold])
            self._untold.clear()
        except AuditUnavailable as error:
            self._open = True  # told with the next checkpoint
            log.error("and that could not be recorded: %s", error)


def _failed(body: dict[str, object]) -> Draft:
    return Draft(Kind.CHECKPOINT_FAILED, None, None, None, body)
