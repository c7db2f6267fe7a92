"""One granted statement's result as it comes from PostgreSQL: steps of rows, their limits, digest and recording."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from gateway.admission import Grant
from gateway.errors import CountersignError
from gateway.model import Outcome, Status
from gateway.screening import TextScreen
from gateway.upstream import Page, ResultColumn, Upstream, rows_of
from server import mcp_messages
from server.mcp_messages import Row

# Rows asked of the portal at a time: a page's byte limit is noticed after at most so many more rows.
_STEP_ROWS = 50
# The first step tells how large the rows are.
_FIRST_ROWS = 8
_STEP_BYTES = 4 << 20
# Rows of a write's RETURNING beyond the page are not kept; they are counted in steps of this many.
_DISCARD_ROWS = 1000
# How long PostgreSQL may take to stop a statement that it was asked to cancel.
_CANCEL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class PageLimit:
    """How much one answer may hold: rows, and bytes of values (one row is always delivered)."""

    rows: int
    size: int


class Portal:
    """A granted statement's rows as they come: what was fetched but not yet taken waits in a buffer."""

    def __init__(self, upstream: Upstream, grant: Grant) -> None:
        self.columns: tuple[ResultColumn, ...] = ()
        self.tag: str | None = None
        self.notices: list[str] = []
        self.dropped = 0
        self._upstream = upstream
        self._grant = grant
        self._transcript = grant.transcript
        self.screen = TextScreen(grant.rewrite.detection)
        self._writes = _writes(grant)
        self._limits = grant.limits
        self._suspended = False
        self._cancelling: asyncio.Future[None] | None = None  # kept, so that it is not forgotten halfway
        self._buffer: deque[Row] = deque()
        self._fetched = 0
        self._fetched_size = 0
        self._rows = 0
        self._size = 0
        self._digest = hashlib.sha256()

    async def open(self, limit: PageLimit, check: Callable[[tuple[ResultColumn, ...]], None]) -> None:
        """Run it and fetch the first step. `check` may raise on the columns before a row is looked at."""
        grant = self._grant
        page = await self._call(self._upstream.open(grant.sql, grant.parameters, min(_FIRST_ROWS, limit.rows)))
        self.columns = page.columns
        check(page.columns)
        if page.columns:
            self._transcript.message(mcp_messages.row_description(page.columns))
        self._add(page)

    async def take(self, limit: PageLimit) -> list[Row]:
        """The next rows within the limit, at least one if there is any. Raises LimitExceededError by the policy."""
        rows: list[Row] = []
        size = 0
        while len(rows) < limit.rows:
            if not self._buffer and not await self._fetch(min(self._step(_STEP_ROWS), limit.rows - len(rows))):
                break
            row_size = sum(len(value) for value in self._buffer[0] if value is not None)
            if rows and size + row_size > limit.size:
                break
            size += row_size
            rows.append(self._buffer.popleft())
        error = self._grant.too_large(self._rows + len(rows), self._size + size)
        if error is not None and not self._writes:
            raise error
        self._count(rows, size)
        return rows

    async def more(self) -> bool:
        """Whether there are rows beyond those taken: a suspended portal is asked for one.

        A write is read to its end at once, since its transaction stays open with the portal.
        """
        if self._writes:
            while self._buffer or await self._fetch(self._step(_DISCARD_ROWS)):
                self.dropped += len(self._buffer)
                self._buffer.clear()
            return False
        return bool(self._buffer) or await self._fetch(1)

    async def close(self) -> None:
        """Give up what is left."""
        if self._suspended:
            self._suspended = False
            await self._upstream.close()

    def outcome(self, ended: Outcome | None = None) -> Outcome:
        """What was delivered so far, under the status of `ended` (completed)."""
        affected = None if self.columns else rows_of(self.tag)
        return replace(
            ended or Outcome(Status.COMPLETED),
            tag=self.tag,
            rows=self._rows + self.dropped if affected is None else affected,
            size=self._size,
            digest=self._digest.hexdigest() if self._rows else None,
            detected=tuple(self.screen.findings),
        )

    def completed(self) -> Outcome:
        """The client gets the end of it: the outcome, with the command tag in the recording."""
        if self.tag is not None:
            self._transcript.message(mcp_messages.command_complete(self.tag))
        return self.outcome()

    def refused(self, error: CountersignError, ended: Outcome) -> Outcome:
        """The client gets an error of the gateway's own instead of the end: as `outcome`, with it in the recording."""
        self._transcript.message(mcp_messages.refusal(error))
        return self.outcome(ended)

    @property
    def done(self) -> bool:
        """Whether PostgreSQL has run it to its end."""
        return self.tag is not None

    async def _call(self, call: Coroutine[Any, Any, Page]) -> Page:
        """Wait for PostgreSQL. If we are cancelled meanwhile it is asked to stop, and heard to the end:
        what it had already done is then known."""
        running = asyncio.ensure_future(call)
        late: asyncio.TimerHandle | None = None
        if self._limits.timeout is not None:
            late = asyncio.get_running_loop().call_later(self._limits.timeout.total_seconds(), self._cancel)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.shield(self._stop(running))
            raise
        finally:
            if late is not None:
                late.cancel()

    def _cancel(self) -> None:
        """Ask PostgreSQL to stop what takes too long; it answers with an error of its own."""
        self._cancelling = asyncio.ensure_future(self._upstream.cancel())

    async def _stop(self, running: asyncio.Future[Page]) -> None:
        await self._upstream.cancel()
        finished, _ = await asyncio.wait([running], timeout=_CANCEL_SECONDS)
        if not finished:
            running.cancel()
        elif running.exception() is None:
            self._add(running.result())

    def _step(self, most: int) -> int:
        """Rows to ask for: fewer of large ones, so that a step stays small in bytes."""
        average = self._fetched_size // max(self._fetched, 1)
        return max(1, min(most, _STEP_BYTES // max(average, 1)))

    async def _fetch(self, rows: int) -> bool:
        """Fetch until at least one row is there; False at the end of the result."""
        while self._suspended and not self._buffer:
            self._add(await self._call(self._upstream.fetch(rows)))
        return bool(self._buffer)

    def _add(self, page: Page) -> None:
        self._buffer.extend(self.screen.rows(self.columns or page.columns, page.rows))
        self._fetched += len(page.rows)
        self._fetched_size += page.size
        self._suspended, self.tag = page.suspended, whole_tag(page.tag, len(page.rows), self._fetched)
        for notice in page.notices:
            # Lines of the server's log may quote the text that ran, which is not the client's.
            if notice.get("V", "").startswith(("LOG", "DEBUG")):
                continue
            text = self._grant.rewrite.without_secrets(notice.get("M", ""))
            shown = self.screen.report({"S": notice.get("S", "NOTICE"), "M": text})
            self.notices.append(f"{shown['S']}: {shown['M']}")
            self._transcript.message(mcp_messages.report(b"N", shown))

    def _count(self, rows: list[Row], size: int) -> None:
        self._rows += len(rows)
        self._size += size
        if rows:
            data = b"".join(map(mcp_messages.data_row, rows))
            self._digest.update(data)
            self._transcript.rows(data)


def whole_tag(tag: str | None, last: int, rows: int) -> str | None:
    """The command tag of a result that came in several Executes.

    PostgreSQL's counts the rows of the `last` one only; where it does, all `rows` are put in its place.
    """
    if tag is None or last == rows or rows_of(tag) != last:
        return tag
    return f"{tag.rpartition(' ')[0]} {rows}"


def _writes(grant: Grant) -> bool:
    analysis = grant.decision.analysis
    return analysis is None or analysis.effects.writes
