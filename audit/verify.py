#!/usr/bin/env python3
"""Verifies an audit store offline, alone: standard library only, imports nothing of ours, writes nothing.

    python verify.py audit.db [--public-key KEY] [--checkpoint FILE] [--witness-key KEY] [--since SEQ] [--jobs N]
                              [--json]

`audit.db` is a store (the segments in `audit.db.segments` belong to it), one segment alone, or a folder of segments.
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
import multiprocessing
import os
import re
import shutil
import sqlite3
import struct
import sys
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any

try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    LIBRARY = True
except ImportError:
    LIBRARY = False

APPLICATION_ID = 0x434E5453
VERSION = 6
GENESIS = hashlib.sha256(b"countersign audit chain v1\n").digest()

# SHA-256 of the SQL of all our tables, indexes, views and triggers, sorted by name: a view that hides
# rows or a trigger that eats them is no edit of an entry, and yet what people would be shown.
SCHEMA = "cab42e45dd6ce3a1657e1bc20e0e8023f786d40188dc17da21eebee70a4972f9"

# Whatever else is there counts too: SQLite takes `ENTRIES` for our table, and a table called `json_each` for its own.
_OBJECTS = (
    "SELECT name, type, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    " AND (type <> 'table' OR name NOT IN ('sqlite_stat1', 'sqlite_stat4', 'sqlite_sequence'))"
    " AND (type <> 'index' OR name IN ('entries_by_statement', 'entries_by_session_life', 'entries_by_key',"
    " 'approval_records_by_state')) ORDER BY name"
)
# What is read before the schema is known to be ours: a view in a table's place could compute for ever.
_TABLES = ("entries", "checkpoints", "recordings", "segments", "blocks")
_TABLE = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ? AND sql LIKE 'CREATE TABLE %'"


class Unreadable(Exception):  # noqa: N818 - the name of an exit status
    """The file is no audit store that this program can read."""


@dataclass(frozen=True)
class Report:
    """What was found. `problem` is None when everything holds; `bad_seq` names the first bad entry, if it is one.

    `entries` is the seq of the last one that holds, `first` and `last` are the times of those that were looked at,
    `head` is the last one's hash (hex), `open_statements` the intents among them that have no outcome (yet). `since`
    is the first entry that was looked at; `signed` the size of the newest checkpoint that holds, `checkpoints` how
    many were checked, `key` who signs, and `vouched` whether the caller, and not the store, named that key.
    `missing` are the spans (first, last) whose segments are elsewhere, `segments` how many files were looked at beside
    the store's own, and `sealed` whether the last one is a segment too, so that what follows it is elsewhere. `unseen`
    counts the checkpoints that were given and are about such spans: they could not be held to anything.
    `cosigned` is the size of the newest checkpoint that a witness whose key was given cosigned, at the time
    `cosigned_at`.
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
    missing: Sequence[tuple[int, int]] = ()
    segments: int = 0
    sealed: bool = False
    unseen: int = 0
    cosigned: int = 0
    cosigned_at: str | None = None

    @property
    def ok(self) -> bool:
        """True when no problem was found."""
        return self.problem is None


_length = struct.Struct(">I").pack
_number = struct.Struct(">Q").pack
_number_and_length = struct.Struct(">QI").pack


_NULL = b"\xff\xff\xff\xff"


def _field(data: bytes | None) -> bytes:
    return _NULL if data is None else _length(len(data)) + data


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
    jobs: int = 1,
) -> Report:
    """Walk the chain to the head, and hold every checkpoint to it: the stored ones and those given (signed notes).

    `public_keys` are vkeys that the caller knows from elsewhere; without one, the store's own word is taken for
    who signs, and the report says so. `witness_keys` are vkeys of witnesses: one must have cosigned, and every
    cosignature of theirs must hold. `since` starts at the newest stored checkpoint before that entry, which must
    hold. With `jobs`, so many processes share the work on a large store; what is found does not depend on it.
    Raises Unreadable. `progress` hears the count now and then.
    """
    path = Path(path)
    keys = [Key.parse(text) for text in public_keys]
    notes = [SignedNote.parse(text) for text in checkpoints]
    witnesses = [Key.parse(text, _COSIGNATURE) for text in witness_keys]
    try:
        while True:
            names = _names(path)
            with contextlib.ExitStack() as stack:
                files = [stack.enter_context(_open(name)) for name in names]
                walk = _Walk(trusted=keys, given=sorted((n for n in notes if n.size), key=lambda note: note.size))
                report = _verify(files, path, walk, since, _Work(progress, jobs))
                if witnesses and report.ok:
                    report = _with_witnesses(files, report, witnesses, notes)
            rolled = (report.missing or not report.ok) and names != _names(path)
            began = not report.ok and any(file.still and file.state != _state(file.path) for file in files)
            if not rolled and not began:
                return report
            # A gateway began to write, sealed a segment or shredded in one while we looked: look again.
    except (sqlite3.Error, OSError) as error:
        raise Unreadable(f"`{path}` cannot be read: {error}") from None


def _names(path: Path) -> list[Path]:
    """The files that are one audit, in order: the segments that are here, and the store itself."""
    folder = path if path.is_dir() else path.with_name(path.name + ".segments")
    sealed = [file for file in folder.glob("*.db") if re.fullmatch(_NAME, file.name)]
    sealed.sort(key=lambda file: [int(number) for number in file.stem.split("-")])
    if path.is_dir():
        if not sealed:
            raise Unreadable(f"there are no segments in the folder `{path}`: their names are like {_EXAMPLE}")
        return sealed
    if not path.is_file():
        raise Unreadable(f"`{path}` is not a file")
    return [*sealed, path]


