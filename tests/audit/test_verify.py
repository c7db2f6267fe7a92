"""The tamper table: each class of change to the file is detected, and named with the first bad entry."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from audit import verify as lone
from audit.entry import Draft, Kind
from audit.store import Item, Store
from audit.verify import GENESIS, Unreadable, entry_hash, main, verify
from tests.audit.test_store import intent, outcome

# A witness's vkey: cosignature/v1, 32 zero bytes.
_ZERO = bytes([4]) + bytes(32)
WITNESS = f"w+{hashlib.sha256(b'w' + bytes([10]) + _ZERO).hexdigest()[:8]}+{base64.b64encode(_ZERO).decode()}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Twenty entries, closed cleanly."""
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        for number in range(10):
            store.append([[intent(number)], [outcome(number)]])
    return path


@contextlib.contextmanager
def forging(path: Path) -> Iterator[sqlite3.Connection]:
    """The file with its seat belt off, and on again afterwards, as whoever owns the file can do."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        assert {name for name, _ in triggers} == {
            f"{table}_are_never_{change}d" for table in ("entries", "checkpoints") for change in ("update", "delete")
        } | {"recordings_are_never_updated"}
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        yield db
        for _, sql in triggers:
            db.execute(sql)


def rehash(db: sqlite3.Connection, seq: int) -> None:
    """What a careful forger does after an edit: recompute that entry's own hash."""
    row = db.execute(
        "SELECT prev, seq, time, kind, session, subject, connection, statement, body FROM entries WHERE seq = ?", (seq,)
    )
    db.execute("UPDATE entries SET hash = ? WHERE seq = ?", (entry_hash(*row.fetchone()), seq))


def edited_and_rehashed(db: sqlite3.Connection) -> None:
    db.execute("UPDATE entries SET subject = 'nobody' WHERE seq = 7")
    rehash(db, 7)


def swapped(db: sqlite3.Connection) -> None:
    db.execute("UPDATE entries SET seq = 100 WHERE seq = 5")
    db.execute("UPDATE entries SET seq = 5 WHERE seq = 6")
    db.execute("UPDATE entries SET seq = 6 WHERE seq = 100")


def inserted(db: sqlite3.Connection) -> None:
    """Room is made at 8, and the newcomer hashed well; what follows does not know it."""
    for seq in range(20, 7, -1):
        db.execute("UPDATE entries SET seq = seq + 1 WHERE seq = ?", (seq,))
    prev = db.execute("SELECT hash FROM entries WHERE seq = 7").fetchone()[0]
    fields = ("2026-01-01T00:00:00.000000Z", "intent", None, "mallory", None, None, "{}")
    db.execute("UPDATE entries SET time = time")
    value = entry_hash(prev, 8, *fields)
    db.execute(
        "INSERT INTO entries (seq, time, kind, session, subject, connection, statement, body, prev, hash)"
        " VALUES (8, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*fields, prev, value),
    )


def sql(statement: str) -> Callable[[sqlite3.Connection], None]:
    def change(db: sqlite3.Connection) -> None:
        db.execute(statement)

    change.__name__ = statement
    return change


TAMPERED: list[tuple[Callable[[sqlite3.Connection], None], int, str]] = [
    (sql("UPDATE entries SET body = replace(body, 'select 3', 'select 4') WHERE seq = 7"), 7, "edited"),
    (sql("UPDATE entries SET subject = 'ada' WHERE seq = 1"), 1, "edited"),
    (sql("UPDATE entries SET subject = NULL WHERE seq = 20"), 20, "edited"),
    (sql("UPDATE entries SET connection = '' WHERE seq = 9"), 9, "edited"),
    (sql("UPDATE entries SET statement = 'st-in-test-1' WHERE seq = 8"), 8, "edited"),
    (sql("UPDATE entries SET statement = NULL WHERE seq = 8"), 8, "edited"),
    (sql("UPDATE entries SET time = '2020-01-01T00:00:00.000000Z' WHERE seq = 9"), 9, "edited"),
    (sql("UPDATE entries SET prev = zeroblob(32) WHERE seq = 4"), 4, "edited"),
    (sql("UPDATE entries SET hash = zeroblob(32) WHERE seq = 4"), 4, "edited"),
    (sql("DELETE FROM entries WHERE seq = 11"), 11, "deleted"),
    (sql("DELETE FROM entries WHERE seq <= 3"), 1, "deleted"),
    (edited_and_rehashed, 8, "re-hashed"),
    (swapped, 5, "edited"),
    (inserted, 8, "before that of the entry"),
]


@pytest.mark.parametrize(("change", "seq", "word"), TAMPERED, ids=lambda v: getattr(v, "__name__", None))
def test_a_change_is_named_with_the_first_bad_entry(
    path: Path, change: Callable[[sqlite3.Connection], None], seq: int, word: str
) -> None:
    with forging(path) as db:
        change(db)
    report = verify(path)
    assert (report.ok, report.bad_seq) == (False, seq)
    assert word in (report.problem or "")


