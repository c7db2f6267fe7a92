"""A second verifier, written from audit/SPEC.md alone: it imports nothing of the product. Slow, short, plain.

python reverify.py audit.db VKEY [NOTES]    prints the number of signed entries, or fails with an AssertionError

`audit.db` is a store with the segments beside it, or a segment alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sqlite3
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def f(text: str | None) -> bytes:
    data = (text or "").encode("utf-8")
    return (0xFFFFFFFF if text is None else len(data)).to_bytes(4, "big") + data


class Tree:
    """RFC 6962, 2.1, leaf by leaf: perfect subtrees as (leaves, root), the largest first."""

    def __init__(self, size: int, peaks: bytes) -> None:
        bits = [bit for bit in range(63, -1, -1) if size >> bit & 1]
        assert len(peaks) == 32 * len(bits), f"these are no peaks of {size} entries"
        self.subtrees = [(1 << bit, peaks[at * 32 : at * 32 + 32]) for at, bit in enumerate(bits)]

    def append(self, leaf: bytes) -> None:
        self.subtrees.append((1, leaf))
        while len(self.subtrees) > 1 and self.subtrees[-1][0] == self.subtrees[-2][0]:
            (size, right), (_, left) = self.subtrees.pop(), self.subtrees.pop()
            self.subtrees.append((2 * size, sha256(b"\x01", left, right)))

    def peaks(self) -> bytes:
        return b"".join(root for _, root in self.subtrees)

    def root(self) -> bytes:
        root = self.subtrees[-1][1]
        for _, left in self.subtrees[-2::-1]:
            root = sha256(b"\x01", left, root)
        return root


def check_signed(note: str, vkey: str) -> list[str]:
    """The lines of the note's text, once this key is known to have signed it."""
    name, id_, encoded = vkey.split("+", 2)
    key = base64.b64decode(encoded)
    assert key[:1] == b"\x01"
    assert bytes.fromhex(id_) == sha256(name.encode(), b"\n", key)[:4]
    text, _, lines = note.rpartition("\n\n")
    for line in lines.splitlines():
        dash, signer, value = line.split(" ")
        data = base64.b64decode(value)
        if (dash, signer, data[:4]) == ("\u2014", name, bytes.fromhex(id_)):
            Ed25519PublicKey.from_public_bytes(key[1:]).verify(data[4:], text.encode() + b"\n")
            return text.split("\n")
    raise AssertionError(f"{name} did not sign")


COLUMNS = "seq, time, kind, session, subject, connection, statement, body, prev, hash"


