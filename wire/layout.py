"""Where the values of a row stand in its message: in a DataRow, and in COPY's text, CSV and binary data. Sans-IO.

Source: PostgreSQL documentation, "Message Formats" and the COPY page's "File Formats". PostgreSQL sends each row
of a COPY in a message of its own; what is not so raises ProtocolError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from struct import Struct, error
from typing import Final

from policy.detection import CopyOut
from wire.fields import ProtocolError

# Of each value that is not NULL: its column, and the bytes of the message where it stands.
Places = Iterator[tuple[int, int, int]]
Layout = Callable[[bytes, int], Places]  # a whole message, and how many columns there are

_HEAD: Final = Struct(">BI").unpack_from
_HEAD_BYTES: Final = 5
_COUNT: Final = Struct(">h").unpack_from
_SIZE: Final = Struct(">i").unpack_from
_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0"
_BINARY_END: Final = -1


def messages(run: bytes) -> Iterator[tuple[int, int]]:
    """Where each message of a run of whole ones begins and ends."""
    at = 0
    while at < len(run):
        after = at + 1 + int(_HEAD(run, at)[1])
        yield at, after
        at = after


def data_row(message: bytes, columns: int) -> Places:
    """The layout of a DataRow."""
    return _tuple(message, _HEAD_BYTES, columns)


def copied_binary(message: bytes, columns: int) -> Places:
    """The layout of COPY in binary: the first row stands behind the file's header, the end has none."""
    at = _HEAD_BYTES
    if message.startswith(_SIGNATURE, at):
        at += len(_SIGNATURE) + 4
        at += 4 + int(_read(_SIZE, message, at))
    if at == len(message) or (_read(_COUNT, message, at) == _BINARY_END and at + 2 == len(message)):
        return iter(())
    return _tuple(message, at, columns)


def copied_text(copy: CopyOut) -> Layout:
    """The layout of COPY in text or CSV with these options."""
    delimiter = re.escape(copy.delimiter)
    if copy.csv:
        quote, escape = re.escape(copy.quote), re.escape(copy.escape)
        inside = rb"(?:[^%(q)s%(e)s]|%(e)s%(q)s|%(e)s%(e)s%(more)s)*+"
        more = b"" if copy.escape == copy.quote else b"|" + escape + b"(?!" + quote + b")"
        pattern = (
            rb"%(q)s(?P<quoted>" + inside + rb")%(q)s|(?P<plain>[^%(q)s%(d)s\r\n]*+)"
        ) % {b"q": quote, b"e": escape, b"d": delimiter, b"more": more}  # fmt: skip
    else:
        pattern = rb"(?P<plain>(?:[^\\%(d)s\n]|\\.)*+)" % {b"d": delimiter}
    field = re.compile(pattern, re.DOTALL)

    def places(message: bytes, columns: int) -> Places:
        end = len(message) - 1
        if message[end:] != b"\n":
            raise _lost("COPY data")
        at = _HEAD_BYTES
        for column in range(columns):
            match = field.match(message, at, end)
            if match is None:
                raise _lost("COPY data")
            value = match.span(match.lastgroup or 0)
            if match.lastgroup != "plain" or match["plain"] != copy.null:
                yield column, *value
            at = match.end() + 1
            if column + 1 < columns and message[match.end() : at] != copy.delimiter:
                raise _lost("COPY data")
        if at != end + 1:
            raise _lost("COPY data")

    return places


def _tuple(message: bytes, at: int, columns: int) -> Places:
    try:
        if _COUNT(message, at)[0] != columns:
            raise _lost("a row")
        at += 2
        for column in range(columns):
            size = _SIZE(message, at)[0]
            at += 4
            if size >= 0:
                yield column, at, at + size
                at += size
    except error:
        raise _lost("a row") from None
    if at != len(message):
        raise _lost("a row")


def _read(unpack: Callable[[bytes, int], tuple[int, ...]], message: bytes, at: int) -> int:
    try:
        return unpack(message, at)[0]
    except error:
        raise _lost("a row") from None


def _lost(what: str) -> ProtocolError:
    return ProtocolError(f"{what} of the server is not as its format says")
