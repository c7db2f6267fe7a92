"""Between clients and a server: each connection that comes is joined with one to the server."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager


@asynccontextmanager
async def between(
    host: str, port: int, pass_on: Callable[[StreamReader, StreamWriter, bool], Coroutine[None, None, None]]
) -> AsyncIterator[int]:
    """Listen on a free loopback port, until the block ends; yields the port.

    `pass_on` is run for each direction of each connection; its last argument is whether answers come that way.
    """
    tasks, writers = set[asyncio.Task[None]](), set[StreamWriter]()

    async def accepted(reader: StreamReader, writer: StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(host, port)
        writers.update((writer, server_writer))
        for work in (pass_on(reader, server_writer, False), pass_on(server_reader, writer, True)):
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
        for writer in writers:
            writer.transport.abort()  # one that is only closed waits for a side that reads no more
        for writer in writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()
