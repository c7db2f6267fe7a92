"""`countersign audit checkpoint`, `key` and `verify`: from the first key to an auditor's exit status."""

from __future__ import annotations

import contextlib
import json
import shutil
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


def two_checkpoints(path: Path, folder: Path, entries: int = 5) -> tuple[Path, Path, str]:
    """An older and a newer checkpoint of this store, and the key that it names."""
    old, new = folder / "old", folder / "new"
    old.write_text(run("checkpoint", path).output, encoding="utf-8")
    with contextlib.closing(Store.open(path)) as store:
        for number in range(entries):
            store.append([[intent(number + 10)]])
    new.write_text(old.read_text() + run("checkpoint", path).output, encoding="utf-8")
    return old, new, run("key", path).output.split()[-1]


def test_consistency_is_proved_and_the_proof_checked_without_the_store(path: Path, tmp_path: Path) -> None:
    old, new, vkey = two_checkpoints(path, tmp_path)
    made = run("consistency", old, new, path)
    assert made.exit_code == 0, made.output
    assert made.output.startswith("old 3\n")
    proof = tmp_path / "proof"
    proof.write_text(made.output, encoding="utf-8")
    checked = run("consistency", old, new, "--proof", proof, "--public-key", vkey)
    assert (checked.exit_code, "the 3 entries signed then are the first of the 8" in checked.output) == (0, True)
    proof.write_text(made.output.replace("old 3", "old 4"), encoding="utf-8")
    assert run("consistency", old, new, "--proof", proof, "--public-key", vkey).exit_code == 1
    lines = made.output.split("\n")
    proof.write_text("\n".join([lines[0], *lines[2:]]), encoding="utf-8")
    assert run("consistency", old, new, "--proof", proof, "--public-key", vkey).exit_code == 1
    foreign = str(Signer("example.com/other", b"9" * 32).public)
    proof.write_text(made.output, encoding="utf-8")
    assert run("consistency", old, new, "--proof", proof, "--public-key", foreign).exit_code == 2
    assert run("consistency", old, new, "--proof", proof).exit_code == 2
    assert run("consistency", old, old, "--proof", proof, "--public-key", vkey).exit_code == 1


def test_a_rewritten_or_rolled_back_history_is_not_consistent(path: Path, tmp_path: Path) -> None:
    """Whoever has the key signs another history; the older checkpoint was seen elsewhere."""
    old, new, _ = two_checkpoints(path, tmp_path)
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "audit.db"
    shutil.copy(path.with_name("audit.db.key"), other.with_name("audit.db.key"))
    with contextlib.closing(Store.open(other)) as store:
        store.append([[intent(99)], [outcome(99)]])
    assert run("checkpoint", other).exit_code == 0
    _, forged, _ = two_checkpoints(other, tmp_path / "other")
    done = run("consistency", old, forged, other)
    assert (done.exit_code, "history was rewritten" in done.output) == (1, True), done.output
    done = run("consistency", new, old, path)
    assert (done.exit_code, "not given the wrong way round" in done.output) == (1, True), done.output
    short = tmp_path / "short.db"
    with contextlib.closing(Store.open(short)) as store:
        store.append([[intent(1)]])
        store.checkpoint(keys.load(path.with_name("audit.db.key")))
    done = run("consistency", old, new, short)
    assert (done.exit_code, "it has not so many" in done.output) == (1, True), done.output


def test_what_is_in_a_segment_elsewhere_is_no_alarm(path: Path, tmp_path: Path) -> None:
    old, new, _ = two_checkpoints(path, tmp_path)
    assert run("roll", path).exit_code == 0
    assert run("consistency", old, new, path).exit_code == 0
    [segment] = (tmp_path / "audit.db.segments").iterdir()
    segment.rename(tmp_path / "cold.db")
    done = run("consistency", old, new, path)
    assert (done.exit_code, "1 of its segments are elsewhere" in done.output) == (2, True), done.output
    done = run("prove", 2, path)
    assert (done.exit_code, f"in a segment that is elsewhere. Bring `{segment}` back" in done.output) == (2, True)
    done = run("prove", 999, path)
    assert (done.exit_code, "not signed yet, or not there" in done.output) == (2, True)


def test_files_that_hold_no_checkpoint_are_a_sentence(path: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("hello\n")
    for file, word in ((empty, "no signed note"), (tmp_path / "nothing", "cannot be read")):
        done = run("consistency", file, file, path)
        assert (done.exit_code, word in done.output) == (2, True), done.output


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


def test_a_store_is_rolled_listed_and_verified_with_its_segments_and_without(path: Path, tmp_path: Path) -> None:
    done = run("roll", path)
    assert done.exit_code == 0, done.output
    assert "sealed: the entries 1 to 3, in " in done.output
    assert run("roll", path).exit_code == 2, "there is nothing new"
    [told] = [json.loads(line) for line in run("segments", path, "--json").output.splitlines()]
    segment = Path(told["path"])
    assert (told["first"], told["last"], told["bytes"]) == (1, 3, segment.stat().st_size)
    for what in (path, segment, segment.parent):
        report = json.loads(run("verify", what, "--json").stdout)
        assert (report["ok"], report["missing"]) == (True, [])
    assert run("search", path, "--json").output.count('"kind": "intent"') == 1
    segment.rename(tmp_path / "cold.db")
    assert "elsewhere" in run("segments", path).output
    assert "1 of its segments are elsewhere (up to entry 3), and were not read" in run("search", path).stderr
    report = json.loads(run("verify", path, "--json").stdout)
    assert (report["ok"], report["missing"]) == (True, [[1, 3]])
    assert run("verify", tmp_path).exit_code == 2, "no segments are in that folder"


def test_a_key_command_signs_and_is_not_rotated_from_here(path: Path, tmp_path: Path) -> None:
    signer = Signer("example.com/audit", b"7" * 32)
    config = tmp_path / "countersign.yaml"
    (tmp_path / "password").write_text("secret")
    config.write_text(
        f"audit: {{path: audit.db, key_command: [echo, '{signer.secret()}']}}\n"
        "policy: policy.yaml\n"
        "issuers: [{issuer: 'https://issuer.example', audience: x}]\n"
        "connections: {shop: {host: h, database: d, user: u, password_file: password}}\n",
        encoding="utf-8",
    )
    assert run("checkpoint", "--config", config).exit_code == 0
    assert run("key", "--config", config).output.strip() == str(signer.public)
    assert not path.with_name("audit.db.key").exists()
    done = run("key", "--config", config, "--rotate")
    assert (done.exit_code, "printed by the command `echo`, and cannot be rotated" in done.output) == (2, True)
    assert signer.secret()[-20:] not in done.output
