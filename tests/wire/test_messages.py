"""Every message type: it round-trips, and a body that is too short, too long or out of range is refused."""

from __future__ import annotations

from typing import Any

import pytest

from wire import backend, copy, frontend
from wire.codec import BackendDecoder, FrontendDecoder
from wire.fields import Bare, Fields, ProtocolError, frame, sized, string
from wire.messages import BACKEND, FRONTEND

FRONTEND_MESSAGES: list[Any] = [
    frontend.AuthenticationResponse(b"secret\0"),
    frontend.AuthenticationResponse.sasl_initial("SCRAM-SHA-256", b"n,,n=,r=abc"),
    frontend.Query(b""),
    frontend.Query("SELECT 'süß'".encode()),
    frontend.Parse("", b"SELECT $1", (23, 0, 4294967295)),
    frontend.Parse("größe", b"", ()),
    frontend.Bind("", "", (), (), ()),
    frontend.Bind("p", "s", (0, 1), (b"1", None), (1,)),
    frontend.Bind("", "s", (1,), (b"", b"\x00\xff", None), (0, 1)),
    frontend.Describe(b"S", "s"),
    frontend.Describe(b"P", ""),
    frontend.Execute("p", 0),
    frontend.Execute("", 2**31 - 1),
    frontend.Close(b"S", "s"),
    frontend.Close(b"P", ""),
    frontend.Flush(),
    frontend.Sync(),
    frontend.Terminate(),
    frontend.FunctionCall(b"\0\0\0\1"),
    copy.CopyDone(),
    copy.CopyFail("the client changed its mind"),
]

BACKEND_MESSAGES: list[Any] = [
    backend.Authentication(backend.Authentication.OK),
    backend.Authentication(backend.Authentication.SASL, b"SCRAM-SHA-256\0\0"),
    backend.BackendKeyData(4711, b"\x01\x02\x03\x04"),
    backend.BackendKeyData(4711, bytes(range(32))),
    backend.ParameterStatus("TimeZone", "Europe/Berlin"),
    backend.NegotiateProtocolVersion(0, ("_pq_.command", "_pq_.other")),
    backend.ReadyForQuery("I"),
    backend.ReadyForQuery("T"),
    backend.ReadyForQuery("E"),
    backend.ErrorResponse({"S": "ERROR", "C": "42P01", "M": "relation “x” does not exist", "P": "15"}),
    backend.NoticeResponse({"S": "NOTICE", "M": "hello"}),
    backend.RowDescription(()),
    backend.RowDescription((backend.Column("id", 16384, 1, 20, 8, -1, 1), backend.Column("?column?"))),
    backend.ParameterDescription((20, 25)),
    backend.DataRow(()),
    backend.DataRow((b"1", None, b"")),
    backend.CommandComplete("INSERT 0 5"),
    backend.NotificationResponse(7, "jobs", "42"),
    backend.ParseComplete(),
    backend.BindComplete(),
    backend.CloseComplete(),
    backend.EmptyQueryResponse(),
    backend.NoData(),
    backend.PortalSuspended(),
    copy.CopyInResponse(0, (0, 0)),
    copy.CopyOutResponse(1, (1,)),
    copy.CopyDone(),
]

PACKETS = [
    frontend.StartupRequest(3, 0, {"user": "ana", "database": "shop"}),
    frontend.StartupRequest(3, 2, {"user": "ana", "_pq_.x": "1"}),
    frontend.SslRequest(),
    frontend.GssEncRequest(),
    frontend.CancelRequest(99, b"\x00\x01\x02\x03"),
    frontend.CancelRequest(99, bytes(256)),
]


@pytest.mark.parametrize("message", FRONTEND_MESSAGES, ids=repr)
def test_what_a_client_sends_round_trips(message: Any) -> None:
    decoder = FrontendDecoder()
    decoder.feed(message.encode())
    received = decoder.next()
    assert received is not None
    assert received.message == message
    assert received.raw == message.encode()
    assert decoder.pending == 0


@pytest.mark.parametrize("message", BACKEND_MESSAGES, ids=repr)
def test_what_a_server_sends_round_trips(message: Any) -> None:
    assert list(BackendDecoder().feed(message.encode())) == [message]


@pytest.mark.parametrize("packet", PACKETS, ids=repr)
def test_what_comes_before_the_start_round_trips(packet: Any) -> None:
    decoder = FrontendDecoder()
    decoder.feed(packet.encode())
    assert decoder.next_packet() == packet
    assert decoder.pending == 0


