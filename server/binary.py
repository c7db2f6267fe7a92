"""Pure: values in PostgreSQL's binary format as people read them. What is not known here is shown as bytes.

Source: the `…send` functions of PostgreSQL's types.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def as_text(value: bytes, oid: int) -> str:
    """A binary value of the type with this OID; `\\x…` where it cannot be read."""
    try:
        return _READERS[oid](value)
    except (KeyError, ValueError, OverflowError, struct.error):
        return f"\\x{value.hex()}"


def _text(value: bytes) -> str:
    return value.decode("utf-8")


def _jsonb(value: bytes) -> str:
    if value[:1] != b"\x01":
        raise ValueError("unknown version of jsonb")
    return _text(value[1:])


def _number(form: str) -> Callable[[bytes], str]:
    return lambda value: str(struct.unpack(form, value)[0])


def _bool(value: bytes) -> str:
    return {b"\x01": "t", b"\x00": "f"}[value]


def _date(value: bytes) -> str:
    return str(date(2000, 1, 1) + timedelta(days=struct.unpack("!i", value)[0]))


def _timestamp(value: bytes) -> str:
    return (_EPOCH + timedelta(microseconds=struct.unpack("!q", value)[0])).replace(tzinfo=None).isoformat(" ")


_READERS: Mapping[int, Callable[[bytes], str]] = {
    16: _bool,
    **dict.fromkeys((18, 19, 25, 114, 142, 705, 1042, 1043), _text),
    20: _number("!q"),
    21: _number("!h"),
    23: _number("!i"),
    26: _number("!I"),
    700: _number("!f"),
    701: _number("!d"),
    1082: _date,
    1114: _timestamp,
    1184: lambda value: _timestamp(value) + "+00",
    2950: lambda value: str(uuid.UUID(bytes=value)),
    3802: _jsonb,
}
