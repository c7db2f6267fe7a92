"""Rolls the audit in time: every minute it is asked whether its entries are to become a segment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from audit.errors import AuditUnavailable
from audit.note import Signer
from audit.rolling import Limits, roll_if_due

log = logging.getLogger(__name__)

_EVERY_SECONDS = 60.0


@contextlib.asynccontextmanager
async def rolling(store: Path, key: Callable[[], Signer], limits: Limits) -> AsyncIterator[None]:
    """Roll the store when it is due, for as long as the block runs. A roll that the end cuts off is taken up later."""
    if limits == Limits():
        yield
        return
    stopped = asyncio.Event()
    task = asyncio.create_task(_roll(store, key, limits, stopped), name="the audit's segments")
    try:
        yield
    finally:
        stopped.set()
        await task


async def _roll(store: Path, key: Callable[[], Signer], limits: Limits, stopped: asyncio.Event) -> None:
    while not stopped.is_set():
        try:
            # On a thread, through a connection of its own: statements are recorded meanwhile.
            segment = await asyncio.to_thread(roll_if_due, store, key, limits, stopped.is_set)
            if segment is not None:
                log.info(
                    "the audit's entries %d to %d are a segment now: %s", segment.first, segment.last, segment.path
                )
        except AuditUnavailable as error:
            log.error("the audit could not be rolled into a segment, and goes on in one file: %s", error)
        except Exception:  # a bug of ours must end neither this task nor, later, the shutdown that awaits it
            log.exception("the audit could not be rolled into a segment")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), _EVERY_SECONDS)
