"""Values in PostgreSQL's binary format: what is looked for in them, hidden. Sans-IO.

Source: the `…send` functions of PostgreSQL's types. Lengths never change, so whatever holds a value stays right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct, error
from typing import Final

from gateway.errors import UnsearchableError
from policy.detection import Detection, hide
from policy.detectors import Kind, Span, is_card
from policy.forms import Form
from wire.fields import ProtocolError

Hidden = tuple[bytes, list[Span]]

_INT32: Final = Struct(">i").unpack_from
_UINT32: Final = Struct(">I").unpack_from
_WORD: Final = Struct(">H")
_NUMERIC: Final = Struct(">HhHH").unpack_from
_SHORTER: Final = 10**12 - 1  # no card number is
# Ranges (rangetypes.h): flags, and which of the bounds follow.
_RANGE_EMPTY, _LOWER_INFINITE, _UPPER_INFINITE = 0x01, 0x08, 0x10


def hide_binary(value: bytes, oid: int, detection: Detection) -> Hidden:
    """A binary value of the type with this OID, with what is found in it hidden.

    Raises UnsearchableError where the type's format is not known, ProtocolError where the value is not in it.
    """
    try:
        return _HIDERS[detection.forms.get(oid, Form.UNKNOWN)](value, oid, detection)
    except (error, IndexError):
        raise ProtocolError(f"a value of type {oid} is not in the format of its type") from None


def _unknown(value: bytes, oid: int, detection: Detection) -> Hidden:
    raise UnsearchableError(
        f"the policy looks for {detection} in what is delivered, and the binary format of the type with OID {oid}"
        " is not known",
        cure="Ask for the text format, or cast the value to text.",
    )


def _plain(value: bytes, oid: int, detection: Detection) -> Hidden:
    return value, []


def _text(value: bytes, oid: int, detection: Detection) -> Hidden:
    return hide(value, detection.kinds)


def _versioned(value: bytes, oid: int, detection: Detection) -> Hidden:
    hidden, spans = hide(value[1:], detection.kinds)
    return value[:1] + hidden, spans


def _integer(value: bytes, oid: int, detection: Detection) -> Hidden:
    number = int.from_bytes(value, "big", signed=True)
    digits = b"%d" % abs(number) if abs(number) > _SHORTER else b""
    if Kind.CARD not in detection.kinds or not is_card(digits):
        return value, []
    smallest = 10 ** (len(digits) - 1)
    hidden = (smallest if number > 0 else -smallest).to_bytes(len(value), "big", signed=True)
    return hidden, [Span(0, len(value), Kind.CARD)]


def _numeric(value: bytes, oid: int, detection: Detection) -> Hidden:
    """Groups of four digits, the first of weight 10,000 to the power `weight`; missing ones at the end are 0."""
    count, weight, _, _ = _NUMERIC(value)
    written = max(0, min(count, weight + 1))
    whole = [_WORD.unpack_from(value, 8 + 2 * at)[0] for at in range(written)]
    whole += [0] * (weight + 1 - written) if weight < 8 else []
    digits = b"".join(b"%04d" % group for group in whole).lstrip(b"0")
    if Kind.CARD not in detection.kinds or not is_card(digits):
        return value, []
    hidden = bytearray(value)
    hidden[8 : 8 + 2 * written] = bytes(2 * written)
    _WORD.pack_into(hidden, 8, 10 ** ((len(digits) - 1) % 4))
    return bytes(hidden), [Span(0, len(value), Kind.CARD)]


class _Parts:
    """Walks over the parts of a value, each with its length before it, and hides inside each."""

    def __init__(self, value: bytes, at: int, detection: Detection) -> None:
        self._value = value
        self._detection = detection
        self._hidden: bytearray | None = None
        self._spans: list[Span] = []
        self.at = at

    def part(self, oid: int) -> None:
        size = _INT32(self._value, self.at)[0]
        self.at += 4
        if size < 0:
            return
        part = self._value[self.at : self.at + size]
        if len(part) != size:
            raise IndexError
        hidden, spans = hide_binary(part, oid, self._detection)
        if spans:
            self._hidden = self._hidden or bytearray(self._value)
            self._hidden[self.at : self.at + size] = hidden
            self._spans += [Span(self.at + s.start, self.at + s.end, s.kind) for s in spans]
        self.at += size

    def done(self) -> Hidden:
        if self.at != len(self._value):
            raise IndexError
        return bytes(self._hidden) if self._hidden is not None else self._value, self._spans


def _array(value: bytes, oid: int, detection: Detection) -> Hidden:
    dimensions, element = _INT32(value)[0], _UINT32(value, 8)[0]
    parts = _Parts(value, 12 + 8 * dimensions, detection)
    while parts.at < len(value):
        parts.part(element)
    return parts.done()


def _record(value: bytes, oid: int, detection: Detection) -> Hidden:
    parts = _Parts(value, 4, detection)
    for _ in range(_INT32(value)[0]):
        of = _UINT32(value, parts.at)[0]
        parts.at += 4
        parts.part(of)
    return parts.done()


def _range(value: bytes, oid: int, detection: Detection) -> Hidden:
    subtype, flags = detection.subtypes.get(oid, 0), value[0]
    parts = _Parts(value, 1, detection)
    for infinite in (_LOWER_INFINITE, _UPPER_INFINITE):
        if not flags & (_RANGE_EMPTY | infinite):
            parts.part(subtype)
    return parts.done()


def _multirange(value: bytes, oid: int, detection: Detection) -> Hidden:
    """Ranges of the same subtype; `subtypes` knows the multirange as it knows the range."""
    hidden, spans, at = bytearray(value), [], 4
    for _ in range(_INT32(value)[0]):
        size = _INT32(value, at)[0]
        at += 4
        part, found = _range(value[at : at + size], oid, detection)
        hidden[at : at + size] = part
        spans += found
        at += size
    if at != len(value):
        raise IndexError
    return bytes(hidden), spans


_HIDERS: Final[Mapping[Form, Callable[[bytes, int, Detection], Hidden]]] = {
    Form.TEXT: _text,
    Form.VERSIONED: _versioned,
    Form.INTEGER: _integer,
    Form.NUMERIC: _numeric,
    Form.ARRAY: _array,
    Form.RECORD: _record,
    Form.RANGE: _range,
    Form.MULTIRANGE: _multirange,
    Form.PLAIN: _plain,
    Form.UNKNOWN: _unknown,
}
