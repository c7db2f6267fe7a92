"""Finds entries by who, when, what: read-only, beside the writer."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from audit.entry import Draft, Kind

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class SearchError(ValueError):
    """A search that cannot be understood; the text says the cure."""


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
    """What to look for; every given part must hold. Times are RFC 3339 text in UTC, as entries hold them."""

    user: str | None = None
    group: str | None = None
    since: str | None = None
    until: str | None = None
    kind: str | None = None
    text: str | None = None
    connection: str | None = None
    session: str | None = None
    limit: int = 200


def as_time(text: str, now: datetime) -> str:
    """`2h`, `7d`, or an ISO 8601 date or time (UTC unless it says otherwise), as entries write it."""
    if match := re.fullmatch(r"(\d{1,6})([smhdw])", text.strip()):
        moment = now - timedelta(**{_UNITS[match[2]]: int(match[1])})
    else:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            raise SearchError(
                f"`{text}` is not a time: write it like 2026-11-24, 2026-11-24T10:00 or 2h"
            ) from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def search(path: Path, query: Query) -> Sequence[Found]:
    """The newest matching entries, the oldest of them first. Raises SearchError or sqlite3.Error."""
    if query.kind is not None and query.kind not in [k.value for k in Kind]:
        raise SearchError(f"there is no kind `{query.kind}`; the kinds are {', '.join(k.value for k in Kind)}")
    conditions, values = _conditions(query)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    sql = (
        "SELECT seq, time, kind, session, subject, connection, body FROM entries e "  # noqa: S608 - constants only
        f"{where} ORDER BY seq DESC LIMIT ?"
    )
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        rows = db.execute(sql, (*values, query.limit)).fetchall()
    return [Found(*row) for row in reversed(rows)]


def _conditions(query: Query) -> tuple[list[str], list[object]]:
    conditions: list[str] = []
    values: list[object] = []
    for column, value in (("subject", query.user), ("kind", query.kind)):
        if value is not None:
            conditions.append(f"{column} = ?")
            values.append(value)
    for column, value in (("connection", query.connection), ("session", query.session)):
        if value is not None:
            conditions.append(f"{column} = ?")
            values.append(value)
    if query.since is not None:
        conditions.append("time >= ?")
        values.append(query.since)
    if query.until is not None:
        conditions.append("time < ?")
        values.append(query.until)
    if query.group is not None:
        # Only intents and session openings name groups; an outcome is found through its intent's session.
        conditions.append(
            "session IN (SELECT o.session FROM entries o, json_each(o.body, '$.principal.groups') g"
            " WHERE o.kind = 'session.opened' AND g.value = ?)"
        )
        values.append(query.group)
    if query.text is not None:
        conditions.append("instr(lower(body), lower(?)) > 0")
        values.append(query.text)
    return conditions, values


def reading(reader: str, query: Query, found: int) -> Draft:
    """The entry that says who read what: searching the audit is itself audited."""
    asked = {
        name: getattr(query, name)
        for name in ("user", "group", "since", "until", "kind", "text", "connection", "session", "limit")
        if getattr(query, name) is not None
    }
    return Draft(Kind.AUDIT_READ, None, reader, None, {"how": "search", "query": asked, "found": found})
