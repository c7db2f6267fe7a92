"""The audit's own figures: `python -m bench.audit [--entries N] [--scale]`. No PostgreSQL, a temporary folder."""

from __future__ import annotations

import argparse
import contextlib
import resource
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from audit import search as finder
from audit.entry import Draft, Kind
from audit.note import Signer
from audit.recording import Chunk, Mode, Recording
from audit.rolling import roll
from audit.search import Query
from audit.store import Item, Store
from audit.verify import processors, verify
from gateway.drafts import new_statement_id

_KEY = Signer("example.com/bench", bytes(32))
_BATCH = 1000
# As the default, `metadata`, records a short SELECT: columns, when the row left, the tag.
_RECORDING = Recording(
    Mode.METADATA,
    [
        Chunk(310, False, b"T\0\0\0\x33\0\2name\0" + bytes(18) + b"price\0" + bytes(18)),
        Chunk(310, True, b""),
        Chunk(330, False, b"C\0\0\0\x0dSELECT 1\0"),
    ],
    40,
)


def pair(number: int) -> list[Item]:
    """A statement's intent and outcome, of the size that a short SELECT has."""
    subject, session, statement = f"agent-{number % 50}", f"se-{number % 500}", new_statement_id()
    intent = {
        "instance": "in-bench",
        "door": "wire",
        "text": f"select name, price from products where id = {number}",
        "sha256": "0" * 64,
        "principal": {"kind": "agent", "on_behalf_of": "ada@example.com", "groups": ["ai-agents"]},
        "client": {"name": "psql", "address": "127.0.0.1"},
        "verdict": {"effect": "allow", "rules": ["agents-read"], "reasons": []},
        "demands": [{"action": "select", "relation": "public.products", "columns": ["name", "price", "id"]}],
        "policy": "1" * 64,
        "catalog": "2" * 64,
        "search_path": ["public"],
    }
    outcome = {
        "status": "completed",
        "tag": "SELECT 1",
        "rows": 1,
        "size": 40,
        "duration_ms": 0.4,
        "instance": "in-bench",
    }
    return [
        Item(Draft(Kind.INTENT, session, subject, "shop", intent, statement)),
        Item(Draft(Kind.OUTCOME, session, subject, "shop", outcome, statement), _RECORDING),
    ]


def _timed(work: Callable[..., object], *given: object) -> float:
    before = time.perf_counter()
    work(*given)
    return time.perf_counter() - before


