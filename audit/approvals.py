"""Approvals in the audit's file: records, votes, and transitions that happen with their chain entry or not at all."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path


class State(StrEnum):
    """requested -> approved | denied | expired | cancelled; approved -> consumed | expired | void."""

    REQUESTED = "requested"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    CONSUMED = "consumed"
    VOID = "void"


LEGAL: Mapping[State, frozenset[State]] = {
    State.REQUESTED: frozenset({State.APPROVED, State.DENIED, State.EXPIRED, State.CANCELLED}),
    State.APPROVED: frozenset({State.CONSUMED, State.EXPIRED, State.VOID}),
}


class Conflict(Exception):  # noqa: N818 - a race that was lost, not an error
    """The record is not in the state that the change expected; nothing of the unit was written."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One verified human's word. `choice` is `approve` or `reject`."""

    issuer: str
    subject: str
    choice: str
    groups: Sequence[str]
    comment: str | None
    time: datetime


@dataclass(frozen=True, slots=True)
class ApprovalRecord:
    """A request for approval as stored; `binding` names everything that a yes is bound to."""

    id: str
    state: State
    digest: str
    requester_issuer: str
    requester_subject: str
    principal: Mapping[str, object]
    connection: str
    session: str
    door: str
    statement_id: str
    statement: str
    parameters: Sequence[str | None]
    terms: Sequence[Mapping[str, object]]
    reasons: Sequence[str]
    binding: Mapping[str, str]
    created: datetime
    expires: datetime
    votes: Sequence[Vote] = field(default=())


@dataclass(frozen=True, slots=True)
class Request:
    """A new record."""

    record: ApprovalRecord


@dataclass(frozen=True, slots=True)
class CastVote:
    """One human's first vote on an open request."""

    id: str
    vote: Vote


@dataclass(frozen=True, slots=True)
class Transition:
    """Compare and swap of the state."""

    id: str
    expect: State
    become: State


Change = Request | CastVote | Transition


def apply(db: sqlite3.Connection, change: Change) -> None:
    """Carry out a change inside the caller's transaction. Raises Conflict."""
    match change:
        case Request(record):
            _request(db, record)
        case CastVote(id_, vote):
            _cast(db, id_, vote)
        case Transition(id_, expect, become):
            _move(db, id_, expect, become)


def _request(db: sqlite3.Connection, record: ApprovalRecord) -> None:
    body = asdict(record)
    for derived in ("state", "votes"):
        del body[derived]
    body["created"], body["expires"] = record.created.isoformat(), record.expires.isoformat()
    text = json.dumps(body, ensure_ascii=False, sort_keys=True)
    try:
        db.execute(
            "INSERT INTO approval_records (id, state, expires, record) VALUES (?, ?, ?, ?)",
            (record.id, State.REQUESTED.value, record.expires.isoformat(), text),
        )
    except sqlite3.IntegrityError:
        raise Conflict(f"there is already an approval `{record.id}`") from None


def _cast(db: sqlite3.Connection, id_: str, vote: Vote) -> None:
    state = db.execute("SELECT state FROM approval_records WHERE id = ?", (id_,)).fetchone()
    if state is None or state[0] != State.REQUESTED.value:
        raise Conflict(f"approval `{id_}` is {state[0] if state else 'unknown'}")
    body = asdict(vote) | {"time": vote.time.isoformat(), "groups": list(vote.groups)}
    try:
        db.execute(
            "INSERT INTO approval_votes (approval, issuer, subject, vote) VALUES (?, ?, ?, ?)",
            (id_, vote.issuer, vote.subject, json.dumps(body, ensure_ascii=False, sort_keys=True)),
        )
    except sqlite3.IntegrityError:
        raise Conflict(f"`{vote.subject}` has already voted on `{id_}`") from None


def _move(db: sqlite3.Connection, id_: str, expect: State, become: State) -> None:
    if become not in LEGAL.get(expect, frozenset()):
        raise ValueError(f"no approval goes from {expect} to {become}")
    changed = db.execute(
        "UPDATE approval_records SET state = ? WHERE id = ? AND state = ?", (become.value, id_, expect.value)
    ).rowcount
    if changed != 1:
        raise Conflict(f"approval `{id_}` is not {expect.value} any more")


class Reader:
    """Reads records through a read-only connection of its own; never blocks the writer (WAL)."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @classmethod
    def open(cls, path: Path) -> Reader:
        """Open an existing store for reading."""
        return cls(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None))

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def get(self, id_: str) -> ApprovalRecord | None:
        """The record of this name, or None."""
        row = self._db.execute("SELECT state, record FROM approval_records WHERE id = ?", (id_,)).fetchone()
        return self._record(*row) if row else None

    def list(self, state: State) -> list[ApprovalRecord]:
        """Every record in this state."""
        rows = self._db.execute("SELECT state, record FROM approval_records WHERE state = ?", (state.value,))
        return [self._record(*row) for row in rows.fetchall()]

    def _record(self, state: str, text: str) -> ApprovalRecord:
        body = json.loads(text)
        body["created"] = datetime.fromisoformat(body["created"])
        body["expires"] = datetime.fromisoformat(body["expires"])
        votes = []
        for (vote,) in self._db.execute("SELECT vote FROM approval_votes WHERE approval = ?", (body["id"],)):
            said = json.loads(vote)
            votes.append(Vote(**said | {"time": datetime.fromisoformat(said["time"])}))
        votes.sort(key=lambda v: v.time)
        return ApprovalRecord(**body, state=State(state), votes=tuple(votes))
