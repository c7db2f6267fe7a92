"""The gate: what reaches the parser, what never does, and where statements begin and end."""

from __future__ import annotations

import pytest

from policy.parse import MAX_TEXT_BYTES, NotAnalysableError, base_text, split, statements

REFUSED: list[tuple[str, bytes, str, int | None]] = [
    ("a NUL byte, at which the parser would stop reading", b"SELECT 1\0; DROP TABLE x", "text.nul", 8),
    ("bytes that are not UTF-8", b"SELECT '\xff'", "text.encoding", 8),
    ("an overlong form of a quote", b"SELECT \xc0\xa7", "text.encoding", 7),
    ("a text over the limit", b"SELECT " + b"1" * MAX_TEXT_BYTES, "text.long", None),
    ("comments nested 65 deep", b"/* " * 65 + b"*/ " * 65 + b" SELECT 1", "text.comments", 192),
    (
        "such comments behind an escaped quote",
        rb"SELECT E'\'', " + b"/* " * 65 + b"*/ " * 65 + b"1",
        "text.comments",
        None,
    ),
    ("operators without end", b"SELECT 1 " + b"+-" * 200 + b"1", "text.operators", 9),
    ("the same behind a quote in a comment", b"SELECT 1 /* ' */ " + b"/**/" * 100, "text.operators", 17),
    ("an unterminated string", b"SELECT 'abc", "syntax", 7),
    ("an unterminated comment", b"SELECT 1 /* x", "syntax", 9),
    ("a syntax error behind wide characters", "SELECT 'é€😀' FROM FROM".encode(), "syntax", 24),
]


@pytest.mark.parametrize(("note", "text", "code", "location"), REFUSED, ids=lambda v: None)
def test_a_text_that_the_parser_must_not_decide_on_is_refused_with_its_place(
    note: str, text: bytes, code: str, location: int | None
) -> None:
    with pytest.raises(NotAnalysableError) as caught:
        statements(base_text(text))
    assert caught.value.reason.code == code, note
    if location is not None:
        assert caught.value.reason.location == location, note


BLANKED = [
    (b"SELECT 1 -- one\n, 2", b"SELECT 1       \n, 2"),
    (b"SELECT /* a /* b */\n c */ 1", b"SELECT             \n      1"),
    (b"SELECT '--', \"/*\", $$ /* $$", b"SELECT '--', \"/*\", $$ /* $$"),
    ("SELECT /* é */ 1".encode(), b"SELECT          1"),
    (b"SELECT 'a' -- x\n 'b'", b"SELECT 'a'     \n 'b'"),
]


@pytest.mark.parametrize(("text", "expected"), BLANKED)
def test_comments_become_spaces_and_nothing_else_changes(text: bytes, expected: bytes) -> None:
    assert base_text(text) == expected
    assert len(base_text(text)) == len(text)


@pytest.mark.parametrize("text", [b"SELECT '" + b"=" * 500 + b"'", b"--" + b"-" * 500 + b"\nSELECT 1"])
def test_operator_characters_in_literals_and_line_comments_are_no_operators(text: bytes) -> None:
    assert len(base_text(text)) == len(text)


def test_sixty_four_comments_may_be_nested() -> None:
    assert base_text(b"/*" * 64 + b"*/" * 64 + b"SELECT 1").strip() == b"SELECT 1"


def test_many_strings_with_comment_marks_are_no_nested_comments() -> None:
    text = b"SELECT " + b", ".join(b"'src/*'" for _ in range(500))
    assert base_text(text + b" -- x").startswith(text)


SPLITS: list[tuple[bytes, list[bytes]]] = [
    (b"", []),
    (b"  \n ", []),
    (b"-- only a comment", []),
    (b";;  ; /* x */ ;", []),
    (b"SELECT 1", [b"SELECT 1"]),
    (b" SELECT 1 ; ", [b"SELECT 1"]),
    (b"SELECT ';'; SELECT $$;$$;", [b"SELECT ';'", b"SELECT $$;$$"]),
    (b"/* a; */ SELECT 1; -- b;\n SELECT 2", [b"SELECT 1", b"SELECT 2"]),
    ("SELECT 'é'; SELECT 'ü'".encode(), ["SELECT 'é'".encode(), "SELECT 'ü'".encode()]),
    (
        b"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 3",
        [b"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END", b"SELECT 3"],
    ),
]


@pytest.mark.parametrize(("text", "parts"), SPLITS)
def test_a_simple_query_string_falls_into_its_statements(text: bytes, parts: list[bytes]) -> None:
    assert [text[start:end] for start, end in split(text)] == parts


def test_a_syntax_error_anywhere_is_an_error_of_the_whole_string() -> None:
    with pytest.raises(NotAnalysableError) as caught:
        split(b"SELECT 1; SELEC 2")
    assert (caught.value.reason.code, caught.value.reason.location) == ("syntax", 10)


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT " + b"1+" * 100_000 + b"1",
        b"SELECT " + b"(" * 20_000 + b"1" + b")" * 20_000,
        b"SELECT " + b"NOT " * 50_000 + b"true",
        b"SELECT " + b"- " * 100_000 + b"1",
        b"SELECT " + b"ARRAY[" * 20_000 + b"1" + b"]" * 20_000,
        b"SELECT * FROM " + b"(SELECT * FROM " * 5_000 + b"t" + b") x" * 5_000,
        b"SELECT 1 " + b"UNION SELECT 1 " * 20_000,
        b"SELECT " + b"CASE WHEN true THEN " * 10_000 + b"1" + b" END" * 10_000,
    ],
    ids=["sum", "parentheses", "not", "minus", "array", "subquery", "union", "case"],
)
def test_deep_nesting_is_answered_and_never_kills_the_process(text: bytes) -> None:
    assert _code(text) in (None, "text.deep", "text.large", "syntax")


def _code(text: bytes) -> str | None:
    try:
        statements(base_text(text))
    except NotAnalysableError as error:
        return error.reason.code
    return None
