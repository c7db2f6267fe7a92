"""COPY TO STDOUT where what it delivers is searched: its options as they count, or a refusal of unusual ones."""

from __future__ import annotations

from typing import Final

from policy.detection import CopyOut
from policy.names import quote
from policy.parse import Node, NotAnalysableError, tokens
from policy.reading import Reading, Role
from policy.session import options

_OPEN, _CLOSE = map(ord, "()")
# What does not occur in anything that is looked for: between and around values it hides none, doubled inside it
# breaks none.
_HARMLESS: Final = frozenset(b"\t,;|:~^!#$&*'\"\\<>[]{}()?`")


def copy_out(reading: Reading, sql: bytes) -> CopyOut | None:
    """How the COPY that `reading` is about writes rows when `sql` is run for it; None for any other statement.

    Raises NotAnalysableError `detect.copy` where values could not be found in what it writes.
    """
    if not reading.analysis.effects.copy_out:
        return None
    given = options(reading.tree["CopyStmt"])
    form = (_text(given, "format") or b"text").lower()
    if form not in (b"text", b"csv", b"binary"):
        raise _refused(f"the format `{form.decode()}` is not known")
    encoding = _text(given, "encoding")
    if encoding is not None and encoding.lower().replace(b"-", b"") not in (b"utf8", b"unicode"):
        raise _refused(f"it is written in the encoding `{encoding.decode()}`", "Leave ENCODING out.")
    csv = form == b"csv"
    delimiter = _text(given, "delimiter") or (b"," if csv else b"\t")
    quoting = _text(given, "quote") or b'"'
    escape = _text(given, "escape") or quoting
    for name, character in (("DELIMITER", delimiter), ("QUOTE", quoting), ("ESCAPE", escape)):
        if len(character) != 1 or character[0] not in _HARMLESS:
            raise _refused(
                f"{name} `{character.decode()}` could stand inside of what is looked for",
                "Use a comma, a semicolon, a tab, `|` or a quote.",
            )
    null = _text(given, "null")
    default = b"" if csv else b"\\N"
    return CopyOut(_query(reading, sql), csv, delimiter, quoting, escape, default if null is None else null)


def _query(reading: Reading, sql: bytes) -> bytes:
    """A query with the columns of the COPY: the one inside its parentheses, or one of the table."""
    scanned = tokens(sql)
    if scanned[1].token == _OPEN:
        depth = 0
        for token in scanned[1:]:
            depth += (token.token == _OPEN) - (token.token == _CLOSE)
            if not depth:
                return sql[scanned[1].end : token.start]
    [relation] = [r.relation for r in reading.references if r.role is Role.COPY_OUT]
    listed = [item["String"]["sval"] for item in reading.tree["CopyStmt"].get("attlist", ())]
    names = ", ".join(map(quote, listed)) or "*"
    return f"SELECT {names} FROM {quote(relation.schema)}.{quote(relation.name)}".encode()  # noqa: S608 - names are quoted


def _text(given: dict[str, Node], name: str) -> bytes | None:
    value = given.get(name)
    if not value:
        return None
    return str(value.get("String", {}).get("sval", "")).encode() if "String" in value else b"?" * 2


def _refused(why: str, cure: str | None = None) -> NotAnalysableError:
    return NotAnalysableError(
        "detect.copy",
        f"the policy looks for personal data in what COPY delivers, and {why}",
        cure=cure or "Use the format text, csv or binary.",
    )
