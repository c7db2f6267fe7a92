"""When a checkpoint is due, what the witness holds, and what is refused or told when either fails."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit import keys
from audit.errors import AuditUnavailable
from audit.notary import Notary, Rhythm
from audit.note import Signer, split_notes
from audit.store import Store
from audit.verify import read_notes, verify
from audit.witness import FileWitness
from audit.writer import Result, Writer
from tests.audit.test_store import intent, outcome, rows
from tests.waiting import until

KEY = Signer("example.com/audit", b"1" * 32)


class Clock:
    """Seconds that only the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with contextlib.closing(Store.open(path)) as opened:
        yield opened


def signed(store: Store) -> list[int]:
    return [size for size, _ in store.notes()]


def test_a_checkpoint_is_due_by_time_or_by_number_and_only_if_there_is_something_new(store: Store) -> None:
    clock = Clock()
    notary = Notary(store, lambda: KEY, rhythm=Rhythm(60, 10), clock=clock)
    assert notary.due_in() == 60  # what others left unsigned
    notary.seal()
    assert notary.due_in() is None
    notary.wrote(1)
    assert notary.due_in() == 60
    clock.now = 45
    assert notary.due_in() == 15
    notary.wrote(9)
    assert notary.due_in() == 0
    notary.seal()
    assert notary.due_in() is None


def test_the_writer_signs_what_it_wrote_when_it_is_due_and_at_the_end(store: Store) -> None:
    writer = Writer(store, Notary(store, lambda: KEY, rhythm=Rhythm(3600, 4)))
    written = threading.Event()
    for number in range(3):
        writer.submit([intent(number), outcome(number)], lambda _: written.set())
    writer.close()
    assert signed(store)[-1] == store.head()[0] == 7
    assert written.is_set()


def test_the_writer_signs_after_a_while_without_being_asked(store: Store) -> None:
    writer = Writer(store, Notary(store, lambda: KEY, rhythm=Rhythm(0.01, 1000)))
    writer.submit([intent(1)], lambda _: None)
    until(lambda: signed(store)[-1:] == [2], "the entry and the key's own were not signed")
    writer.close()


