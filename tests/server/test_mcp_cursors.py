"""The pure parts of reading in pages: command tags of the whole, and what the digest is of."""

from __future__ import annotations

import pytest

from gateway.upstream import rows_of
from server.mcp_cursors import quoted
from server.mcp_messages import data_row
from server.mcp_portal import whole_tag


@pytest.mark.parametrize(
    ("tag", "last", "rows", "wanted"),
    [
        ("SELECT 3", 3, 3, "SELECT 3"),
        ("SELECT 0", 0, 7, "SELECT 7"),  # the last Execute had nothing left to say
        ("SELECT 2", 2, 52, "SELECT 52"),
        ("UPDATE 35", 35, 40, "UPDATE 40"),
        ("INSERT 0 35", 35, 40, "INSERT 0 40"),
        ("UPDATE 40", 35, 40, "UPDATE 40"),  # a server that counts the whole is believed
        ("UPDATE 3", 0, 0, "UPDATE 3"),
        ("CREATE TABLE", 0, 0, "CREATE TABLE"),
        (None, 5, 5, None),
    ],
)
def test_a_command_tag_speaks_of_the_whole_result(tag: str | None, last: int, rows: int, wanted: str | None) -> None:
    assert whole_tag(tag, last, rows) == wanted


@pytest.mark.parametrize(("tag", "rows"), [("INSERT 0 5", 5), ("UPDATE 3", 3), ("BEGIN", 0), (None, 0)])
def test_a_tag_tells_its_rows(tag: str | None, rows: int) -> None:
    assert rows_of(tag) == rows


def test_the_digest_is_of_rows_as_the_wire_protocol_frames_them() -> None:
    head = b"D" + b"\x00\x00\x00\x14" + b"\x00\x03"
    assert data_row((b"ab", None, b"")) == head + b"\x00\x00\x00\x02ab" + b"\xff\xff\xff\xff" + b"\x00\x00\x00\x00"


def test_a_quote_in_an_identifier_stays_inside_it() -> None:
    assert quoted('a"b') == '"a""b"'
