"""A second verifier, written from audit/SPEC.md alone: it imports nothing of the product. Slow, short, plain.

python reverify.py audit.db VKEY [NOTES]    prints the number of signed entries, or fails with an AssertionError
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def f(text: str | None) -> bytes:
    data = (text or "").encode("utf-8")
    return (0xFFFFFFFF if text is None else len(data)).to_bytes(4, "big") + data


def tree(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, for one leaf or more."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\x01", tree(leaves[:k]), tree(leaves[k:]))


def peaks(leaves: list[bytes]) -> bytes:
    """The roots of the perfect subtrees, the largest first."""
    if not leaves:
        return b""
    largest = 1 << len(leaves).bit_length() - 1
    return tree(leaves[:largest]) + peaks(leaves[largest:])


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


def reverify(path: Path, vkey: str, elsewhere: list[str]) -> int:
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    assert db.execute("PRAGMA application_id").fetchone() == (0x434E5453,)
    assert db.execute("PRAGMA user_version").fetchone() == (4,)
    columns = "seq, time, kind, session, subject, connection, body, prev, hash"
    head, last, leaves, keys = sha256(b"countersign audit chain v1\n"), "", [], []
    for number, row in enumerate(db.execute(f"SELECT {columns} FROM entries ORDER BY seq"), 1):
        seq, time, kind, session, subject, connection, body, prev, hash_ = row
        assert (seq, prev) == (number, head), f"entry {number} does not follow"
        fields = [f(field) for field in (time, kind, session, subject, connection, body)]
        assert hash_ == sha256(prev, seq.to_bytes(8, "big"), *fields), f"entry {number} was edited"
        assert time >= last, f"entry {number} is before the one before it"
        head, last = hash_, time
        leaves.append(sha256(b"\x00", hash_))
        if kind == "key.created":
            assert not keys, f"entry {number} makes a second first key"
            keys.append((seq, json.loads(body)["vkey"]))
        if kind == "key.rotated":
            note = json.loads(body)["note"]
            title, old, new = check_signed(note, keys[-1][1])
            assert (title, old) == ("countersign key rotation v1", keys[-1][1])
            assert old.split("+")[0] == new.split("+")[0]
            check_signed(note, new)
            keys.append((seq, new))
    reverify_recordings(db)
    assert vkey in [key for _, key in keys], "another key signs this audit"
    stored = db.execute("SELECT size, note, peaks FROM checkpoints ORDER BY size").fetchall()
    assert stored, "nothing is signed"
    for size, note, subtrees in [*stored, *((None, note, None) for note in elsewhere)]:
        says = int(note.split("\n")[1])
        assert says <= len(leaves), f"{says} entries were signed and {len(leaves)} are there"
        signer = [key for seq, key in keys if seq <= says][-1]
        origin, _, root = check_signed(note, signer)[:3]
        assert origin == signer.split("+")[0]
        assert base64.b64decode(root) == tree(leaves[:says]), f"another history was signed up to {says}"
        assert size in (None, says)
        assert subtrees in (None, peaks(leaves[:says]))
    return max(size for size, _, _ in stored)


def reverify_recordings(db: sqlite3.Connection) -> None:
    """Every digest has its bytes, or an entry after it that says they were shredded; there are no other bytes."""
    stored = dict(db.execute("SELECT seq, data FROM recordings"))
    gone, shredded = [], []
    for seq, kind, body in db.execute("SELECT seq, kind, body FROM entries ORDER BY seq"):
        told = json.loads(body)
        if kind == "outcome" and "recording" in told and seq not in stored:
            gone.append(seq)
        elif kind == "outcome" and "recording" in told:
            assert hashlib.sha256(stored.pop(seq)).hexdigest() == told["recording"]["digest"], (
                f"recording {seq} is another"
            )
        elif kind == "recording.shredded":
            shredded.append((told["shredded"]["first"], min(told["shredded"]["last"], seq)))
    assert not stored, f"nobody tells of the recordings {sorted(stored)}"
    for seq in gone:
        assert any(first <= seq <= last for first, last in shredded), f"the recording of {seq} was deleted"


def notes_of(text: str) -> list[str]:
    notes, note, signed = [], "", False
    for line in text.splitlines(keepends=True):
        if signed and not line.startswith("\u2014 "):
            notes, note = [*notes, note], ""
        note, signed = note + line, line.startswith("\u2014 ")
    return [*notes, note]


if __name__ == "__main__":
    given = notes_of(Path(sys.argv[3]).read_text(encoding="utf-8")) if len(sys.argv) > 3 else []
    sys.stdout.write(f"{reverify(Path(sys.argv[1]), sys.argv[2], given)}\n")
