"""Recordings beside the chain: what was sent is stored with its outcome, held to it, and can be shredded by itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import verify as lone
from audit.approvals import Conflict
from audit.entry import BodyError, Draft, Kind
from audit.note import Signer
from audit.recording import BrokenRecordingError, Chunk, Mode, Recording, Shred, pack, unpack
from audit.store import Item, Store
from audit.verify import verify
from tests.audit.test_store import intent, outcome, rows
from tests.audit.test_tamper import second_opinion
from tests.audit.test_verify import forging

SPEC = Path(lone.__file__).with_name("RECORDING.md")
SECRET = b"a value that somebody wants to have forgotten"


def recorded(number: int, data: bytes = b"D\0\0\0\x0b\0\x01\0\0\0\x01x") -> Item:
    chunks = (Chunk(100, False, b"T\0\0\0\x06\0\0"), Chunk(250, True, data))
    return Item(outcome(number).draft, Recording(Mode.FULL, chunks, left_out=7))


def shredding(first: int, last: int) -> Item:
    body = {"why": "asked for"}
    return Item(Draft(Kind.RECORDING_SHREDDED, None, "ada", None, body), Shred(first, last))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Ten statements: outcomes at the even entries, each but the first with a recording."""
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        store.append([[intent(0)], [outcome(0)]])
        for number in range(1, 10):
            store.append([[intent(number)], [recorded(number)]])
    return path


chunks = st.lists(st.builds(Chunk, st.integers(0, 2**32 - 1), st.booleans(), st.binary(max_size=600)), max_size=8)


@given(chunks)
def test_what_is_packed_comes_back_as_it_was(given: list[Chunk]) -> None:
    data, size = pack(given)
    assert unpack(data) == given
    assert size == len(zlib.decompress(data)) == sum(9 + len(chunk.data) for chunk in given)


def test_the_digest_of_a_recording_does_not_tell_which_short_row_was_shredded() -> None:
    """Two of the same differ, and both are read as what was sent."""
    one, other = (pack([Chunk(1, True, b"yes")], salt=bytes([n]) * 16)[0] for n in range(2))
    assert one != other
    assert unpack(one) == unpack(other) == [Chunk(1, True, b"yes")]


@given(chunks, st.data())
def test_broken_bytes_are_no_recording(given: list[Chunk], draw: st.DataObject) -> None:
    data, _ = pack(given)
    with pytest.raises(BrokenRecordingError):
        unpack(data[: draw.draw(st.integers(0, len(data) - 1))])
    with pytest.raises(BrokenRecordingError):
        unpack(data + b"x")
    with pytest.raises(BrokenRecordingError):
        unpack(zlib.compress(b"\0\0\0\0z\0\0\0\0"))


def test_a_recording_that_swells_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(BrokenRecordingError, match="does not end"):
        unpack(zlib.compress(bytes(200 * 1024 * 1024)))


def test_a_time_beyond_the_format_is_told_as_its_end() -> None:
    assert unpack(pack([Chunk(2**40, True, b"")])[0]) == [Chunk(2**32 - 1, True, b"")]


def test_the_outcome_names_the_digest_and_what_was_left_out(path: Path) -> None:
    [(body, data)] = rows(path, "SELECT body, data FROM entries JOIN recordings USING (seq) WHERE seq = 4")
    told = json.loads(str(body))["recording"]
    assert isinstance(data, bytes)
    assert told == {"mode": "full", "digest": hashlib.sha256(data).hexdigest(), "size": 37, "left_out": 7}
    assert [chunk.at for chunk in unpack(data)] == [100, 250]
    assert rows(path, "SELECT recorded FROM statements LIMIT 2") == [(None,), ("full",)]
    assert verify(path).ok


# Change, the entry that is named, a word of why.
TABLE: list[tuple[str, int, str]] = [
    ("UPDATE recordings SET data = x'00' WHERE seq = 8", 8, "edited"),
    ("UPDATE recordings SET data = zeroblob(0) WHERE seq = 20", 20, "edited"),
    ("DELETE FROM recordings WHERE seq = 8", 8, "deleted"),
    ("DELETE FROM recordings", 4, "deleted"),
    ("INSERT INTO recordings VALUES (2, x'00')", 2, "inserted"),
    ("INSERT INTO recordings VALUES (7, x'00')", 7, "inserted"),
    ("UPDATE recordings SET seq = 9 WHERE seq = 8", 9, "inserted"),
    ("INSERT INTO recordings VALUES (-3, x'00')", 1, "inserted"),
    ("INSERT INTO recordings VALUES (999, x'00')", 999, "inserted"),
]


@pytest.mark.parametrize(("change", "seq", "word"), TABLE)
def test_a_broken_recording_is_named(path: Path, change: str, seq: int, word: str) -> None:
    with forging(path) as db:
        db.execute(change)
    report = verify(path)
    assert (report.bad_seq, word in (report.problem or "")) == (seq, True), report


