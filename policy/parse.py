"""The gate: PostgreSQL's own grammar. The only importer of the SQL parser; text in, tree or refusal out.

Facts about libpg_query that this module answers for: it truncates at NUL, overflows the C stack on deep
expressions, is quadratic in nested comments and in long runs of operator characters (`/**//**/…`), makes a
tree of 75 MB from 1 MB of `1+1+…`, and reads a comment inside a look-ahead pair (`NOT /* x */ IN`) as a
syntax error. Comments are therefore blanked, and the blanked bytes are what is analysed and what is forwarded.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from ctypes import c_char_p, c_size_t, c_void_p, string_at
from typing import Any, Protocol

from postgast.native import PgQueryError, lib
from postgast.pg_query_pb2 import ScanResult
from pydantic_core import from_json

from policy.model import Effect, Reason

Node = dict[str, Any]

MAX_TEXT_BYTES = 1024 * 1024
MAX_COMMENT_DEPTH = 64
MAX_OPERATOR_RUN = 256  # PostgreSQL's own limit of an operator is 63
MAX_TREE_BYTES = 7 * 1024 * 1024  # of the tree as JSON; in Python it takes about 15 times as much
MAX_SCAN_BYTES = 7 * 1024 * 1024  # of the scanner's answer, some 14 for each token; the parser needs 300 for each

# A C stack of 8 MB dies at about 139 KB of `1+1+…`, a thread's 1 MB at far less; 16 KB is safe on any.
_BIG_TEXT_BYTES = 16 * 1024
_BIG_STACK_BYTES = 512 * 1024 * 1024  # virtual: only touched pages count
_MANY_TOKENS_BYTES = 256 * 1024
_STACK_SIZE_LOCK = threading.Lock()

_strlen = lib["strlen"]  # the C library's, through the parser's: a tree is measured before it is copied
_strlen.argtypes, _strlen.restype = (c_void_p,), c_size_t

_COMMENT_TOKENS = (275, 276)  # SQL_COMMENT, C_COMMENT of libpg_query's Token
# The fields that hold a place in the text; no text of a constant can look like one, its quotes being escaped.
_PLACES = (b"location", b"list_start", b"list_end", b"rexpr_list_start", b"rexpr_list_end", b"name_location")
# How they end, each a literal that is found fast; all others are numbered alike by it, and then taken out.
_PLACE_ENDS = tuple((end, re.compile(end + b"-?[0-9]+")) for end in (b'location":', b'list_start":', b'list_end":'))
_BLANK = re.compile(rb"[^\n\r]")
_SPACE = b" \t\n\r\f\v"

_OPERATOR_RUN = re.compile(rb"[~!@#^&|`?+\-*/<>=%%]{%d}" % (MAX_OPERATOR_RUN + 1))
# Only to bound what the scanner would be slow on, before it sees it; never decides what a token is.
_OUTSIDE_COMMENT = re.compile(
    rb"--[^\n\r]*|(?P<run>"
    + _OPERATOR_RUN.pattern
    + rb")|/\*|(?<![\w$\x80-\xff])[eE]'(?:[^'\\]|\\.|'')*+'|'[^']*+'|\"[^\"]*+\""
    rb"|\$(?P<tag>(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*)?)\$.*?\$(?P=tag)\$",
    re.DOTALL,
)
_INSIDE_COMMENT = re.compile(rb"/\*|\*/")


class NotAnalysableError(Exception):
    """A text that is refused before any rule is asked. `reason` is the deny, ready for a verdict."""

    def __init__(self, code: str, text: str, *, cure: str | None = None, location: int | None = None) -> None:
        super().__init__(text)
        self.reason = Reason(Effect.DENY, code, text, cure=cure, location=location)


class Token(Protocol):
    """A token of PostgreSQL's scanner: its number, and the bytes `start` to `end` that it covers."""

    token: int
    start: int
    end: int


