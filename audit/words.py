"""Full-text search over the entries: an FTS5 index in a file of its own, beside the store and off the writer's path.

It is derived and may be thrown away: `<store>.words` is brought up to date by whoever searches, and made anew when
it does not belong to the store. The words are those of a statement's text, the agent's reason, and messages.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from audit.schema import make, transaction

_MAKE = (
    "CREATE TABLE covered (seq INTEGER NOT NULL, hash BLOB NOT NULL)",
    # Without content: the words lead to entries, the text stays where it is hashed. Underscores join identifiers.
    "CREATE VIRTUAL TABLE words USING fts5(text, content='', tokenize=\"unicode61 tokenchars '_'\")",
)
_TEXT = (
    "SELECT seq, concat FROM (SELECT seq, coalesce(body ->> '$.text', '') || ' ' || coalesce(body ->> '$.message', '')"
    " || ' ' || coalesce(body ->> '$.request.reason', '') || ' ' || coalesce(body ->> '$.reason', '')"
    " || ' ' || coalesce(body ->> '$.comment', '') AS concat FROM entries WHERE seq > ? AND seq <= ? ORDER BY seq)"
    " WHERE trim(concat) <> ''"
)
_LAST = "SELECT seq, hash FROM entries WHERE seq <= ? ORDER BY seq DESC LIMIT 1"
_BATCH = 20_000  # entries a transaction, so that two searchers take turns


def index_path(store: Path) -> Path:
    """Where the index of a store lies."""
    return store.with_name(f"{store.name}.words")


def query(text: str) -> str:
    """In FTS5's syntax: every word must occur; `word*` matches beginnings, "words in quotes" match together."""
    parts = text.split('"')
    terms = [term for at, part in enumerate(parts) for term in ([part] if at % 2 else part.split())]
    return " ".join(_term(term) for term in terms if term.strip(" *"))


def _term(term: str) -> str:
    return f'"{term[:-1]}"*' if term.endswith("*") else f'"{term}"'


def update(store: Path, entries: sqlite3.Connection) -> None:
    """Bring the index up to the head that this connection sees. Raises sqlite3.Error, OSError."""
    path = index_path(store)
    make(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as index:
        [head] = entries.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()
        done = -1
        while done < head:
            with transaction(index):
                done = _covered(index, entries)
                last = min(head, done + _BATCH)
                if last > done:
                    found = entries.execute(_TEXT, (done, last))
                    index.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", found)
                    index.execute("INSERT INTO covered VALUES (?, ?)", entries.execute(_LAST, (last,)).fetchone())
                    done = last


def _covered(index: sqlite3.Connection, entries: sqlite3.Connection) -> int:
    """Up to which entry the index goes; one that is new, or of another file, is made empty."""
    if index.execute("SELECT 1 FROM sqlite_master WHERE name = 'covered'").fetchone():
        row = index.execute("SELECT seq, hash FROM covered ORDER BY seq DESC LIMIT 1").fetchone()
        if row is not None and entries.execute(_LAST, row[:1]).fetchone() == row:
            return int(row[0])
        index.execute("DROP TABLE words")
        index.execute("DROP TABLE covered")
    for statement in _MAKE:
        index.execute(statement)
    return 0
