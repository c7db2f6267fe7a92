"""Serves an ASGI app on a socket for the length of a block, on the running loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import Literal

import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers (they belong to whoever runs the loop), with an event for `started`."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready.set()


@asynccontextmanager
async def serving(
    app: ASGIApp, listening: socket.socket, *, grace: int, lifespan: Literal["on", "off"] = "on"
) -> AsyncIterator[None]:
    """Answer on `listening` until the block ends; requests then get `grace` seconds to finish.

    Raises RuntimeError where the app's own start-up failed; its log says why.
    """
    config = uvicorn.Config(
        app,
        lifespan=lifespan,
        log_config=None,
        log_level="warning",
        timeout_graceful_shutdown=grace,
        server_header=False,
        # X-Forwarded-For would let any program of this machine say where it is: rules and the audit go by the peer.
        proxy_headers=False,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve([listening]), name="asgi")
    started = asyncio.create_task(server.ready.wait())
    await asyncio.wait((task, started), return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    if task.done():
        await task
        raise RuntimeError("the HTTP application did not start")
    try:
        yield
    finally:
        server.should_exit = True
        await task
