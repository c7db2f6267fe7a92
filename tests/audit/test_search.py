"""Searching and exporting: each facet finds its statement, both entries of it, and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from audit import export, search, words
from audit.entry import Draft, Kind
from audit.search import Query, SearchError
from audit.store import Item, Store

START = datetime(2026, 11, 1, tzinfo=UTC)


def intent(number: int, subject: str = "devin", **body: object) -> Item:
    told = {
        "door": "mcp",
        "text": "select 1",
        "demands": ["select public.orders"],
        "verdict": {"effect": "allow", "rules": ["agents-read"], "reasons": []},
        "request": {},
    }
    return Item(Draft(Kind.INTENT, f"se-{subject}", subject, "shop", told | body, f"st-{number}"))


def outcome(number: int, subject: str = "devin", **body: object) -> Item:
    told = {"status": "completed", "rows": 1, "duration_ms": 0.4, "sqlstate": None}
    return Item(
        Draft(
            Kind.OUTCOME,
            f"se-{subject}",
            subject,
            "shop",
            told | {"masked": [], "message": None} | body,
            f"st-{number}",
        )
    )


def opened(subject: str, **principal: object) -> Item:
    body = {"principal": {"groups": [], "email": None, "on_behalf_of": None} | principal}
    return Item(Draft(Kind.SESSION_OPENED, f"se-{subject}", subject, "shop", body))


STATEMENTS: list[tuple[Item, Item]] = [
    (intent(0), outcome(0)),
    (intent(1, text="DELETE FROM orders WHERE order_id = 7"), outcome(1, rows=5000)),
    (
        intent(2, demands=["delete public.orders", "select sales.regions"], request={"reason": "tidy up old carts"}),
        outcome(2, status="failed", sqlstate="23503", message="violates foreign key"),
    ),
    (intent(3, "grace", door="wire"), outcome(3, "grace", masked=["public.customers.ssn"])),
    (
        intent(
            4, "grace", verdict={"effect": "deny", "rules": ["no-drops"], "reasons": ["dropping is not for agents"]}
        ),
        outcome(4, "grace", status="refused", sqlstate="42501", duration_ms=None, rows=None),
    ),
    (
        intent(5, "grace"),
        outcome(5, "grace", duration_ms=1500.0, detected=[{"column": "body", "kind": "card", "count": 2}]),
    ),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions (1, 2), then a statement a day: entries 3 and 4, 5 and 6 …"""
    path = tmp_path_factory.mktemp("search") / "audit.db"
    days = itertools.chain([0], itertools.count(1))
    with contextlib.closing(Store.open(path, clock=lambda: START + timedelta(days=next(days)))) as store:
        agent, human = opened("devin", groups=["ai-agents"], on_behalf_of="ada"), opened("grace", email="grace@x.org")
        store.append([[agent, human]])
        for pair in STATEMENTS:
            store.append([pair])
    return path


def entries(*statements: int) -> list[int]:
    return [seq for number in statements for seq in (3 + 2 * number, 4 + 2 * number)]


FACETS = [
    (Query(action="delete"), (2,)),
    (Query(relation="sales.regions"), (2,)),
    (Query(relation="sales.*", action="select"), (2,)),
    (Query(relation="sales.*", action="delete"), ()),  # of one and the same demand
    (Query(column="public.customers.ssn"), (3,)),
    (Query(column="*.ssn"), (3,)),
    (Query(detected="card"), (5,)),
    (Query(detected="*"), (5,)),
    (Query(detected="ssn"), ()),
    (Query(verdict="deny"), (4,)),
    (Query(rule="no-drops"), (4,)),
    (Query(door="wire"), (3,)),
    (Query(status="refused"), (4,)),
    (Query(statement="st-4"), (4,)),
    (Query(sqlstate="23503"), (2,)),
    (Query(sqlstate="42"), (4,)),
    (Query(duration_ms=1000), (5,)),
    (Query(rows=1000), (1,)),
    (Query(user="devin", status="completed"), (0, 1)),
    (Query(since="2026-11-03T00:00:00.000000Z", until="2026-11-05T00:00:00.000000Z"), (1, 2)),
    (Query(user="grace", since="2026-11-06T00:00:00.000000Z"), (4, 5)),
    (Query(user="ada", until="2026-11-03T00:00:00.000000Z", kind="intent"), (0,)),
    (Query(words="orders"), (1,)),
    (Query(words="order_id delete"), (1,)),
    (Query(words="order"), ()),
    (Query(words="order*"), (1,)),
    (Query(words='"old carts"'), (2,)),
    (Query(words='"carts old"'), ()),
    (Query(words="foreign", user="devin"), (2,)),
    (Query(words='say "a NEAR b) OR *'), ()),  # no syntax of theirs gets through
]


@pytest.mark.parametrize(("query", "statements"), FACETS, ids=lambda v: repr(v) if isinstance(v, Query) else "")
def test_each_facet_finds_its_statements(path: Path, query: Query, statements: tuple[int, ...]) -> None:
    found = [found.seq for found in search.search(path, query)]
    if query.words is not None:  # an entry is found by what it says itself
        assert {(seq - 3) // 2 for seq in found} == set(statements)
    elif query.kind is not None:
        assert found == entries(*statements)[::2]
    else:
        assert found == entries(*statements)


@pytest.mark.parametrize(
    ("query", "first"),
    [
        (Query(user="ada"), 1),
        (Query(user="grace@x.org"), 2),
        (Query(group="ai-agents"), 1),
        (Query(on_behalf_of="ada"), 1),
    ],
)
def test_people_are_found_through_their_sessions(path: Path, query: Query, first: int) -> None:
    whose = {"devin": (0, 1, 2), "grace": (3, 4, 5)}["devin" if first == 1 else "grace"]
    assert [found.seq for found in search.search(path, query)] == [first, *entries(*whose)]


def test_the_newest_so_many_are_found_the_oldest_first(path: Path) -> None:
    assert [found.seq for found in search.search(path, Query(limit=3))] == [12, 13, 14]


@pytest.mark.parametrize("query", [Query(kind="nonsense"), Query(limit=0), Query(words=' "" * ')])
def test_what_cannot_be_searched_is_said(path: Path, query: Query) -> None:
    with pytest.raises(SearchError):
        search.search(path, query)


def test_the_index_is_private_derived_and_follows_the_store(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    for subject in ("first", "second"):
        with contextlib.closing(Store.open(path)) as store:
            store.append([[intent(1, text=f"select {subject}")]])
            assert len(search.search(path, Query(words=subject))) == 1
            store.append([[intent(2, text=f"select {subject}")]])
            assert len(search.search(path, Query(words=subject))) == 2
        if subject == "first":
            path.unlink()  # another store under the same name: the index is not believed
    assert search.search(path, Query(words="first")) == []
    assert words.index_path(path).stat().st_mode & 0o777 == 0o600


def test_an_export_goes_on_where_it_stopped_and_keeps_the_stored_bytes(path: Path) -> None:
    whole, rest = list(export.entries(path)), list(export.entries(path, after=10))
    assert rest == whole[10:]
    assert export.line(rest[0]).endswith(f',"body":{rest[0].body}}}')
    entry = json.loads(export.line(rest[0]))
    assert (entry["seq"], entry["statement"]) == (11, "st-4")


def test_a_followed_export_gives_what_is_written_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        store.append([[intent(1)]])

        def pauses() -> Iterator[bool]:
            yield from (store.append([[outcome(1)]]) != [], True)

        going = pauses()
        seen = [one and one.seq for one in export.follow(path, 0, lambda: next(going, False))]
    assert seen == [1, None, 2, None, None]
