"""Approvals in the file: compare and swap, one human one vote, and never a change without its entry."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from audit.approvals import ApprovalRecord, CastVote, Change, Conflict, Reader, Request, State, Transition, Vote
from audit.entry import Draft, Kind
from audit.store import Item, Store
from audit.verify import verify

NOW = datetime(2026, 11, 24, tzinfo=UTC)
RECORD = ApprovalRecord(
    id="apr-abc",
    state=State.REQUESTED,
    digest="d",
    requester_issuer="i",
    requester_subject="devin",
    principal={"subject": "devin", "kind": "agent", "on_behalf_of": "ada"},
    connection="shop",
    session="se-1",
    door="wire",
    statement_id="st-1",
    statement="delete from tickets",
    parameters=["1", None],
    terms=[{"rule": "r", "groups": ["dba"], "users": [], "quorum": 1, "owner_may_approve": False}],
    reasons=["because"],
    binding={"text": "x"},
    created=NOW,
    expires=NOW + timedelta(minutes=30),
)
KINDS = {
    State.APPROVED: Kind.APPROVAL_APPROVED,
    State.CONSUMED: Kind.APPROVAL_CONSUMED,
    State.EXPIRED: Kind.APPROVAL_EXPIRED,
    State.VOID: Kind.APPROVAL_VOID,
}


def item(kind: Kind, change: Change) -> Item:
    return Item(Draft(kind, None, None, None, {"approval": "apr-abc"}), change)


def moved(expect: State, become: State) -> Item:
    return item(KINDS[become], Transition("apr-abc", expect, become))


def vote(subject: str, choice: str = "approve") -> Item:
    return item(Kind.APPROVAL_VOTED, CastVote("apr-abc", Vote("i", subject, choice, ["dba"], None, NOW)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with contextlib.closing(Store.open(path)) as opened:
        opened.append([[item(Kind.APPROVAL_REQUESTED, Request(RECORD))]])
        yield opened


@pytest.fixture
def reader(store: Store, path: Path) -> Iterator[Reader]:
    with contextlib.closing(Reader.open(path)) as opened:
        yield opened


def test_a_record_comes_back_as_it_was_asked(reader: Reader) -> None:
    assert reader.get("apr-abc") == RECORD
    assert reader.list(State.REQUESTED) == [RECORD]
    assert reader.get("apr-other") is None


def test_a_transition_from_another_state_writes_nothing(store: Store, path: Path) -> None:
    [result] = store.append([[moved(State.APPROVED, State.CONSUMED)]])
    assert isinstance(result, Conflict)
    assert verify(path).entries == 1


def test_a_conflict_takes_its_whole_unit_and_no_other(store: Store, path: Path) -> None:
    plain = Item(Draft(Kind.INTENT, None, None, None, {}, "st-2"))
    results = store.append([[plain], [moved(State.APPROVED, State.CONSUMED), plain], [plain]])
    assert [isinstance(r, Conflict) for r in results] == [False, True, False]
    report = verify(path)
    assert report.ok
    assert report.entries == 3


def test_a_human_votes_once(store: Store, reader: Reader) -> None:
    store.append([[vote("grace")]])
    [second] = store.append([[vote("grace", "reject")]])
    assert isinstance(second, Conflict)
    record = reader.get("apr-abc")
    assert record is not None
    assert [(v.subject, v.choice) for v in record.votes] == [("grace", "approve")]


def test_no_vote_is_cast_on_a_closed_request(store: Store) -> None:
    store.append([[moved(State.REQUESTED, State.EXPIRED)]])
    [late] = store.append([[vote("grace")]])
    assert isinstance(late, Conflict)


@pytest.mark.parametrize("become", [State.CONSUMED, State.VOID])
def test_an_illegal_transition_is_a_bug_and_raises(store: Store, become: State) -> None:
    with pytest.raises(ValueError, match="no approval goes"):
        store.append([[moved(State.REQUESTED, become)]])


def test_an_approval_is_consumed_at_most_once_by_many_at_once(store: Store, path: Path) -> None:
    store.append([[moved(State.REQUESTED, State.APPROVED)]])
    outcomes: list[bool] = []
    start = threading.Barrier(8)

    def consume() -> None:
        with contextlib.closing(Store.open(path)) as own:
            start.wait(10)
            [result] = own.append([[moved(State.APPROVED, State.CONSUMED)]])
            outcomes.append(not isinstance(result, Conflict))

    threads = [threading.Thread(target=consume) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == [False] * 7 + [True]
    assert verify(path).ok


def test_a_transition_that_counted_other_votes_than_there_are_is_not_made(store: Store, reader: Reader) -> None:
    store.append([[vote("grace")], [vote("hans", "reject")]])
    stale = item(Kind.APPROVAL_APPROVED, Transition("apr-abc", State.REQUESTED, State.APPROVED, votes=1))
    [refused] = store.append([[stale]])
    assert isinstance(refused, Conflict)
    assert "has 2 votes, not 1" in str(refused)
    kept = reader.get("apr-abc")
    assert kept is not None
    assert kept.state is State.REQUESTED
