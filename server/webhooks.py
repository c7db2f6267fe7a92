"""Announcements: what happens to approvals is posted to webhooks, signed, retried, and written down if it cannot be.

The signature is that of the Standard Webhooks specification: HMAC-SHA256 over `id.timestamp.body`. The body has a
`text` that Slack shows as it is. Each process announces what it wrote itself, so that nobody hears things twice.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from audit.entry import Draft, Entry, Kind
from gateway.recorder import Recorder
from server.visible import visible

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 10.0
_WAITING_AT_MOST = 1000
_PREFIX = "approval."


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where to, signed with which secret, about what. `statement` sends the exact text along."""

    url: str
    secret: bytes = field(repr=False)
    events: frozenset[str] = frozenset()  # of `requested`, `approved` …; empty: all
    statement: bool = False
    pauses: Sequence[float] = (1.0, 5.0, 30.0, 120.0)  # seconds before each further attempt


class Announcer:
    """Posts to one webhook, in order. What it gives up on is an entry, `webhook.failed`."""

    def __init__(self, hook: Webhook, recorder: Recorder, http: httpx2.AsyncClient) -> None:
        self._hook = hook
        self._recorder = recorder
        self._http = http
        self._waiting: asyncio.Queue[Entry] = asyncio.Queue(_WAITING_AT_MOST)

    def heard(self, entry: Entry) -> None:
        """An entry was written: queue it if the webhook is about it."""
        event = entry.kind.removeprefix(_PREFIX)
        if not entry.kind.startswith(_PREFIX) or (self._hook.events and event not in self._hook.events):
            return
        try:
            self._waiting.put_nowait(entry)
        except asyncio.QueueFull:
            self._give_up(entry, "too many announcements wait")

    async def run(self) -> None:
        """Post what comes, until cancelled."""
        while True:
            entry = await self._waiting.get()
            if (why := await self._deliver(entry)) is not None:
                self._give_up(entry, why)

    async def _deliver(self, entry: Entry) -> str | None:
        """Post it; why it could not be, after the last attempt."""
        body = json.dumps(payload(entry, statement=self._hook.statement), ensure_ascii=False).encode()
        why = ""
        for pause in (*self._hook.pauses, None):
            try:
                answer = await self._http.post(
                    self._hook.url, content=body, headers=headers(self._hook.secret, entry, body, int(time.time()))
                )
                if answer.is_success:
                    return None
                why = f"it answered {answer.status_code}"
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                why = str(error) or type(error).__name__
            if pause is not None:
                await asyncio.sleep(pause)
        return why

    def _give_up(self, entry: Entry, why: str) -> None:
        log.warning("the webhook %s was not told of entry %d: %s", self._hook.url, entry.seq, why)
        body = {"webhook": self._hook.url, "entry": entry.seq, "kind": entry.kind, "reason": why}
        draft = Draft(Kind.WEBHOOK_FAILED, entry.session, entry.subject, entry.connection, body)
        self._recorder.post(draft, failed=lambda error: log.error("and that cannot be recorded: %s", error))


@asynccontextmanager
async def announcing(hooks: Sequence[Webhook], recorder: Recorder) -> AsyncIterator[None]:
    """Announce what `recorder` writes, until the block ends."""
    if not hooks:
        yield
        return
    async with httpx2.AsyncClient(timeout=_TIMEOUT_SECONDS, follow_redirects=False) as http:
        announcers = [Announcer(hook, recorder, http) for hook in hooks]
        tasks = [asyncio.create_task(one.run(), name="webhook") for one in announcers]
        recorder.listeners.extend(one.heard for one in announcers)
        try:
            yield
        finally:
            recorder.listeners.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def headers(secret: bytes, entry: Entry, body: bytes, timestamp: int) -> dict[str, str]:
    """The headers of one attempt: the id is the same at each, so that a receiver can tell repetitions."""
    name = f"entry-{entry.hash.hex()[:32]}"
    signed = hmac.digest(secret, f"{name}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "Content-Type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }


def payload(entry: Entry, *, statement: bool) -> dict[str, Any]:
    """What is posted: who, what, why and how to act; the statement's text only where it is asked for."""
    body: Mapping[str, Any] = json.loads(entry.body)
    said: dict[str, Any] = {
        "type": entry.kind,
        "approval": body["approval"],
        "seq": entry.seq,
        "time": entry.time,
        "connection": entry.connection,
        "subject": entry.subject,
        **{name: body[name] for name in ("reasons", "terms", "expires", "digest", "choice", "comment") if name in body},
    }
    if statement and "statement" in body:
        said["statement"] = body["statement"]
    said["text"] = _text(entry, body, statement=statement)
    return said


def _text(entry: Entry, body: Mapping[str, Any], *, statement: bool) -> str:
    """Lines that Slack shows; what could be markup or a mention there is escaped, as it asks for."""
    event, approval = entry.kind.removeprefix(_PREFIX), body["approval"]
    by = f" by {entry.subject}" if entry.subject else ""
    lines = [f"{approval}: {event}{by} on {entry.connection}"]
    lines += [f"why: {reason}" for reason in dict.fromkeys(body.get("reasons", ()))]
    if body.get("comment") and "reasons" not in body:
        lines.append(f"comment: {body['comment']}")
    if event == "requested":
        lines.append(f"countersign approvals show {approval}")
    elif event in ("review_opened", "review_due"):
        lines.append(f"countersign approvals review {approval} --comment …")
    if statement and "statement" in body:
        lines.append(visible(str(body["statement"])))
    text = "\n".join(lines)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
