"""A recording: what the client of one statement was sent, and when. Sans-IO; SPEC.md has the format.

Its digest is in the statement's outcome, its bytes are not: they can be shredded, and the chain still holds.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from struct import Struct, error
from typing import NamedTuple

_HEAD = Struct(">IcI")  # microseconds, what it holds, bytes
_MESSAGES, _ROWS, _SALT = b"m", b"r", b"s"
_LATEST = 0xFFFF_FFFF  # 71 minutes; what comes later is told as of then

# A recording that claims to be larger than this is broken: the largest bound that can be configured, and room.
LARGEST_BYTES = 80 * 1024 * 1024
# So short, compressing saves some 40 bytes and takes eight times as long: they are stored, in a stream as any other.
_SHORT_BYTES = 256
_STORED = Struct("<3sHH")  # the stream's head with that of its one block, its length, and the complement of that
# A window and a memory level as small as this are set up four times faster, and most recordings are small.
_SMALL_BYTES = 512


class Mode(StrEnum):
    """How much is recorded."""

    OFF = "off"
    METADATA = "metadata"  # columns, notices, errors, tags and times: no row
    FULL = "full"


class Chunk(NamedTuple):
    """What left at one moment, `at` microseconds after the intent was durable.

    `data` are messages of a PostgreSQL server (protocol 3, "Message Formats"): rows (DataRow and CopyData), or
    anything else. Only rows may be cut off in the middle, where the bound was reached.
    """

    at: int
    rows: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class Recording:
    """Written with an outcome. `left_out` counts the bytes that were sent and not recorded.

    `salt` is random: the digest stays when the rest is shredded, and must not tell a short row to who tries them all.
    """

    mode: Mode
    chunks: Sequence[Chunk]
    left_out: int = 0
    salt: bytes = b""


@dataclass(frozen=True, slots=True)
class Shred:
    """Deletes the recordings of the entries `first` to `last`, with the entry that says who wanted it and why."""

    first: int
    last: int


class BrokenRecordingError(ValueError):
    """Stored bytes that are no recording."""


def pack(chunks: Sequence[Chunk], salt: bytes = b"") -> tuple[bytes, int]:
    """The chunks as they are stored, and how many bytes they are before they are compressed."""
    parts: list[bytes] = [_HEAD.pack(0, _SALT, len(salt)), salt] if salt else []
    for at, rows, data in chunks:
        parts += (_HEAD.pack(min(at, _LATEST), _ROWS if rows else _MESSAGES, len(data)), data)
    plain = b"".join(parts)
    if len(plain) <= _SHORT_BYTES:
        head = _STORED.pack(b"\x78\x01\x01", len(plain), len(plain) ^ 0xFFFF)
        return b"".join((head, plain, zlib.adler32(plain).to_bytes(4, "big"))), len(plain)
    small = len(plain) <= _SMALL_BYTES
    packer = zlib.compressobj(1, zlib.DEFLATED, 9 if small else 15, 1 if small else 8)
    return packer.compress(plain) + packer.flush(), len(plain)


def unpack(data: bytes) -> list[Chunk]:
    """The chunks of stored bytes. Raises BrokenRecordingError."""
    try:
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(data, LARGEST_BYTES)
        if not unpacker.eof or unpacker.unused_data:
            raise BrokenRecordingError("the recording does not end where it should")
        chunks: list[Chunk] = []
        at = 0
        while at < len(plain):
            micros, what, size = _HEAD.unpack_from(plain, at)
            at += _HEAD.size
            if what not in (_MESSAGES, _ROWS, _SALT) or at + size > len(plain):
                raise BrokenRecordingError(f"the recording has no whole chunk at byte {at - _HEAD.size}")
            if what != _SALT:
                chunks.append(Chunk(micros, what == _ROWS, plain[at : at + size]))
            at += size
    except (zlib.error, error) as problem:
        raise BrokenRecordingError(f"the recording cannot be read: {problem}") from None
    return chunks


def account(recording: Recording, packed: bytes, size: int) -> dict[str, object]:
    """What the outcome says of its recording."""
    digest = hashlib.sha256(packed).hexdigest()
    return {"mode": recording.mode.value, "digest": digest, "size": size, "left_out": recording.left_out}
