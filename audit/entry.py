"""An audit entry and what it is made from: sans-IO values, and the one way a body becomes text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

# A body larger than this is refused by itself, before it can fail the transaction that others share.
# SQLite's own limit is 10^9 bytes (SQLITE_MAX_LENGTH).
LARGEST_BODY_BYTES = 64 * 1024 * 1024


class Kind(StrEnum):
    """What an entry tells. A reader must accept kinds that it does not know: later versions add some."""

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
    APPROVAL_BROKEN_GLASS = "approval.broken_glass"
    APPROVAL_OWNER_APPROVED = "approval.owner_approved"
    APPROVAL_REVIEW_OPENED = "approval.review_opened"
    APPROVAL_REVIEW_DUE = "approval.review_due"
    APPROVAL_REVIEWED = "approval.reviewed"
    APPROVAL_APPROVED = "approval.approved"
    APPROVAL_DENIED = "approval.denied"
    APPROVAL_EXPIRED = "approval.expired"
    APPROVAL_WITHDRAWN = "approval.withdrawn"
    APPROVAL_CONSUMED = "approval.consumed"
    APPROVAL_VOID = "approval.void"
    SCHEMA_CHANGED = "schema.changed"
    RECORDING_SHREDDED = "recording.shredded"
    AUDIT_READ = "audit.read"
    KEY_CREATED = "key.created"
    KEY_ROTATED = "key.rotated"
    SEGMENT_SEALED = "segment.sealed"
    CHECKPOINT_FAILED = "checkpoint.failed"
    CHECKPOINT_WITNESSED = "checkpoint.witnessed"
    WEBHOOK_FAILED = "webhook.failed"
    MAIL_FAILED = "mail.failed"
    INVARIANT_VIOLATED = "invariant.violated"


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry that has no place in the chain yet. `body` must be JSON: str, int, float, bool, None, list, dict.

    `statement` is the id of the statement that it is of: the same in an intent, its outcome and whatever else it did.
    """

    kind: Kind
    session: str | None
    subject: str | None
    connection: str | None
    body: Mapping[str, object]
    statement: str | None = None


class Entry(NamedTuple):
    """A link of the chain, exactly as stored. `time` is RFC 3339 in UTC with microseconds, `body` is JSON text."""

    seq: int
    time: str
    kind: str
    session: str | None
    subject: str | None
    connection: str | None
    statement: str | None
    body: str
    prev: bytes  # 32
    hash: bytes  # 32


@dataclass(frozen=True, slots=True)
class Open:
    """Something begun that has no end in the chain yet: a `statement`, or (None) a session."""

    statement: str | None
    session: str | None
    subject: str | None
    connection: str | None
    instance: str


class BodyError(ValueError):
    """A body that JSON, or the store, cannot hold. The text says why and the cure."""


# What contains itself runs into the limit of recursion, which costs nothing until then.
_COMPACT, _COMPACT_ASCII = (
    json.JSONEncoder(ensure_ascii=ascii_, allow_nan=False, check_circular=False, sort_keys=True, separators=(",", ":"))
    for ascii_ in (False, True)
)


def as_text(body: Mapping[str, object]) -> str:
    """The body as compact JSON (RFC 8259) with sorted keys; raises BodyError.

    It always encodes to UTF-8: text with lone surrogates, which UTF-8 cannot hold, is written with
    `\\u` escapes instead. NaN, the infinities and bytes are refused.
    """
    try:
        text = _COMPACT.encode(body)
        try:
            size = len(text) if text.isascii() else len(text.encode("utf-8"))
        except UnicodeEncodeError:
            text = _COMPACT_ASCII.encode(body)
            size = len(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise BodyError(
            f"an audit body must be JSON: {error}; give text, finite numbers, lists and mappings, and bytes as hex"
        ) from None
    if size > LARGEST_BODY_BYTES:
        raise BodyError(
            f"an audit body of {size} bytes is larger than {LARGEST_BODY_BYTES}; store a digest of the large part"
        )
    return text
