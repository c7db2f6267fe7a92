"""Webhooks: signed so that receivers can tell, retried, and written down where nobody took them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from audit.approvals import Reader
from audit.store import Store
from audit.writer import Writer
from gateway.approvals import Approvals
from gateway.recorder import Recorder
from server.announcements import announcing
from server.config import WebhookFile
from server.webhooks import Webhook, channels
from tests.gateway.test_approvals import GRACE, SQL, Desk

SECRET = b"a secret of the tests, and of nobody else"


@dataclass
class Receiver:
    """An HTTP server that answers with these codes, one after the other, then 204."""

    codes: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: Request) -> Response:
        self.got.append((dict(request.headers), await request.body()))
        self.arrived.set()
        return Response(status_code=self.codes.pop(0) if self.codes else 204)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(15):
            while len(self.got) < count:
                self.arrived.clear()
                await self.arrived.wait()


@asynccontextmanager
async def receiving(*codes: int) -> AsyncIterator[Receiver]:
    receiver = Receiver(list(codes))
    app = Starlette(routes=[Route("/hook", receiver.take, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(15):
        while not server.started:  # noqa: ASYNC110 - bounded; uvicorn has no event for it
            await asyncio.sleep(0.01)
    receiver.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/hook"
    yield receiver
    server.should_exit = True
    await task


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store, contextlib.closing(Reader.open(path)) as reader:
        writer = Writer(store)
        recorder = Recorder(writer)
        yield Desk(Approvals(recorder, reader), recorder, path)
        writer.close()


@asynccontextmanager
async def posting(hook: Webhook, desk: Desk) -> AsyncIterator[None]:
    async with channels([hook]) as found, announcing(found, desk.recorder):
        yield


def failures(desk: Desk) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(f"file:{desk.path}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT body FROM entries WHERE kind = 'webhook.failed'").fetchall()
    return [json.loads(body) for (body,) in rows]


async def test_a_request_and_its_end_are_posted_signed_and_without_the_statement(desk: Desk) -> None:
    async with receiving() as receiver:
        hook = Webhook(receiver.url, SECRET, frozenset({"requested", "approved"}))
        async with posting(hook, desk):
            pending = await desk.ask()
            await desk.vote(pending, GRACE)
            await receiver.until(2)
    bodies = [json.loads(body) for _, body in receiver.got]
    assert [body["type"] for body in bodies] == ["approval.requested", "approval.approved"]
    assert {body["approval"] for body in bodies} == {pending.id}
    assert f"countersign approvals show {pending.id}" in bodies[0]["text"]
    assert not [body for _, body in receiver.got if SQL in body]
    for headers, body in receiver.got:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        digest = base64.b64encode(hmac.digest(SECRET, signed, hashlib.sha256)).decode()
        assert headers["webhook-signature"] == f"v1,{digest}"


async def test_the_statement_goes_along_only_where_it_is_asked_for(desk: Desk) -> None:
    async with receiving() as receiver, posting(Webhook(receiver.url, SECRET, statement=True), desk):
        await desk.ask()
        await receiver.until(1)
    body = json.loads(receiver.got[0][1])
    assert body["statement"] == SQL.decode()
    assert SQL.decode() in body["text"]


async def test_what_was_not_taken_is_posted_again_under_the_same_id(desk: Desk) -> None:
    async with (
        receiving(500, 429) as receiver,
        posting(Webhook(receiver.url, SECRET, pauses=(0.0, 0.0, 0.0)), desk),
    ):
        await desk.ask()
        await receiver.until(3)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len({body for _, body in receiver.got}) == 1
    assert failures(desk) == []


async def test_what_nobody_takes_is_an_entry_and_a_redirect_is_not_followed(desk: Desk) -> None:
    async with (
        receiving(302, 500) as receiver,
        posting(Webhook(f"{receiver.url}?s3cret", SECRET, pauses=(0.0,)), desk),
        asyncio.timeout(15),
    ):
        await desk.ask()
        while not failures(desk):  # noqa: ASYNC110 - bounded
            await asyncio.sleep(0.01)
    [failure] = failures(desk)
    assert (failure["kind"], failure["reason"]) == ("approval.requested", "it answered 500")
    # Its path is what lets people post there: it is in no entry.
    assert re.fullmatch(rf"{receiver.url.removesuffix('hook')}… \([0-9a-f]{{8}}\)", failure["to"])


async def test_an_approval_does_not_wait_for_a_webhook_that_hangs(desk: Desk) -> None:
    hook = Webhook("http://127.0.0.1:1/hook", SECRET, pauses=(3600.0,))
    async with posting(hook, desk):
        async with asyncio.timeout(10):
            pending = await desk.ask()
            assert (await desk.vote(pending, GRACE)).state.value == "approved"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"url": "http://hooks.example/x"}, "must be an https address"),
        ({"secret_env": "ALSO"}, "exactly one of"),
        ({"secret_file": None}, "exactly one of"),
    ],
)
def test_a_webhook_that_would_be_read_or_forged_by_others_is_refused(changed: dict[str, Any], sentence: str) -> None:
    file = {"url": "https://hooks.example/x", "secret_file": Path("hook.secret")}
    with pytest.raises(ValueError, match=sentence):
        WebhookFile(**(file | changed))  # type: ignore[arg-type]  # a table of fields
