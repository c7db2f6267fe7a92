"""The chain, sans-IO: how an entry is linked to the one before it, and how a link is checked. See SPEC.md."""

from __future__ import annotations

import hashlib
import struct

from audit.entry import Draft, Entry, as_text

# The `prev` of entry 1: a constant of the format, so that an empty chain has a head too.
GENESIS = hashlib.sha256(b"countersign audit chain v1\n").digest()


def digest(
    prev: bytes,
    seq: int,
    time: str,
    kind: str,
    session: str | None,
    subject: str | None,
    connection: str | None,
    body: str,
) -> bytes:
    """SHA-256 over prev, seq and the length-prefixed fields; NULL has the length 2**32 - 1."""
    parts = [prev, struct.pack(">Q", seq)]
    for field in (time, kind, session, subject, connection, body):
        if field is None:
            parts.append(b"\xff\xff\xff\xff")
        else:
            data = field.encode("utf-8")
            parts.append(struct.pack(">I", len(data)))
            parts.append(data)
    return hashlib.sha256(b"".join(parts)).digest()


def link(prev: bytes, seq: int, time: str, draft: Draft) -> Entry:
    """The entry that a draft becomes at this place of the chain."""
    body = as_text(draft.body)
    kind = str(draft.kind)
    value = digest(prev, seq, time, kind, draft.session, draft.subject, draft.connection, body)
    return Entry(seq, time, kind, draft.session, draft.subject, draft.connection, body, prev, value)


def problem(expected_seq: int, prev: bytes, entry: Entry) -> str | None:
    """What is wrong with an entry that should follow `prev` at `expected_seq`; None if nothing is."""
    if entry.seq != expected_seq:
        return f"entry {expected_seq} is missing (the next one is {entry.seq})"
    if entry.prev != prev:
        return "it does not follow the entry before it (inserted, deleted or reordered)"
    computed = digest(
        entry.prev, entry.seq, entry.time, entry.kind, entry.session, entry.subject, entry.connection, entry.body
    )
    if computed != entry.hash:
        return "its contents do not match its hash (edited)"
    return None
