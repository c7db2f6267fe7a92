"""Lets recordings go in time: every hour, what is beyond the limits is shredded, with the entries that say so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from audit import retention, segments
from audit.approvals import Conflict
from audit.errors import AuditUnavailable
from audit.recording import Shred
from audit.retention import Limits
from gateway.errors import AuditUnavailableError
from gateway.recorder import Recorder

log = logging.getLogger(__name__)

_EVERY_SECONDS = 3600.0


@contextlib.asynccontextmanager
async def keeping(recorder: Recorder, store: Path, limits: Limits) -> AsyncIterator[None]:
    """Hold the store's recordings to the limits for as long as the block runs."""
    if limits == Limits():
        yield
        return
    task = asyncio.create_task(_keep(recorder, store, limits), name="recordings' retention")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _keep(recorder: Recorder, store: Path, limits: Limits) -> None:
    while True:
        try:
            await let_go(recorder, store, limits)
        except (AuditUnavailable, AuditUnavailableError) as error:
            log.error("recordings beyond their time could not be shredded: %s", error)
        except Exception:  # a bug of ours must end neither this task nor, later, the shutdown that awaits it
            log.exception("recordings beyond their time could not be shredded")
        await asyncio.sleep(_EVERY_SECONDS)


async def let_go(recorder: Recorder, store: Path, limits: Limits) -> int:
    """Shred what is beyond the limits now; returns how many entries tell of it. Raises AuditUnavailable (both)."""
    entries = 0
    # Looked for on another thread: in a large store it takes a while.
    while item := await asyncio.to_thread(retention.due, store, limits, datetime.now(UTC)):
        with contextlib.suppress(Conflict):  # another process was faster
            await recorder.record(item)
            if isinstance(item.change, Shred):
                await asyncio.to_thread(segments.shred, store, item.change.first, item.change.last)
            entries += 1
    return entries
