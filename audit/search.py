"""Finds entries by who, when, what: read-only, beside the writer."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from audit import blocks, segments, words
from audit.entry import Draft, Kind
from audit.errors import AuditUnavailable, unavailable
from audit.segments import Part

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
    statement: str | None
    body: str


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for; every given part must hold.

    `user` is a subject or e-mail, or the human on whose behalf an agent worked; `group` a group of the session's
    principal, `on_behalf_of` the human behind it. `since` (inclusive) and `until` (exclusive) are times as entries
    hold them: see `as_time`. `kind` is an entry's kind, `statement` a statement's id. `text` is looked for anywhere in
    the body, in upper or lower case (ASCII); `words` in what was said, through an index (see `audit.words`). The newest
    `limit` are found.

    The others are a statement's, and both its entries are found: `action` and `relation` of one and the same
    demand (`delete`, `public.orders`; `*` stands for anything), `column` a column that was masked,
    `detected` the kind of something that was found in a result and hidden (`card`; `*` for anything), `verdict`,
    `rule`, `door`, `status`, `sqlstate` (or how it begins), at least so many milliseconds and rows.
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
    words: str | None = None
    action: str | None = None
    relation: str | None = None
    column: str | None = None
    detected: str | None = None
    verdict: str | None = None
    rule: str | None = None
    door: str | None = None
    sqlstate: str | None = None
    duration_ms: float | None = None
    rows: int | None = None
    on_behalf_of: str | None = None
    statement: str | None = None


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
        return stamp(moment)
    except (ValueError, OverflowError):
        raise SearchError(
            f"`{text}` is not a time: write it like 2026-11-24, 2026-11-24T10:00, or 2h for two hours ago"
        ) from None


def stamp(moment: datetime) -> str:
    """A time as entries hold it."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def search(path: Path, query: Query) -> Sequence[Found]:
    """The newest matching entries, the oldest of them first. Raises SearchError, also for an unreadable file."""
    if query.kind is not None and query.kind not in list(Kind):
        raise SearchError(f"there is no kind `{query.kind}`; the kinds are {', '.join(Kind)}")
    if query.limit < 1:
        raise SearchError(f"a limit of {query.limit} finds nothing; give at least 1")
    if query.words is not None and not words.query(query.words):
        raise SearchError("there is no word to look for; give at least one")
    rows: list[tuple[Any, ...]] = []
    try:
        with segments.parts(path) as parts:
            whose = _Whose(
                _sessions(parts, _USER, query.user),
                _sessions(parts, _GROUP, query.group),
                _sessions(parts, _BEHALF, query.on_behalf_of),
            )
            for at, part in enumerate(parts):
                if len(rows) < query.limit:
                    conditions, values = _conditions(query, segments.partners(parts, at), whose)
                    if query.words is not None:
                        words.update(part.path, part.db)
                        part.db.execute("ATTACH ? AS found", (f"{words.index_path(part.path).as_uri()}?mode=ro",))
                    sql = (
                        "SELECT seq, time, kind, session, subject, connection, statement, body FROM entries e WHERE"  # noqa: S608
                        f" {' AND '.join(['seq BETWEEN ? AND ?', *conditions])} ORDER BY seq DESC LIMIT ?"
                    )
                    for span in _spans(part, query, whose):
                        rows += part.db.execute(sql, (*span, *values, query.limit - len(rows)))
                        if len(rows) >= query.limit:
                            break
    except AuditUnavailable as error:
        raise SearchError(str(error)) from None
    except (sqlite3.Error, OSError) as error:
        raise SearchError(str(unavailable(path, error))) from None
    return [Found(*row) for row in reversed(rows)]


# Principals are told in full where a session opens; the entries of the session are found through it.
_SESSIONS_OF = "SELECT o.session FROM entries o WHERE o.kind = 'session.opened' AND "
_GROUP = "EXISTS (SELECT 1 FROM json_each(o.body, '$.principal.groups') g WHERE g.value = ?)"
_BEHALF = "o.body ->> '$.principal.on_behalf_of' = ?"
_USER = "? IN (o.body ->> '$.principal.email', o.body ->> '$.principal.on_behalf_of')"


# What an entry's column is asked to be, and what blocks are listed by.
_WHOLE = ("kind", "connection", "session")


