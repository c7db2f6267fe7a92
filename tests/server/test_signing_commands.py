"""`countersign audit checkpoint`, `key` and `verify`: from the first key to an auditor's exit status."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from audit import keys
from audit.note import Signer, split_notes
from audit.store import Store
from server.cli import main
from tests.audit.test_store import intent, outcome


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        store.append([[intent(1)], [outcome(1)]])
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["audit", *map(str, arguments)])


def test_a_checkpoint_is_printed_and_verifies_with_the_printed_key(path: Path, tmp_path: Path) -> None:
    note = run("checkpoint", path)
    assert note.exit_code == 0, note.output
    assert run("checkpoint", path).output == note.output  # nothing new: the same again
    kept = tmp_path / "kept"
    kept.write_text(note.output, encoding="utf-8")
    vkey = run("key", path).output.strip()
    done = run("verify", path, "--public-key", vkey, "--checkpoint", kept, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["signed"], report["key"], report["vouched"]) == (3, vkey, True)
    assert (tmp_path / "audit.db.key").stat().st_mode & 0o777 == 0o600


def test_a_key_is_rotated_and_both_verify(path: Path) -> None:
    first = run("key", path).output.strip()
    done = run("key", path, "--rotate")
    assert done.exit_code == 0, done.output
    old, new = done.output.split()
    assert (old, new == first) == (first, False)
    assert run("checkpoint", path).exit_code == 0
    for vkey in (old, new):
        assert run("verify", path, "--public-key", vkey, "--since", 4).exit_code == 0
    other = str(keys.generate().public)
    done = run("verify", path, "--public-key", other)
    assert (done.exit_code, "foreign key" in done.output) == (1, True)


def test_a_rotation_that_was_cut_off_before_its_entry_is_taken_up(path: Path) -> None:
    run("key", path)
    file = path.with_name("audit.db.key")
    waiting = Signer(keys.load(file).name, b"2" * 32)
    keys.store(keys.next_of(file), waiting)
    assert run("checkpoint", path).exit_code == 0  # the old key still signs
    assert run("key", path, "--rotate").output.split()[-1] == str(waiting.public)
    assert keys.load(file) == waiting


def test_a_rotation_that_was_cut_off_after_its_entry_is_ended(path: Path) -> None:
    run("key", path)
    file = path.with_name("audit.db.key")
    waiting = Signer(keys.load(file).name, b"2" * 32)
    keys.store(keys.next_of(file), waiting)
    with contextlib.closing(Store.open(path)) as store:
        store.rotate(keys.load(file), waiting)
    assert run("checkpoint", path).exit_code == 0
    assert keys.load(file) == waiting


def test_a_lost_key_is_not_replaced_by_a_new_one(path: Path) -> None:
    run("key", path)
    file = path.with_name("audit.db.key")
    file.unlink()
    done = run("checkpoint", path)
    assert (done.exit_code, "no such file" in done.output, file.exists()) == (2, True, False)


def test_files_that_are_no_notes_and_keys_that_are_none_are_unreadable(path: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for arguments in (("--checkpoint", empty), ("--public-key", "x")):
        done = run("verify", path, *arguments)
        assert (done.exit_code, "Traceback" in done.output) == (2, False)
    assert split_notes("") == []
