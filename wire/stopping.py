"""Stopping what runs for a client that went away: cancelled until it answers, and never committed by us."""

from __future__ import annotations

import asyncio
import contextlib

from wire import copy, frontend
from wire.replies import Replies
from wire.upstream import UpstreamSession

_AGAIN_SECONDS = 0.25


async def stop(upstream: UpstreamSession, replies: Replies, progress: asyncio.Event) -> None:
    """Cancel until all is answered: a request that overtakes its statement finds nothing to cancel.

    `progress` is set whenever an answer came or the connection was lost.
    """

    def over() -> bool:
        return replies.idle or not upstream.connected

    if replies.copying:
        upstream.write(copy.CopyFail("the client went away").encode())
    elif upstream.batch_open:
        # No Sync: it would commit what the client never asked to be committed.
        upstream.write(frontend.Flush().encode())
    while not over():
        await upstream.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AGAIN_SECONDS):
                while not over():
                    progress.clear()
                    await progress.wait()