def test_every_single_flipped_byte_of_a_row_is_seen(path: Path, tmp_path: Path) -> None:
    """The body of entry 5 is found in the file itself; each of its bytes is flipped in a copy."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        body = db.execute("SELECT body FROM entries WHERE seq = 5").fetchone()[0].encode()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = path.read_bytes()
    at = data.index(body)
    copy = tmp_path / "copy.db"
    for offset in range(0, len(body), 7):
        copy.write_bytes(data[: at + offset] + bytes([data[at + offset] ^ 1]) + data[at + offset + 1 :])
        assert verify(copy).bad_seq == 5


def test_a_cut_off_end_cannot_be_seen_without_a_checkpoint_and_the_report_says_what_it_saw(path: Path) -> None:
    with forging(path) as db:
        db.execute("DELETE FROM entries WHERE seq > 15")
    report = verify(path)
    assert (report.ok, report.entries) == (True, 15)
    assert "cannot be seen" in lone.sentence(report)


def test_an_approval_whose_table_disagrees_with_the_chain_is_named(path: Path) -> None:
    with forging(path) as db:
        db.execute("INSERT INTO approval_records VALUES ('apr-forged', 'approved', '{}')")
    assert "approval apr-forged is in the table only" in (verify(path).problem or "")


@pytest.mark.parametrize(
    "change",
    [
        "DROP TRIGGER entries_are_never_deleted",
        "DROP INDEX entries_by_statement",
        "CREATE TRIGGER hungry AFTER INSERT ON entries BEGIN SELECT 1; END",
        "CREATE TRIGGER hungry BEFORE INSERT ON ENTRIES BEGIN SELECT raise(IGNORE); END",
        "CREATE VIRTUAL TABLE json_each USING fts5(value)",
        "DROP VIEW sessions; CREATE VIEW sessions AS SELECT * FROM entries WHERE subject <> 'mallory'",
    ],
)
def test_an_altered_view_index_or_trigger_is_seen(path: Path, change: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(change)
    report = verify(path)
    assert (report.bad_seq, report.entries) == (None, 20)
    assert "altered" in (report.problem or "")


def test_the_seat_belt_stops_accidents(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        for sql in ("UPDATE entries SET subject = 'x'", "DELETE FROM entries"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                db.execute(sql)


def test_the_file_runs_alone_with_the_standard_library(path: Path, tmp_path: Path) -> None:
    alone = tmp_path / "handed over" / "verify.py"
    alone.parent.mkdir()
    shutil.copy(lone.__file__, alone)
    command = [sys.executable, "-I", "-S", str(alone), str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["entries"] == 20
    with forging(path) as db:
        db.execute("UPDATE entries SET kind = 'outcome' WHERE seq = 3")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["bad_seq"]) == (1, 3)


def test_a_missing_or_foreign_file_is_unreadable_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(Unreadable):
        verify(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_bytes(b"not a database" * 100)
    with pytest.raises(Unreadable):
        verify(tmp_path / "text.db")
    assert lone.main([str(tmp_path / "text.db")]) == 2


def test_the_genesis_is_a_constant_of_the_format() -> None:
    assert GENESIS.hex().startswith("a2ec4cb25ce70883")


def test_what_a_store_says_moves_no_cursor_and_forges_no_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with forging(path) as db:
        db.execute(
            "INSERT INTO approval_records VALUES (?, 'approved', '{}')", ["ap\x1b[2J\nintact      9 entries\u202e"]
        )
    assert main([str(path)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("NOT INTACT")
    assert "\nintact" not in said
    assert said.replace("\n", "").isprintable()


@pytest.mark.parametrize("body", ["[]", '"x"', '{"note": 5}', '{"note": "x\\n\\ny"}'])
def test_a_testimony_that_is_none_breaks_nothing(path: Path, body: str) -> None:
    with contextlib.closing(Store.open(path)) as store:
        store.append([[Item(Draft(Kind.CHECKPOINT_WITNESSED, None, None, None, {"note": "n"}))]])
        seq, _ = store.head()
    with forging(path) as db:
        db.execute("UPDATE entries SET body = ? WHERE seq = ?", (body, seq))
        rehash(db, seq)
    assert "no checkpoint is cosigned" in (verify(path, witness_keys=[WITNESS]).problem or "")


@pytest.mark.parametrize("table", ["entries", "checkpoints", "recordings", "segments", "blocks"])
def test_a_view_in_the_place_of_a_table_is_not_read(path: Path, table: str) -> None:
    endless = "WITH RECURSIVE n(seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM n) SELECT * FROM n"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(f"DROP TABLE {table}; CREATE VIEW {table} AS {endless}")
    with pytest.raises(Unreadable, match=f"its `{table}` is no table"):
        verify(path)
