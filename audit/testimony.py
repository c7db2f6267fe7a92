"""What witnesses said of checkpoints, as the chain keeps it: cosignatures and time-stamps. Read-only."""

from __future__ import annotations

import base64
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from audit import segments
from audit.entry import Draft, Kind
from audit.errors import unavailable
from audit.note import Note


@dataclass(frozen=True, slots=True)
class Witnessed:
    """What a witness said of a checkpoint: `note` with its cosignatures, or with the `timestamp` of an authority."""

    seq: int
    time: str
    witness: str
    size: int
    note: str
    timestamp: bytes | None

    @property
    def what(self) -> str:
        """Which kind of word it is."""
        if self.timestamp is not None:
            return "time-stamped"
        return "cosigned" if len(Note.parse(self.note).signatures) > 1 else "locked"


def witnessed(path: Path) -> list[Witnessed]:
    """All that witnesses said, as the chain keeps it, in the segments that are here too. Raises AuditUnavailable."""
    sql = "SELECT seq, time, body FROM entries WHERE kind = 'checkpoint.witnessed' AND seq < ? ORDER BY seq"
    try:
        with segments.parts(path) as parts:
            return [_witnessed(*row) for part in reversed(parts) for row in part.db.execute(sql, (part.below,))]
    except sqlite3.Error as error:
        raise unavailable(path, error) from None


def reading(reader: str) -> Draft:
    """The entry that says who read what witnesses said."""
    return Draft(Kind.AUDIT_READ, None, reader, None, {"how": "witnessed", "query": {}})


def _witnessed(seq: int, time: str, text: str) -> Witnessed:
    body = json.loads(text)
    stamp = base64.b64decode(body["timestamp"]) if "timestamp" in body else None
    return Witnessed(seq, time, body["witness"], body["size"], body["note"], stamp)
