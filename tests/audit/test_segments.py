"""Segments: one log over several files; each verifies alone, and all of them are read as one."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from audit import export, playback, rolling, search, segments
from audit import verify as lone
from audit.approvals import Conflict, Request, State
from audit.checkpoint import Checkpoint
from audit.entry import Draft, Kind
from audit.errors import AuditUnavailable
from audit.instances import Instance, close_dangling
from audit.note import Note, Signer
from audit.recording import Chunk, Mode, Recording
from audit.retention import Limits, due, shredding
from audit.rolling import roll
from audit.search import Query
from audit.store import Item, Store
from audit.verify import Report, entry_hash, verify
from tests.audit.reverify import reverify
from tests.audit.test_approvals import RECORD, item, moved, vote
from tests.audit.test_store import APPEND, intent, outcome, python, rows
from tests.audit.test_tamper import many
from tests.audit.test_verify import forging

LOG = "example.com/audit"
KEY, NEXT, THIEF = (Signer(LOG, bytes([number]) * 32) for number in (1, 2, 3))
VKEY = str(KEY.public)


def recorded(number: int) -> Item:
    return Item(outcome(number).draft, Recording(Mode.FULL, [Chunk(1, True, b"row %d" % number)]))


def some(store: Store, first: int, last: int) -> None:
    for number in range(first, last):
        store.append([[intent(number)], [recorded(number)]])


def build(path: Path) -> list[str]:
    """Segments 1 to 12 and 13 to 27, with a rotation in the second, and a store from 28 on. Returns all notes.

    The intent 100 has its outcome one segment later.
    """
    with contextlib.closing(Store.open(path)) as store:
        some(store, 0, 5)
        store.append([[intent(100)]])
        roll(path, lambda: KEY)
        store.append([[outcome(100)]])
        some(store, 5, 8)
        store.rotate(KEY, NEXT)
        some(store, 8, 11)
        roll(path, lambda: NEXT)
        some(store, 11, 15)
        store.checkpoint(NEXT)
        some(store, 15, 16)
        return [note for _, note in store.notes()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    path = tmp_path_factory.mktemp("built") / "audit.db"
    return path, build(path)


@pytest.fixture
def path(tmp_path: Path, built: tuple[Path, list[str]]) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(built[0].parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "audit.db"


def files(path: Path) -> list[Path]:
    return [*(one.path for one in segments.here(path)), path]


def spans(path: Path) -> list[tuple[object, ...]]:
    return [rows(file, "SELECT min(seq), max(seq) FROM entries")[0] for file in files(path)]


def test_the_log_goes_on_from_file_to_file(path: Path) -> None:
    assert spans(path) == [(1, 12), (13, 27), (28, 38)]
    assert [file.name for file in files(path)[:2]] == ["000000000001-000000000012.db", "000000000013-000000000027.db"]
    report = verify(path, public_keys=[VKEY])
    assert (report.problem, report.since, report.entries, report.signed) == (None, 1, 38, 36)
    assert (report.segments, report.missing, report.open_statements) == (2, [], 0)
    for before, after in [(0, 1), (1, 2)]:
        [(hash_,)] = rows(files(path)[before], "SELECT hash FROM entries ORDER BY seq DESC LIMIT 1")
        [(prev, kind)] = rows(files(path)[after], "SELECT prev, kind FROM entries ORDER BY seq LIMIT 1")
        assert (prev, kind) == (hash_, "segment.sealed")


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("key", [KEY, NEXT], ids=["first key", "second key"])
def test_each_file_verifies_alone(path: Path, tmp_path: Path, at: int, key: Signer) -> None:
    """With either key: a segment's first entry has what hands over from one to the other."""
    alone = tmp_path / "cold" / "alone.db"
    alone.parent.mkdir()
    shutil.move(files(path)[at], alone)
    if (at, key) == (0, NEXT):
        return  # signed before there was a second key
    report = verify(alone, public_keys=[str(key.public)])
    assert report.ok, report
    assert (report.vouched, report.sealed) == (True, at < 2)
    assert report.missing == ([] if at == 0 else [(1, 12)] if at == 1 else [(1, 27)])
    assert reverify(alone, str(key.public), []) == report.signed


def test_a_folder_of_segments_verifies(path: Path) -> None:
    report = verify(segments.folder(path), public_keys=[VKEY])
    assert (report.ok, report.entries, report.sealed) == (True, 27, True)
    assert "what follows is elsewhere" in lone.sentence(report)


