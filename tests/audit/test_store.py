"""The store on real files: durable, unforked, refusing when it cannot write, and honest after a crash."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from audit.entry import BodyError, Draft, Entry, Kind
from audit.instances import Instance, close_dangling
from audit.store import AuditUnavailable, Item, Store
from audit.verify import verify
from audit.writer import Result, Writer


def intent(number: int, instance: str = "in-test") -> Item:
    return Item(
        Draft(
            Kind.INTENT,
            "se-1",
            "devin",
            "shop",
            {
                "instance": instance,
                "door": "wire",
                "text": f"select {number}",
                "principal": {"kind": "agent", "on_behalf_of": "ada", "groups": ["ai-agents", "ops"]},
                "client": {"name": "psql"},
                "verdict": {"effect": "allow", "rules": ["agents-read"], "reasons": []},
                "request": {"reason": "a test"},
            },
            f"st-{instance}-{number}",
        )
    )


def outcome(number: int, instance: str = "in-test", **body: object) -> Item:
    told = {"status": "completed", **body}
    return Item(Draft(Kind.OUTCOME, "se-1", "devin", "shop", told, f"st-{instance}-{number}"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with contextlib.closing(Store.open(path)) as opened:
        yield opened


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(sql).fetchall()


def test_the_file_is_private_and_marked_as_ours(store: Store, path: Path) -> None:
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert rows(path, "PRAGMA application_id") == [(0x434E5453,)]


def test_a_batch_is_one_chain_and_survives_reopening(store: Store, path: Path) -> None:
    store.append([[intent(1)], [outcome(1), intent(2)]])
    store.close()
    with contextlib.closing(Store.open(path)) as again:
        again.append([[outcome(2)]])
        assert again.head()[0] == 4
    report = verify(path)
    assert report.ok
    assert report.entries == 4
    assert report.open_statements == 0


def test_an_empty_store_verifies(store: Store, path: Path) -> None:
    report = verify(path)
    assert (report.ok, report.entries) == (True, 0)


def test_time_never_goes_backwards_though_the_clock_does(path: Path) -> None:
    clock = iter([datetime(2026, 5, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)])
    with contextlib.closing(Store.open(path, clock=lambda: next(clock))) as store:
        store.append([[intent(1)]])
        store.append([[intent(2)]])
    assert rows(path, "SELECT DISTINCT time FROM entries") == [("2026-05-01T00:00:00.000000Z",)]


def test_entries_cannot_be_changed_by_accident(store: Store, path: Path) -> None:
    store.append([[intent(1)]])
    with contextlib.closing(sqlite3.connect(path)) as db:
        for sql in ("UPDATE entries SET body = '{}'", "DELETE FROM entries"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                db.execute(sql)


def test_the_flat_views_read_well(store: Store, path: Path) -> None:
    store.append([[intent(1), outcome(1, tag="SELECT 1", rows=1, duration_ms=0.4, masked=["public.customers.ssn"])]])
    [row] = rows(
        path, "SELECT who, kind, on_behalf_of, groups, verdict, rule, status, tag, masked, sql FROM statements"
    )
    assert row == (
        "devin", "agent", "ada", "ai-agents, ops", "allow", "agents-read", "completed", "SELECT 1",
        "public.customers.ssn", "select 1",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "sqlite_utils", "rows", str(path), "statements", "--limit", "1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert '"who": "devin"' in done.stdout


def test_the_join_of_intent_and_outcome_uses_an_index(store: Store, path: Path) -> None:
    plan = " ".join(str(row) for row in rows(path, "EXPLAIN QUERY PLAN SELECT * FROM statements"))
    assert "entries_by_statement (statement=? AND kind=?)" in plan


# -- refusing -----------------------------------------------------------------------------------------


def test_another_sqlite_file_is_never_written_to(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(AuditUnavailable, match="another program's database"):
        Store.open(path)


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"hello, I am a text file, and long enough to be read as a header" * 10)
    with pytest.raises(AuditUnavailable, match="not an SQLite file"):
        Store.open(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditUnavailable, match=r"file/audit\.db`: .* a part of the path is no folder; check the path"):
        Store.open(tmp_path / "file" / "audit.db")


def test_a_lock_held_elsewhere_refuses_and_then_goes_on(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store._db.execute("PRAGMA busy_timeout = 50")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(AuditUnavailable, match="another process holds its lock"):
            store.append([[intent(1)]])
        other.execute("ROLLBACK")
    store.append([[intent(1)]])
    assert verify(path).entries == 1


def test_a_full_disk_refuses_whole_batches_and_the_chain_still_holds(store: Store, path: Path) -> None:
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 4}")
    written: list[int] = []

    def fill() -> None:
        for number in range(1000):
            store.append([[intent(number)]])
            written.append(number)

    with pytest.raises(AuditUnavailable, match="the disk is full"):
        fill()
    report = verify(path)
    assert report.ok
    assert report.entries == len(written)
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.append([[intent(5000)]])
    assert verify(path).ok


def test_one_bad_body_does_not_take_its_batch_along(store: Store, path: Path) -> None:
    writer = Writer(store)
    results: dict[str, Result] = {}
    ready = threading.Event()
    bad = Item(Draft(Kind.INTENT, None, None, None, {"x": b"bytes"}))

    def last(result: Result) -> None:
        results["last"] = result
        ready.set()

    with store._lock:  # the writer is kept busy by one, and the next three wait together
        writer.submit([intent(0)], lambda _: None)
        while writer._waiting:
            time.sleep(0.001)
        writer.submit([intent(1)], lambda r: results.__setitem__("first", r))
        writer.submit([bad], lambda r: results.__setitem__("bad", r))
        writer.submit([intent(2)], last)
    assert ready.wait(10)
    writer.close()
    assert isinstance(results["bad"], BodyError)
    assert not isinstance(results["first"], Exception)
    assert not isinstance(results["last"], Exception)
    assert verify(path).entries == 3


def test_a_closed_writer_refuses_instead_of_forgetting(store: Store) -> None:
    writer = Writer(store)
    writer.close()
    heard: list[Result] = []
    writer.submit([intent(1)], heard.append)
    assert isinstance(heard[0], AuditUnavailable)


# -- several processes, and their deaths ------------------------------------------------------------------

APPEND = """
import sys
from pathlib import Path
from audit.store import Store
from tests.audit.test_store import intent
store = Store.open(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    store.append([[intent(number, sys.argv[2])]])
    print(number, flush=True)
"""

LIVE = """
import sys
from pathlib import Path
from audit.instances import Instance
from audit.store import Store
from tests.audit.test_store import intent
store = Store.open(Path(sys.argv[1]))
instance = Instance.start(Path(sys.argv[1]))
number = 0
while True:
    store.append([[intent(number, instance.id)]])
    print(number, flush=True)
    number += 1
"""

CLOSE = """
import sys
from pathlib import Path
from audit.instances import close_dangling
from audit.store import Store
print(len(close_dangling(Store.open(Path(sys.argv[1])))))
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_processes_that_share_a_file_never_fork_the_chain(path: Path) -> None:
    Store.open(path).close()
    writers = [python(APPEND, path, f"in-{name}", 100) for name in "abc"]
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    report = verify(path)
    assert report.ok, report.problem
    assert report.entries == 300


def test_after_kill_9_every_acknowledged_entry_is_there_and_dangling_ones_close_once(path: Path) -> None:
    Store.open(path).close()
    victim = python(LIVE, path)
    assert victim.stdout is not None
    acknowledged = [victim.stdout.readline() for _ in range(25)][-1]
    victim.send_signal(signal.SIGKILL)
    rest = victim.communicate(timeout=30)[0].split()
    last = int(rest[-1] if rest else acknowledged)
    report = verify(path)
    assert report.ok
    assert report.entries >= last + 1
    racers = [python(CLOSE, path) for _ in range(2)]
    closed = sorted(int(racer.communicate(timeout=30)[0]) for racer in racers)
    assert closed == [0, report.entries]
    assert rows(path, "SELECT DISTINCT status FROM statements") == [("unknown",)]
    assert verify(path).open_statements == 0


def test_a_living_process_keeps_its_open_statements(store: Store, path: Path) -> None:
    instance = Instance.start(path)
    store.append([[intent(1, instance.id)]])
    assert close_dangling(store) == []
    instance.stop()
    assert close_dangling(store) == [f"st-{instance.id}-1"]


def test_entries_come_back_as_they_are_stored(store: Store, path: Path) -> None:
    [unit] = store.append([[intent(1)]])
    assert not isinstance(unit, Exception)
    [row] = rows(path, "SELECT seq, time, kind, session, subject, connection, statement, body, prev, hash FROM entries")
    assert Entry(*row) == unit[0]  # type: ignore[arg-type]  # a row of the table's own types
