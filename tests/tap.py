"""A relay in front of a server that shows each piece to a witness before it passes on what a client sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


@asynccontextmanager
async def tap(
    host: str, port: int, witness: Callable[[bytes], None], heard: Callable[[bytes], None] = lambda _: None
) -> AsyncIterator[int]:
    """Listen on a free loopback port, until the block ends; yields the port.

    `witness` runs before any byte of its piece reaches the server; where it raises, nothing of it does. `heard` is
    shown what the server answers.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Callable[[bytes], None]) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while piece := await reader.read(65536):
                seen(piece)
                writer.write(piece)
                await writer.drain()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(host, port)
        for work in (relay(reader, server_writer, witness), relay(server_reader, writer, heard)):
            task = asyncio.create_task(work)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