def test_what_was_moved_is_said_and_no_error(path: Path, built: tuple[Path, list[str]]) -> None:
    for one, missing in [(1, [(13, 27)]), (0, [(1, 27)])]:
        files(path)[one].unlink()
        report = verify(path, public_keys=[VKEY], checkpoints=built[1])
        assert (report.ok, report.missing, report.entries) == (True, missing, 38)
        assert report.unseen > 0
        assert "are about entries that are not here" in lone.sentence(report)
    assert "entries 1 to 27: their segments are not here" in lone.sentence(report)
    assert [one.path.exists() for one in segments.sealed(path)] == [False, False]
    with contextlib.closing(Store.open(path)) as store:
        store.append([[intent(50)]])
        assert store.checkpoint(NEXT) is not None
        assert [str(key) for key in store.public_keys()] == [VKEY, str(NEXT.public)]


def test_since_looks_only_where_it_must(path: Path) -> None:
    with forging(files(path)[0]) as db:
        db.execute("UPDATE entries SET subject = 'nobody' WHERE seq = 3")
    assert verify(path).bad_seq == 3
    report = verify(path, since=28)
    assert (report.ok, report.since, report.missing) == (True, 28, [])
    assert verify(path, since=37).since == 37


# -- tampering, across files ---------------------------------------------------------------------------


