"""The chain, sans-IO: how an entry is linked to the one before it, and how a link is checked. See SPEC.md."""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache

from audit.entry import Draft, Entry, as_text

# The `prev` of entry 1: a constant of the format, so that an empty chain has a head too.
GENESIS = hashlib.sha256(b"countersign audit chain v1\n").digest()

# What stands in place of a length for NULL: no field can be this long.
_NULL = b"\xff\xff\xff\xff"
_length = struct.Struct(">I").pack
_number = struct.Struct(">Q").pack


def _field(text: str | None) -> bytes:
    if text is None:
        return _NULL
    data = text.encode("utf-8")
    return _length(len(data)) + data


def digest(
    prev: bytes,
    seq: int,
    time: str,
    kind: str,
    session: str | None,
    subject: str | None,
    connection: str | None,
    statement: str | None,
    body: str,
) -> bytes:
    """SHA-256 (32 bytes) over `prev`, `seq` and the fields, each with its length before it (SPEC.md, Hash)."""
    names = _names(kind, session, subject, connection)
    return hashlib.sha256(b"".join((prev, _number(seq), _field(time), names, _field(statement), _field(body)))).digest()


@lru_cache(maxsize=4096)
def _names(*fields: str | None) -> bytes:
    """The fields in the middle: a session's entries have them in common."""
    return b"".join(map(_field, fields))


def link(prev: bytes, seq: int, time: str, draft: Draft, body: str | None = None) -> Entry:
    """The entry that a draft becomes at this place of the chain; `body` spares writing its text again.

    Raises `audit.entry.BodyError`, and ValueError for a field that is not valid Unicode.
    """
    text = as_text(draft.body) if body is None else body
    kind = str(draft.kind)
    fields = (time, kind, draft.session, draft.subject, draft.connection, draft.statement, text)
    return Entry(seq, *fields, prev, digest(prev, seq, *fields))


def check(before: Entry | None, entry: Entry) -> str | None:
    """What is wrong with an entry that should follow `before` (None: should be the first); None if nothing is."""
    seq, prev, time = (before.seq, before.hash, before.time) if before else (0, GENESIS, "")
    if entry.seq != seq + 1:
        return f"entry {seq + 1} is missing (the next one is {entry.seq})"
    if digest(entry.prev, entry.seq, *entry[1:-2]) != entry.hash:
        return "its contents do not match its hash"
    if entry.prev != prev:
        return "it does not follow the entry before it"
    if entry.time < time:
        return "its time is before that of the entry before it"
    return None
