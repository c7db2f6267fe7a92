"""What was begun and has no end in the chain yet: intents without an outcome, and sessions that are open."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from audit.entry import Open

# The entries of a segment are not asked: those that had no end there are told by the entry that sealed it.
_SEALED = "(SELECT coalesce(max(last), 0) FROM segments)"
_TOLD = (
    "SELECT t.value ->> '$.statement', t.value ->> '$.session', t.value ->> '$.subject', t.value ->> '$.connection',"
    " t.value ->> '$.instance' FROM json_each((SELECT body FROM entries"
    " WHERE kind = 'segment.sealed'"
    " ORDER BY seq DESC LIMIT 1), '$.open') t WHERE "
)
_NO_OUTCOME = "NOT EXISTS (SELECT 1 FROM entries o WHERE o.kind = 'outcome' AND o.statement = "
_NOT_CLOSED = "NOT EXISTS (SELECT 1 FROM entries c WHERE c.kind = 'session.closed' AND c.session = "

_STATEMENTS = (
    f"{_TOLD} t.value ->> '$.statement' IS NOT NULL AND {_NO_OUTCOME} t.value ->> '$.statement'"  # noqa: S608 - constants
    " AND o.statement IS NOT NULL)"
    " UNION ALL SELECT * FROM (SELECT i.statement, i.session, i.subject, i.connection,"
    " coalesce(i.body ->> '$.instance', '') FROM"
    # From the index alone, a statement at a time (`+`: and not from the rows of so many entries).
    " (SELECT min(iif(kind = 'intent', seq, NULL)) AS begun FROM entries WHERE statement IS NOT NULL"
    f" AND +seq > {_SEALED} GROUP BY statement HAVING sum(kind = 'outcome') = 0)"
    " JOIN entries i ON i.seq = begun ORDER BY i.seq)"
)
_SESSIONS = (
    f"{_TOLD} t.value ->> '$.statement' IS NULL AND {_NOT_CLOSED} t.value ->> '$.session')"  # noqa: S608 - constants
    " UNION ALL SELECT * FROM (SELECT NULL, b.session, b.subject, b.connection,"
    " coalesce(b.body ->> '$.instance', '') FROM entries b WHERE b.kind = 'session.opened'"
    f" AND b.seq > {_SEALED} AND {_NOT_CLOSED} b.session) ORDER BY b.seq)"
)


def statements(db: sqlite3.Connection) -> Sequence[Open]:
    """Every intent without an outcome, the oldest first."""
    return [Open(*row) for row in db.execute(_STATEMENTS)]


def sessions(db: sqlite3.Connection) -> Sequence[Open]:
    """Every session that was opened and not closed, the oldest first."""
    return [Open(*row) for row in db.execute(_SESSIONS)]