def in_file(at: int, *steps: str | Callable[[sqlite3.Connection], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with forging(files(path)[at]) as db:
            many(*steps)(db)

    return change


def rewritten(db: sqlite3.Connection) -> None:
    """A segment whose hashes were all recomputed: its links hold among themselves."""
    prev = db.execute("SELECT prev FROM entries ORDER BY seq LIMIT 1").fetchone()[0]
    rows = db.execute(
        "SELECT seq, time, kind, session, subject, connection, statement, body FROM entries ORDER BY seq"
    ).fetchall()
    for seq, *fields in rows:
        value = entry_hash(prev, seq, *fields)
        db.execute("UPDATE entries SET prev = ?, hash = ? WHERE seq = ?", (prev, value, seq))
        prev = value


def older_copy(path: Path) -> None:
    """The store as it was before its second segment was sealed."""
    shutil.copy(files(path)[1], path)
    with forging(path) as db:
        db.execute("DELETE FROM segments")
        db.execute("DELETE FROM entries WHERE seq > 24")
        db.execute("DELETE FROM checkpoints WHERE size > 24")


def regrown(path: Path) -> None:
    older_copy(path)
    segments_aside = segments.folder(path).rename(path.with_name("aside"))
    with contextlib.closing(Store.open(path)) as store:
        some(store, 200, 210)
        store.checkpoint(NEXT)
    segments_aside.rename(segments.folder(path))


def foreign(path: Path) -> None:
    """Another audit's first segment in place of ours."""
    other = path.with_name("other.db")
    with contextlib.closing(Store.open(other)) as store:
        some(store, 300, 305)
        store.append([[intent(306)]])
    roll(other, lambda: KEY)
    shutil.copy(files(other)[0], files(path)[0])


def duplicated(path: Path) -> None:
    shutil.copy(files(path)[0], segments.folder(path) / "000000000001-000000000013.db")


def foreign_before_a_gap(path: Path) -> None:
    """Somebody else's first segment, and the one between it and ours is elsewhere: nothing links the two."""
    other = path.with_name("other.db")
    with contextlib.closing(Store.open(other)) as store:
        some(store, 300, 305)
        store.append([[intent(306)]])
    roll(other, lambda: THIEF)
    shutil.copy(files(other)[0], files(path)[0])
    files(path)[1].unlink()


def unsigned_before_a_gap(path: Path) -> None:
    """The first segment rewritten under the right key's name, without what would have to be signed."""
    in_file(0, EDIT, rewritten, "DELETE FROM checkpoints", "DELETE FROM segments")(path)
    files(path)[1].unlink()


def renamed(path: Path) -> None:
    """Readers go by the names: who searches would not see the entries 5 to 12."""
    files(path)[1].rename(segments.folder(path) / "000000000005-000000000027.db")


EDIT = "UPDATE entries SET subject = 'nobody' WHERE seq = 7"
CUT = ("DELETE FROM entries WHERE seq > 36", "DELETE FROM recordings WHERE seq > 36")


@dataclass(frozen=True)
class Across:
    """A class of change, the first bad seq (None: cannot be seen), and a word of why."""

    name: str
    change: Callable[[Path], None]
    bad: int | None
    word: str


TABLE = [
    Across("edit in a segment", in_file(0, EDIT), 7, "edited"),
    Across("edit in the second segment", in_file(1, "UPDATE entries SET body = '{}' WHERE seq = 20"), 20, "edited"),
    Across("delete in a segment", in_file(1, "DELETE FROM entries WHERE seq = 20"), 20, "deleted"),
    Across("a segment's end deleted", in_file(0, "DELETE FROM entries WHERE seq > 10"), 11, "signed"),
    Across(
        "a segment's end deleted with its checkpoint",
        in_file(1, "DELETE FROM entries WHERE seq > 22", "DELETE FROM checkpoints WHERE size > 22"),
        23, "truncated",
    ),
    Across("a segment's beginning deleted", in_file(1, "DELETE FROM entries WHERE seq = 13"), 13, "does not go on"),
    Across("reorder over the boundary", in_file(1, "UPDATE entries SET seq = 9999 WHERE seq = 14"), 14, "deleted"),
    Across("recomputed in a segment", in_file(0, EDIT, rewritten), 1, "recomputed"),
    Across("a segment's checkpoint deleted", in_file(0, "DELETE FROM checkpoints"), 12, "deleted"),
    Across("a base deleted", in_file(1, "DELETE FROM checkpoints WHERE size = 12"), 13, "no checkpoint"),
    Across("a base's peaks", in_file(2, "UPDATE checkpoints SET peaks = zeroblob(128) WHERE size = 27"), 27, "edited"),
    Across("a recording edited", in_file(0, "UPDATE recordings SET data = x'00' WHERE seq = 4"), 4, "edited"),
    Across("a recording deleted in a segment", in_file(0, "DELETE FROM recordings WHERE seq = 4"), 4, "deleted"),
    Across("the sealing entry edited", in_file(2, "UPDATE entries SET body = '{}' WHERE seq = 28"), 28, "edited"),
    Across("the store rolled back behind a segment", older_copy, 28, "rolled back"),
    Across("the store rolled back and regrown", regrown, 28, "rolled back"),
    Across("a foreign segment", foreign, 1, "fork"),
    Across("a foreign segment before a gap", foreign_before_a_gap, 28, "foreign key"),
    Across("an unsigned segment before a gap", unsigned_before_a_gap, 1, "signs it"),
    Across("a segment under another name", renamed, 13, "renamed"),
    Across("a segment twice", duplicated, 1, "once more"),
    Across("a segment moved away", lambda path: files(path)[0].unlink(), None, ""),
    Across("truncated after the last checkpoint", in_file(2, *CUT), None, ""),
    Across("truncated before it", in_file(2, "DELETE FROM entries WHERE seq > 33"), 34, "truncated"),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_the_tamper_table_across_segments(path: Path, row: Across, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lone, "_BLOCK", 4)  # so that these few entries are many blocks
    row.change(path)
    report = verify(path, public_keys=[VKEY])
    assert (report.bad_seq, report.ok) == (row.bad, row.bad is None), report
    assert row.word in (report.problem or ""), report


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_verifier_written_from_the_specification_alone_agrees_across_segments(path: Path, row: Across) -> None:
    row.change(path)
    with contextlib.nullcontext() if row.bad is None else pytest.raises((AssertionError, LookupError)):
        reverify(path, VKEY, [])


def test_what_the_verifier_finds_does_not_depend_on_how_many_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        for first in range(0, 4500, 500):
            store.append([[intent(number), recorded(number)] for number in range(first, first + 500)])
            store.checkpoint(KEY)
        store.append([[shredding("ada", 600, "asked for")]])
        store.checkpoint(KEY)
    monkeypatch.setattr(lone, "_LARGE", 1)
    changes = ["", "UPDATE entries SET subject = 'x' WHERE seq IN (8500, 5000)"]
    found: list[tuple[Report, Report]] = []
    for change in changes:
        with forging(path) as db:
            db.execute(change)
        found.append((verify(path, jobs=1), verify(path, jobs=2)))
    assert [one for one, _ in found] == [two for _, two in found]
    assert [one.bad_seq for one, _ in found] == [None, 5000]


# -- reading across ------------------------------------------------------------------------------------


def test_a_search_finds_what_lies_in_segments_and_over_their_boundary(path: Path) -> None:
    everything = search.search(path, Query(limit=1000))
    assert [found.seq for found in everything] == list(range(1, 39))
    assert [found.seq for found in search.search(path, Query(limit=3, kind="intent"))] == [33, 35, 37]
    assert [found.seq for found in search.search(path, Query(words="100"))] == [11]
    assert len(search.search(path, Query(user="devin", verdict="allow"))) == 34
    pair = [
        found
        for found in search.search(path, Query(rule="agents-read", limit=1000))
        if (found.statement or "").endswith("-100")
    ]
    assert [found.seq for found in pair] == [11, 14], "the outcome is in another segment than the verdict"
    files(path)[0].unlink()
    assert [found.seq for found in search.search(path, Query(limit=1000))] == list(range(13, 39))


def test_a_session_and_its_principal_are_found_over_the_boundary(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    body = {"principal": {"groups": ["dba"], "email": "ada@example.com"}, "session": "se-1", "instance": "in-test"}
    with contextlib.closing(Store.open(path)) as store:
        store.append([[Item(Draft(Kind.SESSION_OPENED, "se-1", "devin", "shop", body))], [intent(1)], [outcome(1)]])
        roll(path, lambda: KEY)
        store.append([[intent(2)], [outcome(2)]])
        for query in (Query(user="ada@example.com"), Query(group="dba")):
            assert [found.seq for found in search.search(path, query)] == [1, 2, 3, 6, 7]
        assert [moment.seq for moment in playback.session(path, "se-1")] == [1, 2, 3, 6, 7]
        assert [one.session for one in store.open_sessions()] == ["se-1"]


def test_an_export_goes_from_file_to_file(path: Path) -> None:
    exported = list(export.entries(path, 10))
    assert [entry.seq for entry in exported] == list(range(11, 39))
    # Each outcome has its intent with it, whichever file that is in.
    assert all(entry.intent is not None for entry in exported if entry.kind == "outcome")


@pytest.mark.parametrize("seq", [1, 12, 13, 20, 27, 28, 36])
def test_entries_are_proved_across_and_without_what_is_elsewhere(path: Path, seq: int) -> None:
    hashes = {n: h for file in files(path) for n, h in rows(file, "SELECT seq, hash FROM entries")}
    with contextlib.closing(Store.open(path)) as store:
        keys = store.public_keys()
        proof = store.prove(seq)
        assert proof is not None
        assert proof.check(hashes[seq], keys).size == 36  # type: ignore[arg-type]
        shutil.move(files(path)[1 if seq < 13 else 0], path.with_name("away"))
        proof = store.prove(seq)
        assert proof is not None
        assert proof.check(hashes[seq], keys).size == (12 if seq < 13 else 36)  # type: ignore[arg-type]


def test_a_checkpoint_is_carried_on_across_segments(path: Path, built: tuple[Path, list[str]]) -> None:
    notes = {Checkpoint.parse(Note.parse(note).text).size: note for note in built[1]}
    with contextlib.closing(Store.open(path)) as store:
        keys = store.public_keys()
        for old in sorted(notes)[:-1]:
            extension = store.extension(old, 36, notes[36])
            assert extension is not None
            extension.check(notes[old], keys)
        files(path)[0].unlink()
        assert store.extension(11, 36, notes[36]) is None
        extension = store.extension(27, 36, notes[36])
        assert extension is not None
        extension.check(notes[27], keys)


def test_sqlite_utils_reads_a_segment(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sqlite_utils", "rows", str(files(path)[0]), "statements", "--limit", "1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert '"who": "devin"' in done.stdout


# -- recordings, approvals, what is open ------------------------------------------------------------------


def test_recordings_stay_with_their_segment_and_are_shredded_there(path: Path) -> None:
    with contextlib.closing(Store.open(path)) as store:
        assert store.outcome_of("st-in-test-1") == 4
        [done] = store.append([[shredding("ada", 4, "asked for")]])
        assert not isinstance(done, Conflict)
        segments.shred(path, 4, 4)
        [again] = store.append([[shredding("ada", 4, "asked for")]])
        assert isinstance(again, Conflict)
    assert rows(files(path)[0], "SELECT count(*) FROM recordings WHERE seq = 4") == [(0,)]
    assert verify(path).ok
    assert verify(files(path)[0]).ok, "the entry that says so is in another file"
    assert reverify(path, VKEY, [])


def test_retention_lets_go_of_the_oldest_first_whichever_file_they_are_in(path: Path) -> None:
    now = datetime.now(UTC)
    by_age = due(path, Limits(age=timedelta(0)), now)
    by_size = due(path, Limits(size=1), now)
    for found in (by_age, by_size):
        assert found is not None
        assert getattr(found.change, "first", None) == 2
    sizes = [rows(file, "SELECT sum(length(data)) FROM recordings")[0][0] for file in files(path)]
    total = sum(size for size in sizes if isinstance(size, int))
    assert due(path, Limits(size=total), now) is None


def test_an_approval_outlives_the_roll(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        store.append([[item(Kind.APPROVAL_REQUESTED, Request(RECORD))], [vote("ada")]])
        roll(path, lambda: KEY)
        store.append([[moved(State.REQUESTED, State.APPROVED)]])
        store.append([[moved(State.APPROVED, State.CONSUMED)]])
        [again] = store.append([[moved(State.APPROVED, State.CONSUMED)]])
        assert isinstance(again, Conflict)
    assert verify(path).ok
    assert rows(path, "SELECT state FROM approval_records") == [("consumed",)]
    files(path)[0].unlink()
    assert verify(path).ok
    with forging(path) as db:
        db.execute("UPDATE approval_records SET state = 'approved'")
    assert "`consumed` in the chain but `approved`" in (verify(path).problem or "")


def test_what_a_dead_process_left_open_is_closed_once_though_it_was_rolled_away(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        store.append([[intent(1, "in-dead")], [intent(2, "in-dead")]])
        for _ in range(2):
            roll(path, lambda: KEY)
            store.append([[intent(3, "in-test"), outcome(3, "in-test")]])
        assert verify(path).open_statements == 2
        assert close_dangling(store) == ["st-in-dead-1", "st-in-dead-2"]
        assert close_dangling(store) == []
        roll(path, lambda: KEY)
        assert store.open_statements() == []
    assert verify(path).open_statements == 0


# -- who may write -----------------------------------------------------------------------------------------


def test_nothing_is_written_into_a_sealed_segment(path: Path) -> None:
    with pytest.raises(AuditUnavailable, match="is a sealed segment"):
        Store.open(files(path)[0])
    assert verify(path).ok


def test_a_store_that_is_older_than_its_segments_is_not_opened(path: Path) -> None:
    older_copy(path)
    with pytest.raises(AuditUnavailable, match="replaced by an older copy"):
        Store.open(path)


def test_only_what_was_sealed_may_be_deleted(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        for sql in ("DELETE FROM entries WHERE seq = 28", "DELETE FROM checkpoints"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                db.execute(sql)


def test_a_process_that_wrote_before_the_roll_goes_on_after_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as one, contextlib.closing(Store.open(path)) as two:
        one.append([[intent(1)]])
        two.append([[intent(2)]])
        roll(path, lambda: KEY)
        one.append([[outcome(1)]])
        two.append([[outcome(2)]])
    report = verify(path)
    assert (report.ok, report.entries, report.since) == (True, 6, 1)


ROLL = """
import sys
from pathlib import Path
from audit.rolling import roll
from tests.audit.test_segments import KEY
print(sum(roll(Path(sys.argv[1]), lambda: KEY) is not None for _ in range(8)), flush=True)
"""


def test_processes_that_roll_and_append_at_once_never_fork_nor_lose(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    Store.open(path).close()
    writers = [python(APPEND, path, f"in-{name}", 40) for name in "ab"]
    rollers = [python(ROLL, path) for _ in range(2)]
    for process in [*writers, *rollers]:
        process.communicate(timeout=120)
        assert process.returncode == 0
    roll(path, lambda: KEY)
    report = verify(path)
    assert report.ok, report
    told = [number for file in files(path) for (number,) in rows(file, "SELECT body ->> '$.text' FROM entries")]
    assert sum(text is not None for text in told) == 80
    assert reverify(path, VKEY, [])


def test_a_roll_is_due_by_size_and_by_age_and_where_one_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    now = datetime.now(UTC)
    with contextlib.closing(Store.open(path, clock=lambda: now - timedelta(days=2))) as store:
        assert not rolling.due(path, rolling.Limits(size=1, age=timedelta(0)), now), "an empty one is not"
        some(store, 0, 3)
        assert rolling.due(path, rolling.Limits(age=timedelta(days=1)), now)
        assert not rolling.due(path, rolling.Limits(age=timedelta(days=3)), now)
        assert rolling.due(path, rolling.Limits(size=10_000), now)
        assert not rolling.due(path, rolling.Limits(size=10_000_000), now)
        store.seal(KEY)
        assert rolling.due(path, rolling.Limits(size=10_000_000), now)
    assert roll(path, lambda: THIEF) is not None, "what was sealed needs no key any more"
    assert roll(path, lambda: KEY) is None, "there is nothing new"


def test_a_roll_gives_way_to_who_writes_and_does_not_wait_for_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rolling, "_AT_ONCE", 5)
    monkeypatch.setattr(rolling, "_MOMENT", 0.0)
    rests: list[float] = []
    monkeypatch.setattr("audit.rolling.time.sleep", rests.append)
    assert roll(path, lambda: NEXT) is not None
    assert rests
    assert not any(rests), "nobody wrote meanwhile"
    rests.clear()
    with contextlib.closing(Store.open(path)) as store:
        some(store, 100, 110)

        def rest(seconds: float) -> None:
            rests.append(seconds)
            if len(rests) == 1:
                some(store, 110, 111)

        monkeypatch.setattr("audit.rolling.time.sleep", rest)
        assert roll(path, lambda: NEXT) is not None
        assert [seconds > 0 for seconds in rests] == [False, True, *[False] * (len(rests) - 2)]
    assert verify(path).ok


def test_what_is_left_of_a_roll_is_held_to_what_was_sealed(path: Path) -> None:
    with contextlib.closing(Store.open(path)) as store:
        segment = store.seal(NEXT)
        assert segment is not None
        rolling._put(path, segment, rolling.Disk())
        assert store.let_go(segment, 4)
        assert [found.seq for found in search.search(path, Query(limit=1000))] == list(range(1, 40))
        assert verify(path).ok
        assert reverify(path, VKEY, [])
    for body in ("x", "[]", '{"segment":{"first":"x"}}', "{}"):
        with forging(path) as db:
            [(was,)] = db.execute("SELECT body FROM entries WHERE seq = 39").fetchall()
            db.execute("UPDATE entries SET body = ? WHERE seq = 39", (body,))
        assert verify(path).bad_seq == 39
        with forging(path) as db:
            db.execute("UPDATE entries SET body = ? WHERE seq = 39", (was,))
    with forging(path) as db:
        db.execute("UPDATE entries SET subject = 'nobody' WHERE seq = 37")
    report = verify(path)
    assert (report.bad_seq, "left of it" in (report.problem or "")) == (37, True)
    with forging(path) as db:
        rewritten(db)
    assert verify(path).bad_seq in {37, 38, 39}
    with pytest.raises(AssertionError):
        reverify(path, VKEY, [])


@pytest.fixture
def instance(path: Path) -> Iterator[Instance]:
    made = Instance.start(path)
    yield made
    made.stop()


def test_a_sealing_entry_tells_what_is_open(path: Path, instance: Instance) -> None:
    with contextlib.closing(Store.open(path)) as store:
        store.append([[intent(70, instance.id)]])
        store.seal(NEXT)
    [(body,)] = rows(path, "SELECT body FROM entries ORDER BY seq DESC LIMIT 1")
    told = json.loads(str(body))
    assert [one["statement"] for one in told["open"]] == [f"st-{instance.id}-70"]
    assert told["segment"]["first"] == 28


def test_the_example_of_the_specification_is_what_is_written(tmp_path: Path) -> None:
    page = resources.files("audit").joinpath("SEGMENTS.md").read_text(encoding="utf-8")
    [told] = [json.loads(line) for line in page.splitlines() if line.startswith("{")]
    begun = datetime(2026, 11, 24, 10, tzinfo=UTC)
    times = iter([begun, begun + timedelta(milliseconds=4)])
    drafts = [
        Draft(Kind.INTENT, "se-1", "devin", None, {"text": "select 'é'"}, "st-1"),
        Draft(Kind.OUTCOME, "se-1", "devin", "shop", {"rows": 1, "status": "completed"}, "st-1"),
        Draft(Kind.INTENT, "se-1", "devin", "shop", {"text": "select 2"}, "st-2"),
    ]
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path, clock=lambda: next(times, begun + timedelta(hours=1)))) as store:
        for draft in drafts:
            store.append([[Item(draft)]])
        store.seal(Signer(LOG, bytes(range(32))))
        assert store.notes()[-1][1] in page.replace("```\n", "")
    fields = "time, kind, session, subject, connection, statement, body"
    [row] = rows(path, f"SELECT {fields}, hex(prev), hex(hash) FROM entries WHERE seq = 5")
    assert row[:7] == tuple(told[name] for name in fields.split(", "))
    assert [str(value).lower() for value in row[7:]] == [told["prev"], told["hash"]]


def test_a_roll_takes_up_only_the_very_segment_that_was_sealed(tmp_path: Path) -> None:
    """One of another audit, whole by itself, or one without its recordings, must not make the store let go."""
    path, other = tmp_path / "audit.db", tmp_path / "other" / "audit.db"
    for one in (path, other):
        with contextlib.closing(Store.open(one)) as store:
            some(store, 0, 5)
    roll(other, lambda: THIEF)

    class Full(rolling.Disk):
        def copy(self, *_: object) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(AuditUnavailable, match="No space"):
        roll(path, lambda: KEY, disk=Full())
    [theirs] = segments.here(other)
    ours = segments.folder(path) / theirs.path.name
    shutil.copy(theirs.path, ours)
    with pytest.raises(AuditUnavailable, match="another history"):
        roll(path, lambda: KEY)
    ours.unlink()
    roll(path, lambda: KEY, stopped=lambda: True)
    with contextlib.closing(sqlite3.connect(ours)) as db, db:
        db.execute("DELETE FROM recordings WHERE seq = 2")
    with pytest.raises(AuditUnavailable, match="recordings are not in it"):
        roll(path, lambda: KEY)
    assert rows(path, "SELECT min(seq) FROM entries") == [(1,)]
    ours.unlink()
    roll(path, lambda: KEY)
    assert verify(path, public_keys=[VKEY]).ok


def test_a_segment_whose_shredding_was_killed_is_read_as_it_was(path: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(files(path)[0], isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")  # so that pages are in the file before the transaction ends
        db.execute("BEGIN IMMEDIATE")
        db.execute("DELETE FROM recordings")
        db.execute("CREATE TABLE more AS SELECT body FROM entries, segments")
        killed = tmp_path / "killed" / "audit.db"
        shutil.copytree(path.parent, killed.parent, ignore=shutil.ignore_patterns("killed"))
    assert list(segments.folder(killed).glob("*-journal"))
    assert verify(killed, public_keys=[VKEY]).ok
    assert list(segments.folder(killed).glob("*-journal"))  # the verifier writes nothing
    assert len(search.search(killed, Query(limit=100))) == 38
    assert not list(segments.folder(killed).glob("*-journal"))


def test_shredding_in_a_segment_while_it_is_verified_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = lone._walk
    shredded: list[int] = []

    def meanwhile(*arguments: Any) -> str | None:
        if not shredded:
            shredded.append(4)
            with contextlib.closing(Store.open(path)) as store:
                store.append([[shredding("ada", 4, "asked for")]])
            segments.shred(path, 4, 4)
        return walk(*arguments)

    monkeypatch.setattr(lone, "_walk", meanwhile)
    assert verify(path, public_keys=[VKEY]).ok
    assert rows(files(path)[0], "SELECT 1 FROM recordings WHERE seq = 4") == []


def test_an_export_says_what_is_elsewhere(path: Path) -> None:
    files(path)[1].unlink()
    gaps: list[tuple[int, int]] = []
    assert [one.seq for one in export.entries(path, gap=lambda *span: gaps.append(span))][-1] == 38
    assert gaps == [(13, 27)]


def test_a_roll_leaves_the_last_room_to_the_entries(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        some(store, 0, 5)

    class Tight(rolling.Disk):
        def free(self, _: Path) -> int:
            return path.stat().st_size  # enough for the segment alone

    with pytest.raises(AuditUnavailable, match="is not rolled until there is room"):
        roll(path, lambda: KEY, disk=Tight())
    assert segments.here(path) == []
    assert verify(path).ok
    assert roll(path, lambda: KEY) is not None