def test_a_shredded_recording_leaves_the_audit_intact(path: Path) -> None:
    with contextlib.closing(Store.open(path)) as store:
        store.append([[shredding(8, 8)]])
        store.append([[shredding(12, 15)]])
        assert verify(path).ok
        [again] = store.append([[shredding(8, 8)]])
        assert isinstance(again, Conflict)
        assert "entry 8 has no recording" in str(again)
    assert [seq for (seq,) in rows(path, "SELECT seq FROM recordings")] == [4, 6, 10, 16, 18, 20]
    [(subject, body)] = rows(path, "SELECT subject, body FROM entries WHERE seq = 21")
    assert (subject, json.loads(str(body))) == ("ada", {"shredded": {"first": 8, "last": 8}, "why": "asked for"})
    with forging(path) as db:
        db.execute("DELETE FROM recordings WHERE seq = 16")
    assert verify(path).bad_seq == 16


def test_nobody_shreds_ahead_of_time(path: Path) -> None:
    """A tombstone covers what was there when it was written, not what comes later."""
    with contextlib.closing(Store.open(path)) as store:
        store.append([[shredding(20, 1000)]])
        store.append([[intent(20)], [recorded(20)]])
    assert verify(path).ok
    with forging(path) as db:
        db.execute("DELETE FROM recordings WHERE seq = 23")
    assert verify(path).bad_seq == 23


def test_what_was_shredded_is_nowhere_in_the_file_or_its_log(path: Path) -> None:
    with contextlib.closing(Store.open(path)) as store:
        store.append([[intent(20)], [Item(outcome(20).draft, Recording(Mode.FULL, (Chunk(0, True, SECRET),)))]])
        stored = rows(path, "SELECT data FROM recordings WHERE seq = 22")[0][0]
        assert isinstance(stored, bytes)
        kept = any(stored in file.read_bytes() for file in path.parent.iterdir())
        store.append([[shredding(22, 22)]])
        assert store.settle_log()
        assert kept
        assert not any(stored in file.read_bytes() for file in path.parent.iterdir())


@pytest.mark.parametrize(
    ("item", "word"),
    [
        (Item(intent(1).draft, Recording(Mode.FULL, ())), "does not go with"),
        (Item(outcome(1).draft, Shred(1, 2)), "does not go with"),
        (Item(outcome(1, recording={}).draft, Recording(Mode.FULL, ())), "leave it out"),
    ],
)
def test_a_change_goes_with_its_own_kind_of_entry(path: Path, item: Item, word: str) -> None:
    with contextlib.closing(Store.open(path)) as store, pytest.raises(BodyError, match=word):
        store.append([[item]])


def test_since_holds_the_later_recordings_only(path: Path) -> None:
    with contextlib.closing(Store.open(path)) as store:
        store.checkpoint(Signer("example.com/audit", bytes(32)))
        store.append([[intent(20)], [recorded(20)]])
    with forging(path) as db:
        db.execute("DELETE FROM recordings WHERE seq = 8")
    assert verify(path, since=22).ok
    assert verify(path).bad_seq == 8


def test_the_lone_verifier_sees_it_too(path: Path, tmp_path: Path) -> None:
    alone = shutil.copy(lone.__file__, tmp_path / "handed over.py")
    with forging(path) as db:
        db.execute("DELETE FROM recordings WHERE seq = 6")
    done = subprocess.run(
        [sys.executable, "-I", "-S", alone, str(path), "--json"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, json.loads(done.stdout)["bad_seq"]) == (1, 6)


def test_a_recording_is_never_changed_in_place(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, pytest.raises(sqlite3.IntegrityError, match="never changed"):
        db.execute("UPDATE recordings SET data = x'00'")


@pytest.mark.parametrize("change", ["SELECT 1", *(change for change, _, _ in TABLE)])
def test_the_second_verifier_agrees(path: Path, change: str) -> None:
    """The one that was written from the specification alone (tests/audit/reverify.py)."""
    key = Signer("example.com/audit", bytes(32))
    with contextlib.closing(Store.open(path)) as store:
        store.append([[shredding(12, 12)]])
        store.checkpoint(key)
    with forging(path) as db:
        db.execute(change)
    done = second_opinion(path, str(key.public))
    assert (done.returncode == 0) == verify(path, public_keys=[str(key.public)]).ok == (change == "SELECT 1"), (
        done.stderr
    )


def test_the_example_of_the_specification_is_one() -> None:
    told, data, chunks = re.findall(r"```(?:json)?\n(.*?)```", SPEC.read_text(encoding="utf-8"), re.DOTALL)[:3]
    stored = bytes.fromhex(data)
    plain = [
        Chunk(int(at, 16), what == "72", bytes.fromhex(data))
        for at, what, _, data in map(str.split, chunks.splitlines())
    ]
    assert unpack(stored) == plain
    body = json.loads("{" + told + "}")["recording"]
    assert body["digest"] == hashlib.sha256(stored).hexdigest()
    assert body["size"] == len(zlib.decompress(stored))
