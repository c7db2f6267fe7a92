"""A witness in object storage (S3 and what speaks like it): each checkpoint an object that nobody can delete in time.

Objects are put with object lock in COMPLIANCE mode, which holds against the bucket's owner too, and are read back. What
counts is the oldest version of each: newer ones and delete markers can be laid over it, but take nothing away.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NoReturn
from urllib.parse import urlsplit
from xml.etree import ElementTree

import httpx2

from audit import sigv4
from audit.errors import AuditUnavailable
from audit.note import PublicKey
from audit.signed import Signed
from audit.sigv4 import Credentials
from audit.witness import WitnessAway, conflict, held, shown

_TIMEOUT_SECONDS = 10.0
_LONGEST_ANSWER = 4 * 1024 * 1024
# What one check or hand-over may take of a storage that never comes to an end: a bisection asks some fifty times.
_REQUESTS = 500
_SECONDS = 120.0
_MODE, _UNTIL = "x-amz-object-lock-mode", "x-amz-object-lock-retain-until-date"
# The storage's clock, and the retention that it rounds, may be off by so much.
_SLACK = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where objects lie: `endpoint` is the storage's address, the bucket's name goes into the path."""

    endpoint: str
    region: str
    name: str
    prefix: str
    credentials: Credentials

    def key(self, size: int) -> str:
        """The object's name for a checkpoint over so many entries: names sort as sizes do."""
        return f"{self.prefix}{size:020}.note"

    def size(self, key: str) -> int | None:
        """What `key` was made from; None for another's object."""
        digits = key.removeprefix(self.prefix).removesuffix(".note")
        return int(digits) if digits.isdigit() and key == self.key(int(digits)) else None


@dataclass(frozen=True, slots=True)
class _Answer:
    """A success, read whole."""

    headers: httpx2.Headers
    content: bytes


