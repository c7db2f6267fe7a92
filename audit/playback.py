"""Everything that the audit holds of one session, to be watched again: entries, approvals, recordings. Read-only."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from audit import blocks, segments
from audit.entry import Draft, Kind
from audit.errors import AuditUnavailable, unavailable
from audit.recording import BrokenRecordingError, Chunk, unpack
from audit.search import SearchError

_COLUMNS = "seq, time, kind, subject, statement, body"
_SESSION = (
    f"SELECT {_COLUMNS}, (SELECT data FROM recordings r WHERE r.seq = e.seq) FROM entries e"  # noqa: S608 - constants
    " WHERE session = ? AND seq BETWEEN ? AND ? ORDER BY seq"
)
# What others did about the session's requests.
_APPROVALS = (
    f"SELECT {_COLUMNS}, NULL FROM entries WHERE seq BETWEEN ? AND ? AND kind GLOB 'approval.*'"  # noqa: S608
    " AND session IS NOT ? AND body ->> '$.approval' IN (SELECT value FROM json_each(?)) ORDER BY seq"
)
_APPROVAL_KINDS = [kind for kind in Kind if kind.startswith("approval.")]


@dataclass(frozen=True, slots=True)
class Moment:
    """An entry, and for an outcome what was sent: None where nothing was recorded, or it was shredded."""

    seq: int
    time: datetime
    kind: str
    subject: str | None
    statement: str | None
    body: Mapping[str, Any]
    sent: Sequence[Chunk] | None = None


def session(path: Path, session_id: str) -> Sequence[Moment]:
    """The moments of a session, the oldest first. Raises SearchError where there is no such session, or no store."""
    try:
        with segments.parts(path) as parts:  # of one moment, also beside a running gateway
            rows = [
                row
                for part in parts
                for span in blocks.spans(part.db, 1, part.below - 1, [{"session": [session_id]}])
                for row in part.db.execute(_SESSION, (session_id, *span))
            ]
            if not rows:
                raise SearchError(
                    f"there is no session `{session_id}`; `audit search --kind session.opened` shows them"
                )
            moments = [_moment(*row) for row in rows]
            asked = json.dumps(
                sorted({m.body["approval"] for m in moments if m.kind == "intent" and "approval" in m.body})
            )
            if asked != "[]":
                begun = min(moment.seq for moment in moments)
                for part in parts:
                    for span in blocks.spans(part.db, begun + 1, part.below - 1, [{"kind": _APPROVAL_KINDS}]):
                        others = part.db.execute(_APPROVALS, (*span, session_id, asked))
                        moments += [_moment(*row) for row in others]
    except AuditUnavailable as error:
        raise SearchError(str(error)) from None
    except sqlite3.Error as error:
        raise SearchError(str(unavailable(path, error))) from None
    return sorted(moments, key=lambda moment: moment.seq)


def reading(reader: str, session_id: str, how: str) -> Draft:
    """The entry that says who watched which session."""
    return Draft(Kind.AUDIT_READ, None, reader, None, {"how": "replay", "query": {"session": session_id, "as": how}})


def _moment(
    seq: int, time: str, kind: str, subject: str | None, statement: str | None, body: str, data: bytes | None
) -> Moment:
    try:
        sent = None if data is None else unpack(data)
    except BrokenRecordingError as error:
        raise SearchError(f"entry {seq}: {error}; `audit verify` says more") from None
    return Moment(seq, datetime.fromisoformat(time), kind, subject, statement, json.loads(body), sent)
