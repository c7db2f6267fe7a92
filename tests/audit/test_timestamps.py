"""Time-stamps of checkpoints by a real authority: openssl's, behind a small HTTP server."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.x509 import load_pem_x509_certificates
from rfc3161_client import decode_timestamp_response

from audit import testimony, timestamps
from audit.errors import AuditUnavailable
from audit.notary import Notary, Rhythm
from audit.signed import Signed
from audit.store import Store
from audit.verify import verify
from audit.witness import WitnessAway
from audit.writer import Writer
from tests.answering import Answer, Sent, answering
from tests.audit.test_notary import KEY, path, signed, store
from tests.audit.test_store import intent
from tests.audit.test_webhook_witness import told, written
from tests.waiting import until

__all__ = ["path", "store"]


def openssl(folder: Path, *arguments: object, given: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *map(str, arguments)], cwd=folder, input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_in(tmp_path_factory.mktemp("tsa"))


def made_in(folder: Path, more: str = "", root: str = "/CN=root") -> Path:
    """A folder with a root, a certificate that may stamp, and openssl's configuration of an authority."""
    (folder / "tsa.cnf").write_text(
        "[req]\ndistinguished_name=dn\n[dn]\n[ca]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n"
        "subjectKeyIdentifier=hash\n[tsa]\nextendedKeyUsage=critical,timeStamping\nbasicConstraints=CA:FALSE\n"
        "keyUsage=critical,digitalSignature\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        "[ts]\ndefault_tsa=one\n[one]\nserial=serial\nsigner_cert=tsa.pem\nsigner_key=tsa.key\n"
        f"{more}signer_digest=sha256\ndefault_policy=1.2.3.4\ndigests=sha256\nordering=yes\ness_cert_id_alg=sha256\n"
    )
    (folder / "serial").write_text("01\n")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-config", "tsa.cnf")
    openssl(folder, "req", "-x509", *new, "-keyout", "root.key", "-out", "root.pem", "-subj", root, "-days", 30,
            "-extensions", "ca")  # fmt: skip
    openssl(folder, "req", *new, "-keyout", "tsa.key", "-out", "tsa.csr", "-subj", "/CN=tsa")
    openssl(folder, "x509", "-req", "-in", "tsa.csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial",
            "-out", "tsa.pem", "-days", 20, "-extfile", "tsa.cnf", "-extensions", "tsa")  # fmt: skip
    return folder


def stamping(folder: Path) -> Callable[[Sent], Answer]:
    lock = threading.Lock()

    def answer(sent: Sent) -> Answer:
        with lock:
            (folder / "query").write_bytes(sent.body)
            stamp = openssl(folder, "ts", "-reply", "-queryfile", "query", "-config", "tsa.cnf", "-section", "one")
        return Answer(body=stamp, headers={"Content-Type": "application/timestamp-reply"})

    return answer


def test_a_time_stamp_is_verified_kept_and_verified_again_by_openssl(store: Store, path: Path, authority: Path) -> None:
    roots = load_pem_x509_certificates((authority / "root.pem").read_bytes())
    with answering(stamping(authority)) as receiver:
        notary = Notary(store, lambda: KEY, witnesses=[timestamps.TimestampWitness(receiver.url, roots)])
        for _ in range(2):
            written(store)
            notary.seal()
    found = timestamps.check_all(path, roots)
    assert (found.count, found.size) == (2, 4)
    assert found.time is not None
    assert abs(datetime.now(UTC) - found.time) < timedelta(minutes=2)
    [one, _] = testimony.witnessed(path)
    assert one.what == "time-stamped"
    (authority / "1.note").write_text(one.note)
    (authority / "1.tsr").write_bytes(one.timestamp or b"")
    said = openssl(authority, "ts", "-verify", "-in", "1.tsr", "-data", "1.note", "-CAfile", "root.pem")
    assert b"Verification: OK" in said
    assert verify(path, public_keys=[str(KEY.public)]).ok


