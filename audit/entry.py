"""An audit entry and what it is made from: sans-IO values, and the one way a body becomes bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What an entry tells."""

    PROCESS_STARTED = "process.started"
    PROCESS_STOPPED = "process.stopped"
    SESSION_OPENED = "session.opened"
    SESSION_CLOSED = "session.closed"
    SESSION_REFUSED = "session.refused"
    INTENT = "intent"
    OUTCOME = "outcome"
    POLICY_LOADED = "policy.loaded"
    POLICY_REJECTED = "policy.rejected"
    APPROVAL_REQUESTED = "approval.requested"
    APPROVAL_VOTED = "approval.voted"
    APPROVAL_APPROVED = "approval.approved"
    APPROVAL_DENIED = "approval.denied"
    APPROVAL_EXPIRED = "approval.expired"
    APPROVAL_WITHDRAWN = "approval.withdrawn"
    APPROVAL_CONSUMED = "approval.consumed"
    APPROVAL_VOID = "approval.void"
    AUDIT_READ = "audit.read"
    INVARIANT_VIOLATED = "invariant.violated"


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry that has no place in the chain yet. `body` must be JSON: str, int, float, bool, None, list, dict."""

    kind: Kind
    session: str | None
    subject: str | None
    connection: str | None
    body: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Entry:
    """A link of the chain, exactly as stored. `time` is RFC 3339 in UTC with microseconds, `body` is JSON text."""

    seq: int
    time: str
    kind: str
    session: str | None
    subject: str | None
    connection: str | None
    body: str
    prev: bytes  # 32
    hash: bytes  # 32


def as_text(body: Mapping[str, object]) -> str:
    """The body as compact JSON with sorted keys. Raises ValueError or TypeError for what JSON cannot hold.

    Lone surrogates stay escaped, so that the text is always valid UTF-8.
    """
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(body, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return text
