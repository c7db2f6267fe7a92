"""Conversations that no driver has: the protocol's messages in any order, some of them broken."""

from __future__ import annotations

from random import Random

from wire.copy import CopyData, CopyDone, CopyFail
from wire.frontend import (
    AuthenticationResponse,
    Bind,
    CancelRequest,
    Close,
    Describe,
    Execute,
    Flush,
    FunctionCall,
    GssEncRequest,
    Parse,
    Query,
    SslRequest,
    StartupRequest,
    Sync,
    Terminate,
)  # fmt: skip

TEXTS = [
    b"SELECT 1", b"SELECT id, ssn FROM customers", b"BEGIN", b"COMMIT", b"ROLLBACK", b"SAVEPOINT a", b"ROLLBACK TO a",
    b"COPY tickets FROM STDIN", b"COPY customers TO STDOUT", b"SELECT 1/0", b"DROP TABLE orders", b"", b" ; ;",
    b"SELECT $1::int", b"DECLARE c CURSOR WITH HOLD FOR SELECT 1", b"FETCH c", b"CLOSE c", b"DISCARD ALL",
    b"PREPARE a AS SELECT 1", b"EXECUTE a", b"DEALLOCATE ALL", b"SET search_path = hr", b"SET TimeZone = 'UTC'",
    b"\xff", b"SELEC", b"SELECT 1; SELECT 2", b"BEGIN; SELECT 1/0", b"SELECT g FROM generate_series(1, 5000) g",
    b"SHOW all", b"NOTIFY a", b"LISTEN a", b"EXPLAIN SELECT 1", b"SELECT '" + b"x" * 9000 + b"'",
]  # fmt: skip
NAMES = ["", "", "a", "b", "c", "__countersign"]


def message(random: Random) -> bytes:
    """One message that a client may send after its start, whole."""
    name, other, text = random.choice(NAMES), random.choice(NAMES), random.choice(TEXTS)
    values = tuple(random.choice((None, b"1", b"x")) for _ in range(random.randrange(3)))
    made = random.choice(
        (
            Query(text), Parse(name, text, random.choice(((), (23,), (0, 25)))), Bind(name, other, values=values),
            Bind(name, other, (1,), values, (random.randrange(2),)), Execute(name, random.choice((0, 0, 1, 7))),
            Describe(random.choice((b"S", b"P")), name), Close(random.choice((b"S", b"P")), name), Sync(), Sync(),
            Flush(), CopyData.of(b"1\t2\n"), CopyDone(), CopyFail("enough"), FunctionCall(b"\0\0\0\1"),
        )
    )  # fmt: skip
    return made.encode()


def packet(random: Random) -> bytes:
    """One packet that a client may send before its start, whole."""
    parameters = {"user": random.choice(("devin", "cs-000000000000", "")), "database": random.choice(("shop", "x"))}
    parameters |= random.choice(({}, {"options": "-c a=b"}, {"_pq_.x": "1"}, {"search_path": "hr"}))
    made = random.choice(
        (
            StartupRequest(3, random.choice((0, 0, 2, 99)), parameters), SslRequest(), GssEncRequest(),
            CancelRequest(random.randrange(1 << 31), random.randbytes(4)), AuthenticationResponse.password("x"),
            AuthenticationResponse.sasl_initial("SCRAM-SHA-256", b"n,,n=,r=abc"),
            AuthenticationResponse(b"c=biws,r=a,p=AA"), Query(b"SELECT 1"), Terminate(),
        )
    )  # fmt: skip
    return made.encode()


def broken(random: Random, raw: bytes) -> bytes:
    """The message with something wrong in it."""
    at = random.randrange(len(raw))
    match random.randrange(6):
        case 0:
            return raw[:at] + bytes((random.randrange(256),)) + raw[at + 1 :]
        case 1:
            return raw[:at] + raw[at + 1 :]
        case 2:
            return raw[:at] + random.randbytes(random.randrange(1, 6)) + raw[at:]
        case 3:
            return AuthenticationResponse(b"x").encode()  # whole, but never legal after the start
        case 4:
            return raw[:1] + random.choice((b"\0\0\0\0", b"\0\0\0\3", b"\x7f\xff\xff\xff", b"\xff" * 4)) + raw[5:]
    return raw[:at]


def conversation(random: Random, *, started: bool, broken_of_100: int = 4) -> list[bytes]:
    """What one client sends, message by message; well-formed for the most part, so that it gets somewhere."""
    make = message if started else packet
    sent = [make(random) for _ in range(random.randrange(1, 40 if started else 6))]
    return [broken(random, raw) if random.randrange(100) < broken_of_100 else raw for raw in sent]
