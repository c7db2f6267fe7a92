"""The gateway rolls its audit by itself, beside the writer, and says what keeps it from that."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import timedelta
from pathlib import Path

import pytest

from audit import segments
from audit.errors import AuditUnavailable
from audit.rolling import Limits
from audit.store import Store
from audit.verify import verify
from audit.writer import Writer
from gateway.recorder import Recorder
from gateway.rolling import rolling
from tests.audit.test_segments import KEY, some
from tests.audit.test_store import intent


async def until_rolled(path: Path, recorder: Recorder) -> int:
    """Record statements until there is a segment and nothing of it is left in the store; how many."""
    for number in range(100_000):
        await recorder.record(intent(number, "in-busy"))
        if segments.here(path):
            return number + 1
        await asyncio.sleep(0)
    raise AssertionError("nothing was rolled")


async def test_statements_are_recorded_while_it_rolls(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        some(store, 0, 20)
        writer = Writer(store)
        async with asyncio.timeout(60), rolling(path, lambda: KEY, Limits(age=timedelta(0))):
            recorded = await until_rolled(path, Recorder(writer))
        writer.close()
    report = verify(path)
    assert (report.ok, report.segments) == (True, 1), report
    assert report.entries == 40 + recorded + 2  # and the key's entry, and the segment's


async def test_what_keeps_it_from_rolling_is_logged_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.db"

    def no_key() -> object:
        raise AuditUnavailable("the vault is sealed")

    with contextlib.closing(Store.open(path)) as store:
        some(store, 0, 2)
        with caplog.at_level(logging.ERROR):
            async with asyncio.timeout(30), rolling(path, no_key, Limits(age=timedelta(0))):  # type: ignore[arg-type]
                while "the vault is sealed" not in caplog.text:  # noqa: ASYNC110 - bounded
                    await asyncio.sleep(0.01)
        some(store, 2, 3)
    assert verify(path).entries == 6


async def test_without_limits_it_stays_one_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        some(store, 0, 2)
        async with rolling(path, lambda: KEY, Limits()):
            pass
    assert segments.here(path) == []
