"""Witnesses from the configuration to the auditor's commands: each form, its secrets, and what `verify` says."""

from __future__ import annotations

import contextlib
import json
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509 import load_pem_x509_certificates

from audit.cosignature import WitnessKey
from audit.notary import Notary
from audit.object_witness import ObjectWitness
from audit.store import Store
from audit.timestamps import TimestampWitness
from audit.webhook_witness import WebhookWitness
from gateway.errors import ConfigurationError
from tests.answering import answering
from tests.audit.test_notary import KEY
from tests.audit.test_store import intent
from tests.audit.test_timestamps import authority, openssl, stamping
from tests.audit.test_webhook_witness import Cosigner, vkey
from tests.server.test_config import config
from tests.server.test_signing_commands import run

__all__ = ["authority"]

BUCKET = "bucket: b, endpoint: 'http://localhost:9', key_id: k"


def witnesses(folder: Path, *written: str) -> tuple[object, ...]:
    listed = "".join(f"    - {{{one}}}\n" for one in written)
    return config(folder, f"  witnesses:\n{listed}").signing.witnesses


def test_each_form_is_the_witness_that_it_names(
    tmp_path: Path, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root.pem").write_bytes((authority / "root.pem").read_bytes())
    (tmp_path / "secret").write_text("s3cret\n")
    monkeypatch.setenv("WITNESS_TOKEN", "t0ken")
    hook, stamps, bucket = witnesses(
        tmp_path,
        "webhook: 'https://me:s3cret@w.example/add-checkpoint?token=s3cret',"
        f" key: '{vkey()}', token_env: WITNESS_TOKEN, required: true",
        "timestamp: 'http://tsa.example', roots: root.pem, every: 60",
        f"{BUCKET}, secret_file: secret, prefix: shop/, days: 30",
    )
    assert isinstance(hook, WebhookWitness)
    assert (hook.name, hook.required, hook.every) == ("https://w.example/add-checkpoint", True, 0)
    assert isinstance(stamps, TimestampWitness)
    assert (stamps.name, stamps.required, stamps.every) == ("http://tsa.example", False, 60)
    assert isinstance(bucket, ObjectWitness)
    assert bucket.name == "http://localhost:9/b/shop/"
    assert (bucket._kept, bucket._bucket.credentials.secret) == (timedelta(days=30), "s3cret")


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("webhook: 'http://w.example/'", "must be an https address"),
        ("webhook: 'https://w.example/', key: nobody", "no witness's vkey"),
        ("webhook: 'https://w.example/', token_env: NOT_SET_HERE", "`NOT_SET_HERE` with the token .* is not set"),
        ("webhook: 'https://w.example/', secret_env: X", "unknown key `secret_env`"),
        ("timestamp: 'https://tsa.example'", "`roots` is missing"),
        ("timestamp: 'https://tsa.example', roots: nowhere.pem", "cannot be read"),
        (BUCKET, "exactly one of `secret_file` and `secret_env`"),
        (f"{BUCKET}, secret_file: nowhere", "the secret of the witness `b` cannot be read"),
        ("bucket: b, endpoint: 'http://s3.example', key_id: k, secret_env: X", "must be an https address"),
    ],
)
def test_a_witness_that_could_not_serve_stops_the_start(tmp_path: Path, written: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        witnesses(tmp_path, written)


def test_an_auditor_sees_cosignatures_and_time_stamps_by_the_commands(tmp_path: Path, authority: Path) -> None:
    path, roots = tmp_path / "audit.db", load_pem_x509_certificates((authority / "root.pem").read_bytes())
    with (
        contextlib.closing(Store.open(path)) as store,
        answering(Cosigner()) as cosigner,
        answering(stamping(authority)) as stamper,
    ):
        store.append([[intent(1)]])
        hook = WebhookWitness(cosigner.url, key=WitnessKey.parse(vkey()))
        Notary(store, lambda: KEY, witnesses=[hook, TimestampWitness(stamper.url, roots)]).seal()
    asked = ("--public-key", KEY.public, "--witness-key", vkey(), "--timestamp-root", authority / "root.pem")
    done = run("verify", path, *asked)
    assert done.exit_code == 0, done.output
    assert "witnessed   2 entries, cosigned at 2023-" in done.stdout
    assert "stamped     2 entries, at " in done.stdout
    told = json.loads(run("verify", path, *asked, "--json").stdout)
    assert (told["ok"], told["cosigned"], told["timestamps"]["count"]) == (True, 2, 1)
    shown = run("witnessed", path, "--output", tmp_path / "out")
    assert [line.split("  ")[3] for line in shown.stdout.splitlines()] == ["cosigned", "time-stamped"]
    [stamp] = (tmp_path / "out").glob("*.tsr")
    given = ("-in", stamp, "-data", stamp.with_suffix(".note"), "-CAfile", "root.pem")
    assert b"Verification: OK" in openssl(authority, "ts", "-verify", *given)
    assert "witnessed" in run("search", path, "--kind", "audit.read").stdout
    assert stamper.url in run("search", path, "--kind", "checkpoint.witnessed").stdout


def test_a_store_without_the_word_that_is_asked_for_does_not_pass(tmp_path: Path, authority: Path) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        store.append([[intent(1)]])
        store.checkpoint(KEY)
    done = run("verify", path, "--timestamp-root", authority / "root.pem")
    assert (done.exit_code, "NOT STAMPED no checkpoint has a time-stamp" in done.stdout) == (1, True)
    done = run("verify", path, "--witness-key", vkey())
    assert (done.exit_code, "no checkpoint is cosigned" in done.stdout) == (1, True)
    done = run("verify", path, "--timestamp-root", tmp_path / "nowhere")
    assert (done.exit_code, "cannot be read" in done.stderr) == (2, True)
