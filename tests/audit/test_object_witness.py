"""Checkpoints under object lock: in moto's S3, signed as Amazon's own library signs."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials

from audit import sigv4
from audit.errors import AuditUnavailable
from audit.notary import Notary
from audit.object_witness import Bucket, ObjectWitness
from audit.signed import Signed
from audit.sigv4 import Credentials
from audit.store import Store
from audit.witness import WitnessAway
from tests.audit.test_notary import KEY, path, store
from tests.audit.test_webhook_witness import told, written
from tests.waiting import until

__all__ = ["path", "store"]

CREDENTIALS = Credentials("AKIAEXAMPLE", "secret/of+tests", "session=token")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = (tmp_path_factory.mktemp("moto") / "log").open("w+")
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", "0"], stdout=log, stderr=log, env={**os.environ}
    )
    try:

        def address() -> str | None:
            log.seek(0)
            found = re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read())
            return found[1] if found else None

        until(address, "moto did not start", 60)
        yield address() or ""
    finally:
        server.terminate()
        server.wait()
        log.close()


def asked(
    storage: str, method: str, path_: str, query: dict[str, str], headers: dict[str, str], body: bytes = b""
) -> Any:
    sent = sigv4.target(path_, query)
    host = storage.removeprefix("http://")
    signed_ = sigv4.signed(method, host, sent, headers, body, credentials=CREDENTIALS, region="us-east-1",
                           now=datetime.now(UTC))  # fmt: skip
    return httpx2.request(method, storage + sent, content=body, headers=signed_)


def bucket(storage: str, name: str, *, lock: bool = True) -> Bucket:
    headers = {"x-amz-bucket-object-lock-enabled": "true"} if lock else {}
    assert asked(storage, "PUT", f"/{name}", {}, headers).is_success
    return Bucket(storage, "us-east-1", name, "shop/", CREDENTIALS)


def test_checkpoints_are_locked_objects_that_cannot_be_deleted(store: Store, path: Path, storage: str) -> None:
    where = bucket(storage, "locked")
    notary = Notary(store, lambda: KEY, witnesses=[ObjectWitness(where, timedelta(days=30))])
    notary.start()
    for _ in range(3):
        written(store)
        notary.seal()
    said = told(path, "checkpoint.witnessed")
    assert [one["size"] for one in said] == [2, 4, 6]
    for one in said:
        at = {"versionId": one["version"]}
        there = asked(storage, "GET", f"/locked/{where.key(one['size'])}", at, {})
        assert (there.text, there.headers["x-amz-object-lock-mode"]) == (one["note"], "COMPLIANCE")
        assert asked(storage, "DELETE", f"/locked/{where.key(one['size'])}", at, {}).status_code == 403
    notary.start()  # and what lies there is what the store holds
    assert told(path, "checkpoint.failed") == []


def test_a_rolled_back_store_does_not_start_whatever_is_laid_over_the_objects(
    store: Store, path: Path, storage: str, tmp_path: Path
) -> None:
    where = bucket(storage, "rolled-back")
    written(store, 5)
    store.checkpoint(KEY)
    witness = ObjectWitness(where, timedelta(days=1))
    witness.take(Signed(path))
    key = f"/rolled-back/{where.key(6)}"
    assert asked(storage, "DELETE", key, {}, {}).is_success  # a marker
    assert asked(storage, "PUT", key, {}, {}, b"another note").is_success  # another version
    ObjectWitness(where, timedelta(days=1)).check([KEY.public], Signed(path))
    with contextlib.closing(Store.open(tmp_path / "older.db")) as older:
        written(older, 2)  # an older copy
        older.checkpoint(KEY)
        with pytest.raises(AuditUnavailable, match="rolled back or rewritten"):
            ObjectWitness(where, timedelta(days=1)).check([KEY.public], Signed(older.path))
        written(older, 7)  # that has grown past what was seen
        older.checkpoint(KEY)
        with pytest.raises(AuditUnavailable, match="rolled back or rewritten"):
            ObjectWitness(where, timedelta(days=1)).take(Signed(older.path))


def test_the_newest_object_is_found_among_many(store: Store, path: Path, storage: str) -> None:
    where = bucket(storage, "many")
    witness = ObjectWitness(where, timedelta(days=1))
    assert witness._find_newest(Signed(path)) == 0
    for size in (2, 3, 7, 1000, 123_456_789):
        headers = {"content-type": "text/plain"}
        assert asked(storage, "PUT", f"/many/{where.key(size)}", {}, headers, b"x").is_success
    assert asked(storage, "PUT", "/many/shop/other", {}, {}, b"x").is_success
    assert witness._find_newest(Signed(path)) == 123_456_789


def test_a_bucket_without_lock_and_one_that_is_not_there_are_failures(store: Store, path: Path, storage: str) -> None:
    written(store)
    store.checkpoint(KEY)
    with pytest.raises(AuditUnavailable, match=r"without locking it|it answered 400"):
        ObjectWitness(bucket(storage, "open", lock=False), timedelta(days=1)).take(Signed(path))
    nowhere = ObjectWitness(Bucket(storage, "us-east-1", "nowhere", "", CREDENTIALS), timedelta(days=1))
    with pytest.raises(WitnessAway, match="404"):
        nowhere.check([KEY.public], Signed(path))
    away = ObjectWitness(Bucket("http://127.0.0.1:1", "us-east-1", "b", "", CREDENTIALS), timedelta(days=1))
    Notary(store, lambda: KEY, witnesses=[away]).start()  # asked later
    away.required = True
    with pytest.raises(WitnessAway):
        Notary(store, lambda: KEY, witnesses=[away]).start()


class Endless(BaseHTTPRequestHandler):
    """A storage that has always more to list (`/pages`), or an answer without an end (any other bucket)."""

    def do_GET(self) -> None:
        page = b"<L><Version><Key>x</Key></Version><IsTruncated>true</IsTruncated></L>"
        endless = "/pages" not in self.path
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 40 if endless else len(page)))
        self.end_headers()
        with contextlib.suppress(OSError):  # nobody listens any more
            while self.wfile.write(page) and endless:
                pass

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(("name", "said"), [("pages", "it has no end"), ("stream", "too long")])
def test_a_storage_that_never_comes_to_an_end_is_left(path: Path, store: Store, name: str, said: str) -> None:
    written(store)
    store.checkpoint(KEY)
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            endpoint = f"http://127.0.0.1:{server.server_port}"
            witness = ObjectWitness(Bucket(endpoint, "us-east-1", name, "", CREDENTIALS), timedelta(days=1))
            for _ in range(2):  # each time anew
                with pytest.raises(WitnessAway, match=said):
                    witness.check([KEY.public], Signed(path))
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("method", "path_", "query", "headers"),
    [
        ("GET", "/bucket", {"versions": "", "prefix": "a b/ü+~", "key-marker": "x=y&z"}, {}),
        ("PUT", "/bucket/a b/ü+~.note", {}, {"content-md5": "abc=", "x-amz-object-lock-mode": "COMPLIANCE"}),
    ],
)
def test_a_request_is_signed_as_amazons_own_library_signs_it(
    method: str, path_: str, query: dict[str, str], headers: dict[str, str]
) -> None:
    now, body = datetime.now(UTC), b"some bytes"
    sent = sigv4.target(path_, query)
    ours = sigv4.signed(method, "s3.example.com", sent, headers, body, credentials=CREDENTIALS, region="eu-central-1",
                        now=now)  # fmt: skip
    request = AWSRequest(method, f"https://s3.example.com{sent}", headers=dict(headers), data=body)
    request.context["timestamp"] = ours["x-amz-date"]
    theirs = S3SigV4Auth(BotoCredentials("AKIAEXAMPLE", "secret/of+tests", "session=token"), "s3", "eu-central-1")
    request.headers["X-Amz-Content-SHA256"] = ours["x-amz-content-sha256"]
    request.headers["X-Amz-Date"] = ours["x-amz-date"]
    request.headers["X-Amz-Security-Token"] = "session=token"
    signature = theirs.signature(theirs.string_to_sign(request, theirs.canonical_request(request)), request)
    assert ours["authorization"].endswith(f"Signature={signature}")


def test_no_secret_is_in_what_is_shown() -> None:
    assert not {"secret", "token"} & set(repr(CREDENTIALS).replace("=", " ").split())
    assert "of+tests" not in repr(CREDENTIALS)
