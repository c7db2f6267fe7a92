#!/usr/bin/env python3
"""Verifies an audit store offline, alone: standard library only, imports nothing of ours, writes nothing.

    python verify.py audit.db [--public-key KEY] [--checkpoint FILE] [--witness-key KEY] [--since SEQ] [--json]

Exit status: 0 everything holds; 1 it does not, and the first bad entry is named; 2 a file cannot be read.
This file restates the format of SPEC.md on purpose: it can be handed to an auditor by itself. Where the
`cryptography` package is installed it checks signatures, 20 times faster than the check that is written out here.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import math
import re
import shutil
import sqlite3
import struct
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    LIBRARY = True
except ImportError:
    LIBRARY = False

APPLICATION_ID = 0x434E5453
VERSION = 3
GENESIS = hashlib.sha256(b"countersign audit chain v1\n").digest()

# SHA-256 of the SQL of all our tables, indexes, views and triggers, sorted by name: a view that hides
# rows or a trigger that eats them is no edit of an entry, and yet what people would be shown.
SCHEMA = "051e47c01b8ee645885a2fc5ebbae228ce6bdf2a72fbbd41df1b631aa63b83e5"

_OBJECTS = (
    "SELECT name, type, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL AND"
    " (tbl_name IN ('entries', 'checkpoints', 'approval_records', 'approval_votes', 'statements', 'sessions',"
    " 'approvals', 'recordings'))"
    " AND (type <> 'index' OR name IN ('entries_by_statement', 'entries_by_subject', 'entries_by_session',"
    " 'entries_by_session_life', 'entries_by_key', 'approval_records_by_state')) ORDER BY name"
)


class Unreadable(Exception):  # noqa: N818 - the name of an exit status
    """The file is no audit store that this program can read."""


@dataclass(frozen=True)
class Report:
    """What was found. `problem` is None when everything holds; `bad_seq` names the first bad entry, if it is one.

    `entries` counts those that hold, `first` and `last` are the times of those that were looked at, `head` is the
    last one's hash (hex), `open_statements` the intents among them that have no outcome (yet). `since` is the first
    entry that was looked at; `signed` the size of the newest checkpoint that holds, `checkpoints` how many were
    checked, `key` who signs, and `vouched` whether the caller, and not the store, named that key. `cosigned` is the
    size of the newest checkpoint that a witness whose key was given cosigned, at the time `cosigned_at`.
    """

    path: str
    entries: int
    first: str | None
    last: str | None
    head: str
    open_statements: int
    bad_seq: int | None = None
    problem: str | None = None
    since: int = 1
    signed: int = 0
    checkpoints: int = 0
    key: str | None = None
    vouched: bool = False
    cosigned: int = 0
    cosigned_at: str | None = None

    @property
    def ok(self) -> bool:
        """True when no problem was found."""
        return self.problem is None


_length = struct.Struct(">I").pack
_number = struct.Struct(">Q").pack


def _field(data: bytes | None) -> bytes:
    return b"\xff\xff\xff\xff" if data is None else _length(len(data)) + data


def entry_hash(prev: bytes, seq: int, *fields: str | None) -> bytes:
    """SHA-256 as SPEC.md says: prev, seq (8 bytes, big-endian), then each field length-prefixed (4 bytes)."""
    encoded = (None if text is None else text.encode("utf-8") for text in fields)
    return hashlib.sha256(prev + _number(seq) + b"".join(map(_field, encoded))).digest()


def verify(
    path: Path,
    progress: Callable[[int], None] | None = None,
    *,
    public_keys: Sequence[str] = (),
    checkpoints: Sequence[str] = (),
    witness_keys: Sequence[str] = (),
    since: int = 1,
) -> Report:
    """Walk the chain to the head, and hold every checkpoint to it: the stored ones and those given (signed notes).

    `public_keys` are vkeys that the caller knows from elsewhere; without one, the store's own word is taken for
    who signs, and the report says so. `witness_keys` are vkeys of witnesses: one must have cosigned, and every
    cosignature of theirs must hold. `since` starts at the newest stored checkpoint before that entry, which
    must hold. Raises Unreadable. `progress` hears the count now and then.
    """
    path = Path(path)
    if not path.is_file():
        raise Unreadable(f"`{path}` is not a file")
    keys = [Key.parse(text) for text in public_keys]
    notes = [SignedNote.parse(text) for text in checkpoints]
    witnesses = [Key.parse(text, _COSIGNATURE) for text in witness_keys]
    try:
        while True:
            with _open(path) as (db, immutable):
                report = _verify(db, path, progress, keys, notes, since)
                if witnesses and report.ok:
                    report = _with_witnesses(db, report, witnesses, notes)
            if report.ok or not (immutable and _wal(path).exists()):
                return report
            # A gateway began to write while we took the file for a still one: look again, beside it.
    except (sqlite3.Error, OSError) as error:
        raise Unreadable(f"`{path}` cannot be read: {error}") from None


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[sqlite3.Connection, bool]]:
    """A read-only connection (and whether it takes the file for unchanging), leaving no file beside the store."""
    path = path.resolve()
    with contextlib.ExitStack() as stack:
        immutable = not _wal(path).exists()
        if not immutable and not path.with_name(path.name + "-shm").exists():
            # A copy with its log but without the log's index: SQLite would make one beside the evidence.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="verify-")))
            shutil.copy(_wal(path), folder / "copy.db-wal")
            path = Path(shutil.copy(path, folder / "copy.db"))
        uri = f"{path.as_uri()}?mode=ro{'&immutable=1' if immutable else ''}"
        db = stack.enter_context(contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)))
        yield db, immutable


def _verify(
    db: sqlite3.Connection,
    path: Path,
    progress: Callable[[int], None] | None,
    keys: Sequence[Key],
    notes: Sequence[SignedNote],
    since: int,
) -> Report:
    db.execute("BEGIN")  # one consistent view, also while a gateway writes
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise Unreadable(f"`{path}` is not an audit store")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        raise Unreadable(f"`{path}` is of version {version}; this verifier knows version {VERSION}")
    walk = _Walk(trusted=keys, given=sorted((note for note in notes if note.size), key=lambda note: note.size))
    problem: str | None
    bad: int | None = None
    try:
        walk.start(db, min([since, *(note.size + 1 for note in notes)]))
        if (problem := walk.chain(db, progress) or walk.unmet()) is not None:
            bad = walk.bad
        else:
            problem = _schema_problem(db) or (walk.approvals_problem(db) if walk.begun == 1 else None) or _damage(db)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        bad = walk.seq + 1
        problem = f"it, or what follows, cannot be read: {error} (damaged or overwritten)"
    return Report(
        path=str(path),
        entries=walk.seq,
        first=walk.first.decode("utf-8", "replace") or None,
        last=walk.last.decode("utf-8", "replace") or None,
        head=walk.head.hex(),
        open_statements=_open_statements(db) if problem is None else 0,
        bad_seq=bad,
        problem=problem,
        since=walk.begun,
        signed=walk.signed,
        checkpoints=walk.held,
        key=walk.keys[-1][1].vkey if walk.keys else None,
        vouched=bool(keys),
    )


def schema_digest(db: sqlite3.Connection) -> str:
    """SHA-256 (hex) of the definitions of everything of ours in the file, and of any trigger on our tables."""
    return hashlib.sha256(json.dumps(db.execute(_OBJECTS).fetchall()).encode("utf-8")).hexdigest()


def _schema_problem(db: sqlite3.Connection) -> str | None:
    if schema_digest(db) == SCHEMA:
        return None
    return "every entry holds, but a table, view, index or trigger of ours was altered, and views show what they like"


def _with_witnesses(
    db: sqlite3.Connection, report: Report, witnesses: Sequence[Key], given: Sequence[SignedNote]
) -> Report:
    """The report, with what these witnesses cosigned: in entries of the store that holds, and in the notes given."""
    found = [(0, note) for note in given]
    for seq, body in db.execute("SELECT seq, body FROM entries WHERE kind = 'checkpoint.witnessed' ORDER BY seq"):
        told = json.loads(body)
        if "\n\n" in told.get("note", ""):
            found.append((seq, SignedNote.parse(told["note"])))
    size, time = 0, 0
    for seq, note in found:
        for key in witnesses:
            cosigned = key.cosigned(note)
            if cosigned is None:
                continue
            row = db.execute("SELECT note FROM checkpoints WHERE size = ?", (note.size,)).fetchone()
            if not cosigned or row is None or SignedNote.parse(row[0]).text != note.text:
                what = "does not hold (edited)" if not cosigned else "is of another history (a fork, or rolled back)"
                problem = f"the cosignature of {key.name} over {note.size} entries {what}"
                return replace(report, problem=problem, bad_seq=seq or note.size)
            size, time = max((size, time), (note.size, cosigned))
    if not size:
        return replace(report, problem="no checkpoint is cosigned by the witness whose key you gave")
    at = datetime.fromtimestamp(time, UTC).isoformat()
    return replace(report, cosigned=size, cosigned_at=at)


def _damage(db: sqlite3.Connection) -> str | None:
    """Stored values of another type than declared, indexes that do not agree with their rows, broken pages."""
    [found] = db.execute("PRAGMA integrity_check(1)").fetchone()
    return None if found == "ok" else f"SQLite finds the file inconsistent: {found}"


def _open_statements(db: sqlite3.Connection) -> int:
    sql = (
        "SELECT count(*) FROM entries i WHERE i.statement IS NOT NULL AND i.kind = 'intent' AND NOT EXISTS"
        " (SELECT 1 FROM entries o WHERE o.statement = i.statement AND o.kind = 'outcome')"
    )
    return int(db.execute(sql).fetchone()[0])


@dataclass(frozen=True)
class Key:
    """An Ed25519 public key with its name (c2sp.org/signed-note)."""

    name: str
    key: bytes
    vkey: str
    algorithm: int = 1

    @property
    def id(self) -> bytes:
        """The 4 bytes that a signature line names it by."""
        return hashlib.sha256(self.name.encode() + bytes([10, self.algorithm]) + self.key).digest()[:4]

    @classmethod
    def parse(cls, text: str, algorithm: int = 1) -> Key:
        """Read `<name>+<id>+<base64>`: a signer's, or a witness's (`_COSIGNATURE`). Raises Unreadable."""
        name, _, rest = text.strip().partition("+")
        id_, _, encoded = rest.partition("+")
        data = _base64(encoded)
        key = cls(name, data[1:], text.strip(), algorithm)
        if len(data) != 33 or data[0] != algorithm or key.id.hex() != id_:
            what = "public key" if algorithm == 1 else "witness's key"
            raise Unreadable(f"`{text.strip()[:120]}` is no {what}: it must be a vkey, <name>+<id>+<base64>")
        return key

    def signed(self, note: SignedNote) -> bool:
        """Whether this key signed the note, and every signature that claims to be this key's is."""
        mine = [value for name, id_, value in note.signatures if (name, id_) == (self.name, self.id)]
        return bool(mine) and all(ed25519_verifies(self.key, value, note.text.encode()) for value in mine)

    def cosigned(self, note: SignedNote) -> int | None:
        """When this witness cosigned (c2sp.org/tlog-cosignature, Unix time); None: it did not; 0: it does not hold."""
        times: list[int] = []
        for name, id_, value in note.signatures:
            if (name, id_) == (self.name, self.id):
                time = int.from_bytes(value[:8], "big")
                text = f"cosignature/v1\ntime {time}\n{note.text}"
                times.append(time if ed25519_verifies(self.key, value[8:], text.encode()) else 0)
        return min(times, default=None)