def base_text(text: bytes, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The text with its comments blanked to spaces: same length, line breaks kept.

    Raises NotAnalysableError for what PostgreSQL's parser must not be given: too long, NUL, not UTF-8,
    comments nested too deep; and for what the scanner refuses.
    """
    if len(text) > limit:
        raise NotAnalysableError(
            "text.long",
            f"the text is {len(text)} bytes long, more than the limit of {limit}",
            cure="Split it, or load bulk data with COPY FROM STDIN.",
        )
    if (at := text.find(0)) >= 0:
        raise NotAnalysableError("text.nul", "the text contains a NUL byte", cure="Remove it.", location=at)
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotAnalysableError(
            "text.encoding", "the text is not valid UTF-8", cure="Send it as UTF-8.", location=error.start
        ) from None
    # What is shorter has no room for either.
    if len(text) > MAX_COMMENT_DEPTH and (text.count(b"/*") > MAX_COMMENT_DEPTH or _OPERATOR_RUN.search(text)):
        _check_runs_and_comments(text)
    if len(text) > _MANY_TOKENS_BYTES and len(_run(_scan, text)) > MAX_SCAN_BYTES:
        raise _too_large()
    if b"/*" not in text and b"--" not in text:
        return text
    blanked = bytearray(text)
    for token in tokens(text):
        if token.token in _COMMENT_TOKENS:
            blanked[token.start : token.end] = _BLANK.sub(b" ", text[token.start : token.end])
    return bytes(blanked)


def parsed(base: bytes) -> tuple[bytes, list[Node]]:
    """The parser's own JSON of a base text, and its RawStmts, one for each statement, in order.

    Raises NotAnalysableError: `syntax` with PostgreSQL's own message, or `text.deep`.
    """
    text = parser_json(base)
    try:
        raws = from_json(text)["stmts"]
    except ValueError:  # too deep for the fast reader
        raws = _deep(text)
    return text, [raw for raw in raws if "stmt" in raw]


def statements(base: bytes) -> list[tuple[int, int, Node]]:
    """The statements of a base text: byte range without the semicolon, and the tree, in order.

    Raises NotAnalysableError as `parsed` does.
    """
    return [(*_trim(base, raw), raw["stmt"]) for raw in parsed(base)[1]]


def parser_json(base: bytes) -> bytes:
    """The parser's own JSON of a base text. Raises NotAnalysableError."""
    return _run(_parse_json, base) if len(base) > _BIG_TEXT_BYTES else _parse_json(base)


def without_places(text: bytes) -> bytes:
    """The parser's JSON without the fields that hold places: equal where what two texts say is."""
    for end, numbered in _PLACE_ENDS:
        if end in text:
            text = numbered.sub(end + b"0", text)
    for name in _PLACES:
        if (field := b'"%b":0' % name) in text:
            text = text.replace(b"," + field, b"").replace(field + b",", b"").replace(field, b"")
    return text


def split(text: bytes) -> tuple[tuple[int, int], ...]:
    """The byte ranges of the statements of a simple-query string; empty ones are left out.

    As in PostgreSQL, a syntax error anywhere is an error of the whole string. Raises NotAnalysableError.
    """
    base = base_text(text)
    start = len(base) - len(base.lstrip(_SPACE))
    end = len(base.rstrip(_SPACE))
    if b";" not in base[:end].rstrip(b"; \t\n\r\f\v"):
        bare = base[:end].rstrip(b"; \t\n\r\f\v")
        return ((start, len(bare)),) if len(bare) > start else ()
    return tuple((start, end) for start, end, _ in statements(base))


def tokens(text: bytes) -> Sequence[Token]:
    """PostgreSQL's own tokens, comments included. Raises NotAnalysableError for what it cannot scan."""
    found: Sequence[Token] = ScanResult.FromString(_run(_scan, text)).tokens
    return found


def _parse_json(text: bytes) -> bytes:
    result = lib.pg_query_parse(text)
    try:
        if result.error:
            raise _syntax_error(result.error.contents, text)
        if len(text) <= _BIG_TEXT_BYTES:  # too short for a tree that is too large
            return c_char_p.from_buffer(result).value or b""
        tree = c_void_p.from_buffer(result).value  # its first field, not yet copied
        if (length := _strlen(tree)) > MAX_TREE_BYTES:
            raise _too_large()
        return string_at(tree or 0, length)
    finally:
        lib.pg_query_free_parse_result(result)


def _deep(text: bytes) -> list[Node]:
    try:
        raws: list[Node] = json.loads(text)["stmts"]
    except RecursionError:
        raise _too_deep() from None
    return raws


def _scan(text: bytes) -> bytes:
    result = lib.pg_query_scan(text)
    try:
        if result.error:
            raise _syntax_error(result.error.contents, text)
        return string_at(result.pbuf.data, result.pbuf.len)
    finally:
        lib.pg_query_free_scan_result(result)


def _run(job: Callable[[bytes], bytes], text: bytes) -> bytes:
    """Call into the C library, on a big stack where the text could need one."""
    if len(text) <= _BIG_TEXT_BYTES:
        return job(text)
    outcome: list[bytes | NotAnalysableError] = []

    def run() -> None:
        try:
            outcome.append(job(text))
        except NotAnalysableError as error:
            outcome.append(error)

    with _STACK_SIZE_LOCK:  # the size is a setting of the whole process
        before = threading.stack_size(_BIG_STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="sql-parser")
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if not outcome:
        raise _too_deep()
    [result] = outcome
    if isinstance(result, NotAnalysableError):
        raise result
    return result


def _syntax_error(error: PgQueryError, text: bytes) -> NotAnalysableError:
    message = error.message.decode("utf-8", "replace")
    position: int = error.cursorpos  # 1-based, in characters; 0 where there is none
    location = len(text.decode("utf-8")[: position - 1].encode("utf-8")) if position > 0 else None
    return NotAnalysableError("syntax", message, location=location)


def _too_deep() -> NotAnalysableError:
    return NotAnalysableError(
        "text.deep",
        "the statement nests too deep to be analysed",
        cure="Flatten it: an array or a VALUES list in place of a long chain of operators.",
    )


def _too_large() -> NotAnalysableError:
    return NotAnalysableError(
        "text.large",
        "the statement has too many parts to be analysed",
        cure="Split it, pass the values as one array parameter, or load bulk data with COPY FROM STDIN.",
    )


def _trim(base: bytes, raw: Node) -> tuple[int, int]:
    """A RawStmt's range without the white space around it (`stmt_len` 0: up to the end)."""
    start = raw.get("stmt_location", 0)
    length = raw.get("stmt_len", 0)
    end = start + length if length else len(base)
    whole = base[start:end]
    return start + len(whole) - len(whole.lstrip(_SPACE)), start + len(whole.rstrip(_SPACE))


def _check_runs_and_comments(text: bytes) -> None:
    """Raise NotAnalysableError for comments nested too deep and for endless operators."""
    depth = at = 0
    while found := (_INSIDE_COMMENT if depth else _OUTSIDE_COMMENT).search(text, at):
        at = found.end()
        mark = found.group()
        if mark == b"/*":
            depth += 1
        elif depth and mark == b"*/":
            depth -= 1
        elif not depth and found["run"]:
            raise NotAnalysableError(
                "text.operators",
                f"more than {MAX_OPERATOR_RUN} operator characters stand in a row",
                cure="Put spaces between operators and comments.",
                location=found.start(),
            )
        if depth > MAX_COMMENT_DEPTH:
            raise NotAnalysableError(
                "text.comments",
                f"comments are nested deeper than {MAX_COMMENT_DEPTH}",
                cure="Remove the comments.",
                location=found.start(),
            )
