"""A relay in front of a server that fails as networks do: it cuts everything, says nothing any more, or drips."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.between import between


class Relay:
    """What it does to the server's answers can be changed at any time, from any thread."""

    def __init__(self) -> None:
        self.port = 0
        self.piece = 65_536  # bytes that are passed on at once
        self.cut_after: int | None = None  # so many more bytes of answers: then every connection is reset
        self.stalled = False  # nothing is passed on any more, in neither direction, and nothing is closed
        self._writers: set[asyncio.StreamWriter] = set()

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool) -> None:
        """One direction of one connection, until it ends."""
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while (piece := await reader.read(self.piece)) and not self.stalled:
                if answers and self.cut_after is not None:
                    piece, self.cut_after = piece[: self.cut_after], self.cut_after - len(piece)
                writer.write(piece)
                await writer.drain()
                if self.cut_after is not None and self.cut_after <= 0:
                    self._cut()
            if self.stalled:
                await asyncio.Event().wait()
        self._writers.discard(writer)

    def _cut(self) -> None:
        self.cut_after = None
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


@asynccontextmanager
async def unreliable(host: str, port: int) -> AsyncIterator[Relay]:
    """Listen on a free loopback port, until the block ends."""
    relay = Relay()
    async with between(host, port, relay.pass_on) as relay.port:
        yield relay