def test_a_time_stamp_of_another_note_nonce_or_authority_is_refused(store: Store, path: Path, authority: Path) -> None:
    roots = load_pem_x509_certificates((authority / "root.pem").read_bytes())
    written(store)
    store.checkpoint(KEY)
    stamp, answers = stamping(authority), list[Answer]()

    def answer(sent: Sent) -> Answer:
        answers.append(stamp(sent))
        return answers[0]  # the same to every question

    with answering(answer) as receiver:
        witness = timestamps.TimestampWitness(receiver.url, roots)
        assert witness.take(Signed(path)) is not None
        with pytest.raises(WitnessAway, match="Nonce mismatch"):
            witness.take(Signed(path))
        strangers = load_pem_x509_certificates(made_by_nobody(authority))
        answers.clear()
        with pytest.raises(WitnessAway, match="does not hold"):
            timestamps.TimestampWitness(receiver.url, strangers).take(Signed(path))
    with pytest.raises(Exception, match="Mismatch between messages"):
        timestamps.verify(answers[0].body, "another note", roots)


def made_by_nobody(folder: Path) -> bytes:
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-config", "tsa.cnf")
    openssl(folder, "req", "-x509", *new, "-keyout", "x.key", "-out", "x.pem", "-subj", "/CN=root", "-extensions", "ca")
    return (folder / "x.pem").read_bytes()


def test_an_authority_whose_own_certificate_is_at_hand_sends_none(store: Store, path: Path, authority: Path) -> None:
    files = (authority / "tsa.pem", authority / "root.pem")
    roots = load_pem_x509_certificates(b"".join(file.read_bytes() for file in files))
    with answering(stamping(authority)) as receiver:
        written(store)
        Notary(store, lambda: KEY, witnesses=[timestamps.TimestampWitness(receiver.url, roots)]).seal()
    [one] = testimony.witnessed(path)
    assert not decode_timestamp_response(one.timestamp or b"").signed_data.certificates
    assert timestamps.check_all(path, roots).count == 1
    with pytest.raises(AuditUnavailable, match="does not hold"):
        timestamps.check_all(path, roots[1:])
    assert load_pem_x509_certificates(files[0].read_bytes()) == roots[:1]


def test_a_chain_that_the_answer_brings_along_is_not_believed(
    store: Store, path: Path, authority: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # A long name: its certificate then sorts behind the other, as DER wants it.
    name = f"/CN={'r' * 60}/O={'r' * 60}"
    impostor = made_in(tmp_path_factory.mktemp("impostor"), more="certs=root.pem\n", root=name)
    roots = load_pem_x509_certificates((authority / "root.pem").read_bytes())
    written(store)
    store.checkpoint(KEY)
    with answering(stamping(impostor)) as receiver:
        with pytest.raises(WitnessAway, match="Error while verifying certificates"):
            timestamps.TimestampWitness(receiver.url, roots).take(Signed(path))
        own = load_pem_x509_certificates((impostor / "root.pem").read_bytes())
        assert timestamps.TimestampWitness(receiver.url, own).take(Signed(path)) is not None


def test_between_two_time_stamps_the_authority_rests(store: Store, path: Path, authority: Path) -> None:
    roots = load_pem_x509_certificates((authority / "root.pem").read_bytes())
    with answering(stamping(authority)) as receiver:
        witness = timestamps.TimestampWitness(receiver.url, roots, every=3600)
        writer = Writer(store, Notary(store, lambda: KEY, rhythm=Rhythm(3600, 1), witnesses=[witness]))
        writer.submit([intent(1)], lambda _: None)
        until(lambda: told(path, "checkpoint.witnessed"), "no time-stamp was kept")
        for number in range(2, 5):
            writer.submit([intent(number)], lambda _: None)
        until(lambda: len(signed(store)) > 1, "nothing more was signed")
        assert len(receiver.got) == 1
        writer.close()
    assert len(receiver.got) == 2  # the last, at the end