def test_the_tables_hold_every_type_that_is_tested_here_and_no_other() -> None:
    assert {chr(tag) for tag in FRONTEND} == {m.TAG.decode() for m in FRONTEND_MESSAGES}
    assert {chr(tag) for tag in BACKEND} == {m.TAG.decode() for m in BACKEND_MESSAGES}


STRICT = [m for m in FRONTEND_MESSAGES if not isinstance(m, frontend.AuthenticationResponse | frontend.FunctionCall)]


@pytest.mark.parametrize("message", STRICT, ids=repr)
def test_a_byte_too_many_is_refused(message: Any) -> None:
    body = message.encode()[5:]
    with pytest.raises(ProtocolError, match="extra bytes"):
        FRONTEND[ord(message.TAG)](body + b"\0")


@pytest.mark.parametrize("message", [m for m in STRICT if not isinstance(m, Bare)], ids=repr)
def test_every_truncation_is_refused(message: Any) -> None:
    body = message.encode()[5:]
    for size in range(len(body)):
        with pytest.raises(ProtocolError):
            FRONTEND[ord(message.TAG)](body[:size])


@pytest.mark.parametrize(
    ("tag", "body", "says"),
    [
        (b"P", string(b"\xff") + string(b"SELECT 1") + b"\0\0", "invalid UTF-8 in Parse"),
        (b"B", string("") * 2 + b"\0\1\0\2" + b"\0\0\0\0", "unsupported format code"),
        (b"B", string("") * 2 + b"\0\2\0\0\0\1" + b"\0\1" + sized(b"1") + b"\0\0", "2 parameter formats but 1"),
        (b"B", string("") * 2 + b"\0\0" + b"\0\1\xff\xff\xff\xfe" + b"\0\0", "insufficient data"),
        (b"B", string("") * 2 + b"\0\0" + b"\xff\xff" + b"\0\0", "insufficient data"),
        (b"D", b"X" + string("s"), "invalid Describe message subtype 88"),
        (b"C", b"x" + string("s"), "invalid Close message subtype 120"),
        (b"Q", b"SELECT 1", "unterminated string"),
        (b"Q", b"SELECT 1\0DROP TABLE x\0", "extra bytes"),
        (b"f", b"\xff\0", "invalid UTF-8 in CopyFail"),
    ],
)
def test_a_body_that_means_nothing_is_refused(tag: bytes, body: bytes, says: str) -> None:
    decoder = FrontendDecoder()
    decoder.feed(frame(tag, body))
    with pytest.raises(ProtocolError, match=says):
        decoder.next()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\0\3\0\0user\0ana\0", "unterminated|insufficient"),
        (b"\0\3\0\0user\0ana\0\0\0", "extra bytes"),
        (b"\x04\xd2\x16\x2f\0", "extra bytes"),
        (b"\x04\xd2\x16\x2e\0\0\0\1\0\0\0", "invalid cancel key"),
        (b"\x04\xd2\x16\x2e\0\0\0\1" + bytes(257), "invalid cancel key"),
    ],
)
def test_a_packet_that_means_nothing_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        frontend.decode_packet(body)


def test_a_string_never_carries_a_zero_byte_out() -> None:
    with pytest.raises(ValueError, match="zero byte"):
        string("a\0b")


def test_a_negative_size_reads_nothing() -> None:
    with pytest.raises(ProtocolError, match="insufficient"):
        Fields(b"abc", "x").take(-1)


@pytest.mark.parametrize(
    ("bind", "shown"),
    [
        (frontend.Bind("", "", (), (b"7", None)), (b"7", None)),
        (frontend.Bind("", "", (0,), (b"7", None)), (b"7", None)),
        (frontend.Bind("", "", (1,), (b"\x00\x07", None)), (b"\\x0007", None)),
        (frontend.Bind("", "", (0, 1), (b"a", b"\xff")), (b"a", b"\\xff")),
    ],
)
def test_parameters_are_readable_for_the_audit(bind: frontend.Bind, shown: tuple[bytes | None, ...]) -> None:
    assert bind.readable() == shown


@pytest.mark.parametrize(
    ("tag", "rows"),
    [("INSERT 0 5", 5), ("SELECT 3", 3), ("COPY 12", 12), ("BEGIN", None), ("CREATE TABLE", None), ("MOVE ²", None)],
)
def test_the_number_at_a_command_tags_end(tag: str, rows: int | None) -> None:
    assert backend.CommandComplete(tag).rows == rows