def test_a_note_that_a_full_disk_cut_is_taken_back_and_handed_over_later(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    witness = FileWitness(tmp_path / "elsewhere", required=True)
    notary = Notary(store, lambda: KEY, witnesses=[witness])
    store.append([[intent(1)]])
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
        notary.seal()
        assert "make room" in (notary.blocked or "")
    notary.seal()
    assert notary.blocked is None
    assert split_notes(witness.path.read_text()) == [note for _, note in store.notes()]


def test_the_witness_holds_every_note_and_verify_reads_it_as_it_is(store: Store, path: Path, tmp_path: Path) -> None:
    witness = FileWitness(tmp_path / "elsewhere")
    notary = Notary(store, lambda: KEY, witnesses=[witness])
    for number in range(4):
        store.append([[intent(number)]])
        notary.seal()
    assert split_notes(witness.path.read_text()) == [note for _, note in store.notes()]
    assert witness.path.stat().st_mode & 0o777 == 0o600
    report = verify(path, checkpoints=read_notes([witness.path]), public_keys=[str(KEY.public)])
    assert (report.problem, report.checkpoints) == (None, 8)
    notary.start()


def test_a_witness_that_was_away_is_told_once_and_catches_up(store: Store, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    notary = Notary(store, lambda: KEY, witnesses=[FileWitness(folder / "witness")])
    for number in range(3):
        store.append([[intent(number)]])
        notary.seal()
    [[reason]] = rows(path, "SELECT body ->> '$.reason' FROM entries WHERE kind = 'checkpoint.failed'")
    assert "no such file" in str(reason)
    folder.mkdir()
    notary.seal()
    assert len(split_notes((folder / "witness").read_text())) == len(store.notes())
    assert notary.due_in() is None
    folder.rename(tmp_path / "gone")
    notary.seal()
    assert len(rows(path, "SELECT seq FROM entries WHERE kind = 'checkpoint.failed'")) == 2  # told again, once


def test_a_required_witness_that_is_away_blocks_what_is_new_and_nothing_else(
    store: Store, path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mounted"
    notary = Notary(store, lambda: KEY, witnesses=[FileWitness(folder / "witness", required=True)])
    notary.start()
    assert "a required witness did not take a checkpoint" in (notary.blocked or "")
    writer, heard = Writer(store, notary), dict[str, Result]()
    for name, unit in {
        "begin": [intent(1)],
        "refusal": [intent(2), outcome(2, status="refused")],
        "end": [outcome(0)],
    }.items():
        writer.submit(unit, lambda result, name=name: heard.update({name: result}))
    until(lambda: len(heard) == 3, "not everybody was answered")
    assert [name for name, result in heard.items() if isinstance(result, AuditUnavailable)] == ["begin", "refusal"]
    assert rows(path, "SELECT count(*) FROM entries WHERE kind = 'outcome'") == [(1,)]
    folder.mkdir()
    until(lambda: notary.blocked is None, "it did not recover by itself")
    writer.submit([intent(3)], lambda result: heard.update({"again": result}))
    writer.close()
    assert not isinstance(heard["again"], Exception)
    assert verify(path, checkpoints=read_notes([folder / "witness"]), public_keys=[str(KEY.public)]).ok


def test_without_a_key_a_required_witness_cannot_be_served_and_blocks(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "audit.key"
    witnesses = [FileWitness(tmp_path / "first"), FileWitness(tmp_path / "second", required=True)]
    notary = Notary(store, lambda: keys.load(file), witnesses=witnesses)
    notary.seal()
    assert "no checkpoint could be made" in (notary.blocked or "")
    assert notary.due_in() is not None
    keys.store(file, KEY)
    notary.seal()
    assert (notary.blocked, notary.due_in()) == (None, None)


def test_a_witness_that_is_not_required_blocks_nobody(store: Store, tmp_path: Path) -> None:
    away = FileWitness(tmp_path / "no" / "where")
    notary = Notary(store, lambda: KEY, witnesses=[away, FileWitness(tmp_path / "here", required=True)])
    notary.start()
    assert notary.blocked is None


def test_a_key_that_is_gone_is_told_and_entries_go_on(store: Store, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "audit.key"
    notary = Notary(store, lambda: keys.load(file))
    notary.seal()
    notary.seal()
    store.append([[intent(1)]])
    assert rows(path, "SELECT count(*) FROM entries WHERE kind = 'checkpoint.failed'") == [(1,)]
    keys.store(file, KEY)
    notary.seal()
    assert signed(store) == [3]


def test_a_rotation_by_another_process_is_followed(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "audit.key"
    keys.store(file, KEY)
    notary = Notary(store, lambda: keys.load(file))
    store.append([[intent(1)]])
    notary.seal()
    new = Signer(KEY.name, b"2" * 32)
    keys.store(keys.next_of(file), new)
    store.rotate(KEY, new)
    keys.adopt_next(file)
    store.append([[outcome(1)]])
    notary.seal()
    assert (store.public_keys()[-1], signed(store)[-1]) == (new.public, store.head()[0])


def test_a_start_with_another_key_is_refused(store: Store) -> None:
    store.append([[intent(1)]])
    store.checkpoint(KEY)
    with pytest.raises(AuditUnavailable, match="restore the key"):
        Notary(store, lambda: Signer(KEY.name, b"2" * 32)).start()


@pytest.mark.parametrize("what", ["older copy", "regrown copy", "new file"])
def test_a_start_on_a_file_that_its_witness_has_not_seen_is_refused(path: Path, tmp_path: Path, what: str) -> None:
    witness, copy = FileWitness(tmp_path / "elsewhere"), tmp_path / "copy.db"
    with contextlib.closing(Store.open(path)) as store:
        store.append([[intent(1)]])
        Notary(store, lambda: KEY, witnesses=[witness]).seal()
    shutil.copy(path, copy)
    with contextlib.closing(Store.open(path)) as store:
        store.append([[outcome(1)]])
        Notary(store, lambda: KEY, witnesses=[witness]).seal()
    with contextlib.closing(Store.open(tmp_path / "new.db" if what == "new file" else copy)) as store:
        if what == "regrown copy":
            store.append([[outcome(2)]])
        if what != "older copy":
            store.checkpoint(KEY)
        with pytest.raises(AuditUnavailable, match="rolled back or rewritten"):
            Notary(store, lambda: KEY, witnesses=[witness]).start()


def test_a_foreign_or_torn_witness_is_refused(store: Store, tmp_path: Path) -> None:
    store.append([[intent(1)]])
    store.checkpoint(KEY)
    witness = FileWitness(tmp_path / "elsewhere")
    [(_, note)] = store.notes()
    foreign = note.replace("example.com", "example.org")
    for text, word in ((foreign, "not this audit's"), (note[:-9], "whole signed note"), ("hello\n", "whole signed")):
        witness.path.write_text(text)
        with pytest.raises(AuditUnavailable, match=word):
            Notary(store, lambda: KEY, witnesses=[witness]).start()
    witness.path.write_text(note[:-9])
    with pytest.raises(AuditUnavailable, match="torn"):
        witness.add(store.notes())


def test_nothing_is_lost_when_neither_signature_nor_record_is_possible(store: Store, path: Path) -> None:
    store.append([[intent(1)]])
    notary = Notary(Store.open(path, busy_seconds=0.01), lambda: KEY)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        notary.seal()
        db.execute("ROLLBACK")
    assert notary.due_in() is not None
    notary.seal()
    assert signed(store) == [2]
