"""Announcements: what happens to approvals is told elsewhere, retried, and written down where nobody took it.

Each process announces what it wrote itself, so that nobody hears things twice. How it gets there is a `Channel`'s.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from audit.entry import Draft, Entry, Kind
from gateway.recorder import Recorder
from server.visible import visible

log = logging.getLogger(__name__)

_WAITING_AT_MOST = 1000
_PREFIX = "approval."
PAUSES = (1.0, 5.0, 30.0, 120.0)  # seconds before each further attempt


class Channel(Protocol):
    """One way out: a webhook, a mailbox."""

    @property
    def name(self) -> str:
        """Where to, for the log and the audit."""
        ...

    @property
    def failure(self) -> Kind:
        """The entry that says that it gave up."""
        ...

    @property
    def events(self) -> frozenset[str]:
        """What it is about, of `requested`, `approved` …; empty: all."""
        ...

    @property
    def pauses(self) -> Sequence[float]:
        """Seconds before each further attempt."""
        ...

    async def deliver(self, entry: Entry) -> str | None:
        """One attempt; why it failed, or None."""
        ...


class Announcer:
    """Tells one channel, in order. What it gives up on is an entry."""

    def __init__(self, channel: Channel, recorder: Recorder) -> None:
        self._channel = channel
        self._recorder = recorder
        self._waiting: asyncio.Queue[Entry] = asyncio.Queue(_WAITING_AT_MOST)

    def heard(self, entry: Entry) -> None:
        """An entry was written: queue it if the channel is about it."""
        events = self._channel.events
        if not entry.kind.startswith(_PREFIX) or (events and event_of(entry) not in events):
            return
        try:
            self._waiting.put_nowait(entry)
        except asyncio.QueueFull:
            self._give_up(entry, "too many announcements wait")

    async def run(self) -> None:
        """Tell what comes, until cancelled."""
        task = asyncio.current_task()
        assert task is not None
        while not task.cancelling():  # a channel's library may swallow a cancellation
            entry = await self._waiting.get()
            if (why := await self._deliver(entry)) is not None:
                self._give_up(entry, why)

    async def _deliver(self, entry: Entry) -> str | None:
        """Tell it; why it could not be, after the last attempt."""
        for pause in (*self._channel.pauses, None):
            try:
                why = await self._channel.deliver(entry)
            except Exception as error:  # boundary: a bug of ours must not end all announcements
                log.exception("%s could not be told of entry %d", self._channel.name, entry.seq)
                why = f"internal error: {type(error).__name__}"
            if why is None or pause is None:
                return why
            await asyncio.sleep(pause)
        return None

    def _give_up(self, entry: Entry, why: str) -> None:
        log.warning("%s was not told of entry %d: %s", self._channel.name, entry.seq, why)
        body = {"to": self._channel.name, "entry": entry.seq, "kind": entry.kind, "reason": why}
        draft = Draft(self._channel.failure, entry.session, entry.subject, entry.connection, body)
        self._recorder.post(draft, failed=lambda error: log.error("and that cannot be recorded: %s", error))


@asynccontextmanager
async def announcing(channels: Sequence[Channel], recorder: Recorder) -> AsyncIterator[None]:
    """Announce what `recorder` writes, until the block ends."""
    announcers = [Announcer(channel, recorder) for channel in channels]
    tasks = [asyncio.create_task(one.run(), name="announcer") for one in announcers]
    recorder.listeners.extend(one.heard for one in announcers)
    try:
        yield
    finally:
        recorder.listeners.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def event_of(entry: Entry) -> str:
    """What happened: `requested`, `approved` …"""
    return entry.kind.removeprefix(_PREFIX)


def told_by(entry: Entry) -> Mapping[str, Any]:
    """What an entry about an approval says."""
    body: Mapping[str, Any] = json.loads(entry.body)
    return body


def lines(entry: Entry, *, statement: bool, link: str | None) -> list[str]:
    """An announcement in words: what happened, why, and how to act; the statement only where it is asked for."""
    body = told_by(entry)
    event, approval = event_of(entry), body["approval"]
    by = f" by {entry.subject}" if entry.subject else ""
    said = [f"{approval}: {event}{by} on {entry.connection}"]
    said += [f"why: {reason}" for reason in dict.fromkeys(body.get("reasons", ()))]
    if body.get("comment") and "reasons" not in body:
        said.append(f"comment: {body['comment']}")
    if event == "requested":
        said.append(f"countersign approvals show {approval}")
    elif event in ("review_opened", "review_due"):
        said.append(f"countersign approvals review {approval} --comment …")
    said += [link.replace("{approval}", approval)] if link else []
    if statement and "statement" in body:
        said.append(visible(str(body["statement"])))
    return said
