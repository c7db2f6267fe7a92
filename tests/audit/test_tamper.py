"""The tamper table: each class of change, on stores without checkpoints, with them, and with one kept elsewhere."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import blocks
from audit import verify as lone
from audit.checkpoint import Checkpoint
from audit.merkle import Tree
from audit.notary import Notary
from audit.note import Note, Signer, sign
from audit.store import Store
from audit.verify import Report, Unreadable, ed25519_verifies, entry_hash, lone_ed25519_verifies, verify
from tests.audit.test_store import intent, outcome
from tests.audit.test_verify import forging

LOG = "example.com/audit"
KEY, NEXT, THIEF = (Signer(LOG, bytes([number]) * 32) for number in (1, 2, 3))
_COLUMNS = "seq, time, kind, session, subject, connection, statement, body"


def build(path: Path, *, checkpoints: bool) -> list[str]:
    """21 entries: a checkpoint at 9, a rotation at 15 (checkpoints 14 and 15), one at 21. Returns the notes."""
    with contextlib.closing(Store.open(path)) as store:
        for number in range(4):
            store.append([[intent(number)], [outcome(number)]])
        if checkpoints:
            store.checkpoint(KEY)
        for number in range(4, 6):
            store.append([[intent(number)], [outcome(number)]])
        if checkpoints:
            store.append([[intent(6)]])
            store.rotate(KEY, NEXT)
            store.append([[outcome(6)]])
        for number in range(7, 9 if checkpoints else 10):
            store.append([[intent(number)], [outcome(number)]])
        if checkpoints:
            store.append([[intent(10)]])
            store.checkpoint(NEXT)
        return [note for _, note in store.notes()]


def rechain(db: sqlite3.Connection) -> None:
    """What a thorough forger does: number all entries anew and recompute every link and hash."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM entries ORDER BY seq").fetchall()
    db.execute("DELETE FROM entries")
    db.execute("DELETE FROM blocks")
    prev = lone.GENESIS
    for seq, (_, *fields) in enumerate(rows, 1):
        value = entry_hash(prev, seq, *fields)
        row = (seq, *fields, prev, value)
        db.execute(f"INSERT INTO entries ({_COLUMNS}, prev, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        prev = value
    blocks.fill(db)


def resign(db: sqlite3.Connection, signer: Signer) -> None:
    """And then sign all of it with a key of his own, which the store names as its first."""
    db.execute("DELETE FROM checkpoints")
    db.execute("UPDATE entries SET body = ? WHERE kind = 'key.created'", [json.dumps({"vkey": str(signer.public)})])
    db.execute("UPDATE entries SET kind = 'note', body = '{}' WHERE kind = 'key.rotated'")
    rechain(db)
    seal(db, signer)


def resigned(db: sqlite3.Connection) -> None:
    resign(db, THIEF)


def seal(db: sqlite3.Connection, signer: Signer) -> None:
    tree = Tree()
    tree.extend(hash_ for (hash_,) in db.execute("SELECT hash FROM entries ORDER BY seq"))
    note = Checkpoint(LOG, tree.size, tree.root()).signed(signer)
    db.execute("INSERT INTO checkpoints VALUES (?, '2026', ?, ?)", (tree.size, note, b"".join(tree.peaks)))


def many(*steps: str | Callable[[sqlite3.Connection], None]) -> Callable[[sqlite3.Connection], None]:
    def change(db: sqlite3.Connection) -> None:
        for step in steps:
            if callable(step):
                step(db)
            else:
                db.execute(step)

    return change


def first(change: str) -> Callable[[sqlite3.Connection], None]:
    return many(f"UPDATE checkpoints SET {change} WHERE size = 9")


EDIT = "UPDATE entries SET subject = 'nobody' WHERE seq = 7"
DELETE = "DELETE FROM entries WHERE seq = 11"
INSERT = (
    "INSERT INTO entries (seq, time, kind, session, subject, connection, statement, body, prev, hash)"
    " SELECT 1000, time, kind, session, 'mallory', connection, statement, body, prev, hash FROM entries WHERE seq = 7"
)
MAKE_ROOM = many(
    "UPDATE entries SET seq = -seq WHERE seq BETWEEN 8 AND 999",
    "UPDATE entries SET seq = 8 WHERE seq = 1000",
    "UPDATE entries SET seq = 1 - seq WHERE seq < 0",
)
SWAP = many(
    "UPDATE entries SET seq = 1000 WHERE seq = 5",
    "UPDATE entries SET seq = 5 WHERE seq = 6",
    "UPDATE entries SET seq = 6 WHERE seq = 1000",
)
CUT = "DELETE FROM entries WHERE seq > 16"
CUT_CHECKPOINTS = "DELETE FROM checkpoints WHERE size > 16"

# The seq that is named, None where nothing can be seen: without checkpoints, with the stored ones, with the public
# key as well, and with the newest note of a witness as well. Where every hash was recomputed, it is the first entry
# of the span between two checkpoints that a signature narrows it to.
Named = int | None


@dataclass(frozen=True)
class Tampering:
    """A class of change, and who can see it."""

    name: str
    change: Callable[[sqlite3.Connection], None]
    bare: Named
    stored: Named
    key: Named
    witness: Named
    word: str


TABLE = [
    Tampering("edit", many(EDIT), 7, 7, 7, 7, "edited"),
    Tampering("delete", many(DELETE), 11, 11, 11, 11, "deleted"),
    Tampering("insert", many(INSERT, MAKE_ROOM), 8, 8, 8, 8, "edited"),
    Tampering("reorder", many(SWAP), 5, 5, 5, 5, "edited"),
    Tampering("edit, all hashes recomputed", many(EDIT, rechain), None, 1, 1, 1, "recomputed"),
    Tampering("delete, recomputed", many(DELETE, rechain), None, 10, 10, 10, "recomputed"),
    Tampering("insert, recomputed", many(INSERT, MAKE_ROOM, rechain), None, 9, 9, 9, "not by this"),
    Tampering("reorder, recomputed", many(SWAP, rechain), None, 1, 1, 1, "recomputed"),
    Tampering("truncate", many(CUT), None, 17, 17, 17, "truncated"),
    Tampering("truncate with its checkpoints", many(CUT, CUT_CHECKPOINTS), None, None, None, 17, "rolled back"),
    Tampering("all checkpoints deleted", many("DELETE FROM checkpoints"), None, None, 21, None, "checkpoints deleted"),
    Tampering("rewritten and signed by a foreign key", many(EDIT, resigned), None, None, 9, 21, "foreign"),
    Tampering(
        "a checkpoint by a foreign key",
        many("DELETE FROM checkpoints WHERE size = 21", lambda db: seal(db, THIEF)),
        None, 21, 21, 21, "foreign",
    ),
    Tampering(
        "a checkpoint by the retired key",
        many("DELETE FROM checkpoints WHERE size = 21", lambda db: seal(db, KEY)),
        None, 21, 21, 21, "foreign",
    ),
    Tampering("a checkpoint's peaks", first("peaks = zeroblob(64)"), None, 9, 9, 9, "edited"),
    Tampering("a checkpoint's place", first("size = 10"), None, 10, 10, 10, "edited"),
    Tampering("a checkpoint's text", first("note = replace(note, '9', '8')"), None, 9, 9, 9, ""),
    Tampering("a checkpoint that is none", first("note = 'x'"), None, 9, 9, 9, "no signed note"),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
@pytest.mark.parametrize("eyes", ["bare", "stored", "key", "witness"])
def test_the_tamper_table(tmp_path: Path, row: Tampering, eyes: str) -> None:
    path = tmp_path / "audit.db"
    notes = build(path, checkpoints=eyes != "bare")
    with forging(path) as db:
        if eyes == "bare" and "foreign" in row.word:
            return  # nothing to forge: this store was never signed
        row.change(db)
    report = verify(
        path,
        public_keys=[str(NEXT.public)] if eyes in {"key", "witness"} else (),
        checkpoints=notes[-1:] if eyes == "witness" else (),
    )
    expected = getattr(row, eyes)
    assert (report.ok, report.bad_seq) == (expected is None, expected), report
    if expected is not None:
        assert row.word in (report.problem or "") or eyes == "witness"
    else:
        assert "cannot be seen" in lone.sentence(report)


def test_an_untouched_store_holds_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    notes = build(path, checkpoints=True)
    for key in (KEY, NEXT):  # the rotation vouches in both directions
        report = verify(path, public_keys=[str(key.public)], checkpoints=notes)
        assert (report.problem, report.entries, report.signed, report.checkpoints) == (None, 21, 21, 8)
        assert (report.vouched, report.key) == (True, str(NEXT.public))
    assert "give --public-key" in lone.sentence(verify(path))


def test_an_older_copy_is_a_rollback_and_a_regrown_one_a_fork(tmp_path: Path) -> None:
    path, copy = tmp_path / "audit.db", tmp_path / "copy.db"
    build(path, checkpoints=True)
    shutil.copy(path, copy)
    with contextlib.closing(Store.open(path)) as store:
        store.append([[intent(20)], [outcome(20)]])
        note = store.checkpoint(NEXT)
    assert note is not None
    report = verify(copy, checkpoints=[note], public_keys=[str(KEY.public)])
    assert (report.bad_seq, "rolled back" in (report.problem or "")) == (22, True)
    with contextlib.closing(Store.open(copy)) as store:
        store.append([[intent(21)], [outcome(21)], [intent(22)]])
        store.checkpoint(NEXT)
    report = verify(copy, checkpoints=[note])
    assert (report.bad_seq, "entries 22 to 23" in (report.problem or "")) == (22, True)
    assert "fork" in (report.problem or "")


def test_a_given_checkpoint_of_another_log_is_foreign(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    build(path, checkpoints=True)
    text = f"example.com/other\n9\n{'A' * 43}=\n"
    report = verify(path, checkpoints=[sign(text, Signer("example.com/other", b"9" * 32))])
    assert (report.bad_seq, "that you gave" in (report.problem or "")) == (9, True)


def test_a_rotation_that_only_the_new_key_signed_is_foreign(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    build(path, checkpoints=True)
    note = sign(f"countersign key rotation v1\n{KEY.public}\n{THIEF.public}\n", THIEF)
    with forging(path) as db:
        db.execute("UPDATE entries SET body = ? WHERE kind = 'key.rotated'", [json.dumps({"note": note})])
        db.execute("DELETE FROM checkpoints WHERE size > 14")
        rechain(db)
    report = verify(path)
    assert (report.bad_seq, "hand over" in (report.problem or "")) == (15, True)


@pytest.mark.parametrize("body", ["", "[]", "1", '{"vkey":1}', '{"vkey":"x"}', "[" * 100_000])
def test_a_body_that_is_not_what_it_should_be_is_named_and_breaks_nothing(tmp_path: Path, body: str) -> None:
    path = tmp_path / "audit.db"
    build(path, checkpoints=True)
    with forging(path) as db:
        db.execute("UPDATE entries SET body = ? WHERE kind = 'key.created'", [body])
        db.execute("UPDATE entries SET kind = 'approval.voted', body = ? WHERE seq = 5", [body])
        rechain(db)
    assert verify(path).bad_seq == 9
    with contextlib.closing(Store.open(path)) as store:
        notary = Notary(store, lambda: NEXT)
        store.append([[intent(30)]])
        notary.seal()  # refused, told, and no exception
        assert notary.due_in() is not None


def since(path: Path, seq: int) -> Report:
    return verify(path, since=seq, public_keys=[str(NEXT.public)])


def test_since_starts_at_the_newest_checkpoint_before_that_entry(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    build(path, checkpoints=True)
    assert [since(path, seq).since for seq in (1, 9, 10, 14, 15, 16, 21, 99)] == [1, 1, 10, 10, 15, 16, 16, 22]
    assert since(path, 10).ok
    with forging(path) as db:
        db.execute(EDIT)
    assert (since(path, 10).ok, since(path, 9).bad_seq) == (True, 7)
    assert "covered by a signature" in lone.sentence(since(path, 10))
    with forging(path) as db:
        db.execute("UPDATE entries SET connection = 'x' WHERE seq = 12")
    assert since(path, 10).bad_seq == 12


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE checkpoints SET peaks = zeroblob(64) WHERE size = 9",
        "UPDATE checkpoints SET note = replace(note, '9', '8') WHERE size = 9",
        "UPDATE checkpoints SET peaks = x'00' WHERE size = 9",
        "UPDATE checkpoints SET peaks = x'' WHERE size = 9",
    ],
)
def test_since_trusts_no_start_that_was_not_signed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "audit.db"
    build(path, checkpoints=True)
    with forging(path) as db:
        db.execute(change)
    assert since(path, 10).bad_seq is not None


@pytest.mark.parametrize("text", ["", "x+y+z", str(KEY.public)[:-4], KEY.secret()])
def test_a_key_that_is_none_is_unreadable(tmp_path: Path, text: str) -> None:
    path = tmp_path / "audit.db"
    build(path, checkpoints=True)
    with pytest.raises(Unreadable, match="no public key"):
        verify(path, public_keys=[text])


# RFC 8032, 7.1: TEST 1, 2 and 3: key, message, signature.
RFC_8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        b"",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        b"\x72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        b"\xaf\x82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]  # fmt: skip


@pytest.mark.parametrize("check", [lone_ed25519_verifies, ed25519_verifies])
@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
def test_the_vectors_of_rfc_8032(check: Callable[..., bool], key: str, message: bytes, signature: str) -> None:
    public, value = bytes.fromhex(key), bytes.fromhex(signature)
    assert check(public, value, message)
    assert not check(public, value, message + b"x")
    assert not check(public, value[:-1], message)
    order = 2**252 + 27742317777372353535851937790883648493
    malleable = value[:32] + (int.from_bytes(value[32:], "little") + order).to_bytes(32, "little")
    assert not check(public, malleable, message)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=9), st.integers(0, 96 * 8 - 1))