@dataclass(frozen=True)
class SignedNote:
    """A signed note, not checked yet; of a checkpoint, `origin`, `size` and `root` are its three lines."""

    text: str
    signatures: Sequence[tuple[str, bytes, bytes]]
    origin: str = ""
    size: int = 0
    root: bytes = b""

    @classmethod
    def parse(cls, note: str, checkpoint: bool = True) -> SignedNote:
        """Take a note apart; raises Unreadable for what is none."""
        text, found, lines = note.rpartition("\n\n")
        signatures = re.findall(r"^\u2014 ([^ +\n]+) ([A-Za-z0-9+/=]+)$", lines, re.MULTILINE)
        decoded = [(name, _base64(value)[:4], _base64(value)[4:]) for name, value in signatures]
        if not found or not decoded or len(decoded) != lines.count("\n"):
            raise Unreadable(f"this is no signed note: {note[:80]!r}")
        if not checkpoint:
            return cls(text + "\n", decoded)
        match text.split("\n"):
            case [origin, size, root, *_] if re.fullmatch("0|[1-9][0-9]{0,18}", size) and len(_base64(root)) == 32:
                return cls(text + "\n", decoded, origin, int(size), _base64(root))
        raise Unreadable(f"this is no checkpoint: {note[:80]!r}")


