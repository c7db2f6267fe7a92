"""Proofs that one entry is in the audit, and that one checkpoint carries on another. Sans-IO.

As c2sp.org/tlog-proof writes the first down, and c2sp.org/tlog-witness the second (the body of `add-checkpoint`).
Whoever has the proof and the log's public key, and the entry or the older checkpoint, needs nothing else: not the
store, nor the other entries.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from audit.checkpoint import Checkpoint
from audit.merkle import (
    SIZE,
    Hashes,
    ProofError,
    check_consistency,
    check_inclusion,
    consistency_proof,
    inclusion_proof,
    root_of,
    split,
)
from audit.note import PublicKey, open_note

_TITLE = "c2sp.org/tlog-proof@v1"


@dataclass(frozen=True, slots=True)
class Proof:
    """That the entry `seq` is among those that the signed `note` covers; `path` are the hashes from leaf to root."""

    seq: int
    path: Sequence[bytes]
    note: str

    @property
    def text(self) -> str:
        """The proof as it is handed over. The format counts entries from 0."""
        path = "".join(f"{base64.b64encode(node).decode('ascii')}\n" for node in self.path)
        return f"{_TITLE}\nindex {self.seq - 1}\n{path}\n{self.note}"

    @classmethod
    def parse(cls, text: str) -> Proof:
        """Read a proof; `extra` data is left aside, as nobody signed it. Raises ProofError."""
        head, _, note = text.partition("\n\n")
        lines = head.split("\n")
        if lines[1:] and lines[1].startswith("extra "):
            del lines[1]
        match lines:
            case [title, index, *path] if title == _TITLE and re.fullmatch(r"index (0|[1-9][0-9]{0,18})", index):
                return cls(int(index[6:]) + 1, [_node(line) for line in path], note)
        raise ProofError(f"this is no proof: it must begin with `{_TITLE}` and `index`, each on a line of its own")

    def check(self, entry_hash: bytes, keys: Collection[PublicKey]) -> Checkpoint:
        """The checkpoint under which one of these keys vouches for the entry with this `hash`.

        Raises ProofError where the proof does not hold, `audit.note.NoteError` where no such key signed.
        """
        signed = Checkpoint.parse(open_note(self.note, keys))
        check_inclusion(entry_hash, self.seq - 1, signed.size, self.path, signed.root)
        return signed


@dataclass(frozen=True, slots=True)
class Extension:
    """That the first `old` of the entries under the signed `note` are those of an older checkpoint."""

    old: int
    path: Sequence[bytes]
    note: str

    @property
    def text(self) -> str:
        """The proof as it is handed over."""
        path = "".join(f"{base64.b64encode(node).decode('ascii')}\n" for node in self.path)
        return f"old {self.old}\n{path}\n{self.note}"

    @classmethod
    def parse(cls, text: str) -> Extension:
        """Read a proof. Raises ProofError."""
        head, _, note = text.partition("\n\n")
        first, *path = head.split("\n")
        if not re.fullmatch(r"old (0|[1-9][0-9]{0,18})", first):
            raise ProofError("this is no proof of consistency: it must begin with `old` and a size")
        return cls(int(first[4:]), [_node(line) for line in path], note)

    def check(self, older: str, keys: Collection[PublicKey]) -> tuple[Checkpoint, Checkpoint]:
        """The older checkpoint (a signed note) and the newer one, each signed by one of these keys.

        Raises ProofError where the newer does not carry on the older, `audit.note.NoteError` where no such key signed.
        """
        old, new = (Checkpoint.parse(open_note(note, keys)) for note in (older, self.note))
        if (old.size, old.origin) != (self.old, new.origin):
            raise ProofError(
                f"the proof is about {self.old} entries of `{new.origin}`, and the checkpoint about others"
            )
        check_consistency(old.size, old.root, new.size, new.root, self.path)
        return old, new


def extend(hashes: Sequence[bytes] | Hashes, old: int, note: str) -> Extension:
    """The proof for the first `old` under a note over exactly these entries (their `hash`). Raises IndexError."""
    return Extension(old, consistency_proof(hashes, old), note)


def carry_on(old: int, peaks: bytes, newer: Sequence[bytes], note: str) -> Extension:
    """As `extend`, but from a checkpoint's peaks (one 32 bytes for each 1 in binary `old`) and what came after it.

    Every node of the proof is a peak of the older tree, or lies wholly among the newer entries.
    """
    known: dict[tuple[int, int], bytes] = {}
    at = 0
    for number, height in enumerate(bit for bit in range(old.bit_length() - 1, -1, -1) if old >> bit & 1):
        known[at, at + (1 << height)] = peaks[number * SIZE : (number + 1) * SIZE]
        at += 1 << height
    first, last, path, whole = 0, old + len(newer), [], True
    while old < last:
        middle = first + split(last - first)
        left = old <= middle
        start, end = (middle, last) if left else (first, middle)
        path.append(known[start, end] if start < old else root_of(newer[start - old : end - old]))
        first, last, whole = (first, middle, whole) if left else (middle, last, False)
    if not whole:
        path.append(known[first, last])
    return Extension(old, path[::-1], note)


def prove(hashes: Sequence[bytes] | Hashes, seq: int, note: str) -> Proof:
    """The proof for entry `seq` under a note over exactly these entries (their `hash`, in order). Raises IndexError."""
    return Proof(seq, inclusion_proof(hashes, seq - 1), note)


def _node(line: str) -> bytes:
    try:
        node = base64.b64decode(line, validate=True)
    except binascii.Error:
        node = b""
    if len(node) != SIZE:
        raise ProofError(f"`{line[:60]}` is no hash of a proof: it must be the base64 of {SIZE} bytes")
    return node
