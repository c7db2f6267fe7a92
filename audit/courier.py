"""Hands what was signed to one witness, on a thread of its own: nobody who writes ever waits for a witness.

What fails is tried again, ever more seldom (a required witness every two seconds), with the newest checkpoint by then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from audit.errors import AuditUnavailable
from audit.signed import Signed
from audit.witness import Witness

log = logging.getLogger(__name__)

# Seconds before a failed hand-over is tried again: twice as long each time, up to the last.
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 300.0
# A hand-over that takes longer than this counts as failed while it goes on: a disk elsewhere may hang for hours.
PATIENCE_SECONDS = 20.0


class Courier:
    """`news` is called, on the courier's thread, when there is something to tell; see `gather`."""

    def __init__(self, witness: Witness, signed: Signed, news: Callable[[], None], patience: float) -> None:
        self.witness = witness
        self._signed = signed
        self._news = news
        self._patience = patience
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._offered = False
        self._hurry = False
        self._closing = False
        self._begun: float | None = None  # when the hand-over that is going on was asked for
        self._rests_until = 0.0
        self._failures = 0
        self._problem: str | None = None
        self._told: str | None = None
        self._evidence: list[Mapping[str, object]] = []

    @property
    def problem(self) -> str | None:
        """Why the witness does not have what it should have; None while it has, or is being given it."""
        with self._changed:
            return self._current()

    def offer(self) -> None:
        """There is a new checkpoint."""
        with self._changed:
            self._offered = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="audit-courier", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def hurry(self) -> None:
        """What was offered and waits for its time is to be handed over now."""
        with self._changed:
            self._hurry = self._offered
            if self._hurry and self._begun is None:
                self._begun = time.monotonic()  # not when the thread gets to it: who asked waits from now on
            self._changed.notify_all()

    def settled(self, until: float) -> None:
        """Wait until what was offered has been tried, or until so late (`time.monotonic`)."""
        with self._changed:
            self._changed.wait_for(lambda: not self._hurry and self._begun is None, max(0.0, until - time.monotonic()))

    def close(self) -> None:
        """Try nothing any more. A hand-over that hangs is left alone: it ends with the process."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def due_in(self) -> float | None:
        """Seconds until there is something to `gather`; 0: now."""
        with self._changed:
            if self._evidence or self._current() != self._told:
                return 0.0
            return None if self._begun is None or self._told else self._begun + self._patience - time.monotonic()

    def gather(self) -> tuple[list[Mapping[str, object]], str | None]:
        """What the witness said, and a problem that was not told before."""
        with self._changed:
            evidence, self._evidence = self._evidence, []
            before, self._told = self._told, self._current()
            return evidence, self._told if before is None else None

    def _current(self) -> str | None:
        if self._problem is None and self._begun is not None and time.monotonic() - self._begun >= self._patience:
            return f"the witness `{self.witness.name}` has not answered for {self._patience:g} seconds"
        return self._problem

    def _run(self) -> None:
        while self._wait():
            problem: str | None = None
            evidence: Mapping[str, object] | None = None
            try:
                evidence = self.witness.take(self._signed)
            except AuditUnavailable as error:
                problem = str(error)
            except Exception as error:  # a bug of ours must not end the thread
                log.exception("a witness could not be handed a checkpoint")
                problem = f"the witness `{self.witness.name}`: internal error: {type(error).__name__}"
            with self._changed:
                self._finish(problem, evidence)
            if self.due_in() is not None:
                self._news()

    def _wait(self) -> bool:
        """Until there is something to do; False at the end."""
        with self._changed:
            while not self._closing:
                pause = self._rests_until - time.monotonic()
                if self._offered and (self._hurry or pause <= 0):
                    if self._begun is None:
                        self._begun = time.monotonic()
                    self._offered = self._hurry = False
                    return True
                self._changed.wait(pause if self._offered else None)
            return False

    def _finish(self, problem: str | None, evidence: Mapping[str, object] | None) -> None:
        self._begun = None
        if problem is None:
            if self._problem is not None:
                log.warning("the witness `%s` takes checkpoints again", self.witness.name)
            self._failures, pause = 0, self.witness.every
        else:
            log.error("a witness did not take a checkpoint: %s", problem)
            pause = (
                _FIRST_PAUSE
                if self.witness.required
                else min(_FIRST_PAUSE * 2 ** min(self._failures, 10), _LONGEST_PAUSE)
            )
            self._failures, self._offered = self._failures + 1, True
        self._problem, self._rests_until = problem, time.monotonic() + pause
        if evidence is not None:
            self._evidence.append(evidence)
        self._changed.notify_all()
