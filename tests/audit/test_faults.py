"""Faults: disks that are full or read-only, locks, lost logs, power cuts. The rule: refuse, never lose, never fork.

The fault tables double each fault: *not persisted* (the step failed before it did anything) and *persisted but
reported failed* (it did all of it, and said that it failed).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit import keys, segments
from audit.errors import AuditUnavailable
from audit.note import Signer
from audit.rolling import Disk, roll
from audit.segments import Segment
from audit.store import Store
from audit.verify import verify
from tests.audit.reverify import reverify
from tests.audit.test_segments import KEY, NEXT, VKEY, files, recorded, some
from tests.audit.test_store import intent, outcome, python, rows

BEFORE, AFTER = "not persisted", "persisted but reported failed"


def everything(path: Path) -> list[tuple[object, ...]]:
    """Each statement's text with how often it is in the audit, over all its files."""
    found: dict[object, set[object]] = {}
    for file in files(path):
        for seq, text in rows(file, "SELECT seq, statement || kind FROM entries"):
            found.setdefault(text, set()).add(seq)
    return sorted((str(text), len(seqs)) for text, seqs in found.items() if text is not None)


def check(path: Path, acknowledged: set[str]) -> None:
    """Whatever failed: both verifiers hold the audit for intact, nothing acknowledged is lost, and nothing is twice."""
    report = verify(path)
    assert report.ok, report
    assert report.missing == []
    told = everything(path)
    assert all(count == 1 for _, count in told), told
    assert acknowledged <= {text for text, _ in told}
    if report.signed:
        assert reverify(path, VKEY, []) == report.signed


class Failing:
    """The store's connection, of whose statements the one with this number fails, before it did anything or after."""

    def __init__(self, db: sqlite3.Connection, at: int, how: str) -> None:
        self._db, self._left, self._how = db, at, how
        self.failed: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, sql: str, *values: Any) -> Any:
        return self._run(sql, lambda: self._db.execute(sql, *values))

    def executemany(self, sql: str, *values: Any) -> Any:
        return self._run(sql, lambda: self._db.executemany(sql, *values))

    def _run(self, sql: str, run: Callable[[], Any]) -> Any:
        self._left -= 1
        if self._left:
            return run()
        self.failed = sql
        if self._how == AFTER:
            run()
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname, error.sqlite_errorcode = "SQLITE_IOERR", sqlite3.SQLITE_IOERR
        raise error


def append(store: Store) -> None:
    store.append([[intent(7)], [recorded(7)]])


STEPS: list[Callable[[Store], object]] = [
    append,
    lambda store: store.checkpoint(KEY),
    lambda store: store.rotate(KEY, NEXT),
    lambda store: store.seal(KEY),
]


@pytest.mark.parametrize("how", [BEFORE, AFTER])
@pytest.mark.parametrize("step", STEPS, ids=["append", "checkpoint", "rotate", "seal"])
def test_every_statement_of_a_write_may_fail_and_nothing_is_lost_or_forked(
    tmp_path: Path, step: Callable[[Store], object], how: str
) -> None:
    """One after the other, until the write has no more statements; after each, whoever comes next goes on."""
    path = tmp_path / "audit.db"
    acknowledged: set[str] = set()
    with contextlib.closing(Store.open(path)) as store:
        some(store, 0, 2)
        store.checkpoint(KEY)
    pristine = path.read_bytes()
    failed: list[str] = []
    while True:
        for leftover in path.parent.iterdir():
            leftover.unlink()
        path.write_bytes(pristine)
        with contextlib.closing(Store.open(path)) as store:
            store.append([[intent(1000)]])
            acknowledged = {f"st-in-test-{n}{kind}" for n in (0, 1) for kind in ("intent", "outcome")}
            acknowledged.add("st-in-test-1000intent")
            failing = Failing(store._db, len(failed) + 1, how)
            store._db = failing  # type: ignore[assignment]  # the port to the disk
            with contextlib.suppress(AuditUnavailable):
                step(store)
                assert failing.failed is None, f"`{failing.failed}` failed, and nobody heard of it"
            store._db = failing._db
            if failing.failed is None:
                break
            failed.append(failing.failed)
            store.append([[outcome(1000)]])
            check(path, acknowledged | {"st-in-test-1000outcome"})
    assert {"BEGIN IMMEDIATE", "COMMIT"} <= set(failed)


# -- a roll ----------------------------------------------------------------------------------------------


