"""Cosignatures of checkpoints, as c2sp.org/tlog-cosignature writes them down (version 1, Ed25519). Sans-IO.

A witness that cosigns says: at this time I saw this checkpoint, and it carries on every one that I cosigned before.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cached_property

from audit.note import Note, NoteError, PublicKey

_TYPE = b"\x04"  # signed-note's signature type of timestamped Ed25519 cosignatures
_KEY_BYTES = 32
_TIME_BYTES = 8


@dataclass(frozen=True)
class WitnessKey:
    """Whose cosignatures are believed: a name and 32 bytes."""

    name: str
    key: bytes

    @cached_property
    def id(self) -> bytes:
        """The first 4 bytes of SHA-256(name ‖ LF ‖ 0x04 ‖ key)."""
        return hashlib.sha256(self.name.encode() + b"\n" + _TYPE + self.key).digest()[:4]

    def __str__(self) -> str:
        """The vkey."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_TYPE + self.key).decode('ascii')}"

    @classmethod
    def parse(cls, text: str) -> WitnessKey:
        """Read a vkey. Raises NoteError."""
        name, _, rest = text.strip().partition("+")
        id_, _, encoded = rest.partition("+")
        try:
            data = base64.b64decode(encoded, validate=True)
        except ValueError:
            data = b""
        key = cls(name, data[1:])
        if not data.startswith(_TYPE) or len(data) != 1 + _KEY_BYTES or key.id.hex() != id_:
            raise NoteError(
                f"`{text.strip()[:120]}` is no witness's vkey: it must be <name>+<id>+<base64 of 0x04 and 32 bytes>"
            )
        return key

    def cosigned(self, note: Note) -> int | None:
        """When this witness cosigned the note, in seconds of Unix time; None where it did not.

        Raises NoteError where a cosignature claims to be this witness's and is not.
        """
        times: list[int] = []
        for one in note.signatures:
            if (one.name, one.id) != (self.name, self.id):
                continue
            time = int.from_bytes(one.value[:_TIME_BYTES], "big")
            signed = f"cosignature/v1\ntime {time}\n{note.text}"
            if not PublicKey(self.name, self.key).verifies(one.value[_TIME_BYTES:], signed):
                raise NoteError(f"the cosignature of `{self.name}` ({self.id.hex()}) does not hold")
            times.append(time)
        return max(times, default=None)
