"""Visible text: what a reader approves is what is there."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from server.visible import visible, warnings


def test_bidi_and_zero_width_characters_show_as_code_points() -> None:
    assert visible("a\u202eb\u200bc\x00") == "a\\u{202e}b\\u{200b}c\\u{0}"


def test_plain_text_and_its_layout_stay() -> None:
    assert visible("SELECT 1\n\tFROM größe") == "SELECT 1\n\tFROM größe"


def test_a_look_alike_letter_is_named() -> None:
    [warning] = warnings("SELECT * FROM cust\u043emers")
    assert "U+043E CYRILLIC SMALL LETTER O" in warning


def test_plain_ascii_needs_no_warning() -> None:
    assert warnings("SELECT 'x'\n  FROM t") == []


def test_many_odd_characters_are_counted_rather_than_dropped() -> None:
    [warning] = warnings("".join(chr(0x400 + n) for n in range(30)))
    assert "and 10 more" in warning


@given(st.text())
def test_nothing_invisible_is_left(text: str) -> None:
    left = {unicodedata.category(char) for char in visible(text) if char not in "\n\t"}
    assert not left & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