class FailingDisk(Disk):
    """Of what a roll does to files, one step fails; or the process ends there, as by `kill -9`."""

    def __init__(self, step: str, how: str, end: Callable[[], None] | None = None) -> None:
        self.step, self.how, self.end, self.reached = step, how, end, False

    def _do(self, step: str, run: Callable[[], None]) -> None:
        if step != self.step:
            return run()
        if self.how == AFTER:
            run()
        self.reached = True
        if self.end is not None:
            self.end()
        raise OSError(28, "No space left on device")

    def copy(self, store: Path, segment: Segment, draft: Path) -> None:
        self._do("copy", lambda: Disk.copy(self, store, segment, draft))

    def sync(self, path: Path) -> None:
        self._do("sync", lambda: Disk.sync(self, path))

    def name(self, draft: Path, path: Path) -> None:
        self._do("name", lambda: Disk.name(self, draft, path))

    def sync_names(self, path: Path) -> None:
        self._do("sync_names", lambda: Disk.sync_names(self, path))


ROLL_STEPS = ["copy", "sync", "name", "sync_names"]


@pytest.mark.parametrize("how", [BEFORE, AFTER])
@pytest.mark.parametrize("step", ROLL_STEPS)
def test_a_roll_that_fails_at_a_step_loses_nothing_and_is_taken_up(tmp_path: Path, step: str, how: str) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        some(store, 0, 4)
        disk = FailingDisk(step, how)
        with pytest.raises(AuditUnavailable, match="No space left"):
            roll(path, lambda: KEY, disk=disk)
        assert disk.reached
        some(store, 4, 6)
        acknowledged = {f"st-in-test-{n}{kind}" for n in range(6) for kind in ("intent", "outcome")}
        check(path, acknowledged)
        segment = roll(path, lambda: KEY)
        assert segment is not None
        check(path, acknowledged)
        some(store, 6, 7)
        check(path, acknowledged)
    assert rows(path, "SELECT min(seq) FROM entries") == [(segment.last + 1,)]
    assert [file.name for file in segments.folder(path).iterdir()] == [segment.path.name], "a draft was left"


def test_a_roll_whose_deletions_fail_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    for how in (BEFORE, AFTER):
        with contextlib.closing(Store.open(path)) as store:
            some(store, 0, 3)
            segment = store.seal(KEY)
            assert segment is not None
            roll(path, lambda: KEY, stopped=lambda: True)  # copied and named, and cut off there
            total = len(everything(path))
            for at in range(1, 6):  # BEGIN to COMMIT
                failing = Failing(store._db, at, how)
                store._db = failing  # type: ignore[assignment]
                with pytest.raises(AuditUnavailable):
                    store.let_go(segment, 2)
                store._db = failing._db
                assert len(everything(path)) == total
                assert verify(path).ok
            while store.let_go(segment, 2):
                assert verify(path).ok
            assert len(everything(path)) == total
        shutil.rmtree(path.parent)