def notes_in(text: str) -> list[str]:
    """The signed notes of a file that holds one or more, one after the other; raises Unreadable for none."""
    found = re.findall(r"(?:(?!\u2014 )[^\n]+\n)+\n(?:\u2014 [^\n]+\n)+", text)
    if not found:
        raise Unreadable("there is no signed note in it")
    return found


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def ed25519_verifies(key: bytes, signature: bytes, message: bytes) -> bool:
    """RFC 8032, 5.1.7: by the `cryptography` package where there is one, else by the arithmetic below."""
    if not LIBRARY:
        return lone_ed25519_verifies(key, signature, message)
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


_Point = tuple[int, int, int, int]  # extended coordinates: x = X/Z, y = Y/Z, x*y = T/Z
_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P


def _add(p: _Point, q: _Point) -> _Point:
    """RFC 8032, 5.1.4; complete, so that it doubles too."""
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % _P, (p[1] + p[0]) * (q[1] + q[0]) % _P
    c, d = 2 * p[3] * q[3] * _D % _P, 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _point(data: bytes) -> _Point | None:
    """RFC 8032, 5.1.3: 32 bytes to a point, None where there is none."""
    number = int.from_bytes(data, "little")
    y, sign = number & (1 << 255) - 1, number >> 255
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
    if (x * x - square) % _P or (x == 0 and sign):
        return None
    x = _P - x if x & 1 != sign else x
    return x, y, 1, x * y % _P


