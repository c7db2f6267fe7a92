"""A proof is handed over with its entry alone: it holds for that entry, under that key, and for nothing else."""

from __future__ import annotations

import base64
import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from audit.checkpoint import Checkpoint
from audit.merkle import ProofError, root_of
from audit.note import NoteError, PublicKey, Signer
from audit.proof import Proof, prove
from audit.store import Store
from server.cli import main
from tests.audit.test_store import intent

KEY = Signer("example.com/audit", b"1" * 32)
HASHES = [bytes([number]) * 32 for number in range(11)]
NOTE = Checkpoint(KEY.name, len(HASHES), root_of(HASHES)).signed(KEY)


@pytest.mark.parametrize("seq", range(1, 12))
def test_a_proof_survives_its_text_and_holds_for_its_entry_alone(seq: int) -> None:
    proof = Proof.parse(prove(HASHES, seq, NOTE).text)
    assert proof.check(HASHES[seq - 1], [KEY.public]).size == 11
    for other in range(11):
        if other != seq - 1:
            with pytest.raises(ProofError):
                proof.check(HASHES[other], [KEY.public])
    with pytest.raises(ProofError):
        replace(proof, seq=seq % 11 + 1).check(HASHES[seq - 1], [KEY.public])
    with pytest.raises(NoteError, match="no trusted key"):
        proof.check(HASHES[seq - 1], [Signer(KEY.name, b"2" * 32).public])


def test_the_text_is_that_of_tlog_proof() -> None:
    lines = prove(HASHES, 11, NOTE).text.split("\n")
    assert lines[:2] == ["c2sp.org/tlog-proof@v1", "index 10"]
    at = lines.index("")
    assert [len(base64.b64decode(line)) for line in lines[2:at]] == [32, 32]
    assert "\n".join(lines[at + 1 :]) == NOTE
    extra = "\n".join([lines[0], "extra aGVsbG8=", *lines[1:]])
    assert Proof.parse(extra).check(HASHES[10], [KEY.public]).size == 11


@pytest.mark.parametrize(
    "text", ["", NOTE, "c2sp.org/tlog-proof@v1\nindex 01\n\n", "c2sp.org/tlog-proof@v1\nindex 0\nAA==\n\n"]
)
def test_what_is_no_proof(text: str) -> None:
    with pytest.raises(ProofError):
        Proof.parse(text)


def test_the_command_proves_an_entry_to_somebody_who_has_only_its_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        store.append([[intent(number)] for number in range(20)])
    run = CliRunner().invoke
    vkey = run(main, ["audit", "key", str(path)]).output.strip()
    done = run(main, ["audit", "prove", "7", str(path)])
    assert done.exit_code == 0, done.output
    line = run(main, ["audit", "export", str(path)]).stdout.splitlines()[6]
    entry_hash = bytes.fromhex(json.loads(line)["hash"])
    assert Proof.parse(done.stdout).check(entry_hash, [PublicKey.parse(vkey)]).size == 21
    for seq in ("22", "9999"):  # not signed yet, and not there
        done = run(main, ["audit", "prove", seq, str(path)])
        assert (done.exit_code, "audit checkpoint" in done.output) == (2, True)