def _say(what: str, figure: float, told: str, digits: int = 0) -> None:
    print(f"{what:<28}{figure:>12,.{digits}f} {told}", flush=True)


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[len(values) * percent // 100]


def _batches(first: int, last: int) -> Iterator[list[list[Item]]]:
    for start in range(first // 2, last // 2, _BATCH // 2):
        yield [[item] for number in range(start, start + _BATCH // 2) for item in pair(number)]


def _floor(folder: Path, entries: int) -> None:
    """What an entry costs without its recording; and what SQLite alone takes for such rows, without an index."""
    with contextlib.closing(Store.open(folder / "plain.db")) as store:
        taken = sum(_timed(store.append, units) for units in map(_without, _batches(0, entries)))
    _say("append, no recordings", entries / taken, "entries/s")
    with (
        contextlib.closing(sqlite3.connect(folder / "plain.db")) as source,
        contextlib.closing(sqlite3.connect(folder / "bare.db", isolation_level=None)) as bare,
    ):
        bare.execute("PRAGMA journal_mode = WAL")
        bare.execute("PRAGMA synchronous = FULL")
        bare.execute(
            "CREATE TABLE entries"
            " (seq INTEGER PRIMARY KEY, time, kind, session, subject, connection, statement, body, prev, hash)"
        )
        rows = source.execute(
            "SELECT seq, time, kind, session, subject, connection, statement, body, prev, hash FROM entries"
        )
        taken = 0.0
        while batch := rows.fetchmany(_BATCH):
            taken += _timed(_insert, bare, batch)
    _say("bare INSERT of those rows", entries / taken, "rows/s: what no writer of this file exceeds")


def _without(units: list[list[Item]]) -> list[list[Item]]:
    return [[Item(item.draft) for item in unit] for unit in units]


def _insert(db: sqlite3.Connection, batch: Sequence[tuple[object, ...]]) -> None:
    db.execute("BEGIN IMMEDIATE")
    db.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", batch)
    db.execute("COMMIT")


def _scale(path: Path, entries: int) -> None:
    """Verify one store as it grows tenfold at a time: is it linear, and is memory bounded? Without recordings."""
    print(f"{'entries':>12}{'append/s':>12}{'verify/s':>12}{'seconds':>10}{'MB':>10}{'peak MB of a process':>24}")
    size, written = min(100_000, entries), 0
    while written < entries:
        with contextlib.closing(Store.open(path)) as store:
            appending = sum(_timed(store.append, units) for units in map(_without, _batches(written, size)))
            store.checkpoint(_KEY)
        before = time.perf_counter()
        report = verify(path, public_keys=[str(_KEY.public)], jobs=processors())
        taken = time.perf_counter() - before
        if not report.ok:
            raise SystemExit(f"the store does not verify: {report.problem}")
        print(
            f"{report.entries:>12,}{(size - written) / appending:>12,.0f}{report.entries / taken:>12,.0f}{taken:>10.1f}"
            f"{path.stat().st_size / 1e6:>10,.0f}{_peak():>24,.0f}",
            flush=True,
        )
        written, size = size, min(10 * size, entries)


def _peak() -> float:
    """Megabytes that this process, or one that it began, has used at once."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1000


def _roll_beside(path: Path, entries: int) -> None:
    """How long a statement's two entries take to be written while a roll is at work."""
    waits: list[float] = []
    with contextlib.closing(Store.open(path)) as store:
        for units in _batches(0, entries):
            store.append(units)
        rolling = threading.Thread(target=lambda: roll(path, lambda: _KEY))
        rolling.start()
        while rolling.is_alive():
            waits.append(_timed(lambda: store.append([[item] for item in pair(0)])))
            rolling.join(0.01)
    told = f"ms p99, {statistics.median(waits) * 1000:.1f} median, {max(waits) * 1000:.0f} worst"
    _say("append while a roll works", _percentile(waits, 99) * 1000, told, 1)


def main() -> None:
    """Run every measurement and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--scale", action="store_true", help="only append and verify, at 100,000, 1,000,000 … entries")
    options = parser.parse_args()
    entries = options.entries
    start = datetime(2026, 1, 1, tzinfo=UTC)
    written = 0
    # A month of entries, whatever their number: searches by day have something to leave out.
    clock = lambda: start + timedelta(days=30) * (written / entries)  # noqa: E731
    with tempfile.TemporaryDirectory(prefix="countersign-bench-") as folder:
        path = Path(folder) / "audit.db"
        if options.scale:
            _scale(path, entries)
            return
        seals: list[float] = []
        with contextlib.closing(Store.open(path, clock=clock)) as store:
            appending = 0.0
            for units in _batches(0, entries):
                appending += _timed(store.append, units)
                written += len(units)
                seals.append(_timed(store.checkpoint, _KEY))
        _say(f"append, batches of {_BATCH}", written / appending, "entries/s, every outcome with a recording")
        told = f"ms median at the end, {_percentile(seals[-200:], 99) * 1000:.2f} p99"
        _say(f"checkpoint every {_BATCH}", statistics.median(seals[-200:]) * 1000, told, 2)
        _floor(Path(folder), min(entries, 100_000))
        _say("file", path.stat().st_size / 1e6, "MB")
        for jobs in sorted({1, processors()}):
            whole = _timed(lambda jobs=jobs: verify(path, public_keys=[str(_KEY.public)], jobs=jobs))
            _say(f"verify, {jobs} process(es)", written / whole, f"entries/s ({whole:.1f} s)")
        _say("peak memory of a process", _peak(), "MB")
        day = Query(user="agent-7", since="2026-01-20T00:00:00.000000Z", until="2026-01-21T00:00:00.000000Z")
        taken = [_timed(finder.search, path, day) for _ in range(10)]
        told = f"ms ({max(taken) * 1000:.1f} worst)"
        _say("search, subject and day", statistics.median(taken) * 1000, told, 1)
        whole = _timed(lambda: roll(path, lambda: _KEY))
        _say("roll all into a segment", written / whole, f"entries/s ({whole:.1f} s), nobody writes")
        _roll_beside(Path(folder) / "busy.db", min(entries, 100_000))


if __name__ == "__main__":
    main()