class Audit:
    """What is known of the audit so far, from one file to the next."""

    def __init__(self) -> None:
        self.seq, self.head, self.last, self.tree = 0, sha256(b"countersign audit chain v1\n"), "", Tree(0, b"")
        self.keys: list[tuple[int, str]] = []
        self.signed = 0
        self.first = 1  # of the segment at hand
        self.sealed = False  # the last file is a segment: what follows, such as who shredded, is elsewhere
        self.gone: list[int] = []
        self.shredded: list[tuple[int, int]] = []

    def file(self, path: Path, elsewhere: list[str]) -> None:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        assert db.execute("PRAGMA application_id").fetchone() == (0x434E5453,)
        assert db.execute("PRAGMA user_version").fetchone() == (6,)
        begin = db.execute("SELECT max(seq) FROM entries WHERE kind = 'segment.sealed'").fetchone()[0] or 1
        stored = {size: (note, peaks) for size, note, peaks in db.execute("SELECT size, note, peaks FROM checkpoints")}
        [oldest] = db.execute("SELECT coalesce(min(seq), 1) FROM entries").fetchone()
        if self.seq < begin - 1 and oldest < begin:  # sealed, and not in a file of its own yet
            [body] = db.execute("SELECT body FROM entries WHERE seq = ?", (begin,)).fetchone()
            begin = oldest if json.loads(body)["segment"]["first"] == oldest else begin
        assert begin > self.seq, f"{path} does not go on after entry {self.seq}"
        known = list(self.keys)
        assert begin - 1 == self.seq or self.signed == self.seq, f"nothing signs the segment up to {self.seq}"
        if begin - 1 != self.seq:  # begins with what its first entry says, under the checkpoint over those before
            [body, self.head] = db.execute("SELECT body, prev FROM entries WHERE seq = ?", (begin,)).fetchone()
            self.keys, self.seq, self.last = keys_told(json.loads(body)), begin - 1, ""
            self.first, self.tree = json.loads(body)["segment"]["first"], Tree(begin - 1, stored[begin - 1][1])
            assert self.keys[: len(known)] == known, f"{path} names other keys than the files before it"
        if begin > 1:
            self.check(begin - 1, *stored[begin - 1])
        self.leftovers(db, begin)
        for row in db.execute(f"SELECT {COLUMNS} FROM entries WHERE seq >= ? ORDER BY seq", (begin,)):
            self.entry(row)
            if self.seq in stored:
                self.check(self.seq, *stored[self.seq])
            for note in elsewhere:
                if int(note.split("\n")[1]) == self.seq:
                    self.check(self.seq, note, None)
        assert max(stored, default=0) <= self.seq, f"{max(stored)} entries were signed and {self.seq} are there"
        [(sealed,)] = db.execute("SELECT coalesce(max(last), 0) FROM segments")
        assert sealed != self.seq or sealed in stored, f"nothing signs the segment up to {sealed}"
        assert sealed <= self.seq, f"the segment up to {sealed} ends at {self.seq}"
        self.sealed = sealed == self.seq
        self.recordings(db, begin)
        if re.fullmatch(r"\d{12,}-\d{12,}\.db", path.name):
            assert path.stem == f"{begin:012}-{self.seq:012}", f"{path} holds the entries {begin} to {self.seq}"

    def leftovers(self, db: sqlite3.Connection, begin: int) -> None:
        """Entries of a segment that are still in the store must be those that were sealed: back from their hash."""
        expected = db.execute("SELECT prev FROM entries WHERE seq = ?", (begin,)).fetchone()
        rows = db.execute(f"SELECT {COLUMNS} FROM entries WHERE seq < ? ORDER BY seq DESC", (begin,)).fetchall()
        for number, row in enumerate(rows):
            assert (row[0], row[9]) == (begin - 1 - number, expected[0]), (
                f"entry {row[0]} is not the one that was sealed"
            )
            check_hash(row)
            expected = row[8:9]

    def entry(self, row: tuple[Any, ...]) -> None:
        seq, time, kind, *_, body, prev, hash_ = row
        assert (seq, prev) == (self.seq + 1, self.head), f"entry {self.seq + 1} does not follow"
        check_hash(row)
        assert time >= self.last, f"entry {seq} is before the one before it"
        if kind == "segment.sealed":
            told = json.loads(body)
            sealed = {"first": self.first, "last": seq - 1, "root": self.tree.root().hex()}
            assert told["segment"] == sealed, f"entry {seq} seals another segment"
            assert keys_told(told) == self.keys, f"entry {seq} names other keys"
            self.first = seq
        self.seq, self.head, self.last = seq, hash_, time
        self.tree.append(sha256(b"\x00", hash_))
        if kind == "key.created":
            assert not self.keys, f"entry {seq} makes a second first key"
            self.keys.append((seq, json.loads(body)["vkey"]))
        if kind == "key.rotated":
            self.keys.append((seq, handed_over(self.keys[-1][1], json.loads(body)["note"])))

    def check(self, size: int, note: str, peaks: bytes | None) -> None:
        signer = [key for seq, key in self.keys if seq <= size][-1]
        origin, says, root = check_signed(note, signer)[:3]
        assert (origin, int(says)) == (signer.split("+")[0], size)
        assert base64.b64decode(root) == self.tree.root(), f"another history was signed up to {size}"
        assert peaks in (None, self.tree.peaks())
        self.signed = size

    def recordings(self, db: sqlite3.Connection, begin: int) -> None:
        """Every digest has its bytes, or is gone; there are no other bytes."""
        stored = dict(db.execute("SELECT seq, data FROM recordings WHERE seq >= ?", (begin,)))
        for seq, kind, body in db.execute("SELECT seq, kind, body FROM entries WHERE seq >= ? ORDER BY seq", (begin,)):
            told = json.loads(body)
            if kind == "outcome" and "recording" in told and seq not in stored:
                self.gone.append(seq)
            elif kind == "outcome" and "recording" in told:
                digest = hashlib.sha256(stored.pop(seq)).hexdigest()
                assert digest == told["recording"]["digest"], f"recording {seq} is another"
            elif kind == "recording.shredded":
                self.shredded.append((told["shredded"]["first"], min(told["shredded"]["last"], seq)))
        before = db.execute("SELECT seq FROM recordings WHERE seq < (SELECT min(seq) FROM entries)").fetchall()
        assert not stored, f"nobody tells of the recordings {sorted(stored)}"
        assert not before, f"the recordings {before} belong to no entry"


def check_hash(row: tuple[Any, ...]) -> None:
    seq, *fields, prev, hash_ = row
    assert hash_ == sha256(prev, seq.to_bytes(8, "big"), *map(f, fields)), f"entry {seq} was edited"


def handed_over(old: str, note: str) -> str:
    title, before, new = check_signed(note, old)
    assert (title, before) == ("countersign key rotation v1", old)
    assert old.split("+")[0] == new.split("+")[0]
    check_signed(note, new)
    return new


def keys_told(body: dict[str, Any]) -> list[tuple[int, str]]:
    keys = [(body["keys"][0]["seq"], body["keys"][0]["vkey"])]
    for key in body["keys"][1:]:
        keys.append((key["seq"], handed_over(keys[-1][1], key["note"])))
    return keys


def reverify(path: Path, vkey: str, elsewhere: list[str]) -> int:
    audit = Audit()
    segments = sorted(
        path.with_name(f"{path.name}.segments").glob("*.db"), key=lambda file: int(file.stem.split("-")[1])
    )
    for file in [*segments, path]:
        audit.file(file, elsewhere)
    assert vkey in [key for _, key in audit.keys], "another key signs this audit"
    assert audit.signed, "nothing is signed"
    for note in elsewhere:
        size = int(note.split("\n")[1])
        assert size <= audit.seq, f"{size} entries were signed and {audit.seq} are there"
    for seq in audit.gone:
        shredded = any(first <= seq <= last for first, last in audit.shredded)
        assert shredded or audit.sealed, f"the recording of {seq} was deleted"
    return audit.signed


def notes_of(text: str) -> list[str]:
    notes: list[str] = []
    note, signed = "", False
    for line in text.splitlines(keepends=True):
        if signed and not line.startswith("\u2014 "):
            notes, note = [*notes, note], ""
        note, signed = note + line, line.startswith("\u2014 ")
    return [*notes, note]


if __name__ == "__main__":
    given = notes_of(Path(sys.argv[3]).read_text(encoding="utf-8")) if len(sys.argv) > 3 else []
    sys.stdout.write(f"{reverify(Path(sys.argv[1]), sys.argv[2], given)}\n")
