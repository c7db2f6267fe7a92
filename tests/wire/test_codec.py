"""The codec: the same messages however the bytes were cut, bounded, and garbage refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.codec_fuzz import client
from tests.wire.feeding import cut_at, cuts
from tests.wire.test_messages import BACKEND_MESSAGES, FRONTEND_MESSAGES, PACKETS
from wire import backend, frontend
from wire.codec import BackendDecoder, BackendStream, Frame, FrontendDecoder, Rows
from wire.copy import CopyData, CopyDone
from wire.fields import ProtocolError, frame


def frontend_messages(pieces: list[bytes]) -> list[Any]:
    decoder, found = FrontendDecoder(), []
    for piece in pieces:
        decoder.feed(piece)
        while (received := decoder.next()) is not None:
            found.append(received.message)
    assert decoder.pending == 0
    return found


def relayed(pieces: list[bytes]) -> list[Rows | Frame]:
    stream = BackendStream()
    return [item for piece in pieces for item in stream.feed(piece)]


@pytest.mark.parametrize("message", FRONTEND_MESSAGES, ids=repr)
def test_a_clients_message_does_not_depend_on_the_cuts(message: Any) -> None:
    followed = message.encode() + frontend.Sync().encode()
    for pieces in cuts(followed):
        assert frontend_messages(pieces) == [message, frontend.Sync()]


@pytest.mark.parametrize("packet", PACKETS, ids=repr)
def test_a_packet_does_not_depend_on_the_cuts_and_leaves_what_follows(packet: Any) -> None:
    for pieces in cuts(packet.encode()):
        decoder = FrontendDecoder()
        for piece in pieces[:-1]:
            decoder.feed(piece)
            assert decoder.next_packet() is None
        decoder.feed(pieces[-1] + b"trailing")
        assert decoder.next_packet() == packet
        assert decoder.pending == len(b"trailing")


@pytest.mark.parametrize("message", BACKEND_MESSAGES, ids=repr)
def test_a_servers_message_does_not_depend_on_the_cuts(message: Any) -> None:
    followed = message.encode() + backend.ReadyForQuery("I").encode()
    for pieces in cuts(followed):
        decoder = BackendDecoder()
        assert [m for piece in pieces for m in decoder.feed(piece)] == [message, backend.ReadyForQuery("I")]


@given(st.lists(st.sampled_from(FRONTEND_MESSAGES), max_size=8), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_conversation_in_any_pieces(messages: list[Any], places: list[int]) -> None:
    data = b"".join(m.encode() for m in messages)
    assert frontend_messages(cut_at(data, places)) == messages


@given(st.binary(max_size=200), st.lists(st.integers(0, 300), max_size=6))
def test_garbage_is_refused_or_waited_for_but_never_crashes(data: bytes, places: list[int]) -> None:
    decoder, refused = FrontendDecoder(), None
    try:
        for piece in cut_at(data, places):
            decoder.feed(piece)
            while decoder.next() is not None:
                pass
    except ProtocolError as error:
        refused = error
    assert refused is None or refused.sqlstate in ("08P01", "22021", "22023")


# -- bounds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"Q\x00\x00\x00\x03", "invalid message length 3"),
        (b"Q\xff\xff\xff\xff", "invalid message length"),
        (b"Q\x00\x40\x00\x01", "invalid message length 4194305"),
        (b"p\x00\x01\x00\x01", "invalid message length 65537"),
        (b"E\x00\x00\x27\x11", "invalid message length 10001"),
        (b"d\x04\x00\x00\x01", "invalid message length"),
        (b"d\x00\x00\x00\x03", "invalid message length 3"),
        (b"z\x00\x00\x00\x04", "invalid frontend message type 122"),
        (b"\x00\x00\x00\x00\x04", "invalid frontend message type 0"),
        (b"G\x00\x00\x00\x04", "invalid frontend message type 71"),
    ],
)
def test_a_length_or_type_out_of_bounds_is_refused_before_its_body_comes(head: bytes, says: str) -> None:
    decoder = FrontendDecoder()
    decoder.feed(head)
    with pytest.raises(ProtocolError, match=says):
        decoder.next()


@pytest.mark.parametrize("size", [0, 7, 10_001, 0x80000000])
def test_a_packet_of_impossible_length_is_refused_at_once(size: int) -> None:
    decoder = FrontendDecoder()
    decoder.feed(size.to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match="invalid length of startup packet"):
        decoder.next_packet()


@pytest.mark.parametrize("head", [b"C\x00\x00\x00\x03", b"C\x7f\xff\xff\xff", b"D\x00\x00\x00\x03"])
def test_a_servers_impossible_length_is_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError, match="invalid message length"):
        list(BackendStream().feed(head + bytes(20)))


def test_a_servers_unknown_message_is_refused_when_it_is_read() -> None:
    [item] = BackendStream().feed(frame(b"W", b"\0"))
    assert isinstance(item, Frame)
    with pytest.raises(ProtocolError, match="invalid backend message type 87"):
        item.decode()


# -- COPY data from a client -----------------------------------------------------------------------------


def test_adjacent_copy_data_comes_as_one_run_and_ends_at_anything_else() -> None:
    rows = [CopyData.of(b"1\tone\n"), CopyData.of(b""), CopyData.of(b"2\ttwo\n")]
    data = b"".join(r.encode() for r in rows)
    decoder = FrontendDecoder()
    decoder.feed(data + CopyDone().encode())
    received = decoder.next()
    assert received is not None
    assert received.message == CopyData(data, 3)
    assert received.raw == data
    received = decoder.next()
    assert received is not None
    assert received.message == CopyDone()


def test_half_a_copy_row_waits() -> None:
    whole, half = CopyData.of(b"1\n").encode(), CopyData.of(b"2\n").encode()
    decoder = FrontendDecoder()
    decoder.feed(whole + half[:-1])
    received = decoder.next()
    assert received is not None
    assert received.raw == whole
    assert decoder.next() is None
    decoder.feed(half[-1:])
    received = decoder.next()
    assert received is not None
    assert received.raw == half


# -- relaying --------------------------------------------------------------------------------------------

ROWS = [backend.DataRow((b"1", b"Ada")), backend.DataRow((b"2", None)), backend.DataRow((b"3", b""))]
RESULT: list[Any] = [
    backend.RowDescription((backend.Column("id"), backend.Column("name"))),
    *ROWS,
    backend.CommandComplete("SELECT 3"),
    backend.ReadyForQuery("I"),
]


def test_a_relayed_stream_is_the_same_bytes_however_it_was_cut() -> None:
    data = b"".join(m.encode() for m in RESULT)
    for pieces in cuts(data):
        items = relayed(pieces)
        assert b"".join(i.data if isinstance(i, Rows) else i.raw for i in items) == data
        rows = [i for i in items if isinstance(i, Rows)]
        assert sum(r.messages for r in rows) == len(ROWS)
        assert sum(r.size for r in rows) == len(b"1" + b"Ada" + b"2" + b"3")


def test_rows_that_arrive_together_are_one_slice() -> None:
    data = b"".join(m.encode() for m in RESULT)
    kinds = [type(item) for item in relayed([data])]
    assert kinds == [Frame, Rows, Frame, Frame]


def test_copy_rows_and_data_rows_are_never_one_slice() -> None:
    data = ROWS[0].encode() + CopyData.of(b"x\n").encode()
    items = relayed([data])
    assert [i.tag for i in items] == [ord("D"), ord("d")]
    assert [i.size for i in items if isinstance(i, Rows)] == [4, 2]


@given(st.integers(65_000, 200_000), st.lists(st.integers(0, 250_000), max_size=8))
def test_a_large_row_passes_in_pieces_and_is_counted_once(size: int, places: list[int]) -> None:
    row = backend.DataRow((b"x" * size, b"tail"))
    data = row.encode() + backend.CommandComplete("SELECT 1").encode()
    stream, items = BackendStream(), []
    for piece in cut_at(data, places):
        items += list(stream.feed(piece))
    assert not stream.mid_message
    assert b"".join(i.data if isinstance(i, Rows) else i.raw for i in items) == data
    rows = [i for i in items if isinstance(i, Rows)]
    assert sum(r.messages for r in rows) == 1
    assert sum(r.size for r in rows) == size + 4
    assert [i.tag for i in items if isinstance(i, Frame)] == [ord("C")]


def test_while_a_large_row_is_in_pieces_the_stream_says_so() -> None:
    data = backend.DataRow((b"x" * 100_000,)).encode()
    stream = BackendStream()
    assert len(list(stream.feed(data[:70_000]))) == 1
    assert stream.mid_message
    assert len(list(stream.feed(data[70_000:]))) == 1
    assert not stream.mid_message


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_a_servers_garbage_never_crashes_the_relay(data: bytes, places: list[int]) -> None:
    try:
        items = relayed(cut_at(data, places))
    except ProtocolError:
        return
    assert data.startswith(b"".join(i.data if isinstance(i, Rows) else i.raw for i in items))


def test_copy_data_before_a_broken_length_is_given_out_however_it_was_cut() -> None:
    whole, broken = CopyData.of(b"1\n").encode(), b"d\xff\xff\xff\xff"
    for pieces in cuts(whole + broken):
        assert client(pieces) == [whole, "invalid message length 4294967295 of message type `d`"]
