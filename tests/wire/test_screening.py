"""Rows searched on their way: however they are cut into chunks, in each format, and never with another length."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import LimitExceededError, UnsearchableError
from policy.detection import MOST_SEARCHED_BYTES, CopyOut, Detection
from policy.detectors import Kind
from policy.forms import Form, form_of
from wire import backend
from wire.codec import BackendStream, Rows
from wire.copy import CopyData, CopyOutResponse
from wire.fields import ProtocolError, sized
from wire.screening import Screen
from wire.values import hide_binary

TEXT, JSONB, INT8, NUMERIC, TEXTS, INT8S, PAIR, SPAN, SPANS, MOMENT, STRANGE = range(1, 12)
FORMS = {
    TEXT: form_of("textsend"),
    JSONB: form_of("jsonb_send"),
    INT8: form_of("int8send"),
    NUMERIC: form_of("numeric_send"),
    TEXTS: form_of("array_send"),
    INT8S: form_of("array_send"),
    PAIR: form_of("record_send"),
    SPAN: form_of("range_send"),
    SPANS: form_of("multirange_send"),
    MOMENT: form_of("timestamptz_send"),
    STRANGE: form_of("hstore_send"),
}
ALL = frozenset(Kind)
LOOKS = Detection(ALL, ("detect (p.yaml:1)",), FORMS, {SPAN: INT8, SPANS: INT8})
CARD, STARS = b"4111 1111 1111 1111", b"**** **** **** ****"
NUMBER = 4111111111111111


def screen(*columns: tuple[str, int, int], copy: CopyOut | None = None) -> Screen:
    searching = Screen(Detection(ALL, LOOKS.labels, FORMS, LOOKS.subtypes, copy))
    searching.describe(
        backend.RowDescription(tuple(backend.Column(name, type=oid, format=format) for name, oid, format in columns))
    )
    return searching


def delivered(searching: Screen, raw: bytes, cuts: Sequence[int] = ()) -> bytes:
    """What becomes of rows that arrive in these pieces."""
    stream, out, at = BackendStream(), b"", 0
    stream.whole_rows = True
    for end in (*sorted(min(cut, len(raw)) for cut in cuts), len(raw)):
        for piece in stream.feed(raw[at:end]):
            assert isinstance(piece, Rows)
            out += searching.rows(piece).data
        at = end
    return out


def row(*values: bytes | None) -> bytes:
    return backend.DataRow(values).encode()


ROWS = row(b"1", b"see " + CARD) + row(b"2", None) + row(b"3", b"ada@example.com") + row(b"4", b"nothing")
SEARCHED = row(b"1", b"see " + STARS) + row(b"2", None) + row(b"3", b"***@*******.***") + row(b"4", b"nothing")


@given(st.lists(st.integers(0, len(ROWS)), max_size=8))
def test_chunking_never_changes_the_result(cuts: list[int]) -> None:
    searching = screen(("id", TEXT, 0), ("body", TEXT, 0))
    assert delivered(searching, ROWS, cuts) == SEARCHED
    assert [str(one) for one in searching.findings] == ["body: 1 card", "body: 1 email"]


def test_rows_byte_by_byte() -> None:
    assert delivered(screen(("id", TEXT, 0), ("body", TEXT, 0)), ROWS, range(len(ROWS))) == SEARCHED


@given(st.lists(st.lists(st.none() | st.binary(max_size=30), min_size=3, max_size=3), max_size=4), st.data())
def test_any_bytes_keep_their_frames(values: list[list[bytes | None]], data: st.DataObject) -> None:
    raw = b"".join(row(*of) for of in values)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=4))
    out = delivered(screen(("a", TEXT, 0), ("b", JSONB, 0), ("c", TEXT, 1)), raw, cuts)
    assert len(out) == len(raw)


def array(element: int, *values: bytes | None) -> bytes:
    return struct.pack(">iiIii", 1, 0, element, len(values), 1) + b"".join(map(sized, values))


def record(*fields: tuple[int, bytes | None]) -> bytes:
    return struct.pack(">i", len(fields)) + b"".join(struct.pack(">I", oid) + sized(value) for oid, value in fields)


def numeric(*groups: int, weight: int, scale: int = 0) -> bytes:
    return struct.pack(f">HhHH{len(groups)}H", len(groups), weight, 0, scale, *groups)


def int8(number: int) -> bytes:
    return struct.pack(">q", number)


def a_range(*bounds: bytes, flags: int = 2) -> bytes:
    return bytes((flags,)) + b"".join(map(sized, bounds))


def multirange(*ranges: bytes) -> bytes:
    return struct.pack(">i", len(ranges)) + b"".join(map(sized, ranges))


@pytest.mark.parametrize(
    ("oid", "value", "hidden"),
    [
        (TEXT, CARD, STARS),
        (JSONB, b'\x01{"a": 4111111111111111}', b'\x01{"a": 1000000000000000}'),
        (INT8, int8(NUMBER), int8(10**15)),
        (INT8, int8(-NUMBER), int8(-(10**15))),
        (INT8, int8(NUMBER + 1), int8(NUMBER + 1)),
        (INT8, int8(-(2**63)), int8(-(2**63))),
        (NUMERIC, numeric(4111, 1111, 1111, 1111, weight=3), numeric(1000, 0, 0, 0, weight=3)),
        (NUMERIC, numeric(4111, 1111, 1111, 1111, 5000, weight=3), numeric(1000, 0, 0, 0, 5000, weight=3)),
        (NUMERIC, numeric(4, 2424, 2424, 2424, 2420, weight=4), numeric(4, 2424, 2424, 2424, 2420, weight=4)),
        (NUMERIC, numeric(400, weight=500), numeric(400, weight=500)),
        (NUMERIC, numeric(5000, weight=-1, scale=1), numeric(5000, weight=-1, scale=1)),
        (NUMERIC, struct.pack(">HhHH", 0, 0, 0xC000, 0), struct.pack(">HhHH", 0, 0, 0xC000, 0)),
        (TEXTS, array(TEXT, b"x", None, CARD), array(TEXT, b"x", None, STARS)),
        (TEXTS, struct.pack(">iiI", 0, 0, TEXT), struct.pack(">iiI", 0, 0, TEXT)),
        (INT8S, array(INT8, int8(1), int8(NUMBER)), array(INT8, int8(1), int8(10**15))),
        (PAIR, record((INT8, int8(NUMBER)), (TEXT, CARD)), record((INT8, int8(10**15)), (TEXT, STARS))),
        (PAIR, record((TEXTS, array(TEXT, CARD)), (TEXT, None)), record((TEXTS, array(TEXT, STARS)), (TEXT, None))),
        (SPAN, a_range(int8(1), int8(NUMBER)), a_range(int8(1), int8(10**15))),
        (SPAN, a_range(flags=1), a_range(flags=1)),
        (SPAN, a_range(int8(NUMBER), flags=0x10), a_range(int8(10**15), flags=0x10)),
        (SPANS, multirange(a_range(int8(1), int8(NUMBER))), multirange(a_range(int8(1), int8(10**15)))),
        (MOMENT, int8(NUMBER), int8(NUMBER)),
    ],
)  # fmt: skip
def test_binary_values_are_searched_inside(oid: int, value: bytes, hidden: bytes) -> None:
    assert hide_binary(value, oid, LOOKS)[0] == hidden
    searching = screen(("v", oid, 1))
    assert delivered(searching, row(value) + row(None)) == row(hidden) + row(None)
    assert bool(searching.findings) == (hidden != value)


@given(st.sampled_from(sorted(FORMS)), st.binary(max_size=60))
def test_garbage_is_a_protocol_violation_or_keeps_its_length(oid: int, value: bytes) -> None:
    try:
        hidden, _ = hide_binary(value, oid, LOOKS)
    except (ProtocolError, UnsearchableError):
        return
    assert len(hidden) == len(value)


def test_a_digit_of_a_length_word_is_never_taken_for_one_of_a_value() -> None:
    # 48 bytes: the length's last byte is the digit 0, right before the number.
    value = b"4111111111111111" + b" " * 32
    assert delivered(screen(("v", TEXTS, 1)), row(array(TEXT, value))) == row(
        array(TEXT, b"1000000000000000" + b" " * 32)
    )


@pytest.mark.parametrize(
    ("oid", "value"), [(STRANGE, b"x"), (TEXTS, array(STRANGE, b"x")), (PAIR, record((STRANGE, b"x")))]
)
def test_a_binary_type_that_is_not_known_is_refused(oid: int, value: bytes) -> None:
    with pytest.raises(UnsearchableError, match="binary format"):
        delivered(screen(("v", oid, 1)), row(value))
    assert delivered(screen(("v", STRANGE, 0)), row(CARD)) == row(STARS)


def test_rows_whose_columns_nobody_told_and_rows_that_are_too_large_are_refused() -> None:
    with pytest.raises(UnsearchableError, match="columns are not known"):
        delivered(Screen(LOOKS), row(b"x"))
    at_most = b"x" * (MOST_SEARCHED_BYTES - 100)
    assert len(delivered(screen(("v", TEXT, 0)), row(at_most), range(0, len(at_most), 60_000))) > len(at_most)
    with pytest.raises(LimitExceededError, match="larger than the 4 MiB"):
        delivered(screen(("v", TEXT, 0)), row(at_most + b"x" * 100), range(0, len(at_most), 60_000))


@pytest.mark.parametrize("raw", [row(b"a@b.cc"), row(b"a@b.cc", b"", b""), b"D\0\0\0\x0e\0\2\0\0\0\x63a@bb"])
def test_a_row_that_is_not_as_it_was_described_is_a_protocol_violation(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        delivered(screen(("a", TEXT, 0), ("b", TEXT, 0)), raw)


# -- COPY ------------------------------------------------------------------------------------------------

PLAIN_TEXT = CopyOut(b"SELECT", False, b"\t")
CSV = CopyOut(b"SELECT", True, b",", null=b"")
ODD_CSV = CopyOut(b"SELECT", True, b";", b"'", b"\\", b"none")
SIGNATURE = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)


@pytest.mark.parametrize(
    ("copy", "line", "hidden"),
    [
        (PLAIN_TEXT, b"1\t4111 1111 1111 1111\n", b"1\t**** **** **** ****\n"),
        (PLAIN_TEXT, b"4111111111111111\t\\N\n", b"1000000000000000\t\\N\n"),
        (
            PLAIN_TEXT,
            b"a\\\tb\\n4111111111111111\tada@example.com\\\\\n",
            b"a\\\tb\\n****************\t***@*******.***\\\\\n",
        ),
        (
            PLAIN_TEXT,
            b'\t{"n": 4111111111111111, "s": "\\\\n4111111111111111"}\n',
            b'\t{"n": 1000000000000000, "s": "\\\\n****************"}\n',
        ),
        (CSV, b'1,"say ""4111111111111111"", ada@example.com"\n', b'1,"say ""****************"", ***@*******.***"\n'),
        (CSV, b'"two\nlines 078-05-1120",\n', b'"two\nlines ***-**-****",\n'),
        (CSV, b'"4111111111111111",078-05-1120\n', b'"1000000000000000",***-**-****\n'),
        (ODD_CSV, b"none;'it\\'s 4111111111111111, C:\\x'\n", b"none;'it\\'s ****************, C:\\x'\n"),
        (ODD_CSV, b"'\\\\';ada@example.com\n", b"'\\\\';***@*******.***\n"),
    ],
)  # fmt: skip
def test_copy_text_is_searched_field_by_field(copy: CopyOut, line: bytes, hidden: bytes) -> None:
    searching = screen(("a", TEXT, 0), ("b", TEXT, 0), copy=copy)
    searching.begin_copy(CopyOutResponse(0, (0, 0)))
    clean = CopyData.of(b"x%sy\n" % copy.delimiter).encode()
    assert delivered(searching, clean + CopyData.of(line).encode() + clean) == (
        clean + CopyData.of(hidden).encode() + clean
    )


def test_copy_binary_is_searched_behind_its_header_and_up_to_its_end() -> None:
    searching = screen(("a", INT8, 0), ("b", TEXT, 0), copy=PLAIN_TEXT)
    searching.begin_copy(CopyOutResponse(1, (1, 1)))

    def data(number: int, text: bytes) -> bytes:
        tuples = [(int8(number), text), (int8(2), None)]
        first, second = (b"\0\2" + sized(a) + sized(b) for a, b in tuples)
        return b"".join(CopyData.of(part).encode() for part in (SIGNATURE + first, second, b"\xff\xff"))

    assert delivered(searching, data(NUMBER, CARD)) == data(10**15, STARS)
    assert [str(one) for one in searching.findings] == ["a: 1 card", "b: 1 card"]


@pytest.mark.parametrize(
    ("response", "line", "error"),
    [
        (CopyOutResponse(0, (0,)), b"a@b.cc\n", UnsearchableError),
        (CopyOutResponse(0, (0, 0)), b"a@b.cc\tx", ProtocolError),
        (CopyOutResponse(0, (0, 0)), b"a@b.cc\n", ProtocolError),
        (CopyOutResponse(0, (0, 0)), b"a@b.cc\tb\tc\n", ProtocolError),
        (CopyOutResponse(1, (1, 1)), b"\0\1" + sized(b"a@b.cc"), ProtocolError),
    ],
)
def test_copy_that_is_not_as_it_was_described_is_refused(
    response: CopyOutResponse, line: bytes, error: type[Exception]
) -> None:
    searching = screen(("a", TEXT, 0), ("b", TEXT, 0), copy=PLAIN_TEXT)
    searching.begin_copy(response)
    with pytest.raises(error):
        delivered(searching, CopyData.of(line).encode())


def test_a_column_whose_type_can_hold_nothing_is_left_alone() -> None:
    moment = row(b"4111 1111 1111 1111", b"x")
    assert delivered(screen(("at", MOMENT, 0), ("b", TEXT, 0)), moment) == moment


def test_forms_are_told_by_the_function_that_sends() -> None:
    assert (form_of("enum_send"), form_of("uuid_send"), form_of("geometry_send")) == (
        Form.TEXT,
        Form.PLAIN,
        Form.UNKNOWN,
    )