def test_a_segment_that_is_moved_before_its_roll_is_done_is_asked_back(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        some(store, 0, 4)
        segment = store.seal(KEY)
        assert segment is not None
        roll(path, lambda: KEY, stopped=lambda: True)
        store.let_go(segment, 3)
        segment.path.rename(tmp_path / "away.db")
        with pytest.raises(AuditUnavailable, match="put it back until the roll is done"):
            roll(path, lambda: KEY)
        some(store, 4, 5)
        assert (verify(path).ok, verify(path).missing) == (True, [(segment.first, segment.last)])
        (tmp_path / "away.db").rename(segment.path)
        assert roll(path, lambda: KEY) == segment
    check(path, {"st-in-test-4outcome"})


def test_a_copy_that_is_not_what_was_sealed_deletes_nothing(tmp_path: Path) -> None:
    """A disk that returns other bytes than were written."""
    path = tmp_path / "audit.db"

    class Lying(Disk):
        def copy(self, store: Path, segment: Segment, draft: Path) -> None:
            super().copy(store, segment, draft)
            data = draft.read_bytes()
            at = data.index(b"select 2")
            draft.write_bytes(data[:at] + b"select 3" + data[at + 8 :])

    with contextlib.closing(Store.open(path)) as store:
        some(store, 0, 4)
    with pytest.raises(AuditUnavailable, match=r"is not what was sealed: .*edited.*; nothing was deleted"):
        roll(path, lambda: KEY, disk=Lying())
    check(path, set())
    assert roll(path, lambda: KEY) is not None
    check(path, set())


KILLED = """
import os, signal, sys
from pathlib import Path
from audit.rolling import roll
from tests.audit.test_faults import FailingDisk
from tests.audit.test_segments import KEY
roll(Path(sys.argv[1]), lambda: KEY, disk=FailingDisk(sys.argv[2], sys.argv[3], lambda: os.kill(os.getpid(), 9)))
"""


@pytest.mark.parametrize(("step", "how"), [("copy", AFTER), ("name", AFTER)])
def test_a_roll_that_is_killed_at_a_step_is_taken_up_by_the_next(tmp_path: Path, step: str, how: str) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        some(store, 0, 4)
    victim = python(KILLED, path, step, how)
    victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL
    acknowledged = {f"st-in-test-{n}{kind}" for n in range(4) for kind in ("intent", "outcome")}
    check(path, acknowledged)
    assert roll(path, lambda: KEY) is not None
    check(path, acknowledged)


# -- disks -------------------------------------------------------------------------------------------------

ON_A_DISK = """
import sys
from pathlib import Path
from audit.errors import AuditUnavailable
from audit.store import Store
from audit.verify import verify
from tests.audit.test_store import intent
path, what = Path(sys.argv[1]), sys.argv[2]
written = 0
try:
    store = Store.open(path)
    for number in range(100_000):
        store.append([[intent(number)]])
        written += 1
except AuditUnavailable as error:
    print(error)
if what == "full":
    (path.parent / "ballast").unlink()
    store.append([[intent(100_001)]])
    written += 1
report = verify(path)
assert report.ok, report
print(written, report.entries)
"""


def mounted(tmp_path: Path, mount: str, code: str, *arguments: object) -> list[str]:
    """Run this with a disk of its own at `<tmp_path>/disk`, which nobody else sees; the lines that it printed."""
    (tmp_path / "disk").mkdir(exist_ok=True)
    script = f'cd "{tmp_path}" && {mount} && shift && exec "$@"'
    alone = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    command = [*alone, "sh", "-c", script, "sh", "x", sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_full_disk_refuses_and_with_room_it_goes_on(tmp_path: Path) -> None:
    mount = "mount -t tmpfs -o size=4m tmpfs disk && head -c 2000000 /dev/zero > disk/ballast"
    said, counted = mounted(tmp_path, mount, ON_A_DISK, tmp_path / "disk" / "audit.db", "full")
    assert "the disk is full" in said
    assert "make room and it goes on by itself" in said
    written, there = counted.split()
    assert written == there


def test_a_read_only_disk_refuses_and_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "disk" / "audit.db"
    path.parent.mkdir()
    with contextlib.closing(Store.open(path)) as store:
        some(store, 0, 2)
    said, counted = mounted(tmp_path, "mount -o bind,ro disk disk", ON_A_DISK, path, "read-only")
    assert "check that its folder exists and may be written" in said
    assert counted == "0 4"


def test_a_full_disk_stops_a_roll_and_nothing_else(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from audit.errors import AuditUnavailable
from audit.rolling import roll
from audit.store import Store
from tests.audit.test_faults import check
from tests.audit.test_segments import KEY, some
path = Path(sys.argv[1])
store = Store.open(path)
some(store, 0, 200)
ballast = open(path.parent / "ballast", "wb", buffering=0)
try:
    while True:
        ballast.write(bytes(65536))
except OSError:
    ballast.close()
os.truncate(path.parent / "ballast", os.path.getsize(path.parent / "ballast") - 250_000)
try:
    roll(path, lambda: KEY)
except AuditUnavailable as error:
    print(error)
(path.parent / "ballast").unlink()
some(store, 400, 402)
print(roll(path, lambda: KEY) is not None)
check(path, {"st-in-test-401outcome"})
"""
    mount = "mount -t tmpfs -o size=16m tmpfs disk"
    said, rolled = mounted(tmp_path, mount, code, tmp_path / "disk" / "audit.db")
    assert "is not rolled until there is room" in said
    assert rolled == "True"


# -- locks, logs, power ------------------------------------------------------------------------------------

HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_that_another_process_keeps_refuses_in_time_and_then_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path, busy_seconds=0.2)) as store:
        some(store, 0, 1)
        command = [sys.executable, "-c", HOLD, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            for _ in range(3):  # for as long as it is held
                with pytest.raises(AuditUnavailable, match="another process holds its lock"):
                    append(store)
            with pytest.raises(AuditUnavailable, match="another process holds its lock"):
                store.checkpoint(KEY)
            assert verify(path).ok, "who reads does not wait"
            holder.kill()
        append(store)
    check(path, {"st-in-test-7outcome"})


def test_a_log_that_is_lost_under_a_living_process_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        some(store, 0, 2)
        path.with_name("audit.db-wal").rename(path.with_name("aside"))
        with pytest.raises(AuditUnavailable, match=r"audit\.db-wal` was moved, replaced or deleted"):
            append(store)
        path.with_name("aside").rename(path.with_name("audit.db-wal"))
        append(store)
    check(path, {"st-in-test-7outcome"})


def test_a_log_that_is_lost_with_its_process_is_a_rollback_that_a_witness_shows(tmp_path: Path) -> None:
    """The file alone is an older copy, whole in itself: only what was kept elsewhere can tell."""
    path, copy = tmp_path / "audit.db", tmp_path / "copy.db"
    with contextlib.closing(Store.open(path)) as store:
        some(store, 0, 2)
        store.settle_log()
        some(store, 2, 4)
        note = store.checkpoint(KEY)
        assert note is not None
        shutil.copy(path, copy)  # without the log
    assert (verify(copy).ok, verify(copy).entries) == (True, 4)
    report = verify(copy, checkpoints=[note])
    assert (report.bad_seq, "rolled back" in (report.problem or "")) == (5, True)


def test_after_a_power_cut_everything_acknowledged_is_there_and_the_rest_is_whole_or_absent(tmp_path: Path) -> None:
    """The log, cut off at any byte: what was synced when a COMMIT returned is there, and the chain holds."""
    path, cut = tmp_path / "audit.db", tmp_path / "cut" / "audit.db"
    cut.parent.mkdir()
    wal = path.with_name("audit.db-wal")
    acknowledged: list[tuple[int, int]] = []
    with contextlib.closing(Store.open(path)) as store:
        some(store, 0, 1)
        store.settle_log()
        for number in range(1, 9):
            store.append([[intent(number)], [recorded(number)]])
            acknowledged.append((wal.stat().st_size, store.head()[0]))
        data, log = path.read_bytes(), wal.read_bytes()
    ends = {end for end, _ in acknowledged}
    sizes = sorted({*ends, *(end - 1 for end in ends), *range(0, len(log), 30011)})
    for size in sizes:
        for leftover in cut.parent.iterdir():
            leftover.unlink()
        cut.write_bytes(data)
        # What lay on the disk there before is not zero: it is somebody's old block.
        cut.with_name("audit.db-wal").write_bytes(log[:size] + b"\x5a" * (4096 - size % 4096))
        with contextlib.closing(Store.open(cut)) as store:
            promised = max((seq for end, seq in acknowledged if end <= size), default=2)
            assert store.head()[0] == promised
            store.append([[intent(50)]])
        report = verify(cut)
        assert (report.ok, report.entries) == (True, promised + 1), report


# -- keys ----------------------------------------------------------------------------------------------------


def test_a_key_comes_from_a_command(tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    vault.write_text(f"#!/bin/sh\necho '{KEY.secret()}'\n")
    vault.chmod(0o700)
    assert keys.from_command([str(vault)]) == KEY


FAILING_COMMANDS = [
    (["/nowhere/vault"], "No such file"),
    (["sh", "-c", "echo sealed >&2; exit 3"], "exit status was 3, and it said: sealed"),
    (["sh", "-c", "echo nonsense"], "starts with `PRIVATE"),
    (["sh", "-c", "sleep 60"], "it took longer"),
    (["sh", "-c", "printf '\\377'"], "decode"),
]


@pytest.mark.parametrize(("command", "word"), FAILING_COMMANDS)
def test_a_key_command_that_fails_says_why_and_never_what_it_printed(
    command: list[str], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_COMMAND_SECONDS", 0.2 if "sleep" in command[-1] else 10.0)
    with pytest.raises(AuditUnavailable, match=word) as error:
        keys.from_command(command)
    assert "nonsense" not in str(error.value)


def test_what_a_key_is_printed_as_is_read_back(tmp_path: Path) -> None:
    for signer in (KEY, Signer("example.com/other", bytes(range(32)))):
        assert Signer.parse(signer.secret() + "\n") == signer
        assert type(signer.public).parse(str(signer.public)) == signer.public
