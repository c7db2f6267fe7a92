"""Approvals in the audit's file: records, votes, and transitions that happen with their chain entry or not at all.

The tables are a working copy that can be asked quickly. Each change is told in full by the `change` of its
chain entry (`account`), so `verify` replays the chain and holds the tables to it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from audit.entry import as_text
from audit.errors import unavailable


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

CHOICES = ("approve", "reject", "break_glass", "review")


class Conflict(Exception):  # noqa: N818 - a race that was lost, not an error
    """The record is not in the state that the change expected; nothing of the unit was written."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One verified human's word. `choice` is one of CHOICES."""

    issuer: str
    subject: str
    choice: str
    groups: Sequence[str]
    comment: str | None
    time: datetime


@dataclass(frozen=True, slots=True)
class ApprovalRecord:
    """A request for approval as stored; `binding` names everything that a yes is bound to.

    `evidence` is what was measured for the approver (a rehearsal's row count, locks …), None where
    nothing was. `state` and `votes` are not part of the record's text: they change.
    """

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
    evidence: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A new record."""

    record: ApprovalRecord


@dataclass(frozen=True, slots=True)
class CastVote:
    """One human's vote on an open request. The first stands; a second is a Conflict."""

    id: str
    vote: Vote


@dataclass(frozen=True, slots=True)
class Transition:
    """Compare and swap of the state and, where `votes` is given, of the number of votes that was counted."""

    id: str
    expect: State
    become: State
    votes: int | None = None


Change = Request | CastVote | Transition


def record_text(record: ApprovalRecord) -> str:
    """The record as it is stored: all of it that never changes."""
    body = asdict(record)
    del body["state"], body["votes"]
    return as_text(body | {"created": record.created.isoformat(), "expires": record.expires.isoformat()})


def vote_text(vote: Vote) -> str:
    """The vote as it is stored."""
    return as_text(asdict(vote) | {"time": vote.time.isoformat(), "groups": list(vote.groups)})


def account(change: Change) -> dict[str, object]:
    """What the chain entry says of a change, in full: with it the tables can be checked (SPEC.md, Approvals).

    Raises ValueError for a change that no table can take, `audit.entry.BodyError` for one that is not JSON.
    """
    match change:
        case Request(record):
            return {"approval": record.id, "record": _sha256(record_text(record))}
        case CastVote(id_, vote):
            if vote.choice not in CHOICES:
                raise ValueError(f"a vote is one of {', '.join(CHOICES)}, not `{vote.choice}`")
            text = _sha256(vote_text(vote))
            return {"approval": id_, "issuer": vote.issuer, "subject": vote.subject, "vote": text}
        case Transition(id_, expect, become, _):
            if become not in LEGAL.get(expect, frozenset()):
                raise ValueError(f"no approval goes from {expect} to {become}")
            return {"approval": id_, "from": expect.value, "to": become.value}


def apply(db: sqlite3.Connection, change: Change) -> None:
    """Carry out a change inside the caller's transaction. Raises Conflict."""
    match change:
        case Request(record):
            _request(db, record)
        case CastVote(id_, vote):
            _cast(db, id_, vote)
        case Transition(id_, expect, become, votes):
            _move(db, id_, expect, become, votes)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _request(db: sqlite3.Connection, record: ApprovalRecord) -> None:
    try:
        db.execute(
            "INSERT INTO approval_records (id, state, record) VALUES (?, ?, ?)",
            (record.id, State.REQUESTED.value, record_text(record)),
        )
    except sqlite3.IntegrityError:
        raise Conflict(f"there is already an approval `{record.id}`") from None


def _cast(db: sqlite3.Connection, id_: str, vote: Vote) -> None:
    state = _state(db, id_)
    if state != State.REQUESTED.value:
        raise Conflict(f"approval `{id_}` is {state}")
    try:
        db.execute(
            "INSERT INTO approval_votes (approval, issuer, subject, vote) VALUES (?, ?, ?, ?)",
            (id_, vote.issuer, vote.subject, vote_text(vote)),
        )
    except sqlite3.IntegrityError:
        raise Conflict(f"`{vote.subject}` has already voted on `{id_}`") from None


def _move(db: sqlite3.Connection, id_: str, expect: State, become: State, votes: int | None) -> None:
    if votes is not None:
        [cast] = db.execute("SELECT count(*) FROM approval_votes WHERE approval = ?", (id_,)).fetchone()
        if cast != votes:
            raise Conflict(f"approval `{id_}` has {cast} votes, not {votes}")
    swap = "UPDATE approval_records SET state = ? WHERE id = ? AND state = ?"
    if db.execute(swap, (become.value, id_, expect.value)).rowcount != 1:
        raise Conflict(f"approval `{id_}` is {_state(db, id_)}, not {expect.value}")


def _state(db: sqlite3.Connection, id_: str) -> str:
    row = db.execute("SELECT state FROM approval_records WHERE id = ?", (id_,)).fetchone()
    return str(row[0]) if row else "unknown"


class Reader:
    """Reads records through a read-only connection of its own; never blocks the writer (WAL).

    Every method raises `audit.errors.AuditUnavailable` where the file cannot be read.
    """

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self._path = path
        self._db = db

    @classmethod
    def open(cls, path: Path) -> Reader:
        """Open an existing store for reading."""
        try:
            db = sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise unavailable(path, error) from None
        return cls(path, db)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def get(self, id_: str) -> ApprovalRecord | None:
        """The record of this name, or None."""
        found = self._read("SELECT id, state, record FROM approval_records WHERE id = ?", id_)
        return found[0] if found else None

    def list(self, state: State | None = None) -> Sequence[ApprovalRecord]:
        """Every record in this state, or all of them; the oldest request first."""
        sql = "SELECT id, state, record FROM approval_records"
        found = self._read(sql) if state is None else self._read(f"{sql} WHERE state = ?", state.value)
        return sorted(found, key=lambda record: record.created)

    def _read(self, sql: str, *values: str) -> Sequence[ApprovalRecord]:
        try:
            self._db.execute("BEGIN")  # state and votes of one moment
            try:
                return [self._record(*row) for row in self._db.execute(sql, values).fetchall()]
            finally:
                self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise unavailable(self._path, error) from None

    def _record(self, id_: str, state: str, text: str) -> ApprovalRecord:
        body = json.loads(text)
        times = {name: datetime.fromisoformat(body[name]) for name in ("created", "expires")}
        votes = self._db.execute("SELECT vote FROM approval_votes WHERE approval = ?", (id_,)).fetchall()
        said = sorted((_vote(vote) for (vote,) in votes), key=lambda vote: vote.time)
        return ApprovalRecord(**body | times, state=State(state), votes=tuple(said))


def _vote(text: str) -> Vote:
    body = json.loads(text)
    return Vote(**body | {"time": datetime.fromisoformat(body["time"])})