class _Whose(NamedTuple):
    """The sessions of whom is asked for; None where nobody is."""

    user: Sequence[str] | None
    group: Sequence[str] | None
    on_behalf_of: Sequence[str] | None


def _sessions(parts: Sequence[Part], condition: str, value: str | None) -> Sequence[str] | None:
    """The sessions of a user or a group; one may have been opened in a segment before."""
    if value is None:
        return None
    return [row[0] for part in parts for row in part.db.execute(_SESSIONS_OF + condition, (value,))]


def _spans(part: Part, query: Query, whose: _Whose) -> Iterator[tuple[int, int]]:
    """The stretches of entries that may hold what is asked for, the newest first."""
    first = 1 if query.since is None else first_at(part.db, query.since)
    last = part.below - 1 if query.until is None else min(part.below, first_at(part.db, query.until)) - 1
    if query.statement is not None or query.words is not None:  # an index leads to the entry itself
        return iter([(first, last)])
    wanted: list[blocks.Either] = [{name: [value]} for name in _WHOLE if (value := getattr(query, name)) is not None]
    wanted += [{"session": sessions} for sessions in (whose.group, whose.on_behalf_of) if sessions is not None]
    if query.user is not None:
        wanted.append({"subject": [query.user], "session": whose.user or ()})
    return blocks.spans(part.db, first, last, wanted)


_LISTED = "(SELECT value FROM json_each(?))"
# A statement's two entries, from either of them: p is the one that tells what is asked for.
_PAIR = "EXISTS (SELECT 1 FROM {table} p WHERE p.statement = e.statement AND p.kind = '{kind}' AND {condition})"
_DEMAND = "EXISTS (SELECT 1 FROM json_each(p.body, '$.demands') d WHERE d.value GLOB ?)"
_FACETS = (
    ("verdict", "intent", "p.body ->> '$.verdict.effect' = ?"),
    ("rule", "intent", "EXISTS (SELECT 1 FROM json_each(p.body, '$.verdict.rules') r WHERE r.value = ?)"),
    ("door", "intent", "p.body ->> '$.door' = ?"),
    ("status", "outcome", "p.body ->> '$.status' = ?"),
    ("column", "outcome", "EXISTS (SELECT 1 FROM json_each(p.body, '$.masked') m WHERE m.value GLOB ?)"),
    (
        "detected",
        "outcome",
        "EXISTS (SELECT 1 FROM json_each(p.body, '$.detected') d WHERE d.value ->> '$.kind' GLOB ?)",
    ),
    ("sqlstate", "outcome", "p.body ->> '$.sqlstate' GLOB ? || '*'"),
    ("duration_ms", "outcome", "p.body ->> '$.duration_ms' >= ?"),
    ("rows", "outcome", "p.body ->> '$.rows' >= ?"),
)


def _conditions(query: Query, table: str, whose: _Whose) -> tuple[list[str], list[object]]:
    """SQL conditions and their values; `table` is where a statement's other entry is."""
    parts: list[tuple[str, object]] = []
    parts += [(f"e.{name} = ?", getattr(query, name)) for name in (*_WHOLE, "statement")]
    for sessions in (whose.group, whose.on_behalf_of):
        parts.append((f"e.session IN {_LISTED}", None if sessions is None else json.dumps(sessions)))
    if query.action is not None or query.relation is not None:
        demand = f"{query.action or '*'} {query.relation or '*'}"
        parts.append((_PAIR.format(table=table, kind="intent", condition=_DEMAND), demand))
    for name, kind, condition in _FACETS:
        parts.append((_PAIR.format(table=table, kind=kind, condition=condition), getattr(query, name)))
    if query.text is not None:
        # The body is JSON: what is looked for must be escaped as it is there.
        escaped = json.dumps(query.text, ensure_ascii=False)[1:-1]
        parts.append(("instr(lower(e.body), lower(?)) > 0", escaped))
    if query.words is not None:
        parts.append(("e.seq IN (SELECT rowid FROM found.words WHERE words MATCH ?)", words.query(query.words)))
    given = [(sql, value) for sql, value in parts if value is not None]
    conditions, values = [sql for sql, _ in given], [value for _, value in given]
    if query.user is not None:
        conditions.append(f"(e.subject = ? OR e.session IN {_LISTED})")
        values += [query.user, json.dumps(whose.user)]
    return conditions, values


def first_at(db: sqlite3.Connection, time: str) -> int:
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
