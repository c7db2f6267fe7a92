"""The audit's own figures: `python -m bench.audit [--entries N]`. No PostgreSQL, one file in a temporary folder."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
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
    subject, session = f"agent-{number % 50}", f"se-{number % 500}"
    intent = {
        "statement": f"st-{number}",
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
        "statement": f"st-{number}",
        "status": "completed",
        "tag": "SELECT 1",
        "rows": 1,
        "size": 40,
        "duration_ms": 0.4,
        "instance": "in-bench",
    }
    return [
        Item(Draft(Kind.INTENT, session, subject, "shop", intent)),
        Item(Draft(Kind.OUTCOME, session, subject, "shop", outcome), _RECORDING),
    ]


def _timed(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def main() -> None:
    """Run every measurement and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    entries = parser.parse_args().entries
    start = datetime(2026, 1, 1, tzinfo=UTC)
    written = 0
    # A month of entries, whatever their number: searches by day have something to leave out.
    clock = lambda: start + timedelta(days=30) * (written / entries)  # noqa: E731
    with tempfile.TemporaryDirectory(prefix="countersign-bench-") as folder:
        path = Path(folder) / "audit.db"
        seals: list[float] = []
        with contextlib.closing(Store.open(path, clock=clock)) as store:
            appending = 0.0
            for first in range(0, entries // 2, _BATCH // 2):
                units = [[item] for number in range(first, first + _BATCH // 2) for item in pair(number)]
                appending += _timed(lambda units=units: store.append(units))  # type: ignore[misc]
                written += len(units)
                seals.append(_timed(lambda: store.checkpoint(_KEY)))
            print(f"append, batches of {_BATCH}    {written / appending:>12,.0f} entries/s")
            late = sorted(seals[-200:])
            print(f"checkpoint every {_BATCH}      {statistics.median(late) * 1000:>12.2f} ms median at the end")
            print(f"                          {late[int(len(late) * 0.99)] * 1000:>12.2f} ms p99")
        print(f"file                      {path.stat().st_size / 1e6:>12,.0f} MB")
        for jobs in sorted({1, processors()}):
            whole = _timed(lambda jobs=jobs: verify(path, public_keys=[str(_KEY.public)], jobs=jobs))  # type: ignore[misc]
            print(f"verify, {jobs} process(es)    {written / whole:>12,.0f} entries/s ({whole:.1f} s)")
        day = Query(user="agent-7", since="2026-01-20T00:00:00.000000Z", until="2026-01-21T00:00:00.000000Z")
        taken = [_timed(lambda: finder.search(path, day)) for _ in range(10)]
        print(f"search, subject and day   {statistics.median(taken) * 1000:>12.1f} ms ({max(taken) * 1000:.1f} worst)")
        print(f"roll all into a segment   {_timed(lambda: roll(path, lambda: _KEY)):>12.1f} s")


if __name__ == "__main__":
    main()
