"""What the audit keeps of PostgreSQL's words: those about the statement, none of a row's."""

from __future__ import annotations

import pytest

from gateway.parameters import without_data

CAST = "SELECT ssn::int FROM customers WHERE id = 'x1'"
TEXTS = [
    ("22P02", 'invalid input syntax for type integer: "078-05"', 'invalid input syntax for type integer: "…"'),
    ("22P02", 'invalid input syntax for type integer: "x1"', None),
    ("22P02", 'malformed array literal: "{"a"}", or so', 'malformed array literal: "…", or so'),
    ("22003", 'value "99999999999" is out of range', 'value "…" is out of range'),
    ("22P02", 'invalid input syntax for type integer: "x"', 'invalid input syntax for type integer: "…"'),
    ("42P01", 'relation "078-05" does not exist', 'relation "…" does not exist'),
    ("42703", 'column "id" of relation "customers" does not exist', None),
    ("23505", 'duplicate key value violates unique constraint "customers_pkey"', None),
    (
        "22021",
        'invalid byte sequence for encoding "UTF8": 0xe9 0x31',
        'invalid byte sequence for encoding "…": 0x… 0x…',
    ),
    ("22012", "division by zero", None),
    ("22P02", 'an open "quote', None),
]


@pytest.mark.parametrize(("sqlstate", "text", "kept"), TEXTS)
def test_what_is_quoted_is_kept_where_the_client_said_it_or_only_names_are(
    sqlstate: str, text: str, kept: str | None
) -> None:
    assert without_data(text, sqlstate, [CAST]) == (text if kept is None else kept)
