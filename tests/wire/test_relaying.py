"""After a bug of ours was noticed, or a stream that nobody understands, nothing more of it reaches the client."""

from __future__ import annotations

import asyncio

import pytest

from gateway.model import Status
from tests.wire.test_replies import DESCRIPTION, ORIGINS, SESSION, Book
from wire import backend
from wire.client import ClientConnection
from wire.idling import IdleClock, Waiting
from wire.limiting import Limiter
from wire.messages import BackendMessage
from wire.occupancy import DoorLimits
from wire.relaying import Relaying
from wire.replies import InvariantError, Owes
from wire.reports import Report
from wire.session import Phase
from wire.upstream import UpstreamSession

RAW = backend.RowDescription((backend.Column("ssn", 16400, 3),))
# What follows is out of step: it may begin anywhere in a row, and say what the row's writer wanted it to say.
BEHIND = backend.NoticeResponse({"S": "NOTICE", "V": "NOTICE", "C": "00000", "M": "123-45-6789"})


@pytest.mark.parametrize("noticed", [RAW, backend.CommandComplete("SELECT 1")], ids=["violated", "not understood"])
async def test_nothing_passes_behind_what_ended_the_conversation(noticed: BackendMessage) -> None:
    arrived: asyncio.Future[ClientConnection] = asyncio.get_running_loop().create_future()
    server = await asyncio.get_running_loop().create_server(lambda: ClientConnection(arrived.set_result), "127.0.0.1")
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    client, book, ended = await arrived, Book(Phase.BATCH), list[object]()
    replies = book.replies

    def violated(error: InvariantError) -> None:
        ended.append(error)
        replies.abandon(Status.FAILED, "XX001", error.detail)

    def end(report: Report) -> None:
        ended.append(report)

    relaying = Relaying(
        client,
        UpstreamSession(SESSION.connection),
        replies,
        Limiter(book.session, replies, lambda: None),
        IdleClock(DoorLimits(), lambda: Waiting.SERVER, end),
        asyncio.Event(),
        end=end,
        violated=violated,
    )
    book.send(Owes.DESCRIBE, origins=frozenset())
    book.send(Owes.DESCRIBE, "a", origins=ORIGINS)
    relaying.upstream_received(DESCRIPTION.encode() + noticed.encode())
    relaying.upstream_received(BEHIND.encode())
    client.close()
    assert len(ended) == 1
    assert await reader.read() == DESCRIPTION.encode(), "what came before it is the client's"
    writer.close()
    server.close()
    await server.wait_closed()
