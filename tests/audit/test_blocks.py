"""The coarse index: a search finds what a look at every entry finds, and reads no more blocks than it must."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from audit import blocks, playback, search
from audit import verify as lone
from audit.entry import Draft, Kind
from audit.note import Signer
from audit.rolling import roll
from audit.search import Found, Query
from audit.store import Item, Store
from audit.verify import verify
from tests.audit.test_verify import forging

KEY = Signer("example.com/audit", bytes([1]) * 32)
PEOPLE = ("ada", "grace", "alan\0", "linus")


def item(number: int) -> Item:
    """Every seventh opens a session; the last person comes late, and is there once."""
    who = PEOPLE[3] if number == 57 else PEOPLE[number % 3]
    body = {"principal": {"email": f"{who}@x.org", "on_behalf_of": "ada", "groups": ["staff"]}}
    kind = Kind.SESSION_OPENED if number % 7 == 0 else Kind.INTENT
    return Item(
        Draft(
            kind,
            f"se-{number // 14}",
            who,
            "shop" if number % 5 else None,
            body,
            f"st-{number}" if number % 7 else None,
        )
    )


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """70 entries in blocks of 4, by transactions of 1, 2, 3 … entries."""
    monkeypatch.setattr(blocks, "SIZE", 4)
    monkeypatch.setattr(lone, "_LISTED_TOGETHER", 4)
    monkeypatch.setattr(lone, "_BLOCK", 4)
    path, number = tmp_path / "audit.db", 0
    with contextlib.closing(Store.open(path)) as store:
        while number < 70:
            taken = range(number, min(70, number + 1 + number % 9))
            store.append([[item(at)] for at in taken])
            number = taken.stop
    return path


QUERIES: list[tuple[Query, Callable[[Found], bool]]] = [
    (Query(user="linus"), lambda one: one.subject == "linus"),
    (Query(user="alan\0"), lambda one: one.subject == "alan\0"),
    (Query(session="se-2"), lambda one: one.session == "se-2"),
    (
        Query(kind="session.opened", connection="shop"),
        lambda one: (one.kind, one.connection) == ("session.opened", "shop"),
    ),
    (Query(user="grace", session="se-1"), lambda one: (one.subject, one.session) == ("grace", "se-1")),
    (Query(user="nobody"), lambda one: False),
    (Query(statement="st-20"), lambda one: one.statement == "st-20"),
    (Query(), lambda one: True),
]


@pytest.mark.parametrize("limit", [1, 5, 1000])
@pytest.mark.parametrize(("query", "holds"), QUERIES, ids=lambda value: "" if callable(value) else str(value)[:60])
@pytest.mark.parametrize("rolled", [False, True])
def test_a_search_finds_what_a_look_at_every_entry_finds(
    path: Path, query: Query, holds: Callable[[Found], bool], limit: int, rolled: bool
) -> None:
    if rolled:
        roll(path, lambda: KEY)
        assert verify(path).segments == 1
    assert verify(path).ok
    everything = search.search(path, Query(limit=1000))
    expected = [one for one in everything if holds(one)]
    assert search.search(path, replace(query, limit=limit)) == expected[-limit:]


def test_a_session_is_played_from_the_blocks_that_hold_it(path: Path) -> None:
    assert [moment.seq for moment in playback.session(path, "se-3")] == list(range(43, 57))


def test_only_the_blocks_that_hold_all_that_is_wanted_are_read_and_neighbours_at_once(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert list(blocks.spans(db, 1, 70, [{"session": ["se-2"]}])) == [(29, 44)]
        assert list(blocks.spans(db, 31, 41, [{"session": ["se-2"]}])) == [(31, 41)]
        assert list(blocks.spans(db, 1, 70, [{"session": ["se-0", "se-4"]}])) == [(57, 70), (1, 16)]
        assert list(blocks.spans(db, 1, 70, [{"subject": ["linus"]}, {"session": ["se-4"]}])) == [(57, 60)]
        assert list(blocks.spans(db, 1, 70, [{"subject": ["linus"]}, {"session": ["se-1"]}])) == []
        assert list(blocks.spans(db, 1, 70, [])) == [(1, 70)]
        assert list(blocks.spans(db, 8, 7, [])) == []


def test_what_a_batch_that_failed_was_of_is_listed_by_the_next_one(path: Path) -> None:
    with contextlib.closing(Store.open(path)) as store:
        late = Item(Draft(Kind.INTENT, "se-late", "late", None, {}))
        with pytest.raises(ValueError, match="surrogates"):
            store.append([[late], [Item(Draft(Kind.INTENT, "se-\ud800", "late", None, {}))]])
        store.append([[late]])
    assert [one.seq for one in search.search(path, Query(user="late"))] == [71]
    assert verify(path).ok


def test_a_row_that_is_missing_is_named_by_the_first_entry_that_a_search_would_pass_by(path: Path) -> None:
    with forging(path) as db:
        db.execute("DELETE FROM blocks WHERE name = 'subject' AND value = 'grace' AND block = 5")
    report = verify(path)
    assert (report.ok, report.bad_seq) == (False, 23)
    assert "`blocks` does not list its subject `grace`" in (report.problem or "")


def test_a_row_too_many_hides_nothing(path: Path) -> None:
    with forging(path) as db:
        db.execute("INSERT INTO blocks VALUES (3, 'subject', 'linus')")
    assert verify(path).ok
    assert len(search.search(path, Query(user="linus"))) == 1


def test_an_edit_is_named_before_a_row_that_is_missing(path: Path) -> None:
    with forging(path) as db:
        db.execute("DELETE FROM blocks")
        db.execute("UPDATE entries SET body = ? WHERE seq = 9", [json.dumps({"x": 1})])
    assert verify(path).bad_seq == 9