_NAME = r"(\d{12,})-(\d{12,})\.db"
_EXAMPLE = "000000000001-000000250000.db"


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}-{what}")


def _state(path: Path) -> tuple[object, ...]:
    """Changes when somebody writes the file."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, _beside(path, "wal").exists()


def _text(data: bytes) -> str:
    """Stored text, whatever its bytes are."""
    return data.decode("utf-8", "backslashreplace")


_BEGIN = "SELECT coalesce(max(seq), 1) FROM entries WHERE kind = 'segment.sealed'"


@dataclass(frozen=True)
class _File:
    """An open store or segment. `still` says that it was opened as one that nobody writes, in this `state`.

    Its own entries are `begin` to `last`; rows below `begin` are what a roll that was cut off has still to delete.
    """

    path: Path
    uri: str
    db: sqlite3.Connection
    still: bool
    state: tuple[object, ...]
    begin: int
    last: int
    end: int  # of the newest segment that it says was sealed

    @property
    def sealed(self) -> bool:
        """Whether it is itself that segment."""
        return 0 < self.last <= self.end

    @property
    def named(self) -> tuple[int, int] | None:
        """The entries that its name promises, where it has a segment's name: readers go by it."""
        match = re.fullmatch(_NAME, self.path.name)
        return None if match is None else (int(match[1]), int(match[2]))


@contextlib.contextmanager
def _open(path: Path) -> Iterator[_File]:
    """Open for reading one consistent view, also while a gateway writes, leaving no file beside the store."""
    path = found = path.resolve()
    with contextlib.ExitStack() as stack:
        state = _state(path)
        still = not _beside(path, "wal").exists()
        # A copy with its log but without the log's index, which SQLite would make beside the evidence; or a file whose
        # writer was killed, and which its journal makes whole again.
        logs = [log for log in ("wal", "journal") if _beside(path, log).exists()]
        if "journal" in logs or (logs and not _beside(path, "shm").exists()):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="verify-")))
            copy = Path(shutil.copy(path, folder / "copy.db"))
            for log in logs:
                with contextlib.suppress(FileNotFoundError):  # its writer has just ended
                    shutil.copy(_beside(path, log), _beside(copy, log))
            path = copy
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("SELECT 1 FROM sqlite_master").fetchone()
        uri = f"{path.as_uri()}?mode=ro{'&immutable=1' if still else ''}"
        db = stack.enter_context(contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)))
        db.text_factory = _text
        db.execute("BEGIN")
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise Unreadable(f"`{found}` is not an audit store")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version != VERSION:
            raise Unreadable(f"`{found}` is of version {version}; this verifier knows version {VERSION}")
        if strange := [name for name in _TABLES if not db.execute(_TABLE, (name,)).fetchone()]:
            raise Unreadable(f"`{found}` is not an audit store any more: its `{strange[0]}` is no table (replaced)")
        [last] = db.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()
        [begin] = db.execute(_BEGIN).fetchone()
        [end] = db.execute("SELECT coalesce(max(last), 0) FROM segments").fetchone()
        yield _File(found, uri, db, still, state, begin, last, end)


@dataclass
class _Work:
    """Who looks at the entries: this process, or for a large file several others as well; and who hears of it."""

    progress: Callable[[int], None] | None
    jobs: int

    def blocks(self, file: _File, first: int, due: Sequence[int], peaks: list[bytes]) -> Iterator[Block]:
        """The file's own entries from `first` on, block by block; `peaks` are those of the first, unfinished block."""
        spans = list(_spans(first, file.last))
        if self.jobs < 2 or file.last - first < _LARGE:
            for begin, end in spans:
                yield scan(file.db, begin, end, due, peaks)
                peaks = []
            return
        yield scan(file.db, *spans.pop(0), due, peaks)
        # Not forked: whoever calls may have threads, and they would be lost with their locks held.
        fresh = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.jobs, mp_context=fresh)
        try:
            inside = (due[bisect_left(due, begin) : bisect_left(due, end)] for begin, end in spans)
            found: Iterator[Block] = iter(())
            with contextlib.suppress(BrokenExecutor):
                found = pool.map(_scan_elsewhere, repeat(file.uri), spans, inside)
            for begin, end in spans:
                block: Block | None = None
                with contextlib.suppress(BrokenExecutor):  # no others can be had, or one was killed
                    block = next(found, None)
                # What others saw a moment later is no evidence: a recording may have been shredded, entries moved into
                # a segment. What is wrong is looked at again, in our own view.
                wrong = block is None or block.problem is not None or block.unlisted is not None
                if block is None or wrong or (block.gone and _recorded(file.db, block.gone)):
                    block = scan(file.db, begin, end, due, [])
                yield block
        finally:
            pool.shutdown(cancel_futures=True)


# A file with more entries than this is worth the half second that other processes take to start.
_LARGE = 200_000


