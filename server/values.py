"""Pure: PostgreSQL's text-format values as JSON values, and JSON parameters as text-format values.

By type (pg_type.dat); everything not named stays PostgreSQL's own text:

- bool: true, false. int2, int4, oid: number.
- int8: number up to 2^53-1 in size, beyond it a string.
- float4, float8: number; NaN, Infinity and -Infinity are strings.
- numeric: string, always: its digits and its scale are exact.
- json, jsonb: object, array, number or boolean. A *string* is always JSON text: a JSON string with its
  quotes, `null`, or a document whose numbers or keys JSON readers would change.
- arrays: nested lists; a string where the text has explicit bounds, such as `[0:1]={1,2}`.
- bytea: string, `\\x…`. Dates, times and intervals: string, PostgreSQL's ISO text.

Nothing is lost: the column's type and the JSON value alone tell which value it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import partial

__all__ = [
    "BUILTIN_TYPES",
    "JsonScalar",
    "JsonValue",
    "TypeFacts",
    "as_json",
    "as_parameter",
    "converter",
    "parameters_as_text",
]

JsonScalar = str | int | float | bool | None
JsonValue = JsonScalar | list["JsonValue"] | dict[str, "JsonValue"]

# The largest integer that every JSON reader keeps: IEEE 754 doubles, RFC 8259 section 6.
_MAX_SAFE_INTEGER = 2**53 - 1
# array.h MAXDIM: PostgreSQL's own limit on array dimensions.
_MAX_DIMENSIONS = 6
# Deeper documents than this stay text: many JSON readers stop at 64 to 512 levels.
_MAX_JSON_DEPTH = 64

_BOOL, _BYTEA, _INT8, _INT2, _INT4, _OID, _JSON, _JSONB = 16, 17, 20, 21, 23, 26, 114, 3802
_FLOAT4, _FLOAT8, _NUMERIC, _BOX = 700, 701, 1700, 603


@dataclass(frozen=True, slots=True)
class TypeFacts:
    """A row of `pg_type`, as far as values need it: its name as `format_type` spells it, and, for an array,
    its element type and the character between elements (`typdelim`; 0 and `,` for all others)."""

    name: str
    element: int = 0
    delimiter: str = ","


BUILTIN_TYPES: dict[int, TypeFacts] = {
    _BOOL: TypeFacts("boolean"),
    _BYTEA: TypeFacts("bytea"),
    18: TypeFacts('"char"'),
    19: TypeFacts("name"),
    _INT8: TypeFacts("bigint"),
    _INT2: TypeFacts("smallint"),
    _INT4: TypeFacts("integer"),
    25: TypeFacts("text"),
    _OID: TypeFacts("oid"),
    _JSON: TypeFacts("json"),
    _FLOAT4: TypeFacts("real"),
    _FLOAT8: TypeFacts("double precision"),
    1042: TypeFacts("character"),
    1043: TypeFacts("character varying"),
    1082: TypeFacts("date"),
    1083: TypeFacts("time without time zone"),
    1114: TypeFacts("timestamp without time zone"),
    1184: TypeFacts("timestamp with time zone"),
    1186: TypeFacts("interval"),
    1266: TypeFacts("time with time zone"),
    _NUMERIC: TypeFacts("numeric"),
    2950: TypeFacts("uuid"),
    _JSONB: TypeFacts("jsonb"),
    199: TypeFacts("json[]", _JSON),
    1000: TypeFacts("boolean[]", _BOOL),
    1001: TypeFacts("bytea[]", _BYTEA),
    1005: TypeFacts("smallint[]", _INT2),
    1007: TypeFacts("integer[]", _INT4),
    1009: TypeFacts("text[]", 25),
    1015: TypeFacts("character varying[]", 1043),
    1016: TypeFacts("bigint[]", _INT8),
    1020: TypeFacts("box[]", _BOX, ";"),
    1021: TypeFacts("real[]", _FLOAT4),
    1022: TypeFacts("double precision[]", _FLOAT8),
    1115: TypeFacts("timestamp without time zone[]", 1114),
    1182: TypeFacts("date[]", 1082),
    1185: TypeFacts("timestamp with time zone[]", 1184),
    1231: TypeFacts("numeric[]", _NUMERIC),
    2951: TypeFacts("uuid[]", 2950),
    3807: TypeFacts("jsonb[]", _JSONB),
}


class _NotLosslessError(Exception):
    """The text has no JSON form from which it could be told again."""


def as_parameter(value: JsonScalar) -> bytes | None:
    """A JSON parameter as PostgreSQL's text format; the server gives it its type.

    Raises ValueError for a value that PostgreSQL's text cannot hold (a NUL, a lone surrogate).
    """
    match value:
        case None:
            return None
        case bool():
            return b"true" if value else b"false"
        case int() | float():
            return repr(value).encode("ascii")
    if "\0" in value:
        raise ValueError("a parameter holds a NUL character, which PostgreSQL's text cannot")
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a parameter holds half of a surrogate pair, which is not a character") from None


def parameters_as_text(values: Sequence[JsonScalar] | None) -> tuple[bytes | None, ...]:
    """All parameters of a call, `$1` first. Raises ValueError that names the bad one."""
    texts: list[bytes | None] = []
    for number, value in enumerate(values or (), start=1):
        try:
            texts.append(as_parameter(value))
        except ValueError as error:
            raise ValueError(f"${number}: {error}") from None
    return tuple(texts)


def as_json(value: bytes | None, oid: int, types: Mapping[int, TypeFacts] | None = None) -> JsonValue:
    """One value. `types` adds to the built-in ones. Never raises."""
    return converter(oid, types or {})(value)


def converter(oid: int, types: Mapping[int, TypeFacts]) -> Callable[[bytes | None], JsonValue]:
    """How the values of one column become JSON: made once per column, called per row. Never raises."""
    convert = _text_converter(oid, types)

    def value_to_json(value: bytes | None) -> JsonValue:
        # A database with SQL_ASCII may hold bytes that are no UTF-8: show them rather than lose them.
        return None if value is None else convert(value.decode("utf-8", "backslashreplace"))

    return value_to_json


def _text_converter(oid: int, types: Mapping[int, TypeFacts]) -> Callable[[str], JsonValue]:
    facts = types.get(oid) or BUILTIN_TYPES.get(oid)
    if facts is not None and facts.element:
        delimiter, element = facts.delimiter, _text_converter(facts.element, types)
        strict: Callable[[str], JsonValue] = partial(_parse_array, delimiter=delimiter, element=element)
    elif oid in _SCALARS:
        strict = _SCALARS[oid]
    else:
        return str

    def text_to_json(text: str) -> JsonValue:
        try:
            return strict(text)
        except (_NotLosslessError, ValueError, InvalidOperation):
            return text

    return text_to_json


def _bool(text: str) -> JsonValue:
    if text not in ("t", "f"):
        raise _NotLosslessError
    return text == "t"


def _integer(text: str) -> JsonValue:
    number = int(text)
    if abs(number) > _MAX_SAFE_INTEGER:
        raise _NotLosslessError
    return number


def _float(text: str) -> JsonValue:
    number = float(text)
    # Also false for NaN and the infinities, which JSON has not, and for text of more digits than a double.
    if not number - number == 0 or Decimal(repr(number)) != Decimal(text):
        raise _NotLosslessError
    return number


def _json(text: str) -> JsonValue:
    try:
        document = json.loads(
            text,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_no_constant,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise _NotLosslessError from None
    if document is None or isinstance(document, str) or _deeper(document, _MAX_JSON_DEPTH):
        raise _NotLosslessError
    if "\\u" in text:
        json.dumps(document, ensure_ascii=False).encode("utf-8")  # a lone surrogate raises, a ValueError
    return document  # type: ignore[no-any-return]  # json.loads is Any; the hooks above make it a JsonValue


def _no_constant(name: str) -> JsonValue:
    raise _NotLosslessError(name)


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise _NotLosslessError  # `json` (not jsonb) keeps duplicate keys
    return document


def _deeper(value: JsonValue, levels: int) -> bool:
    layer: list[JsonValue] = [value]
    for _ in range(levels):
        layer = [
            child
            for node in layer
            if isinstance(node, list | dict)
            for child in (node if isinstance(node, list) else node.values())
        ]
        if not layer:
            return False
    return True


def _parse_array(text: str, delimiter: str, element: Callable[[str], JsonValue]) -> JsonValue:
    """The array text format: PostgreSQL documentation, section 8.15.6 (Array Input and Output Syntax).

    Raises _NotLosslessError for explicit bounds and for anything that is not such a text.
    """
    top: list[JsonValue] = []
    open_lists: list[list[JsonValue]] = [top]
    at, end = 0, len(text)
    after_item = False  # an item or a closing brace was read: a delimiter or a closing brace must follow
    while at < end:
        char = text[at]
        if after_item:
            if char == delimiter:
                after_item = False
            elif char == "}" and len(open_lists) > 1:
                open_lists.pop()
            else:
                raise _NotLosslessError
            at += 1
        elif char == "{":
            if len(open_lists) > _MAX_DIMENSIONS or (len(open_lists) == 1 and top):
                raise _NotLosslessError
            inner: list[JsonValue] = []
            open_lists[-1].append(inner)
            open_lists.append(inner)
            at += 1
            if text.startswith("}", at):  # `{}`: PostgreSQL writes the empty array only so
                open_lists.pop()
                at += 1
                after_item = True
        elif len(open_lists) == 1:
            raise _NotLosslessError
        elif char == '"':
            item, at = _quoted(text, at + 1)
            open_lists[-1].append(element(item))
            after_item = True
        else:
            start = at
            while at < end and text[at] not in (delimiter, "}", "{", '"', "\\"):
                at += 1
            item = text[start:at]
            if not item:
                raise _NotLosslessError
            open_lists[-1].append(None if item == "NULL" else element(item))
            after_item = True
    if len(open_lists) != 1 or len(top) != 1:
        raise _NotLosslessError
    return top[0]


def _quoted(text: str, at: int) -> tuple[str, int]:
    """The item that starts behind an opening quote, and where the text goes on behind the closing one."""
    parts: list[str] = []
    while at < len(text):
        char = text[at]
        if char == '"':
            return "".join(parts), at + 1
        if char == "\\":
            at += 1
        parts.append(text[at : at + 1])
        at += 1
    raise _NotLosslessError


_SCALARS: dict[int, Callable[[str], JsonValue]] = {
    _BOOL: _bool,
    _INT2: _integer,
    _INT4: _integer,
    _INT8: _integer,
    _OID: _integer,
    _FLOAT4: _float,
    _FLOAT8: _float,
    _JSON: _json,
    _JSONB: _json,
}