def lone_ed25519_verifies(key: bytes, signature: bytes, message: bytes) -> bool:
    """The check itself: [s]B - [k]A must encode to the signature's first half. Public data only: not constant-time."""
    base = _point((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
    public = _point(key) if len(key) == 32 else None
    s = int.from_bytes(signature[32:], "little")
    if base is None or public is None or len(signature) != 64 or s >= _L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % _L
    minus = (_P - public[0], public[1], 1, _P - public[3])
    steps: dict[tuple[int, int], _Point] = {(1, 0): base, (0, 1): minus, (1, 1): _add(base, minus)}
    sum_: _Point = (0, 1, 1, 0)
    for bit in range(252, -1, -1):  # both products in one pass
        sum_ = _add(sum_, sum_)
        if step := steps.get((s >> bit & 1, k >> bit & 1)):
            sum_ = _add(sum_, step)
    inverse = pow(sum_[2], -1, _P)
    x, y = sum_[0] * inverse % _P, sum_[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little") == signature[:32]


class _Recordings:
    """The stored recordings beside the walk: each is held to its outcome; one that is gone must have been shredded."""

    def __init__(self, stored: Iterator[tuple[int, bytes]]) -> None:
        self._stored = stored
        self._gone = array("Q")
        self._shredded: list[tuple[int, int]] = []
        self.next: float
        self.next, self._data = next(stored, _NO_RECORDING)

    def hold(self, number: int, kind: bytes, body: bytes) -> str | None:
        """What is wrong with the recording of this entry, or with one that belongs to none."""
        told = _json(body) if kind == b"outcome" else None
        match told.get("recording") if isinstance(told, dict) else None:
            case {"digest": str()} if self.next != number:
                self._gone.append(number)
            case {"digest": str(digest)}:
                if hashlib.sha256(self._data).hexdigest() != digest:
                    return "its recording is not the one that was made (edited)"
                self.next, self._data = next(self._stored, _NO_RECORDING)
        if self.next <= number:
            return "there is a recording here that no outcome tells of (inserted)"
        return None

    def shred(self, number: int, body: bytes) -> None:
        """An entry says that recordings before it were shredded."""
        told = _json(body)
        match told.get("shredded") if isinstance(told, dict) else None:
            case {"first": int(first), "last": int(last)}:
                self._shredded.append((first, min(last, number)))

    def missing(self) -> int | None:
        """The first entry whose recording is gone although nobody shredded it."""
        ranges, until, at = sorted(self._shredded), 0, 0
        for number in self._gone:
            while at < len(ranges) and ranges[at][0] <= number:
                until, at = max(until, ranges[at][1]), at + 1
            if number > until:
                return number
        return None


_NO_RECORDING: tuple[float, bytes] = (math.inf, b"")
_COSIGNATURE = 4  # the algorithm that a witness's vkey names
_ROTATION = "countersign key rotation v1"
_CHECKPOINTS = "SELECT size, CAST(note AS BLOB), peaks FROM checkpoints WHERE size >= ? ORDER BY size"
_KEY_ENTRIES = (
    "SELECT seq, kind, body FROM entries WHERE kind IN ('key.created', 'key.rotated') AND seq <= ? ORDER BY seq"
)


@dataclass
class _Walk:
    """Where the walk along the chain is, the tree up to there, and what the chain has said of keys and approvals."""

    trusted: Sequence[Key]
    given: list[SignedNote]
    stored: Iterator[tuple[int, bytes, bytes]] = field(default_factory=lambda: iter(()))
    next_stored: tuple[int, bytes, bytes] | None = None
    begun: int = 1
    seq: int = 0
    head: bytes = GENESIS
    first: bytes = b""
    last: bytes = b""
    bad: int = 0
    peaks: list[bytes] = field(default_factory=list)
    keys: list[tuple[int, Key]] = field(default_factory=list)
    signed: int = 0
    held: int = 0
    states: dict[str, str] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)
    votes: dict[tuple[str, str, str], str] = field(default_factory=dict)
    recordings: _Recordings = field(default_factory=lambda: _Recordings(iter(())))

    def start(self, db: sqlite3.Connection, since: int) -> None:
        """Take up the walk at the newest checkpoint before `since`, if its signature and its peaks hold."""
        sql = (
            "SELECT size, peaks, hash, entries.time FROM checkpoints, entries"
            " WHERE size = seq AND size BETWEEN 1 AND ? ORDER BY size DESC LIMIT 1"
        )
        for size, peaks, hash_, time in db.execute(sql, (since - 1,)).fetchall():
            named = db.execute(_KEY_ENTRIES, (size,)).fetchall()
            whole = len(peaks) == 32 * size.bit_count()
            if whole and all(self._key(seq, kind.encode(), body.encode()) is None for seq, kind, body in named):
                self.seq, self.head, self.last = size, hash_, time.encode()
                self.peaks = [peaks[at : at + 32] for at in range(0, len(peaks), 32)]
            else:
                self.keys.clear()
        self.begun = self.seq + 1
        self.stored = iter(db.execute(_CHECKPOINTS, (self.seq,)))
        self.next_stored = next(self.stored, None)
        stored = db.execute("SELECT seq, data FROM recordings WHERE seq > ? OR seq < 1 ORDER BY seq", (self.seq,))
        self.recordings = _Recordings(iter(stored))

    def chain(self, db: sqlite3.Connection, progress: Callable[[int], None] | None) -> str | None:
        """Check every entry and checkpoint; the first problem, with `bad` set, or None."""
        if self.seq and (problem := self._checkpoints()) is not None:
            return problem
        db.text_factory = bytes  # the very bytes that are stored
        try:
            return self._entries(
                db.execute(
                    "SELECT seq, time, kind, session, subject, connection, body, prev, hash FROM entries"
                    " WHERE seq > ? OR seq < 1 ORDER BY seq",
                    (self.seq,),
                ),
                progress,
            )
        finally:
            db.text_factory = str

    def _entries(self, rows: sqlite3.Cursor, progress: Callable[[int], None] | None) -> str | None:
        """The loop over every entry: what it needs each time is in local names, which is where its speed comes from."""
        sha256, join, peaks, due = hashlib.sha256, b"".join, self.peaks, self._due()
        head, last, after, recordings = self.head, self.last, self.seq, self.recordings
        for number, time, kind, session, subject, connection, body, prev, hash_ in rows:
            data = join(map(_field, (time, kind, session, subject, connection, body)))
            if number != after + 1:
                return self._gap(number)
            if sha256(prev + _number(number) + data).digest() != hash_:
                return self._at(number, "its contents do not match its hash (edited)")
            if prev != head or time < last:
                return self._misfit(number, time if prev == head else None)
            if kind[:4] == b"appr" and (problem := self._replay(body)) is not None:
                return self._at(number, problem)
            if kind[:4] == b"key." and (problem := self._key(number, kind, body)) is not None:
                return self._at(number, problem)
            if number >= recordings.next or b'"recording":{' in body:
                if (problem := recordings.hold(number, kind, body)) is not None:
                    return self._at(number, problem)
            elif kind == b"recording.shredded":
                recordings.shred(number, body)
            node = sha256(b"\x00" + hash_).digest()
            while after & 1:
                node = sha256(b"\x01" + peaks.pop() + node).digest()
                after >>= 1
            peaks.append(node)
            self.seq = after = number
            self.head, self.last = head, last = hash_, time
            if number >= due:
                if (problem := self._checkpoints()) is not None:
                    return problem
                due = self._due()
            if number % 10_000 == 0 and progress is not None:
                progress(number)
            self.first = self.first or time
        return None

    def _due(self) -> float:
        """The size that the next checkpoint is about."""
        sizes = [note.size for note in self.given[:1]] + ([self.next_stored[0]] if self.next_stored else [])
        return min(sizes, default=math.inf)

    def _gap(self, number: int) -> str:
        if number < 1:
            return self._at(number, "there is no such entry: the first is 1 (inserted)")
        return self._at(self.seq + 1, f"it is missing; the next one is {number} (deleted)")

    def _misfit(self, number: int, time: bytes | None) -> str:
        if time is not None:
            told = time.decode("utf-8", "replace")
            return self._at(number, f"its time {told} is before that of the entry before it")
        return self._at(
            number,
            f"it does not follow entry {number - 1}"
            " (that one was edited and re-hashed, or one was inserted, deleted or reordered here)",
        )

    def _key(self, seq: int, kind: bytes, body: bytes) -> str | None:
        """Who signs from here on: the first key, or the next one, handed over under both signatures."""
        told = _json(body)
        try:
            if kind == b"key.created" and not self.keys:
                self.keys.append((seq, Key.parse(told["vkey"])))
                return None
            if kind == b"key.rotated" and self.keys:
                old, note = self.keys[-1][1], SignedNote.parse(told["note"], checkpoint=False)
                new = Key.parse(note.text.split("\n")[2])
                if note.text == f"{_ROTATION}\n{old.vkey}\n{new.vkey}\n" and old.signed(note) and new.signed(note):
                    self.keys.append((seq, new))
                    return None
        except (Unreadable, KeyError, IndexError, AttributeError, TypeError):
            pass
        return "it names a key that the keys before it did not hand over to (foreign key)"

    def _checkpoints(self) -> str | None:
        """Hold the checkpoints over exactly the entries so far to them."""
        while self.next_stored is not None and self.next_stored[0] <= self.seq:
            size, text, peaks = self.next_stored
            try:
                note = SignedNote.parse(text.decode("utf-8", "replace"))
            except Unreadable as error:
                return self._at(size, str(error))
            if not size == note.size == self.seq:
                return self._at(size, f"the checkpoint stored for {size} entries says {note.size} (edited)")
            if (problem := self._holds(note, "the checkpoint")) is not None:
                return problem
            if peaks != b"".join(self.peaks):
                return self._at(size, "the tree beside the checkpoint is not that of the entries (edited)")
            self.next_stored = next(self.stored, None)
        while self.given and self.given[0].size <= self.seq:
            if (problem := self._holds(self.given.pop(0), "the checkpoint that you gave")) is not None:
                return problem
        return None

    def _holds(self, note: SignedNote, name: str) -> str | None:
        signers = [key for _, key in self.keys if key.name == note.origin and key.signed(note)]
        if not signers:
            return self._at(note.size, f"{name} over {note.size} entries is not by this audit's key (foreign key)")
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = hashlib.sha256(b"\x01" + peak + root).digest()
        if root != note.root:
            self.bad = self.signed + 1
            return (
                f"{name} signed another history: of entries {self.bad} to {note.size} at least one was rewritten, with"
                " all hashes recomputed (a fork, or a rollback that was written over)"
            )
        if [key for seq, key in self.keys if seq <= note.size][-1:] != signers[-1:]:
            return self._at(note.size, f"{name} over {note.size} entries is by a retired key (foreign key)")
        self.signed, self.held = max(self.signed, note.size), self.held + 1
        return None

    def _at(self, seq: int, problem: str) -> str:
        self.bad = seq
        return problem

    def unmet(self) -> str | None:
        """What should have been met by the end of the walk and was not."""
        sizes = [note.size for note in self.given] + ([self.next_stored[0]] if self.next_stored else [])
        if sizes:
            what = f"it is missing: {max(sizes)} entries were signed (truncated, or an older copy: rolled back)"
            return self._at(self.seq + 1, what)
        if self.trusted and self.keys and not any(key in self.trusted for _, key in self.keys):
            seq, key = self.keys[0]
            return self._at(seq, f"it names {key.vkey} as the audit's key, which is not the one you gave (foreign key)")
        if self.trusted and not self.held:
            return self._at(self.seq, "no entry is signed by the key that you gave (checkpoints deleted, or none made)")
        if self.recordings.next != math.inf:
            return self._at(int(self.recordings.next), "there is a recording of it, and no such entry (inserted)")
        if (lost := self.recordings.missing()) is not None:
            return self._at(lost, "its recording is gone, and no entry says that it was shredded (deleted)")
        return None

    def _replay(self, body: bytes) -> str | None:
        """Carry out on our own books what an approval's entry says it did."""
        told = _json(body)
        match told.get("change") if isinstance(told, dict) else None:
            case {"approval": str(id_), "record": str(digest)}:
                if id_ in self.states:
                    return f"approval {id_} was asked for twice"
                self.states[id_], self.records[id_] = "requested", digest
            case {"approval": str(id_), "from": str(expect), "to": str(become)}:
                if self.states.get(id_) != expect:
                    return f"approval {id_} goes from `{expect}`, but it was `{self.states.get(id_, 'unknown')}`"
                self.states[id_] = become
            case {"approval": str(id_), "issuer": str(issuer), "subject": str(subject), "vote": str(digest)}:
                self.votes[id_, issuer, subject] = digest
        return None

    def approvals_problem(self, db: sqlite3.Connection) -> str | None:
        """The tables of approvals are a working copy: they must be exactly what the chain makes of them."""
        states: dict[str, str] = {}
        for id_, state, record in db.execute("SELECT id, state, record FROM approval_records"):
            states[id_] = state
            if _sha256(record) != self.records.get(id_, _sha256(record)):
                return f"the record of approval {id_} is not the one that was asked for"
        for id_ in sorted(states.keys() | self.states.keys()):
            told, stored = self.states.get(id_), states.get(id_)
            if told is None or stored is None:
                return f"approval {id_} is in the {'table' if told is None else 'chain'} only"
            if told != stored:
                return f"approval {id_} is `{told}` in the chain but `{stored}` in the table"
        votes = db.execute("SELECT approval, issuer, subject, vote FROM approval_votes")
        stored_votes = {(id_, issuer, subject): _sha256(vote) for id_, issuer, subject, vote in votes}
        for key in sorted(stored_votes.keys() | self.votes.keys()):
            if stored_votes.get(key) != self.votes.get(key):
                return f"the vote of `{key[2]}` on approval {key[0]} is not the one in the chain"
        return None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """The command line of this file."""
    parser = argparse.ArgumentParser(description="Verify an audit store offline.")
    parser.add_argument("store", type=Path)
    parser.add_argument("--public-key", action="append", default=[], help="a vkey that you know from elsewhere")
    parser.add_argument("--checkpoint", action="append", default=[], type=Path, help="a file of signed notes")
    parser.add_argument("--witness-key", action="append", default=[], help="the vkey of a witness that cosigns")
    parser.add_argument("--since", type=int, default=1, metavar="SEQ", help="start at the last checkpoint before it")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    try:
        notes = read_notes(options.checkpoint)
        report = verify(
            options.store,
            public_keys=options.public_key,
            checkpoints=notes,
            witness_keys=options.witness_key,
            since=options.since,
        )
    except Unreadable as error:
        print(f"unreadable: {error}", file=sys.stderr)  # noqa: T201 - a command's output
        return 2
    text = json.dumps({**asdict(report), "ok": report.ok}) if options.json else sentence(report)
    print(text)  # noqa: T201 - a command's output
    return 0 if report.ok else 1


def read_notes(paths: Iterable[Path]) -> list[str]:
    """The signed notes of these files. Raises Unreadable."""
    notes: list[str] = []
    for path in paths:
        try:
            notes += notes_in(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, Unreadable) as error:
            raise Unreadable(f"`{path}`: {error}") from None
    return notes


def sentence(report: Report) -> str:
    """The report for people."""
    if report.problem is not None:
        where = f"entry {report.bad_seq}: " if report.bad_seq is not None else ""
        return f"NOT INTACT  {where}{report.problem}\n{report.entries} entries before it hold."
    span = f", {report.first} to {report.last}" if report.first else ""
    lines = [
        f"intact      {report.entries} entries{span}",
        f"head        {report.head}",
    ]
    if report.since > 1:
        lines.append(f"            Looked at from entry {report.since} on; those before are covered by a signature.")
    if report.key is not None:
        lines.append(f"signed      {report.signed} entries, {report.checkpoints} checkpoints, by {report.key}")
    if report.cosigned:
        lines.append(f"witnessed   {report.cosigned} entries, cosigned at {report.cosigned_at}")
    if report.open_statements:
        lines.append(f"running     {report.open_statements} statements have no outcome yet")
    if report.key is not None and not report.vouched:
        lines.append("            The store itself names that key: give --public-key to know that it is yours.")
    lines.append("            Without a checkpoint from elsewhere, entries cut off at the end cannot be seen.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