def test_the_written_out_check_agrees_with_the_library(seed: bytes, message: bytes, bit: int) -> None:
    signer = Signer(LOG, seed)
    text = message.hex() + "\n"
    value = Signer.line(signer, text)
    signature = Note.parse(f"{text}\n{value}").signatures[0].value
    both = bytearray(signer.public.key + signature)
    assert lone_ed25519_verifies(bytes(both[:32]), bytes(both[32:]), text.encode())
    both[bit // 8] ^= 1 << bit % 8
    key, spoiled = bytes(both[:32]), bytes(both[32:])
    assert not lone_ed25519_verifies(key, spoiled, text.encode())
    assert not ed25519_verifies(key, spoiled, text.encode())


def test_alone_with_the_standard_library_it_checks_signatures_by_itself(tmp_path: Path) -> None:
    path, alone, witness = tmp_path / "audit.db", tmp_path / "handed over.py", tmp_path / "witness"
    notes = build(path, checkpoints=True)
    witness.write_text("".join(notes), encoding="utf-8")
    shutil.copy(lone.__file__, alone)
    command = [sys.executable, "-I", "-S", str(alone), str(path), "--json", "--public-key", str(NEXT.public)]
    command += ["--checkpoint", str(witness)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["signed"], report["checkpoints"], report["vouched"]) == (21, 8, True)
    with forging(path) as db:
        many(EDIT, rechain)(db)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["bad_seq"]) == (1, 1)
    witness.write_text("nothing\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (2, f"unreadable: `{witness}`: there is no signed note in it")


def second_opinion(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("reverify.py")
    command = [sys.executable, "-I", str(script), str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_verifier_written_from_the_specification_alone_agrees(tmp_path: Path) -> None:
    path, witness = tmp_path / "audit.db", tmp_path / "witness"
    witness.write_text("".join(build(path, checkpoints=True)), encoding="utf-8")
    done = second_opinion(path, str(NEXT.public), str(witness))
    assert (done.returncode, done.stdout) == (0, "21\n"), done.stderr


# What both must refuse: every class that the public key and a witness show.
@pytest.mark.parametrize("row", [row for row in TABLE if row.witness is not None], ids=lambda row: row.name)
def test_and_it_refuses_what_we_refuse(tmp_path: Path, row: Tampering) -> None:
    path, witness = tmp_path / "audit.db", tmp_path / "witness"
    witness.write_text("".join(build(path, checkpoints=True)), encoding="utf-8")
    with forging(path) as db:
        row.change(db)
    assert second_opinion(path, str(NEXT.public), str(witness)).returncode != 0
