"""Witnesses over HTTP, against a cosigner after C2SP's text; and that nobody who writes waits for a witness."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import segments, testimony
from audit.checkpoint import Checkpoint
from audit.cosignature import WitnessKey
from audit.errors import AuditUnavailable
from audit.merkle import consistency_proof
from audit.notary import Notary, Rhythm
from audit.note import NoteError, open_note
from audit.proof import Extension, carry_on
from audit.rolling import roll
from audit.signed import Signed
from audit.store import Item, Store
from audit.verify import verify
from audit.webhook_witness import WebhookWitness
from audit.witness import statement_of
from audit.writer import Writer
from tests.answering import Answer, Receiver, Sent, answering
from tests.audit.test_notary import KEY, path, signed, store
from tests.audit.test_store import intent, rows
from tests.waiting import until

__all__ = ["path", "store"]

COSIGNER = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
NAME = "witness.example/w1"


def vkey() -> str:
    """As c2sp.org/tlog-cosignature writes it down, by nothing of ours."""
    public = b"\x04" + COSIGNER.public_key().public_bytes_raw()
    id_ = hashlib.sha256(NAME.encode() + b"\n" + public).hexdigest()[:8]
    return f"{NAME}+{id_}+{base64.b64encode(public).decode()}"


def cosign(note: str, time: int, key: Ed25519PrivateKey = COSIGNER) -> str:
    text = note.partition("\n\n")[0] + "\n"
    signature = key.sign(f"cosignature/v1\ntime {time}\n{text}".encode())
    id_ = bytes.fromhex(vkey().split("+")[1])
    return f"— {NAME} {base64.b64encode(id_ + time.to_bytes(8, 'big') + signature).decode()}\n"


class Cosigner:
    """A witness after c2sp.org/tlog-witness: one log, which must carry on what it cosigned."""

    def __init__(self) -> None:
        self.seen: str | None = None
        self.time = 1_700_000_000

    def __call__(self, sent: Sent) -> Answer:
        extension = Extension.parse(sent.body.decode())
        new = Checkpoint.parse(open_note(extension.note, [KEY.public]))
        size = 0 if self.seen is None else Checkpoint.parse(open_note(self.seen, [KEY.public])).size
        if extension.old != size:
            return Answer(409, f"{size}\n".encode(), {"Content-Type": "text/x.tlog.size"})
        if self.seen is not None:
            extension.check(self.seen, [KEY.public])
        assert new.size >= size
        self.seen, self.time = extension.note, self.time + 60
        return Answer(body=cosign(extension.note, self.time).encode())


def written(store: Store, count: int = 1) -> None:
    store.append([[intent(number, f"in-{store.head()[0]}")] for number in range(count)])


def told(path: Path, kind: str) -> list[dict[str, Any]]:
    return [json.loads(str(body)) for (body,) in rows(path, f"SELECT body FROM entries WHERE kind = '{kind}'")]


@pytest.mark.parametrize("old", [1, 2, 3, 5, 6, 7, 8, 12, 20])
def test_a_proof_from_the_peaks_is_the_proof_from_all_entries(store: Store, path: Path, old: int) -> None:
    written(store, old - 1)
    assert store.checkpoint(KEY) is not None
    [(size, _)] = store.notes()
    assert size == old
    [(peaks,)] = rows(path, "SELECT peaks FROM checkpoints")
    for _ in range(12):
        written(store)
        hashes = [hash_ for (hash_,) in rows(path, "SELECT hash FROM entries ORDER BY seq")]
        assert carry_on(old, peaks, hashes[old:], "").path == consistency_proof(hashes, old)  # type: ignore[arg-type]


def test_cosignatures_are_kept_in_the_chain_and_verify_by_the_witnesss_key(store: Store, path: Path) -> None:
    with answering(cosigner := Cosigner()) as receiver:
        notary = Notary(store, lambda: KEY, witnesses=[WebhookWitness(receiver.url, key=WitnessKey.parse(vkey()))])
        notary.start()
        for count in (1, 4, 2):
            written(store, count)
            notary.seal()
        again = WebhookWitness(receiver.url, key=WitnessKey.parse(vkey()))  # a restart: it asks what was seen
        written(store)
        store.checkpoint(KEY)
        assert again.take(Signed(path)) is not None
        assert [Extension.parse(sent.body.decode()).old for sent in receiver.got] == [0, 2, 7, 0, 10]
    assert [said["size"] for said in told(path, "checkpoint.witnessed")] == [2, 7, 10]
    report = verify(path, public_keys=[str(KEY.public)], witness_keys=[vkey()])
    assert (report.problem, report.cosigned) == (None, 10)
    assert report.cosigned_at == datetime.fromtimestamp(cosigner.time - 60, UTC).isoformat()
    assert "cosigned by the witness" in str(
        verify(path, witness_keys=[vkey().replace(NAME, NAME)][:0] or [other()]).problem
    )
    assert [one.what for one in testimony.witnessed(path)] == ["cosigned"] * 3


def other() -> str:
    public = Ed25519PrivateKey.from_private_bytes(b"x" * 32).public_key().public_bytes_raw()
    return str(WitnessKey(NAME, public))


def test_a_note_from_the_witness_itself_counts_and_a_bad_cosignature_is_named(store: Store, path: Path) -> None:
    written(store)
    note = store.checkpoint(KEY) or ""
    good = note + cosign(note, 1_700_000_000)
    report = verify(path, checkpoints=[good], witness_keys=[vkey()])
    assert (report.problem, report.cosigned, report.cosigned_at) == (None, 2, "2023-11-14T22:13:20+00:00")
    for bad in (note + cosign(note.replace("\n2\n", "\n3\n"), 1), note + cosign(note, 1, Ed25519PrivateKey.generate())):
        found = verify(path, checkpoints=[bad], witness_keys=[vkey()])
        assert (found.ok, "does not hold (edited)" in str(found.problem)) == (False, True)


def test_the_verifier_alone_checks_cosignatures_too(store: Store, path: Path) -> None:
    with answering(Cosigner()) as receiver:
        written(store)
        Notary(store, lambda: KEY, witnesses=[WebhookWitness(receiver.url, key=WitnessKey.parse(vkey()))]).seal()
    code = Path(verify.__code__.co_filename)
    done = subprocess.run(
        [sys.executable, "-I", code, path, "--witness-key", vkey()], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "witnessed   2 entries, cosigned at 2023-" in done.stdout) == (0, True), done.stdout


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (Answer(500, b"no"), "it answered 500"),
        (Answer(200, b"thanks"), "no cosignature of"),
        (Answer(200, cosign("a\n\n", 3).encode()), "does not hold"),
        (Answer(409, b"9"), "409 without the size"),
        (Answer(409, b"9", {"Content-Type": "text/x.tlog.size"}), "has seen 9 entries, and the audit's file does not"),
    ],
)
def test_what_a_witness_should_not_say_is_a_failure_and_an_entry(
    store: Store, path: Path, answer: Answer, word: str
) -> None:
    written(store)
    with answering(lambda _: answer) as receiver:
        notary = Notary(store, lambda: KEY, witnesses=[WebhookWitness(receiver.url, key=WitnessKey.parse(vkey()))])
        notary.seal()
    [failure] = told(path, "checkpoint.failed")
    assert word in failure["reason"]
    assert failure["witness"] == receiver.url


def test_a_plain_receiver_needs_no_key_and_gets_its_token(store: Store, path: Path) -> None:
    written(store)
    with answering(lambda _: Answer(204)) as receiver:
        Notary(store, lambda: KEY, witnesses=[WebhookWitness(receiver.url, token="t0ken")]).seal()
    assert receiver.got[0].headers["authorization"] == "Bearer t0ken"
    assert told(path, "checkpoint.witnessed") == told(path, "checkpoint.failed") == []


def test_a_rolled_back_store_is_found_out_by_the_witness(store: Store, path: Path, tmp_path: Path) -> None:
    with answering(Cosigner()) as receiver:
        written(store, 5)
        store.checkpoint(KEY)
        WebhookWitness(receiver.url).take(Signed(path))
        with contextlib.closing(Store.open(tmp_path / "older.db")) as older:
            written(older, 3)
            older.checkpoint(KEY)
        with pytest.raises(AuditUnavailable, match="rolled back or rewritten"):
            WebhookWitness(receiver.url).take(Signed(tmp_path / "older.db"))


def test_a_proof_begins_in_a_sealed_segment_that_is_here_and_says_where_it_is_not(store: Store, path: Path) -> None:
    with answering(Cosigner()) as receiver:
        key = WitnessKey.parse(vkey())
        witness = WebhookWitness(receiver.url, key=key)
        notary = Notary(store, lambda: KEY, witnesses=[witness])
        for _ in range(2):
            written(store, 5)
            notary.seal()
        assert roll(path, lambda: KEY) is not None
        [sealed] = segments.here(path)
        kept = sealed.path.with_suffix(".elsewhere")
        sealed.path.rename(kept)
        store.checkpoint(KEY)
        with pytest.raises(AuditUnavailable, match="in a segment that is elsewhere: bring it back"):
            witness.take(Signed(path))
        kept.rename(sealed.path)
        said = witness.take(Signed(path))
    assert said is not None
    store.append([[Item(statement_of(witness, said))]])
    report = verify(path, witness_keys=[vkey()])
    assert (report.problem, report.cosigned) == (None, said["size"])
    assert [one.size for one in testimony.witnessed(path)] == [6, 12, said["size"]]
    assert len(Signed(path).after(0)) == len(store.notes())


def test_another_process_may_have_handed_over_more_meanwhile(store: Store, path: Path) -> None:
    written(store)
    first = store.checkpoint(KEY) or ""
    posts: list[int] = []

    def answer(sent: Sent) -> Answer:
        posts.append(Extension.parse(sent.body.decode()).old)
        if len(posts) > 1:
            return Answer(body=cosign(Extension.parse(sent.body.decode()).note, 1_700_000_000).encode())
        written(store)
        store.checkpoint(KEY)
        return Answer(409, b"3", {"Content-Type": "text/x.tlog.size"})

    with answering(answer) as receiver:
        said = WebhookWitness(receiver.url, key=WitnessKey.parse(vkey())).take(Signed(path)) or {}
    assert posts == [0, 3]
    assert said["size"] == 3
    assert first not in str(said["note"])


def test_what_is_no_witness_key_is_a_sentence() -> None:
    assert str(WitnessKey.parse(vkey())) == vkey()
    for text in (str(KEY.public), vkey()[:-4], vkey().replace("w1", "w2"), ""):
        with pytest.raises(NoteError, match="no witness's vkey"):
            WitnessKey.parse(text)


@contextlib.contextmanager
def hanging() -> Iterator[tuple[Receiver, threading.Event]]:
    go = threading.Event()

    def answer(_: Sent) -> Answer:
        go.wait(20)
        return Answer()

    with answering(answer) as receiver:
        try:
            yield receiver, go
        finally:
            go.set()


def test_entries_are_written_while_a_witness_hangs_and_it_is_told_of(store: Store, path: Path) -> None:
    with hanging() as (receiver, go):
        witness = WebhookWitness(receiver.url)
        notary = Notary(store, lambda: KEY, rhythm=Rhythm(3600, 2), witnesses=[witness], patience=0.2)
        writer = Writer(store, notary)
        done = threading.Event()
        writer.submit([intent(1), intent(2)], lambda _: None)
        until(lambda: receiver.got, "the witness was not called")
        writer.submit([intent(3)], lambda _: done.set())
        assert done.wait(10)
        assert notary.blocked is None
        until(lambda: told(path, "checkpoint.failed"), "nobody was told")
        assert not go.is_set()
        go.set()
        writer.close()
    assert "has not answered for 0.2 seconds" in told(path, "checkpoint.failed")[0]["reason"]


def test_a_required_witness_that_hangs_blocks_what_is_new_until_it_answers(store: Store) -> None:
    with hanging() as (receiver, go):
        notary = Notary(store, lambda: KEY, witnesses=[WebhookWitness(receiver.url, required=True)], patience=0.2)
        notary.seal()
        assert "has not answered" in (notary.blocked or "")
        go.set()
        until(lambda: notary.blocked is None, "it blocks for ever")


def test_what_witnesses_said_makes_no_new_checkpoint_due(store: Store, path: Path) -> None:
    with answering(Cosigner()) as receiver:
        witness = WebhookWitness(receiver.url, key=WitnessKey.parse(vkey()))
        notary = Notary(store, lambda: KEY, rhythm=Rhythm(3600, 1), witnesses=[witness])
        writer = Writer(store, notary)
        writer.submit([intent(1)], lambda _: None)
        until(lambda: told(path, "checkpoint.witnessed"), "no cosignature was kept")
        assert notary.due_in() is None
        writer.close()
    assert signed(store) == [2]
    assert len(receiver.got) == 1
