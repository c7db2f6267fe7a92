"""Webhooks: announcements posted to an address, and signed.

The signature is that of the Standard Webhooks specification: HMAC-SHA256 over `id.timestamp.body`. The body has a
`text` that Slack shows as it is.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2

from audit.entry import Entry, Kind
from server import announcements

_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where to, signed with which secret, about what. `statement` sends the exact text along."""

    url: str
    secret: bytes = field(repr=False)
    events: frozenset[str] = frozenset()  # of `requested`, `approved` …; empty: all
    statement: bool = False
    link: str | None = None  # where people act, with `{approval}` for the id
    pauses: Sequence[float] = announcements.PAUSES


@dataclass(frozen=True, slots=True)
class WebhookChannel:
    """Posts to one webhook."""

    hook: Webhook
    http: httpx2.AsyncClient
    failure: Kind = Kind.WEBHOOK_FAILED

    @property
    def name(self) -> str:
        """Its host, and which of the webhooks there: in many an address the path is the secret (Slack's)."""
        parts = urlsplit(self.hook.url)
        which = hashlib.sha256(self.hook.url.encode()).hexdigest()[:8]
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/… ({which})"

    @property
    def events(self) -> frozenset[str]:
        """What it is about."""
        return self.hook.events

    @property
    def pauses(self) -> Sequence[float]:
        """Seconds before each further attempt."""
        return self.hook.pauses

    async def deliver(self, entry: Entry) -> str | None:
        """Post it once; why that failed, or None."""
        hook = self.hook
        body = json.dumps(payload(entry, statement=hook.statement, link=hook.link), ensure_ascii=False).encode()
        try:
            answer = await self.http.post(
                hook.url, content=body, headers=headers(hook.secret, entry, body, int(time.time()))
            )
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            return str(error) or type(error).__name__
        return None if answer.is_success else f"it answered {answer.status_code}"


@asynccontextmanager
async def channels(hooks: Sequence[Webhook]) -> AsyncIterator[list[WebhookChannel]]:
    """The webhooks' channels, usable until the block ends."""
    async with httpx2.AsyncClient(timeout=_TIMEOUT_SECONDS, follow_redirects=False) as http:
        yield [WebhookChannel(hook, http) for hook in hooks]


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


def payload(entry: Entry, *, statement: bool, link: str | None = None) -> dict[str, Any]:
    """What is posted: who, what, why and how to act; the statement's text only where it is asked for."""
    body = announcements.told_by(entry)
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
    # Slack shows it: what could be markup or a mention there is escaped, as it asks for.
    text = "\n".join(announcements.lines(entry, statement=statement, link=link))
    said["text"] = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return said
