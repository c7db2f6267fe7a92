"""One thread that owns the store's write side: everything that waits shares one transaction and one fsync."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from audit.approvals import Conflict
from audit.entry import Entry, Kind
from audit.notary import Notary
from audit.store import AuditUnavailable, Item, Store, Unit

__all__ = ["Done", "Item", "Result", "Writer"]

log = logging.getLogger(__name__)

Result = Sequence[Entry] | Exception
Done = Callable[[Result], None]

# More than this and the first of a batch would wait too long for the last; 256 entries take about 4 ms.
_LARGEST_BATCH = 256

# What a missing required witness keeps from happening; everything else is the end or the account of something.
_BEGINNINGS = frozenset((Kind.INTENT, Kind.SESSION_OPENED))


def _deliver(finished: Sequence[tuple[Done, Result]]) -> None:
    for done, result in finished:
        done(result)


class Writer:
    """Group commit. `notify` receives each batch's results on the writer thread; by default it delivers them there.

    Units are written in the order of `submit`. A unit is whole or absent, and its failure is its own: a
    Conflict or a body that is not JSON does not touch the others of its batch. Where there is a notary, it signs
    what was written on this same thread, when it is due and at the end.
    """

    def __init__(self, store: Store, notary: Notary | None = None) -> None:
        self._store = store
        self._notary = notary
        self._waiting: deque[tuple[Unit, Done]] = deque()
        self._ready = threading.Condition(threading.Lock())
        self._closing = False
        self.notify: Callable[[Sequence[tuple[Done, Result]]], None] = _deliver
        if notary is not None:
            notary.news = self.wake
        self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        """The store's file."""
        return self._store.path

    def submit(self, unit: Unit, done: Done, *, wake: bool = True) -> None:
        """Queue a unit; `done` gets its entries once they are durable, or why they are not. Waits for no disk.

        Without `wake` an idle writer sleeps on, and takes it with the next unit, or at `wake`.
        """
        with self._ready:
            if not self._closing:
                self._waiting.append((unit, done))
                if wake:
                    self._ready.notify()
                return
        self._tell([(done, AuditUnavailable("the audit is closed: this process is stopping"))])

    def wake(self) -> None:
        """Write what waits, if anything does."""
        with self._ready:
            self._ready.notify()

    def close(self) -> None:
        """Write and sign what waits, then stop. A second call waits for the first."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            batch = self._take()
            if batch:
                results = self._permitted(batch)
                self._tell(results)  # before anything is signed: a statement waits for its intent, not for that
                self._sign(sum(len(result) for _, result in results if not isinstance(result, Exception)))
            elif self._closing:
                self._sign(0, last=True)
                return
            else:
                self._sign(0)

    def _sign(self, written: int, *, last: bool = False) -> None:
        if self._notary is None:
            return
        if written:
            self._notary.wrote(written)
        due = self._notary.due_in()
        if last or (due is not None and due <= 0):
            self._notary.attend(last=last)

    def _take(self) -> list[tuple[Unit, Done]]:
        """What waits, as soon as anything does; nothing when a checkpoint falls due, or to stop."""
        with self._ready:
            while not self._waiting and not self._closing:
                due = self._notary.due_in() if self._notary is not None else None
                if due is not None and due <= 0:
                    return []
                self._ready.wait(due)
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), _LARGEST_BATCH))]

    def _permitted(self, batch: Sequence[tuple[Unit, Done]]) -> list[tuple[Done, Result]]:
        """Write, but for what begins something while a required witness is missing: that is refused."""
        if self._notary is None or self._notary.blocked is None:
            return self._write(batch)
        error = AuditUnavailable(self._notary.blocked)
        begins = [any(item.draft.kind in _BEGINNINGS for item in unit) for unit, _ in batch]
        refused: list[tuple[Done, Result]] = [
            (done, error) for (_, done), new in zip(batch, begins, strict=True) if new
        ]
        rest = [one for one, new in zip(batch, begins, strict=True) if not new]
        return refused + (self._write(rest) if rest else [])

    def _write(self, batch: Sequence[tuple[Unit, Done]]) -> list[tuple[Done, Result]]:
        results: Sequence[Sequence[Entry] | Conflict]
        try:
            results = self._store.append([unit for unit, _ in batch])
        except AuditUnavailable as error:
            return [(done, error) for _, done in batch]
        except Exception as error:  # a body that is not JSON: find whose it is, and spare the others
            if len(batch) == 1:
                return [(batch[0][1], error)]
            return [pair for one in batch for pair in self._write([one])]
        return [(done, result) for (_, done), result in zip(batch, results, strict=True)]

    def _tell(self, finished: Sequence[tuple[Done, Result]]) -> None:
        try:
            self.notify(finished)
        except Exception:
            # Whoever waited is gone (a closed loop, say). The entries stand; the thread must go on.
            log.exception("the results of %d audit units could not be delivered", len(finished))