class ObjectWitness:
    """A bucket of checkpoints, each kept for `kept`."""

    def __init__(self, bucket: Bucket, kept: timedelta, *, every: float = 0.0, required: bool = False) -> None:
        self.name = f"{shown(bucket.endpoint).rstrip('/')}/{bucket.name}/{bucket.prefix}"
        self.required = required
        self.every = every
        self._bucket = bucket
        self._kept = kept
        self._newest: int | None = None  # the newest size that lies there; not asked yet
        self._requests, self._until = 0, float("inf")  # of the check or hand-over that goes on
        self._http = httpx2.Client(timeout=_TIMEOUT_SECONDS, follow_redirects=False)

    def check(self, keys: Collection[PublicKey], signed: Signed) -> None:
        """Hold the store to the newest checkpoint that lies there. Raises AuditUnavailable."""
        self._begin()
        newest = self._find_newest(signed)
        if newest > 0:
            held(self.name, self._oldest(newest), keys, signed)
        self._newest = newest

    def take(self, signed: Signed) -> Mapping[str, object] | None:
        """Put the newest checkpoint and read it back; the version that holds it is told. Raises AuditUnavailable."""
        self._begin()
        newest = signed.newest()
        if newest is None:
            return None
        size, note = newest
        if self._newest is None:  # it could not be asked at the start
            self._newest = self._find_newest(signed)
            if self._newest > 0 and signed.note(self._newest) != self._oldest(self._newest):
                raise conflict(self.name, self._newest)
        if self._newest >= size:
            return None
        version, until = self._put(size, note)
        self._newest = size
        return {"size": size, "note": note, "version": version, "until": until}

    def _put(self, size: int, note: str) -> tuple[str, str]:
        until = datetime.now(UTC) + self._kept
        body = note.encode()
        headers = {
            "content-type": "text/plain; charset=utf-8",
            "content-md5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode("ascii"),
            _MODE: "COMPLIANCE",
            _UNTIL: until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        key = self._bucket.key(size)
        answer = self._ask("PUT", key, {}, headers, body)
        version = answer.headers.get("x-amz-version-id", "")
        there = self._ask("GET", key, {"versionId": version} if version else {})
        locked, promised = there.headers.get(_MODE), _time(there.headers.get(_UNTIL))
        if there.content != body:
            raise AuditUnavailable(f"the witness `{self.name}` holds another note as `{key}` than it was given")
        if not version or locked != "COMPLIANCE" or promised is None or promised < until - _SLACK:
            raise AuditUnavailable(
                f"the witness `{self.name}` took `{key}` without locking it ({locked}, until {promised});"
                " make a bucket with versions and object lock"
            )
        return version, promised.isoformat()

    def _find_newest(self, signed: Signed) -> int:
        """The largest size that an object lies there for, 0 without one; by bisection, as listings go upwards only.

        The store's own newest, or the one before it, is the likeliest, and tried first.
        """
        for size, _ in signed.latest(2):
            if self._first(size) == size and self._first(size + 1) is None:
                return size
        low, high = self._first(0) or 0, 10**13
        while low and low < high:
            middle = (low + high + 1) // 2
            found = self._first(middle)
            low, high = (low, middle - 1) if found is None else (found, high)
        return low

    def _first(self, size: int) -> int | None:
        """The smallest size, at least this, that there is an object for."""
        before = self._bucket.key(size - 1) if size else self._bucket.prefix
        for key, _ in self._versions({"prefix": self._bucket.prefix, "key-marker": before}):
            if (found := self._bucket.size(key)) is not None and found >= size:
                return found
        return None

    def _oldest(self, size: int) -> str:
        """The note that was put first for this size."""
        key = self._bucket.key(size)
        versions = [version for name, version in self._versions({"prefix": key}) if name == key]
        if not versions:
            self._fail(f"`{key}` is not in its listing any more")
        return self._ask("GET", key, {"versionId": versions[-1]}).content.decode("utf-8", "replace")

    def _versions(self, asked: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """(key, version), by name, the newest version of each first; delete markers are no versions."""
        more: Mapping[str, str] = {}
        while True:
            answer = self._ask("GET", "", {"versions": "", "max-keys": "100", **asked, **more})
            try:
                page = ElementTree.fromstring(answer.content)  # noqa: S314 - bounded above; expat bounds entities
            except ElementTree.ParseError as error:
                self._fail(f"its listing cannot be read: {error}")
            for one in page.iterfind("{*}Version"):
                yield one.findtext("{*}Key", ""), one.findtext("{*}VersionId", "")
            if page.findtext("{*}IsTruncated") != "true":
                return
            more = {
                "key-marker": page.findtext("{*}NextKeyMarker", ""),
                "version-id-marker": page.findtext("{*}NextVersionIdMarker", ""),
            }

    def _ask(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> _Answer:
        where = urlsplit(self._bucket.endpoint)
        sent = sigv4.target(f"{where.path.rstrip('/')}/{self._bucket.name}/{key}".rstrip("/"), query)
        signed = sigv4.signed(
            method,
            where.netloc,
            sent,
            headers or {},
            body,
            credentials=self._bucket.credentials,
            region=self._bucket.region,
            now=datetime.now(UTC),
        )
        self._requests += 1
        if self._requests > _REQUESTS:
            self._fail(f"it has no end: asked {_REQUESTS} times, it has more to tell")
        content, url = bytearray(), f"{where.scheme}://{where.netloc}{sent}"
        try:
            with self._http.stream(method, url, content=body or None, headers=signed) as answer:
                for piece in answer.iter_bytes():
                    content += piece
                    if len(content) > _LONGEST_ANSWER or time.monotonic() > self._until:
                        self._fail(f"{method} of `{key}`: its answer is too long, or takes too long")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            self._fail(str(error) or type(error).__name__)
        if not answer.is_success:
            self._fail(f"{method} of `{key}`: it answered {answer.status_code} {bytes(content[:200])!r}")
        return _Answer(answer.headers, bytes(content))

    def _begin(self) -> None:
        self._requests, self._until = 0, time.monotonic() + _SECONDS

    def _fail(self, why: str) -> NoReturn:
        raise WitnessAway(f"the witness `{self.name}`: {why}; it is tried again")


def _time(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
