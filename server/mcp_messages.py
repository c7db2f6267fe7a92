"""What this door delivers, as a PostgreSQL server's messages: digests and recordings are of these.

So the same rows have the same digest at both doors. Source: PostgreSQL documentation, "Message Formats".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from gateway.errors import CountersignError
from gateway.upstream import ResultColumn

# The length of a NULL in a DataRow: -1.
_NULL = b"\xff\xff\xff\xff"

Row = tuple[bytes | None, ...]


def data_row(row: Row) -> bytes:
    """A row of text-format values."""
    values = (_NULL if value is None else struct.pack("!I", len(value)) + value for value in row)
    body = b"".join(values)
    return struct.pack("!cIH", b"D", 6 + len(body), len(row)) + body


def row_description(columns: Sequence[ResultColumn]) -> bytes:
    """The columns, in text format. A type's size is not known here: -1, as of one that varies."""
    parts = [struct.pack("!H", len(columns))]
    for c in columns:
        parts += [_string(c.name), struct.pack("!IhIhih", c.table, c.attribute, c.type, -1, c.modifier, 0)]
    return _message(b"T", b"".join(parts))


def report(tag: bytes, fields: Mapping[str, str]) -> bytes:
    """A NoticeResponse (`N`) or an ErrorResponse (`E`)."""
    parts = [code.encode() + _string(text) for code, text in fields.items()]
    return _message(tag, b"".join(parts) + b"\0")


def refusal(error: CountersignError) -> bytes:
    """An error of the gateway's own, as an ErrorResponse."""
    fields = {"S": "ERROR", "C": error.sqlstate, "M": error.text, "D": error.detail, "H": error.cure}
    return report(b"E", {code: text for code, text in fields.items() if text})


def command_complete(tag: str) -> bytes:
    """The end of a statement."""
    return _message(b"C", _string(tag))


def _message(tag: bytes, body: bytes) -> bytes:
    return struct.pack("!cI", tag, 4 + len(body)) + body


def _string(text: str) -> bytes:
    return text.encode("utf-8", "replace").replace(b"\0", b"") + b"\0"
