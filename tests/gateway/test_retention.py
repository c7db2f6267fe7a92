"""Recordings go in time: by age, by size, some at a time, and each time an entry says so."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from audit import retention
from audit.recording import Chunk, Mode, Recording
from audit.retention import Limits
from audit.store import Item, Store
from audit.verify import verify
from audit.writer import Writer
from gateway.recorder import Recorder
from gateway.retention import keeping, let_go
from tests.audit.test_store import intent, outcome, rows

DAYS_AGO = [40, 31, 29, 1]


@pytest.fixture
async def recorder(tmp_path: Path) -> AsyncIterator[Recorder]:
    """A store with a recording of 40, 31, 29 and 1 days ago, each of more than 1,000 bytes."""
    times = iter(datetime.now(UTC) - timedelta(days=days) for days in DAYS_AGO)
    store = Store.open(tmp_path / "audit.db", clock=lambda: next(times, datetime.now(UTC)))
    with contextlib.closing(store):
        for number, _ in enumerate(DAYS_AGO):
            data = bytes((number * 7 + at * at) % 251 for at in range(4000))
            made = Recording(Mode.FULL, [Chunk(0, True, data)])
            store.append([[intent(number), Item(outcome(number).draft, made)]])
        writer = Writer(store)
        yield Recorder(writer)
        writer.close()


def left(path: Path) -> list[object]:
    return [seq for (seq,) in rows(path, "SELECT seq FROM recordings")]


async def test_by_age(recorder: Recorder, tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    assert await let_go(recorder, path, Limits(age=timedelta(days=30))) == 1
    assert left(path) == [6, 8]
    [(body,)] = rows(path, "SELECT body FROM entries WHERE kind = 'recording.shredded'")
    assert json.loads(str(body)) == {"why": "older than 30 days", "shredded": {"first": 2, "last": 4}}
    assert await let_go(recorder, path, Limits(age=timedelta(days=30))) == 0
    assert verify(path).ok


async def test_by_size_the_oldest_go_first(recorder: Recorder, tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    [(two,)] = rows(path, "SELECT sum(length(data)) FROM recordings WHERE seq >= 6")
    assert isinstance(two, int)
    assert await let_go(recorder, path, Limits(size=two)) == 1
    assert left(path) == [6, 8]
    assert await let_go(recorder, path, Limits(size=two - 1)) == 1
    assert left(path) == [8]
    assert await let_go(recorder, path, Limits(size=0)) == 1
    assert left(path) == []
    assert verify(path).ok


async def test_some_at_a_time(recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 1)
    assert await let_go(recorder, tmp_path / "audit.db", Limits(age=timedelta(days=2))) == 3
    assert left(tmp_path / "audit.db") == [8]


async def test_it_begins_with_the_gateway(recorder: Recorder, tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    async with keeping(recorder, path, Limits(age=timedelta(days=30))), asyncio.timeout(15):
        while left(path) != [6, 8]:
            await recorder.record(intent(99).draft)  # a turn of the writer
    async with keeping(recorder, path, Limits()):
        assert left(path) == [6, 8]
