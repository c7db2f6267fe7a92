"""Finds entries by who, when, what: read-only, beside the writer."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from audit.entry import Draft, Kind
from audit.errors import unavailable
from audit.schema import APPLICATION_ID

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class SearchError(ValueError):
    """A search that cannot be carried out; the text says why and the cure."""


@dataclass(frozen=True, slots=True)
class Found:
    """One entry, with its body as stored (JSON text)."""

    seq: int
    time: str
    kind: str
    session: str | None
    subject: str | None
    connection: str | None
    body: str


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for; every given part must hold.

    `user` is a subject or e-mail, or the human on whose behalf an agent worked; `group` a group of the
    session's principal. `since` (inclusive) and `until` (exclusive) are times as entries hold them: see
    `as_time`. `kind` is an entry's kind, `status` a statement's (both its entries are found), `text` is
    looked for anywhere in the body, in upper or lower case (ASCII). The newest `limit` are found.
    """

    user: str | None = None
    group: str | None = None
    since: str | None = None
    until: str | None = None
    kind: str | None = None
    text: str | None = None
    connection: str | None = None
    session: str | None = None
    limit: int = 200
    status: str | None = None


def as_time(text: str, now: datetime) -> str:
    """`2h`, `7d`, or an ISO 8601 date or time (UTC unless it says otherwise), as entries write it.

    Raises SearchError.
    """
    try:
        if match := re.fullmatch(r"(\d{1,6})([smhdw])", text.strip(), re.ASCII):
            moment = now - timedelta(**{_UNITS[match[2]]: int(match[1])})
        else:
            moment = datetime.fromisoformat(text.strip())
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    except (ValueError, OverflowError):
        raise SearchError(
            f"`{text}` is not a time: write it like 2026-11-24, 2026-11-24T10:00, or 2h for two hours ago"
        ) from None


def search(path: Path, query: Query) -> Sequence[Found]:
    """The newest matching entries, the oldest of them first. Raises SearchError, also for an unreadable file."""
    if query.kind is not None and query.kind not in list(Kind):
        raise SearchError(f"there is no kind `{query.kind}`; the kinds are {', '.join(Kind)}")
    if query.limit < 1:
        raise SearchError(f"a limit of {query.limit} finds nothing; give at least 1")
    try:
        with contextlib.closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
            if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise SearchError(f"`{path}` is not an audit store; name another file")
            conditions, values = _conditions(db, query)
            where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
            sql = (
                "SELECT seq, time, kind, session, subject, connection, body FROM entries e "  # noqa: S608 - constants
                f"{where} ORDER BY seq DESC LIMIT ?"
            )
            rows = db.execute(sql, (*values, query.limit)).fetchall()
    except sqlite3.Error as error:
        raise SearchError(str(unavailable(path, error))) from None
    return [Found(*row) for row in reversed(rows)]


# Principals are told in full where a session opens; the entries of the session are found through it.
_SESSIONS_OF = "SELECT o.session FROM entries o WHERE o.kind = 'session.opened' AND "
_GROUP = "EXISTS (SELECT 1 FROM json_each(o.body, '$.principal.groups') g WHERE g.value = ?)"
_USER = "? IN (o.body ->> '$.principal.email', o.body ->> '$.principal.on_behalf_of')"
_STATUS = "SELECT o.statement FROM entries o WHERE o.kind = 'outcome' AND o.body ->> '$.status' = ?"


def _conditions(db: sqlite3.Connection, query: Query) -> tuple[list[str], list[object]]:
    parts: list[tuple[str, object]] = []
    parts += [("e.kind = ?", query.kind), ("e.connection = ?", query.connection), ("e.session = ?", query.session)]
    parts += [(f"e.session IN ({_SESSIONS_OF}{_GROUP})", query.group)]
    parts += [(f"e.statement IN ({_STATUS})", query.status)]
    if query.since is not None:
        parts.append(("e.seq >= ?", _first_at(db, query.since)))
    if query.until is not None:
        parts.append(("e.seq < ?", _first_at(db, query.until)))
    if query.text is not None:
        # The body is JSON: what is looked for must be escaped as it is there.
        escaped = json.dumps(query.text, ensure_ascii=False)[1:-1]
        parts.append(("instr(lower(e.body), lower(?)) > 0", escaped))
    given = [(sql, value) for sql, value in parts if value is not None]
    conditions, values = [sql for sql, _ in given], [value for _, value in given]
    if query.user is not None:
        conditions.append(f"(e.subject = ? OR e.session IN ({_SESSIONS_OF}{_USER}))")
        values += [query.user, query.user]
    return conditions, values


def _first_at(db: sqlite3.Connection, time: str) -> int:
    """The first seq whose time is not before `time`: time never goes backwards along the chain, so bisect."""
    low, high = 1, db.execute("SELECT coalesce(max(seq), 0) + 1 FROM entries").fetchone()[0]
    while low < high:
        middle = (low + high) // 2
        # Entries that somebody deleted must not hide others: take the nearest one there is.
        found = db.execute("SELECT time FROM entries WHERE seq >= ? ORDER BY seq LIMIT 1", (middle,)).fetchone()
        if found is None or found[0] >= time:
            high = middle
        else:
            low = middle + 1
    return int(low)


def reading(reader: str, query: Query, found: int) -> Draft:
    """The entry that says who read what: searching the audit is itself audited."""
    asked = {name: value for name, value in asdict(query).items() if value is not None}
    return Draft(Kind.AUDIT_READ, None, reader, None, {"how": "search", "query": asked, "found": found})
