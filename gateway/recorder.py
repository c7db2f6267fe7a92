"""The gateway's hand on the audit: entries in, awaitable durability out, one wake-up of the loop per batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from audit.entry import Draft, Entry
from audit.store import AuditUnavailable
from audit.writer import Item, Writer
from gateway.errors import AuditUnavailableError

_Result = Sequence[Entry] | Exception

# How long an outcome that nobody waits for may wait for company: the next statement's intent, as a rule, so
# that a client which works step by step pays for one fsync per statement and not for two.
_LINGER_SECONDS = 0.002


class Recorder:
    """Hands items to the writer thread and awaits their durability on the loop it was made on."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._lingering: asyncio.TimerHandle | None = None
        self.listeners: list[Callable[[Entry], None]] = []  # told of what `record` made durable, on the loop
        writer.notify = self._from_writer

    @property
    def store(self) -> Path:
        """The file that is written: for reading beside the writer."""
        return self._writer.path

    def _from_writer(self, finished: Sequence[tuple[Callable[[_Result], None], _Result]]) -> None:
        """On the writer thread: carry a whole batch of results over in one call."""
        self._loop.call_soon_threadsafe(_deliver, finished)

    async def record(self, *items: Item | Draft) -> Sequence[Entry]:
        """Append as one unit; returns once it is durable.

        Raises AuditUnavailableError where it cannot be written, and `audit.approvals.Conflict` where an
        item's change found another state: then nothing of the unit is in the audit.
        """
        future: asyncio.Future[Sequence[Entry]] = self._loop.create_future()

        def done(result: _Result) -> None:
            if self.listeners and not isinstance(result, Exception):
                for entry in result:
                    for listener in self.listeners:
                        listener(entry)
            if future.cancelled():
                return  # nobody waits any more; the entries stand all the same
            if isinstance(result, Exception):
                future.set_exception(_as_ours(result))
            else:
                future.set_result(result)

        self._writer.submit(_as_items(items), done)
        return await future

    def post(self, *items: Item | Draft, failed: Callable[[Exception], None]) -> None:
        """Append as one unit, in order with everything else, without waiting; `failed` hears of a failure.

        It is on its way to the disk after 2 ms at the latest.
        """

        def done(result: _Result) -> None:
            if isinstance(result, Exception):
                failed(_as_ours(result))

        self._writer.submit(_as_items(items), done, wake=False)
        if self._lingering is None:
            self._lingering = self._loop.call_later(_LINGER_SECONDS, self._wake)

    def _wake(self) -> None:
        self._lingering = None
        self._writer.wake()


def _deliver(finished: Sequence[tuple[Callable[[_Result], None], _Result]]) -> None:
    for done, result in finished:
        done(result)


def _as_items(items: Sequence[Item | Draft]) -> list[Item]:
    return [Item(item) if isinstance(item, Draft) else item for item in items]


def _as_ours(error: Exception) -> Exception:
    if not isinstance(error, AuditUnavailable):
        return error
    ours = AuditUnavailableError(
        f"the audit cannot be written, so nothing runs: {error}",
        cure="Nothing was executed. Tell whoever runs the gateway.",
    )
    ours.__cause__ = error
    return ours


def unrecorded(error: Exception) -> AuditUnavailableError:
    """The error to show where a statement ran, and what came of it could not be written."""
    return AuditUnavailableError(
        f"a statement's outcome cannot be written to the audit: {error.__cause__ or error}",
        cure="It may have taken effect: look before you repeat it.",
    )