def _spans(first: int, last: int) -> Iterator[tuple[int, int]]:
    """From entry to entry, cut where the tree's perfect subtrees of _BLOCK entries end."""
    while first <= last:
        end = min(last, (first - 1) // _BLOCK * _BLOCK + _BLOCK)
        yield first, end
        first = end + 1


def _scan_elsewhere(uri: str, span: tuple[int, int], due: Sequence[int]) -> Block:
    """In another process: `scan` over a connection that is kept there."""
    if _connections.get(uri) is None:
        _connections[uri] = sqlite3.connect(uri, uri=True, isolation_level=None)
    return scan(_connections[uri], *span, due, [])


_connections: dict[str, sqlite3.Connection] = {}


def _recorded(db: sqlite3.Connection, numbers: Sequence[int]) -> bool:
    sql = "SELECT 1 FROM recordings WHERE seq IN (SELECT value FROM json_each(?)) LIMIT 1"
    return db.execute(sql, (json.dumps(list(numbers)),)).fetchone() is not None


def _verify(files: Sequence[_File], path: Path, walk: _Walk, since: int, work: _Work) -> Report:
    since = min([since, *(note.size + 1 for note in walk.given)])
    while len(files) > 1 and files[0].begin < files[1].begin <= since:
        files = files[1:]
    damage = _Damage(files)
    try:
        problem = _walk(files, walk, since, work)
        bad = walk.bad if problem is not None else None
        problem = (
            problem
            or next(filter(None, (_schema_problem(file.db) for file in files)), None)
            or (None if files[-1].sealed else walk.approvals_problem(files[-1].db))
            or damage.problem()
        )
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        bad, problem = walk.seq + 1, _unreadable(error)
    finally:
        damage.stop()
    return Report(
        path=str(path),
        entries=walk.seq,
        first=walk.first.decode("utf-8", "replace") or None,
        last=walk.last.decode("utf-8", "replace") or None,
        head=walk.head.hex(),
        open_statements=_open_statements(files[-1].db, files[-1].begin) if problem is None else 0,
        bad_seq=bad,
        problem=problem,
        since=walk.begun,
        signed=walk.signed,
        checkpoints=walk.held,
        key=walk.keys[-1][1].vkey if walk.keys else None,
        vouched=bool(walk.trusted),
        missing=walk.missing,
        segments=sum(file.path != path.resolve() for file in files),
        sealed=files[-1].sealed,
        unseen=walk.unseen,
    )


def _walk(files: Sequence[_File], walk: _Walk, since: int, work: _Work) -> str | None:
    for file in files:
        if (problem := walk.file(file, since, work)) is not None:
            return problem
    return walk.unmet(files[-1])


def _unreadable(error: sqlite3.Error) -> str:
    return f"it, or what follows, cannot be read: {error} (damaged or overwritten)"


def schema_digest(db: sqlite3.Connection) -> str:
    """SHA-256 (hex) of the definitions of everything of ours in the file, and of any trigger on our tables."""
    return hashlib.sha256(json.dumps(db.execute(_OBJECTS).fetchall()).encode("utf-8")).hexdigest()


def _schema_problem(db: sqlite3.Connection) -> str | None:
    if schema_digest(db) == SCHEMA:
        return None
    return (
        "every entry holds, but a table, view, index or trigger of ours was altered, or one was added, and views show"
        " what they like"
    )


class _Damage:
    """SQLite's own check of the files, on a thread beside the walk: SQLite needs no Python for it, and as long."""

    def __init__(self, files: Sequence[_File]) -> None:
        self._stopped = False
        self._db: sqlite3.Connection | None = None
        self._pool = ThreadPoolExecutor(1)
        self._found = self._pool.submit(self._look, [file.uri for file in files])

    def _look(self, uris: Sequence[str]) -> str | None:
        for uri in uris:
            with contextlib.closing(sqlite3.connect(uri, uri=True, check_same_thread=False)) as self._db:
                if self._stopped:
                    return None
                [found] = self._db.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                return f"SQLite finds the file inconsistent: {found}"
        return None

    def problem(self) -> str | None:
        """Stored values of another type than declared, indexes that do not agree with their rows, broken pages."""
        return self._found.result()

    def stop(self) -> None:
        """Leave off, where nobody needs to know any more."""
        self._stopped = True
        if self._db is not None and not self._found.done():
            with contextlib.suppress(sqlite3.ProgrammingError):  # it is between two files
                self._db.interrupt()
        self._pool.shutdown()


def _with_witnesses(
    files: Sequence[_File], report: Report, witnesses: Sequence[Key], given: Sequence[SignedNote]
) -> Report:
    """The report, with what these witnesses cosigned: in entries of the store that holds, and in the notes given."""
    size, time = 0, 0
    for seq, note in [*((0, note) for note in given), *_testimonies(files)]:
        for key in witnesses:
            cosigned = key.cosigned(note)
            if cosigned is None or (cosigned and any(first <= note.size <= last for first, last in report.missing)):
                continue
            if not cosigned or _stored_text(files, note.size) != note.text:
                what = "does not hold (edited)" if not cosigned else "is of another history (a fork, or rolled back)"
                problem = f"the cosignature of {key.name} over {note.size} entries {what}"
                return replace(report, problem=problem, bad_seq=seq or note.size)
            size, time = max((size, time), (note.size, cosigned))
    if not size:
        return replace(report, problem="no checkpoint is cosigned by the witness whose key you gave")
    try:
        at = datetime.fromtimestamp(time, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        at = f"no time that there is: {time} s after 1970"
    return replace(report, cosigned=size, cosigned_at=at)


def _testimonies(files: Sequence[_File]) -> Iterator[tuple[int, SignedNote]]:
    """The notes that witnesses answered with, and the entries that hold them."""
    sql = "SELECT seq, body FROM entries WHERE kind = 'checkpoint.witnessed' AND seq >= ? ORDER BY seq"
    for file in files:
        for seq, body in file.db.execute(sql, (file.begin,)):
            match _json(body):
                case {"note": str(note)} if "\n\n" in note:
                    with contextlib.suppress(Unreadable):  # what is no note, nobody cosigned
                        yield seq, SignedNote.parse(note)


def _stored_text(files: Sequence[_File], size: int) -> str | None:
    """What the stored checkpoint of this size says; they were held to the entries."""
    for file in files:
        if row := file.db.execute("SELECT note FROM checkpoints WHERE size = ?", (size,)).fetchone():
            return SignedNote.parse(row[0]).text
    return None


def _open_statements(db: sqlite3.Connection, begin: int) -> int:
    """Intents without an outcome: those of this file, and those that its first entry says were open before it."""
    own = (
        "SELECT count(*) FROM (SELECT 1 FROM entries WHERE statement IS NOT NULL AND +seq >= ? GROUP BY statement"
        " HAVING sum(kind = 'outcome') = 0 AND sum(kind = 'intent') > 0)"  # from the index alone
    )
    before = (
        "SELECT count(*) FROM entries, json_each(body, '$.open') t WHERE seq = ? AND kind = 'segment.sealed'"
        " AND t.value ->> '$.statement' IS NOT NULL AND NOT EXISTS (SELECT 1 FROM entries o"
        "  WHERE o.statement = t.value ->> '$.statement' AND o.kind = 'outcome' AND o.statement IS NOT NULL)"
    )
    return sum(int(db.execute(sql, (begin,)).fetchone()[0]) for sql in (own, before))


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


def _json(data: bytes | str) -> Any:
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


_BLOCK = 4096  # entries; a power of two, so that each whole block is a perfect subtree


@dataclass
class Block:
    """What a stretch of entries is by itself; how it follows those before it is for the walk to say.

    `last` is the last one that holds, and where it is not the end, `problem` is what is wrong with the next.
    `prev` and `begins` are of the first entry, `head` and `ends` hash and time of the last. `peaks` are those of the
    tree at the sizes of interest, within the block. `told` are the entries that the walk must hear, `gone` the outcomes
    whose recording is not there, and `unlisted` is the first entry that a search would not find, and why.
    """

    first: int
    last: int
    prev: bytes = b""
    begins: bytes = b""
    head: bytes = b""
    ends: bytes = b""
    peaks: list[tuple[int, list[bytes]]] = field(default_factory=list)
    told: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    unlisted: tuple[int, str] | None = None
    problem: str | None = None


_ENTRIES = (
    "SELECT seq, time, kind, session, subject, connection, statement, body, prev, hash FROM entries"
    " WHERE seq BETWEEN ? AND ? ORDER BY seq"
)
_RECORDINGS = "SELECT seq, data FROM recordings WHERE seq BETWEEN ? AND ? ORDER BY seq"


def scan(db: sqlite3.Connection, first: int, last: int, due: Sequence[int], peaks: Sequence[bytes]) -> Block:
    """Look at the entries `first` to `last` of one block; `due` are the sizes, in order, where the tree is wanted."""
    block = Block(first, first - 1)
    hashes: list[bytes] = []
    labels: dict[_Label, tuple[bytes, bool, bool]] = {}
    db.text_factory = bytes  # the very bytes that are stored
    try:
        rows, recordings = (db.execute(sql, (first, last)) for sql in (_ENTRIES, _RECORDINGS))
        block.problem = _links(block, rows, recordings, hashes, labels)
        block.unlisted = _unlisted(db, block, labels)
    except TypeError:
        block.problem = "it holds a value of another type than an entry has (edited)"
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        block.problem = _unreadable(error)
    finally:
        db.text_factory = _text
    block.last = first - 1 + len(hashes)
    if block.problem is None and block.last < last:
        block.problem = _MISSING
    tree, size, sha256 = list(peaks), first - 1, hashlib.sha256
    wanted = {*due[bisect_left(due, first) : bisect_left(due, block.last)], block.last}
    wanted.update(seq - 1 for seq, kind, _ in block.told if kind == b"segment.sealed")
    for end in sorted(wanted):
        if end >= first:
            leaves = [sha256(b"\x00" + hash_).digest() for hash_ in hashes[size - first + 1 : end - first + 1]]
            _grow(tree, size % _BLOCK, leaves)
            block.peaks.append((end, list(tree)))
            size = end
    return block


_MISSING = "it is missing (deleted)"


_Label = tuple[bytes, bytes | None, bytes | None, bytes | None]  # kind, session, subject, connection


@lru_cache(maxsize=16384)
def _common(*label: bytes | None) -> tuple[bytes, bool, bool]:
    """The label as it is hashed, whether the walk must hear of such entries, and whether they are outcomes."""
    kind = label[0] or b""
    return b"".join(map(_field, label)), kind.startswith(_TOLD), kind == b"outcome"


def _links(
    block: Block,
    rows: Iterator[Any],
    recordings: Iterator[tuple[int, bytes]],
    hashes: list[bytes],
    labels: dict[_Label, tuple[bytes, bool, bool]],
) -> str | None:
    """The loop over every entry: what it needs each time is in local names, which is where its speed comes from.

    `hashes` gets those of the entries that hold, and `labels` what entries have in common (see `_common`).
    """
    sha256, join, number_and_length, length, null = hashlib.sha256, b"".join, _number_and_length, _length, _NULL
    head, last, keep, nothing = b"", b"", hashes.append, (0, b"")
    recorded, data = next(recordings, nothing)
    for expected, row in enumerate(rows, block.first):
        seq, time, kind, session, subject, connection, statement, body, prev, hash_ = row
        try:
            label, heard, ended = labels[kind, session, subject, connection]
        except KeyError:
            label, heard, ended = known = _common(kind, session, subject, connection)
            labels[kind, session, subject, connection] = known
        place, size = number_and_length(seq, len(time)), length(len(body))
        if statement is None:
            parts = [prev, place, time, label, null, size, body]
        else:
            parts = [prev, place, time, label, length(len(statement)), statement, size, body]
        if sha256(join(parts)).digest() != hash_ or prev != head or time < last or seq != expected:
            if seq != expected:
                return f"it is missing; the next one is {seq} (deleted)"
            if sha256(join(parts)).digest() != hash_:
                return "its contents do not match its hash (edited)"
            if seq != block.first:
                return _misfit(seq, time if prev == head else None)
            block.prev, block.begins = prev, time
        if heard:
            block.told.append((seq, kind, body))
        if recorded == seq:
            told = b'"recording":{"digest":"%b"' % sha256(data).hexdigest().encode()
            # As we write it. A quote within a JSON text is escaped, so this is a key; and it is the only one.
            sure = ended and told in body and body.count(b'"recording":{') == 1
            if not sure and (problem := _recording_problem(kind, body, data)) is not None:
                return problem
            recorded, data = next(recordings, nothing)
        elif ended and b'"recording":{' in body and _digest_told(kind, body) is not None:
            block.gone.append(seq)
        keep(hash_)
        head, last = hash_, time
    block.head, block.ends = head, last
    return None


_LISTED_TOGETHER = 4096  # entries; the format's, where _BLOCK is a choice of ours that divides it
_LISTED = "SELECT name, value FROM blocks WHERE block = ?"
_NAMES = (b"kind", b"session", b"subject", b"connection")
_FIRST_OF = "SELECT min(seq) FROM entries WHERE seq >= ? AND %s = CAST(? AS TEXT)"


def _unlisted(db: sqlite3.Connection, block: Block, labels: Iterable[_Label]) -> tuple[int, str] | None:
    """The first entry of which the table `blocks` does not say that it is in this block: a search would pass it by."""
    listed = set(db.execute(_LISTED, ((block.first - 1) // _LISTED_TOGETHER,)))
    columns = zip(_NAMES, zip(*labels, strict=True), strict=False)  # no label: no column
    lacking = {(name, value) for name, values in columns for value in set(values) if value is not None} - listed
    first = [
        (*db.execute(_FIRST_OF % name.decode(), (block.first, value)).fetchone(), name.decode(), _text(value or b""))
        for name, value in lacking
    ]
    if not first:
        return None
    seq, name, value = min(first)
    return seq, f"the table `blocks` does not list its {name} `{value}`: a search would not find it (index edited)"


# What the walk must hear of: approvals, keys, recordings that were shredded, segments that were sealed.
_TOLD = (b"approval.", b"key.", b"recording.shredded", b"segment.sealed")


def _begun(file: _File) -> int | None:
    """The first entry of the segment that ends before the file's own entries."""
    match _json(file.db.execute("SELECT CAST(body AS BLOB) FROM entries WHERE seq = ?", (file.begin,)).fetchone()[0]):
        case {"segment": {"first": int(first)}}:
            return first
    return None


def _misfit(seq: int, time: bytes | None) -> str:
    if time is not None:
        return f"its time {time.decode('utf-8', 'replace')} is before that of the entry before it"
    return (
        f"it does not follow entry {seq - 1}"
        " (that one was edited and re-hashed, or one was inserted, deleted or reordered here)"
    )


def _recording_problem(kind: bytes, body: bytes, data: bytes) -> str | None:
    match _digest_told(kind, body):
        case None:
            return "there is a recording here that no outcome tells of (inserted)"
        case told if told != _sha256(data):
            return "its recording is not the one that was made (edited)"
    return None


def _digest_told(kind: bytes, body: bytes) -> str | None:
    """The digest of the recording that an outcome tells of."""
    told = _json(body) if kind == b"outcome" else None
    match told.get("recording") if isinstance(told, dict) else None:
        case {"digest": str(digest)}:
            return digest
    return None


def _grow(peaks: list[bytes], size: int, nodes: list[bytes]) -> None:
    """Add leaves (their hashes) to the tree of `size` with these peaks, level by level."""
    sha256, odd = hashlib.sha256, []
    while nodes:
        if size & 1:  # a subtree of this height waits for its right half
            nodes.insert(0, peaks.pop())
        if len(nodes) & 1:
            odd.append(nodes.pop())
        pairs = iter(nodes)
        nodes = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
        size >>= 1
    peaks += reversed(odd)


_COSIGNATURE = 4  # the algorithm that a witness's vkey names
_ROTATION = "countersign key rotation v1"
_CHECKPOINTS = "SELECT size, CAST(note AS BLOB), peaks FROM checkpoints WHERE size >= ? ORDER BY size"
_KEY_ENTRIES = (
    "SELECT seq, kind, body FROM entries WHERE"
    " (kind = 'key.created' OR kind = 'key.rotated' OR kind = 'segment.sealed') AND seq BETWEEN ? AND ? ORDER BY seq"
)
# The newest checkpoint of a file that begins at the one entry, before the other; with the hash that its last entry has,
# or of which the next one says so.
_START = (
    "SELECT size, peaks, coalesce(e.hash, n.prev) AS head, coalesce(e.time, '') FROM checkpoints"
    " LEFT JOIN entries e ON e.seq = size LEFT JOIN entries n ON n.seq = size + 1"
    " WHERE size >= max(1, ? - 1) AND size <= ? AND head IS NOT NULL ORDER BY size DESC LIMIT 1"
)
_UNCOVERED = "it begins a segment, and no checkpoint that holds covers what was before it (deleted, or edited)"


def _successor(old: Key, text: str) -> Key:
    """The key that a rotation's note hands over to; raises Unreadable for one that both did not sign."""
    note = SignedNote.parse(text, checkpoint=False)
    new = Key.parse(note.text.split("\n")[2])
    if note.text != f"{_ROTATION}\n{old.vkey}\n{new.vkey}\n" or not (old.signed(note) and new.signed(note)):
        raise Unreadable("not handed over")
    return new


@dataclass
class _Walk:
    """Where the walk along the chain is, the tree up to there, and what the chain has said of keys and approvals.

    `peaks` are those of all of the tree, `base` of them those of whole blocks.
    """

    trusted: Sequence[Key]
    given: list[SignedNote]
    stored: Iterator[tuple[int, bytes, bytes]] = field(default_factory=lambda: iter(()))
    next_stored: tuple[int, bytes, bytes] | None = None
    begun: int = 0  # 0: not yet
    segment: int = 1  # the first entry of the segment at hand; 0 where that is not known
    seq: int = 0
    head: bytes = GENESIS
    first: bytes = b""
    last: bytes = b""
    bad: int = 0
    base: list[bytes] = field(default_factory=list)
    peaks: list[bytes] = field(default_factory=list)
    keys: list[tuple[int, Key]] = field(default_factory=list)
    signed: int = 0
    held: int = 0
    states: dict[str, str] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)
    votes: dict[tuple[str, str, str], str] = field(default_factory=dict)
    gone: array[int] = field(default_factory=lambda: array("Q"))
    shredded: list[tuple[int, int]] = field(default_factory=list)
    unlisted: tuple[int, str] | None = None
    missing: list[tuple[int, int]] = field(default_factory=list)
    unseen: int = 0

    def file(self, file: _File, since: int, work: _Work) -> str | None:
        """Check the next file of the audit; the first problem, with `bad` set, or None."""
        [first] = file.db.execute("SELECT min(seq) FROM entries").fetchone()
        if first is not None and first < 1:
            return self._at(first, "there is no such entry: the first is 1 (inserted)")
        if first is not None and first < file.begin and self.seq < file.begin - 1 and first == _begun(file):
            # A roll was cut off before the segment was named: here is all of it.
            file = replace(file, begin=first)
        if self.begun and file.begin <= self.seq:
            if file.last <= self.seq and file.sealed:
                return self._at(file.begin, f"`{file.path}` holds it once more: keep one copy of each segment")
            what = f"it is missing: all before it was sealed, and `{file.path}` does not go on from there"
            return self._at(self.seq + 1, f"{what} (truncated, or an older copy: rolled back)")
        if self.begun and file.begin == self.seq + 1:
            self._read(file, self.seq)
            if self.next_stored is None or self.next_stored[0] != self.seq:
                return self._at(file.begin, _UNCOVERED)
        else:
            if self.begun and self.signed < self.seq:
                return self._at(self.signed + 1, "nothing signs it up to the end of its segment (deleted, or edited)")
            if (problem := self._take_up(file, since)) is not None:
                return problem
        if self.seq and (problem := self._checkpoints()) is not None:
            return problem
        if first is not None and first < file.begin and (problem := self._leftovers(file, first)) is not None:
            return problem
        due = sorted(
            {size for (size,) in file.db.execute("SELECT size FROM checkpoints")} | {n.size for n in self.given}
        )
        within = self.peaks[len(self.base) :]
        for block in work.blocks(file, self.seq + 1, due, within):
            if (problem := self._take(block)) is not None:
                return problem
            if work.progress is not None:
                work.progress(self.seq)
        if self.next_stored is not None or file.end > self.seq:
            return self._cut(self.next_stored[0] if self.next_stored is not None else file.end)
        if file.sealed and file.last not in due:
            return self._at(file.last, "it ends a segment, and the checkpoint over that is missing (deleted)")
        sql = "SELECT min(seq) FROM recordings WHERE seq < ? OR seq > ?"
        [stray] = file.db.execute(sql, (first or 1, file.last)).fetchone()
        if stray is not None:
            return self._at(max(stray, 1), "there is a recording of it, and no such entry (inserted)")
        if file.named not in (None, (file.begin, file.last)):
            what = (
                f"its segment `{file.path.name}` holds the entries {file.begin} to {file.last}, and is named otherwise"
            )
            return self._at(file.begin, f"{what}: who searches would not see all of them (renamed)")
        return None

    def _cut(self, size: int) -> str:
        what = f"it is missing: {size} entries were signed (truncated, or an older copy: rolled back)"
        return self._at(self.seq + 1, what)

    def _read(self, file: _File, size: int) -> None:
        """The file's checkpoints over `size` entries and more are what comes next."""
        self.stored = iter(file.db.execute(_CHECKPOINTS, (size,)))
        self.next_stored = next(self.stored, None)

    def _take_up(self, file: _File, since: int) -> str | None:
        """Begin, or go on after a gap, at the newest checkpoint before `since`, if its signature and its peaks hold."""
        if self.seq + 1 < file.begin and since < file.begin:
            self.missing.append((self.seq + 1, file.begin - 1))
        known = list(self.keys)
        self.seq, self.head, self.last, self.peaks, self.segment = 0, GENESIS, b"", [], 0
        for books in (self.keys, self.states, self.records, self.votes):
            books.clear()
        found = file.db.execute(_START, (file.begin, max(since, file.begin) - 1)).fetchone()
        if found is not None:
            size, peaks, hash_, time = found
            named = file.db.execute(_KEY_ENTRIES, (file.begin, max(size, file.begin))).fetchall()
            held = all(self._key(seq, kind.encode(), body.encode()) is None for seq, kind, body in named)
            if held and len(peaks) == 32 * size.bit_count():
                self.seq, self.head, self.last = size, hash_, time.encode()
                self.peaks = [peaks[at : at + 32] for at in range(0, len(peaks), 32)]
                self.keys = [(seq, key) for seq, key in self.keys if seq <= size]
            else:
                self.keys.clear()
        if self.seq + 1 < file.begin:
            return self._at(file.begin, _UNCOVERED)
        if self.keys[: len(known)] != known:
            what = "it names other keys than the segments before it: these or those are another audit's"
            return self._at(file.begin, f"{what} (foreign key)")
        self.segment = file.begin if self.seq >= file.begin else int(file.begin == 1)
        self.base = self.peaks[: (self.seq // _BLOCK).bit_count()]
        self.begun = self.begun or self.seq + 1
        unseen = [note for note in self.given if note.size < self.seq]
        self.unseen, self.given = self.unseen + len(unseen), self.given[len(unseen) :]
        self._read(file, self.seq)
        return None

    def _leftovers(self, file: _File, first: int) -> str | None:
        """Entries of a segment that a roll was to delete here: links of the very chain, back from where it goes on."""
        prev = b""
        for span in _spans(first, file.begin - 1):
            block = scan(file.db, *span, (), [b""] * ((span[0] - 1) % _BLOCK).bit_count())
            if block.problem is not None or (prev and block.prev != prev):
                seq = block.last + 1 if block.problem is not None else block.first
                return self._at(seq, f"what a roll left of it here: {block.problem or _misfit(seq, None)}")
            prev = block.head
        [follows] = file.db.execute("SELECT prev FROM entries WHERE seq = ?", (file.begin,)).fetchone()
        if prev != follows:
            return self._at(file.begin - 1, "what a roll left of it here is not what was sealed (edited)")
        return None

    def _take(self, block: Block) -> str | None:
        """Go on by a block."""
        if block.last >= block.first and (block.prev != self.head or block.begins < self.last):
            return self._at(block.first, _misfit(block.first, block.begins if block.prev == self.head else None))
        peaks, told = dict(block.peaks), {seq: (kind, body) for seq, kind, body in block.told}
        self.first = self.first or block.begins
        for seq in sorted(peaks.keys() | told.keys()):
            if seq in told:
                self.seq = seq - 1
                if (problem := self._hear(seq, *told[seq])) is not None:
                    return self._at(seq, problem)
            if seq in peaks:
                self._stand(seq, peaks[seq])
                if (problem := self._checkpoints()) is not None:
                    return problem
        self.gone.extend(block.gone)
        self.unlisted = self.unlisted or block.unlisted
        if block.last >= block.first:
            self.seq, self.head, self.last = block.last, block.head, block.ends
        return None if block.problem is None else self._at(block.last + 1, block.problem)

    def _stand(self, size: int, within: list[bytes]) -> None:
        """The tree has this size now, and these peaks in its last block."""
        self.seq = size
        if size % _BLOCK:
            self.peaks = [*self.base, *within]
            return
        [node], height = within, size // _BLOCK - 1
        while height & 1:
            node = hashlib.sha256(b"\x01" + self.base.pop() + node).digest()
            height >>= 1
        self.base.append(node)
        self.peaks = list(self.base)

    def _hear(self, seq: int, kind: bytes, body: bytes) -> str | None:
        """An entry that says something of others; what is wrong with it."""
        if kind.startswith(b"approval."):
            return self._replay(body)
        if kind == b"recording.shredded":
            told = _json(body)
            match told.get("shredded") if isinstance(told, dict) else None:
                case {"first": int(first), "last": int(last)}:
                    self.shredded.append((first, min(last, seq)))
            return None
        return self._key(seq, kind, body)

    def _key(self, seq: int, kind: bytes, body: bytes) -> str | None:
        """Who signs from here on: the first key, or the next one, handed over under both signatures."""
        told = _json(body)
        try:
            if kind == b"key.created" and not self.keys:
                self.keys.append((seq, Key.parse(told["vkey"])))
                return None
            if kind == b"key.rotated" and self.keys:
                self.keys.append((seq, _successor(self.keys[-1][1], told["note"])))
                return None
            if kind == b"segment.sealed":
                return self._sealed(seq, told)
        except (Unreadable, KeyError, IndexError, AttributeError, TypeError, ValueError):
            pass
        return "it names a key that the keys before it did not hand over to (foreign key)"

    def _sealed(self, seq: int, told: Any) -> str | None:
        """A segment ends before this entry, which repeats what the next one needs to be read alone."""
        keys = [(int(told["keys"][0]["seq"]), Key.parse(told["keys"][0]["vkey"]))]
        for key in told["keys"][1:]:
            keys.append((int(key["seq"]), _successor(keys[-1][1], key["note"])))
        if self.keys and keys != self.keys:
            raise Unreadable("other keys")
        self.keys = keys
        first, last, root = told["segment"]["first"], told["segment"]["last"], told["segment"]["root"]
        if self.seq == seq - 1 and (last != self.seq or bytes.fromhex(root) != self._root()):
            return "it seals another segment than the one before it (edited)"
        if self.segment and first != self.segment:
            return f"it seals a segment from entry {first} on, which began at {self.segment} (edited)"
        self.segment = seq
        return None

    def _root(self) -> bytes:
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = hashlib.sha256(b"\x01" + peak + root).digest()
        return root

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
        if self._root() != note.root and self.signed >= note.size:
            what = f"{name} over {note.size} entries is of another history than the one before it (a fork)"
            return self._at(
                self.segment or note.size, f"{what}: the segment from here on is another audit's, or was rewritten"
            )
        if self._root() != note.root:
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

    def unmet(self, newest: _File) -> str | None:
        """What should have been met by the end of the walk and was not. `newest` is the last file."""
        if self.given and not newest.sealed:
            return self._cut(self.given[-1].size)
        self.unseen += len(self.given)  # of what follows a segment, which is elsewhere
        if self.trusted and self.keys and not any(key in self.trusted for _, key in self.keys):
            seq, key = self.keys[0]
            return self._at(seq, f"it names {key.vkey} as the audit's key, which is not the one you gave (foreign key)")
        if self.trusted and not self.held:
            return self._at(self.seq, "no entry is signed by the key that you gave (checkpoints deleted, or none made)")
        if not newest.sealed and (lost := self._lost()) is not None:  # a segment's may be shredded by later entries
            return self._at(lost, "its recording is gone, and no entry says that it was shredded (deleted)")
        return None if self.unlisted is None else self._at(*self.unlisted)

    def _lost(self) -> int | None:
        """The first entry whose recording is gone although nobody shredded it."""
        ranges, until, at = sorted(self.shredded), 0, 0
        for number in self.gone:
            while at < len(ranges) and ranges[at][0] <= number:
                until, at = max(until, ranges[at][1]), at + 1
            if number > until:
                return number
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
                was = self.states.get(id_, "unknown" if self.begun == 1 and not self.missing else expect)
                if was != expect:
                    return f"approval {id_} goes from `{expect}`, but it was `{was}`"
                self.states[id_] = become
            case {"approval": str(id_), "issuer": str(issuer), "subject": str(subject), "vote": str(digest)}:
                self.votes[id_, issuer, subject] = digest
        return None

    def approvals_problem(self, db: sqlite3.Connection) -> str | None:
        """The tables of approvals are a working copy: they must be exactly what the chain makes of them.

        Where the chain was not walked from its first entry, that is asked of the approvals that it told of.
        """
        whole = self.begun == 1 and not self.missing
        states: dict[str, str] = {}
        for id_, state, record in db.execute("SELECT id, state, CAST(record AS BLOB) FROM approval_records"):
            if whole or id_ in self.states:
                states[id_] = state
            if _sha256(record) != self.records.get(id_, _sha256(record)):
                return f"the record of approval {id_} is not the one that was asked for"
        for id_ in sorted(states.keys() | self.states.keys()):
            told, stored = self.states.get(id_), states.get(id_)
            if told is None or stored is None:
                return f"approval {id_} is in the {'table' if told is None else 'chain'} only"
            if told != stored:
                return f"approval {id_} is `{told}` in the chain but `{stored}` in the table"
        votes = db.execute("SELECT approval, issuer, subject, CAST(vote AS BLOB) FROM approval_votes")
        stored_votes = {(id_, issuer, subject): _sha256(vote) for id_, issuer, subject, vote in votes}
        told_of = {key for key in stored_votes if whole or key[0] in self.records}  # who was asked for where we looked
        for key in sorted(told_of | self.votes.keys()):
            if stored_votes.get(key) != self.votes.get(key):
                return f"the vote of `{key[2]}` on approval {key[0]} is not the one in the chain"
        return None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """The command line of this file."""
    parser = argparse.ArgumentParser(description="Verify an audit store offline.")
    parser.add_argument("store", type=Path, help="a store, with the segments beside it; a segment; a folder of them")
    parser.add_argument("--public-key", action="append", default=[], help="a vkey that you know from elsewhere")
    parser.add_argument("--checkpoint", action="append", default=[], type=Path, help="a file of signed notes")
    parser.add_argument("--witness-key", action="append", default=[], help="the vkey of a witness that cosigns")
    parser.add_argument("--since", type=int, default=1, metavar="SEQ", help="start at the last checkpoint before it")
    parser.add_argument("--jobs", type=int, default=processors(), help="processes that share the work on a large store")
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
            jobs=options.jobs,
        )
    except Unreadable as error:
        print(f"unreadable: {_visible(error)}", file=sys.stderr)  # noqa: T201 - a command's output
        return 2
    text = json.dumps({**asdict(report), "ok": report.ok}) if options.json else sentence(report)
    print(text)  # noqa: T201 - a command's output
    return 0 if report.ok else 1


def processors() -> int:
    """How many processes can work at once here."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_notes(paths: Iterable[Path]) -> list[str]:
    """The signed notes of these files. Raises Unreadable."""
    notes: list[str] = []
    for path in paths:
        try:
            notes += notes_in(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, Unreadable) as error:
            raise Unreadable(f"`{path}`: {error}") from None
    return notes


def _visible(text: object) -> str:
    """What a store says, so that it can move no cursor and forge no line of the report."""
    return "".join(char if char.isprintable() else f"\\u{{{ord(char):x}}}" for char in str(text))


def sentence(report: Report) -> str:
    """The report for people."""
    if report.problem is not None:
        where = f"entry {report.bad_seq}: " if report.bad_seq is not None else ""
        return f"NOT INTACT  {where}{_visible(report.problem)}\n{report.entries} entries before it hold."
    span = f", {report.first} to {report.last}" if report.first else ""
    lines = [
        f"intact      {report.entries} entries{span}",
        f"head        {report.head}",
    ]
    if report.since > 1 and not report.missing:
        lines.append(f"            Looked at from entry {report.since} on; those before are covered by a signature.")
    if report.key is not None:
        lines.append(f"signed      {report.signed} entries, {report.checkpoints} checkpoints, by {report.key}")
    if report.cosigned:
        lines.append(f"witnessed   {report.cosigned} entries, cosigned at {report.cosigned_at}")
    if report.open_statements:
        lines.append(f"running     {report.open_statements} statements have no outcome yet")
    lines += [f"elsewhere   entries {first} to {last}: their segments are not here" for first, last in report.missing]
    if report.segments:
        lines.append(f"segments    {report.segments}")
    if report.sealed:
        lines.append("            It ends with a sealed segment: what follows is elsewhere.")
    if report.unseen:
        lines.append(
            f"            {report.unseen} of the checkpoints that you gave are about entries that are not here."
        )
    if report.key is not None and not report.vouched:
        lines.append("            The store itself names that key: give --public-key to know that it is yours.")
    lines.append("            Without a checkpoint from elsewhere, entries cut off at the end cannot be seen.")
    return "\n".join(map(_visible, lines))


if __name__ == "__main__":
    sys.exit(main())
