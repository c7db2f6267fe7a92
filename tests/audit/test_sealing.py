"""Checkpoints in the store: what is signed, by which key, and what no key of ours signs."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit import keys
from audit.checkpoint import Checkpoint
from audit.errors import AuditUnavailable
from audit.merkle import root_of
from audit.note import Note, PublicKey, Signer, open_note
from audit.sealing import WrongKey
from audit.store import Store
from audit.verify import verify
from tests.audit.test_recording import recorded
from tests.audit.test_store import intent, outcome, rows
from tests.audit.test_verify import forging

LOG = "example.com/audit"
OLD, NEW = Signer(LOG, b"1" * 32), Signer(LOG, b"2" * 32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with contextlib.closing(Store.open(path)) as opened:
        opened.append([[intent(1)], [outcome(1)]])
        yield opened


def hashes(path: Path) -> list[bytes]:
    return [row[0] for row in rows(path, "SELECT hash FROM entries ORDER BY seq")]


def test_a_checkpoint_is_the_tree_over_all_entries_and_the_first_names_its_key(store: Store, path: Path) -> None:
    note = store.checkpoint(OLD)
    assert note is not None
    signed = Checkpoint.parse(open_note(note, [OLD.public]))
    assert (signed.origin, signed.size, signed.root) == (LOG, 3, root_of(hashes(path)))
    assert rows(path, "SELECT kind, body ->> '$.vkey' FROM entries WHERE seq = 3") == [("key.created", str(OLD.public))]
    assert store.notes() == [(3, note)]


def test_nothing_new_is_not_signed_again(store: Store) -> None:
    assert store.checkpoint(OLD) is not None
    assert store.checkpoint(OLD) is None


def test_the_tree_goes_on_from_the_last_checkpoint_also_in_another_process(store: Store, path: Path) -> None:
    for number in range(2, 40):
        with contextlib.closing(Store.open(path)) as other:
            other.append([[intent(number)]])
            note = other.checkpoint(OLD)
        assert note is not None
        signed = Checkpoint.parse(open_note(note, [OLD.public]))
        assert (signed.size, signed.root) == (number + 2, root_of(hashes(path)))


def test_another_key_signs_nothing(store: Store) -> None:
    store.checkpoint(OLD)
    store.append([[intent(2)]])
    with pytest.raises(WrongKey, match="audit key --rotate"):
        store.checkpoint(NEW)
    with pytest.raises(WrongKey):
        store.rotate(NEW, Signer(LOG, b"3" * 32))
    assert len(store.notes()) == 1


def test_a_rotation_is_an_entry_signed_by_both_keys(store: Store, path: Path) -> None:
    store.checkpoint(OLD)
    store.append([[intent(2)]])
    store.rotate(OLD, NEW)
    assert store.public_keys() == [OLD.public, NEW.public]
    [[body]] = rows(path, "SELECT body FROM entries WHERE kind = 'key.rotated'")
    note = Note.parse(json.loads(str(body))["note"])
    assert note.signed_by(OLD.public)
    assert note.signed_by(NEW.public)
    sizes = [(size, open_note(text, [OLD.public, NEW.public])) for size, text in store.notes()]
    assert [size for size, _ in sizes] == [3, 4, 5]  # before, all by the old key, and the rotation by the new
    store.append([[outcome(2)]])
    with pytest.raises(WrongKey):
        store.checkpoint(OLD)
    assert store.checkpoint(NEW) is not None


def test_a_rotation_needs_two_keys_of_one_log(store: Store) -> None:
    store.checkpoint(OLD)
    for other in (OLD, Signer("example.com/other", b"3" * 32)):
        with pytest.raises(AuditUnavailable, match="two keys of one name"):
            store.rotate(OLD, other)
    assert store.public_keys() == [OLD.public]


def test_the_tree_that_a_process_remembers_is_that_of_the_file_whoever_else_writes(store: Store, path: Path) -> None:
    with contextlib.closing(Store.open(path)) as other:
        for number, (writers, signer) in enumerate(
            [
                ([store], store),
                ([store, store], store),
                ([other, other], store),
                ([store, other], store),
                ([store, other], other),
                ([store], store),
            ],
            2,
        ):
            for at, writer in enumerate(writers):
                writer.append([[intent(10 * number + at)], [outcome(10 * number + at)]])
            note = signer.checkpoint(OLD)
            assert note is not None
            signed = Checkpoint.parse(open_note(note, [OLD.public]))
            assert (signed.size, signed.root) == (len(hashes(path)), root_of(hashes(path)))
    assert verify(path, public_keys=[str(OLD.public)]).ok


def test_what_was_rolled_back_is_not_remembered(store: Store, path: Path) -> None:
    store.checkpoint(OLD)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TRIGGER eater BEFORE INSERT ON recordings BEGIN SELECT raise(ABORT, 'no'); END")
        with pytest.raises(AuditUnavailable):
            store.append([[intent(2)], [recorded(2)]])
        db.execute("DROP TRIGGER eater")
    store.append([[intent(3)]])
    note = store.checkpoint(OLD)
    assert note is not None
    assert Checkpoint.parse(open_note(note, [OLD.public])).root == root_of(hashes(path))
    assert verify(path).ok


SPOILED_UNSIGNED = [
    "UPDATE entries SET prev = zeroblob(32) WHERE seq = 4",
    "UPDATE entries SET prev = zeroblob(32) WHERE seq = 5",
    "UPDATE entries SET hash = zeroblob(32) WHERE seq = 3",
    "UPDATE entries SET hash = zeroblob(32) WHERE seq = 4",
    "DELETE FROM entries WHERE seq = 4",
    "UPDATE entries SET seq = -4 WHERE seq = 4",
]


@pytest.mark.parametrize("change", SPOILED_UNSIGNED)
def test_a_process_that_remembers_the_tree_still_looks_at_what_the_file_holds(
    store: Store, path: Path, change: str
) -> None:
    store.checkpoint(OLD)
    store.append([[intent(2)], [outcome(2)]])
    with forging(path) as db:
        db.execute(change)
    with pytest.raises(AuditUnavailable, match="does not follow"):
        store.checkpoint(OLD)
    assert not verify(path).ok


SPOILED = [
    ("UPDATE checkpoints SET peaks = zeroblob(64)", "altered"),
    ("UPDATE checkpoints SET peaks = zeroblob(32)", "peaks cannot be"),
    ("UPDATE checkpoints SET note = replace(note, '3', '2')", "verify the audit"),
    ("DELETE FROM entries WHERE seq >= 3", "gone"),
    ("UPDATE entries SET prev = zeroblob(32) WHERE seq = 4", "does not follow"),
    ("UPDATE entries SET hash = zeroblob(32) WHERE seq = 3", "does not follow"),
    ("UPDATE entries SET seq = 9 WHERE seq = 4", "does not follow"),
    ("UPDATE entries SET body = replace(body, 'key', 'kez') WHERE kind = 'key.created'", "verify the audit"),
    ("UPDATE entries SET kind = 'key.rotated' WHERE kind = 'key.created'", "rotated before it was made"),
]


@pytest.mark.parametrize(("change", "word"), SPOILED)
def test_no_signature_over_what_does_not_carry_on_what_was_signed(path: Path, change: str, word: str) -> None:
    with contextlib.closing(Store.open(path)) as store:
        store.append([[intent(1)], [outcome(1)]])
        store.checkpoint(OLD)
        store.append([[intent(2)]])
    with forging(path) as db:
        db.execute(change)
    with contextlib.closing(Store.open(path)) as store, pytest.raises(AuditUnavailable, match=word):
        store.checkpoint(OLD)


@pytest.mark.parametrize(
    "change", ["DELETE FROM entries WHERE seq = 2", "UPDATE entries SET hash = zeroblob(32) WHERE seq = 2"]
)
def test_a_file_rewritten_under_a_living_process_is_not_carried_on(store: Store, path: Path, change: str) -> None:
    with forging(path) as db:
        db.execute(change)
    for attempt in (lambda: store.append([[intent(2)]]), lambda: store.checkpoint(OLD)):
        with pytest.raises(AuditUnavailable, match="rolled back or rewritten"):
            attempt()


def test_the_seat_belt_is_on_checkpoints_too(store: Store, path: Path) -> None:
    store.checkpoint(OLD)
    with contextlib.closing(sqlite3.connect(path)) as db:
        for sql in ("UPDATE checkpoints SET size = 9", "DELETE FROM checkpoints"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                db.execute(sql)


def test_a_key_is_made_once_with_mode_600(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    made = keys.load_or_make(path, LOG)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.load_or_make(path) == made
    assert made.name == LOG
    assert [entry.name for entry in tmp_path.iterdir()] == ["audit.key"]
    assert keys.generate().name != keys.generate().name


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    keys.load_or_make(path)
    path.chmod(0o640)
    with pytest.raises(AuditUnavailable, match="chmod 600"):
        keys.load(path)


def test_a_key_that_is_none_is_refused_without_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.key"
    with pytest.raises(AuditUnavailable, match="no such file"):
        keys.load(path)
    path.touch(0o600)
    path.write_text(OLD.secret()[:-4])
    with pytest.raises(AuditUnavailable) as error:
        keys.load(path)
    assert "MTEx" not in str(error.value)
    with pytest.raises(AuditUnavailable, match="is not set"):
        keys.from_environment("AUDIT_KEY_OF_A_TEST")
    monkeypatch.setenv("AUDIT_KEY_OF_A_TEST", OLD.secret())
    assert keys.from_environment("AUDIT_KEY_OF_A_TEST") == OLD
    monkeypatch.setenv("AUDIT_KEY_OF_A_TEST", str(OLD.public))
    with pytest.raises(AuditUnavailable, match="PRIVATE"):
        keys.from_environment("AUDIT_KEY_OF_A_TEST")


def test_a_new_key_waits_beside_the_old_until_it_is_adopted(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    keys.store(path, OLD)
    keys.store(keys.next_of(path), NEW)
    keys.store(path, NEW)  # what is there stays
    assert keys.load(path) == OLD
    keys.adopt_next(path)
    assert keys.load(path) == NEW
    assert not keys.next_of(path).exists()
    assert PublicKey.parse(str(NEW.public)) == NEW.public
