"""A relay in front of a server that shows each piece to a witness before it passes on what a client sent."""

from __future__ import annotations

import contextlib
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from tests.between import between


def tap(
    host: str, port: int, witness: Callable[[bytes], None], heard: Callable[[bytes], None] = lambda _: None
) -> AbstractAsyncContextManager[int]:
    """Listen on a free loopback port, until the block ends; yields the port.

    `witness` runs before any byte of its piece reaches the server; where it raises, nothing of it does. `heard` is
    shown what the server answers.
    """

    async def relay(reader: StreamReader, writer: StreamWriter, answers: bool) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while piece := await reader.read(65536):
                (heard if answers else witness)(piece)
                writer.write(piece)
                await writer.drain()

    return between(host, port, relay)
