"""Values in PostgreSQL's binary format as text that PostgreSQL reads back as the same value. Sans-IO.

What is not known here is shown as bytes. Source: the `…send` functions of PostgreSQL's types.
"""

from __future__ import annotations

import ipaddress
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta

from wire.fields import Fields, ProtocolError

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECONDS = 1_000_000
_NUMERIC_SPECIAL = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}
_MOST_DIMENSIONS = 1


def as_text(value: bytes, oid: int) -> str:
    """A binary value of the type with this OID; `\\x…` where it cannot be read."""
    try:
        return _READERS[oid](value)
    except (KeyError, ValueError, OverflowError, ProtocolError, struct.error):
        return f"\\x{value.hex()}"


def _text(value: bytes) -> str:
    return value.decode("utf-8")


def _bytes(value: bytes) -> str:
    return f"\\x{value.hex()}"


def _jsonb(value: bytes) -> str:
    if value[:1] != b"\x01":
        raise ValueError("unknown version of jsonb")
    return _text(value[1:])


def _number(form: str) -> Callable[[bytes], str]:
    return lambda value: str(struct.unpack(form, value)[0])


def _float4(value: bytes) -> str:
    return format(struct.unpack("!f", value)[0], ".9g")


def _bool(value: bytes) -> str:
    return {b"\x01": "t", b"\x00": "f"}[value]


def _date(value: bytes) -> str:
    return str(date(2000, 1, 1) + timedelta(days=struct.unpack("!i", value)[0]))


def _time(value: bytes) -> str:
    return _clock(struct.unpack("!q", value)[0])


def _clock(microseconds: int) -> str:
    seconds, rest = divmod(microseconds, _MICROSECONDS)
    fraction = f".{rest:06d}" if rest else ""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{fraction}"


def _timestamp(value: bytes) -> str:
    return (_EPOCH + timedelta(microseconds=struct.unpack("!q", value)[0])).replace(tzinfo=None).isoformat(" ")


def _interval(value: bytes) -> str:
    microseconds, days, months = struct.unpack("!qii", value)
    return f"{months} mons {days} days {'-' if microseconds < 0 else ''}{_clock(abs(microseconds))}"


def _numeric(value: bytes) -> str:
    count, weight, sign, scale = struct.unpack("!HhHH", value[:8])
    if sign in _NUMERIC_SPECIAL:
        return _NUMERIC_SPECIAL[sign]
    digits = struct.unpack(f"!{count}H", value[8:])
    if sign not in (0, 0x4000) or any(digit > 9999 for digit in digits) or abs(weight) > 1000:
        raise ValueError("not a numeric")
    whole = "".join(f"{_digit(digits, at):04d}" for at in range(weight + 1)).lstrip("0") or "0"
    groups = (scale + 3) // 4
    fraction = "".join(f"{_digit(digits, at):04d}" for at in range(weight + 1, weight + 1 + groups))[:scale]
    return ("-" if sign else "") + whole + ("." + fraction if scale else "")


def _digit(digits: tuple[int, ...], at: int) -> int:
    return digits[at] if 0 <= at < len(digits) else 0


def _network(value: bytes) -> str:
    _, bits, is_network, size = value[:4]
    address = ipaddress.ip_address(value[4:])
    if size != len(value) - 4:
        raise ValueError("not an address")
    return f"{address}/{bits}" if is_network or bits != address.max_prefixlen else str(address)


def _array(value: bytes) -> str:
    fields = Fields(value, "array")
    dimensions, _, element = fields.int32(), fields.int32(), fields.uint32()
    if dimensions == 0:
        fields.end()
        return "{}"
    if dimensions > _MOST_DIMENSIONS or element not in _READERS:
        raise ValueError("an array that is not read here")
    count, lower = fields.int32(), fields.int32()
    if lower != 1:
        raise ValueError("an array that does not begin at 1")
    items = list(_items(fields, count, element))
    fields.end()
    return "{" + ",".join(items) + "}"


def _items(fields: Fields, count: int, element: int) -> Iterator[str]:
    for _ in range(count):
        item = fields.value()
        if item is None:
            yield "NULL"
            continue
        text = _READERS[element](item).replace("\\", "\\\\").replace('"', '\\"')
        yield f'"{text}"'


_READERS: Mapping[int, Callable[[bytes], str]] = {
    16: _bool,
    17: _bytes,
    **dict.fromkeys((18, 19, 25, 114, 142, 705, 1042, 1043), _text),
    20: _number("!q"),
    21: _number("!h"),
    23: _number("!i"),
    26: _number("!I"),
    700: _float4,
    701: _number("!d"),
    **dict.fromkeys((650, 869), _network),
    1082: _date,
    1083: _time,
    1114: _timestamp,
    1184: lambda value: _timestamp(value) + "+00",
    1186: _interval,
    1700: _numeric,
    2950: lambda value: str(uuid.UUID(bytes=value)),
    3802: _jsonb,
    # Arrays of the types above.
    **dict.fromkeys((199, 1000, 1001, 1002, 1003, 1005, 1007, 1009, 1014, 1015, 1016, 1021, 1022, 1028, 1041), _array),
    **dict.fromkeys((1115, 1182, 1183, 1185, 1187, 1231, 2951, 3807), _array),
}
