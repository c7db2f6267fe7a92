"""The same messages to PostgreSQL and to the wire door: every message of both answers, and every field, is the same.

What is left out of the comparison: the key that cancels, where in PostgreSQL's code an error was raised, and the fields
of errors that a mask scrubs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.doors.wire_calls import RawClient, errors, raw_client, values
from tests.stack import Stack, use_policy
from tests.waiting import until
from wire import backend
from wire.copy import CopyData, CopyDone, CopyFail
from wire.frontend import Bind, Close, Describe, Execute, Flush, Parse, Query, StartupRequest, Sync
from wire.login import Login

OBJECTS = r"""
SET ROLE shop_owner;
CREATE TABLE public.differences (
    id int PRIMARY KEY, name text NOT NULL, amount int CHECK (amount > 0),
    other int UNIQUE DEFERRABLE INITIALLY DEFERRED, customer int REFERENCES public.customers
);
INSERT INTO public.differences VALUES (1, 'one', 1, 1, 1), (2, 'zwei süß', 2, 2, 2);
CREATE DOMAIN public.positive AS int CHECK (VALUE > 0);
CREATE FUNCTION public.fails(n int) RETURNS int LANGUAGE sql AS $$ SELECT 10 / n $$;
CREATE FUNCTION public.says(level text) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    IF level = 'warning' THEN
        RAISE WARNING 'beware' USING DETAIL = 'a detail', HINT = 'a hint', ERRCODE = '01008';
    END IF;
    IF level = 'notice' THEN RAISE NOTICE 'süß %', 1; END IF;
    IF level = 'error' THEN
        RAISE EXCEPTION 'no' USING DETAIL = 'd', HINT = 'h', COLUMN = 'c', TABLE = 't', ERRCODE = 'P9999';
    END IF;
    IF level = 'sql' THEN EXECUTE 'SELECT 1 FROM nowhere'; END IF;
    IF level = 'syntax' THEN EXECUTE 'SELEC 1'; END IF;
    RETURN 1;
END $$;
RESET ROLE;
GRANT USAGE ON SCHEMA public TO countersign_gateway;
"""
GONE = """
DROP FUNCTION public.says(text); DROP FUNCTION public.fails(int);
DROP DOMAIN public.positive; DROP TABLE public.differences
"""

_SOURCE = "FLR"  # file, line and routine of PostgreSQL's code: what the door answers by itself has none


def query(*texts: str) -> tuple[Query, ...]:
    return tuple(Query(text.encode()) for text in texts)


def run(sql: str, *values: bytes | None, rows: int = 0, results: tuple[int, ...] = (), **more: Any) -> tuple[Any, ...]:
    return (
        Parse("", sql.encode(), **more), Bind("", "", values=values, results=results), Describe(b"P", ""),
        Execute("", rows),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is sent, before a Sync that every case ends in. `scrubbed`: fields of errors that the door leaves out."""

    name: str
    sent: tuple[Any, ...]
    who: str = "grace"
    scrubbed: str = ""


SIMPLE = {
    "an empty text": query(""),
    "white space and semicolons": query(" \n ; ;; /* nothing */"),
    "a comment alone": query("-- nothing"),
    "a syntax error": query("SELEC 1"),
    "a syntax error at the end": query("SELECT 1 +"),
    "a syntax error behind multi-byte text": query("SELECT 'süß 😀', FROM x"),
    "an unterminated string": query("SELECT 'süß"),
    "an unterminated comment": query("SELECT 1 /* süß"),
    "an unterminated identifier": query('SELECT "süß'),
    "an unterminated dollar quote": query("SELECT $a$süß"),
    "an unknown column behind multi-byte text": query("SELECT 'süß', nme FROM differences"),
    "an unknown column with a hint": query("SELECT nam FROM differences"),
    "an unknown operator": query("SELECT 1 WHERE 'x'::text +++ 1"),
    "an unknown type": query("SELECT 1::no_such_type"),
    "a value of the wrong type": query("SELECT 'süß', 'abc'::int"),
    "a value out of range": query("SELECT 99999999999::int"),
    "a division by zero": query("SELECT 1/0"),
    "an ungrouped column": query("SELECT id, count(*) FROM differences"),
    "an ambiguous column": query("SELECT id FROM differences a, differences b"),
    "more expressions than columns": query("INSERT INTO differences (id) VALUES (1, 2)"),
    "a primary key violation": query("INSERT INTO differences VALUES (1, 'x')"),
    "a not-null violation": query("INSERT INTO differences VALUES (3, NULL)"),
    "a check violation": query("INSERT INTO differences VALUES (3, 'x', -1)"),
    "a foreign key violation": query("INSERT INTO differences VALUES (3, 'x', 1, 9, -5)"),
    "a deferred constraint at the end of a message": query("INSERT INTO differences VALUES (4, 'x', 1, 1)"),
    "a deferred constraint at COMMIT": query("BEGIN", "INSERT INTO differences VALUES (4, 'x', 1, 1)", "COMMIT"),
    "a domain violation": query("SELECT (-1)::positive"),
    "an error inside of a function": query("SELECT fails(0)"),
    "an exception with all fields": query("SELECT says('error')"),
    "an error of a query inside of a function": query("SELECT says('sql')"),
    "a syntax error inside of a function": query("SELECT 'süß', says('syntax')"),
    "a notice": query("SELECT says('notice')"),
    "a warning with all fields": query("SELECT says('warning')"),
    "a notice that is not wanted": query("SET client_min_messages = error", "SELECT says('notice')", "RESET ALL"),
    "a warning outside of a transaction": query("COMMIT", "ROLLBACK", "SET LOCAL search_path = public"),
    "a transaction begun twice": query("BEGIN", "BEGIN", "ROLLBACK"),
    "several statements": query("SELECT 1; SELECT 'zwei'; SELECT 3 WHERE false"),
    "several with an error in the middle": query("SELECT 1; SELECT 1/0; SELECT 3"),
    "several with a syntax error at the end": query("SELECT 1; SELECT 'süß'; SELEC 3"),
    "several with an unknown column behind multi-byte text": query("SELECT 'süß'; SELECT 'ö', nme FROM differences"),
    "several that write, with an error": query(
        "INSERT INTO differences VALUES (5, 'x'); SELECT 1/0", "SELECT count(*) FROM differences"
    ),
    "several with BEGIN in the middle": query("SELECT 1; BEGIN; SELECT 2", "SELECT 3", "ROLLBACK"),
    "several with ROLLBACK in the middle": query(
        "INSERT INTO differences VALUES (5, 'x'); ROLLBACK; SELECT 1", "SELECT count(*) FROM differences WHERE id = 5"
    ),
    "a failed transaction": query("BEGIN", "SELECT 1/0", "SELECT 1", "SELEC", "", "COMMIT", "SELECT 2"),
    "a failed transaction and several statements": query("BEGIN", "SELECT 1/0", "SELECT 1; ROLLBACK", "ROLLBACK"),
    "savepoints": query(
        "BEGIN", "SAVEPOINT a", "SELECT 1/0", "ROLLBACK TO a", "SELECT 1", "RELEASE a", "ROLLBACK TO a", "ROLLBACK"
    ),
    "a savepoint outside of a transaction": query("SAVEPOINT a"),
    "settings that are reported": query(
        "SET application_name = 'süß'", "SET TimeZone = 'Europe/Berlin'", "SET DateStyle = 'German'",
        "SET IntervalStyle = 'iso_8601'", "SELECT '2026-11-24'::date, '1 day'::interval", "RESET TimeZone",
        "BEGIN; SET LOCAL TimeZone = 'UTC'", "ROLLBACK",
    ),
    "a setting that is not there": query("SHOW no_such_setting"),
    "a setting with a bad value": query("SET statement_timeout = 'long'"),
    "a read-only transaction": query("BEGIN READ ONLY", "DELETE FROM differences", "ROLLBACK"),
    "a serializable one": query("BEGIN ISOLATION LEVEL SERIALIZABLE", "SHOW transaction_isolation", "ROLLBACK"),
    "EXPLAIN": query("EXPLAIN (COSTS OFF) SELECT id FROM differences WHERE id = 1"),
    "a cursor": query(
        "BEGIN", "DECLARE c CURSOR FOR SELECT id FROM differences ORDER BY id", "FETCH 1 FROM c", "MOVE c", "FETCH c",
        "CLOSE c", "FETCH c", "ROLLBACK",
    ),
    "SQL's prepared statements": query(
        "PREPARE p (int) AS SELECT id FROM differences WHERE id = $1", "EXECUTE p (1)", "EXECUTE p ('x')",
        "DEALLOCATE p", "DEALLOCATE p",
    ),
    "rows and tags of writes": query(
        "BEGIN", "INSERT INTO differences VALUES (6, 'x') RETURNING id", "UPDATE differences SET name = 'y'",
        "DELETE FROM differences WHERE id > 99", "ROLLBACK",
    ),
    "COPY to the client": query("COPY differences TO STDOUT", "COPY differences TO STDOUT (FORMAT csv, HEADER)"),
    "COPY to the client in binary": query("COPY (SELECT 1, 'süß', NULL) TO STDOUT (FORMAT binary)"),
    "COPY that fails while it goes out": query("COPY (SELECT 10 / (3 - g) FROM generate_series(1, 5) g) TO STDOUT"),
    "COPY of an unknown column": query("COPY differences (id, süß) TO STDOUT"),
    "a notification of one's own": query("LISTEN differences", "NOTIFY differences, 'süß'", "UNLISTEN *"),
}  # fmt: skip

INTO = b"COPY differences (id, name) FROM STDIN"
COPY = {
    "COPY from the client": (
        Query(b"BEGIN"), Query(INTO), CopyData.of(b"7\tsieben\n8\t"), CopyData.of(b"acht\n"), CopyDone(),
        *query("SELECT count(*) FROM differences", "ROLLBACK"),
    ),
    "COPY that the client fails": (Query(INTO), CopyData.of(b"7\tx\n"), CopyFail("süß"), *query("SELECT 1")),
    "COPY with a bad line": (Query(INTO), CopyData.of(b"7\tx\nseven\tx\n"), CopyDone(), *query("SELECT 1")),
    "COPY with too many columns": (Query(INTO), CopyData.of("7\tx\tsüß\n".encode()), CopyDone()),
    "COPY that violates a constraint": (Query(INTO), CopyData.of(b"1\tx\n"), CopyDone(), *query("SELECT 1")),
    "COPY of nothing": (Query(INTO), CopyDone(), *query("SELECT 1")),
    "COPY with Flush and Sync in it": (Query(INTO), Flush(), CopyData.of(b"7\tx\n"), Sync(), CopyFail("no")),
    "COPY among several statements": (
        *query("BEGIN; COPY differences (id, name) FROM STDIN; SELECT count(*) FROM differences"),
        CopyData.of(b"7\tx\n"), CopyDone(), *query("ROLLBACK"),
    ),
    "COPY in an extended query": (Query(b"BEGIN"), *run(INTO.decode()), CopyData.of(b"7\tx\n"), CopyDone(), Sync(),
                                  *query("ROLLBACK")),
    "COPY in an extended query that the client fails": (*run(INTO.decode()), CopyFail("no"), Sync(), Query(b"")),
    "COPY data that nobody asked for": (CopyData.of(b"x"), CopyDone(), CopyFail("x"), *query("SELECT 1")),
}  # fmt: skip

EXTENDED = {
    "a statement": run("SELECT $1::int + 1, 'süß'", b"41"),
    "binary results": run("SELECT 1::int, 'x'::text", results=(1,)),
    "mixed results": run("SELECT 1::int, 2::int8, 'x'::text", results=(1, 0, 1)),
    "binary parameters": (
        Parse("", b"SELECT $1::int, $2::text"), Bind("", "", (1, 0), (b"\0\0\0\x29", b"x"), (0, 1)), Execute(""),
    ),
    "too few parameters": run("SELECT $1::int, $2::int", b"1"),
    "a parameter that cannot be read": run("SELECT $1::int", b"x"),
    "a binary parameter of the wrong size": (Parse("", b"SELECT $1::int"), Bind("", "", (1,), (b"\0\0",))),
    "a parameter whose type nobody knows": (Parse("", b"SELECT $1"), Describe(b"S", "")),
    "a parameter that makes two types": (Parse("", b"SELECT $1::int WHERE $1 LIKE 'x'"),),
    "too many result formats": run("SELECT 1", results=(0, 1)),
    "an empty text": run(""),
    "an empty text with a parameter": run("", b"x"),
    "two statements": run("SELECT 1; SELECT 2"),
    "a syntax error behind multi-byte text": run("SELECT 'süß', FROM x"),
    "an unknown column": (*run("SELECT 'süß', nme FROM differences"), *run("SELECT 1"), Sync(), *run("SELECT 2")),
    "an error of Execute": (*run("SELECT 1/$1::int", b"0"), *run("SELECT 1"), Close(b"S", ""), Sync(), *run("")),
    "an error and a simple query behind it": (*run("SELECT 1/0"), *query("SELECT 1"), Sync(), *query("SELECT 2")),
    "a simple query in the middle of a batch": (*run("SELECT 1"), *query("SELECT 2"), *run("SELECT 3")),
    "rows in parts": (
        Query(b"BEGIN"), *run("SELECT g FROM generate_series(1, 5) g", rows=2), Execute("", 2), Execute("", 2),
        Execute("", 2), Sync(), *query("ROLLBACK"),
    ),
    "rows in parts, exactly": (*run("SELECT g FROM generate_series(1, 2) g", rows=2), Execute("", 2)),
    "a portal executed twice": (*run("SELECT 1"), Execute("")),
    "a write executed twice": (Query(b"BEGIN"), *run("UPDATE differences SET name = 'x'"), Execute(""), Sync(),
                               *query("ROLLBACK")),
    "a portal after its transaction": (*run("SELECT 1"), Sync(), Execute("")),
    "a named portal in a transaction": (
        Query(b"BEGIN"), Parse("s", b"SELECT g FROM generate_series(1, 3) g"), Bind("p", "s"), Execute("p", 1), Sync(),
        Execute("p", 1), Close(b"P", "p"), Execute("p"), Sync(), *query("ROLLBACK"), Close(b"S", "s"),
    ),
    "a portal of an unknown statement": (Bind("", "nobody"),),
    "an unnamed statement that is not there": (*query("SELECT 1"), Bind("", "")),
    "Describe of nothing": (Describe(b"S", "nobody"), Sync(), Describe(b"P", "nobody")),
    "Execute of nothing": (Execute("nobody"), Sync(), Execute("")),
    "Close of nothing": (Close(b"S", "nobody"), Close(b"P", "nobody"), Close(b"S", ""), Close(b"P", "")),
    "a name that is taken": (Parse("s", b"SELECT 1"), Parse("s", b"SELECT 2"), Sync(), Bind("", "s"), Execute(""),
                             Sync(), Close(b"S", "s")),
    "a portal's name that is taken": (Parse("s", b"SELECT 1"), Bind("p", "s"), Bind("p", "s"), Sync(),
                                      Close(b"S", "s")),
    "Describe of a statement without rows": (Parse("", b"DELETE FROM differences WHERE id = $1"), Describe(b"S", "")),
    "Flush without Sync": (*run("SELECT 1"), Flush(), *run("SELECT 2"), Flush()),
    "Sync alone": (Sync(), Sync()),
    "a transaction in one batch": (*run("BEGIN"), *run("SELECT 1"), *run("COMMIT")),
    "an error in a transaction": (*run("BEGIN"), *run("SELECT 1/0"), Sync(), *run(""), Sync(), *run("ROLLBACK")),
    "a pipeline": tuple(m for n in range(5) for m in (*run(f"SELECT {n} / {abs(n - 2)}"), Sync())),
    "a pipeline that writes": (
        *run("INSERT INTO differences VALUES (9, 'x')"), *run("SELECT 1/0"), Sync(),
        *run("SELECT count(*) FROM differences WHERE id = 9"),
    ),
    "a notice": run("SELECT says('notice')"),
    "a refused value of a domain": run("SELECT $1::positive", b"-1"),
    "the error of a function": run("SELECT fails($1)", b"0"),
    "a syntax error inside of a function": run("SELECT says($1)", b"syntax"),
    "utility statements": (*run("SET application_name = 'x'"), *run("SHOW application_name"), *run("RESET ALL")),
    "DISCARD": (Parse("s", b"SELECT 1"), Sync(), *query("DISCARD ALL"), Bind("", "s")),
    "DEALLOCATE": (Parse("s", b"SELECT 1"), Sync(), *query("DEALLOCATE s"), Bind("", "s")),
}  # fmt: skip

# What a mask rewrites: positions are those of the client's own text. DETAIL, HINT and WHERE may quote hidden values.
MASKED = {
    "an unknown column": query("SELECT 'süß', ssn, nme FROM customers WHERE id = 1"),
    "an unknown column behind two relations": query("SELECT 1 FROM customers a JOIN customers b USING (id), nme"),
    "a syntax error": query("SELECT ssn FROM customers WHERE"),
    "a value of the wrong type behind a mask": query("SELECT ssn FROM customers WHERE name = 'ö' AND id = 'x'"),
    "an unknown column of the second statement": query("SELECT 'süß', 1; SELECT 'ö', ssn, nme FROM customers"),
    "a division by zero": query("SELECT 1/0 FROM customers"),
    "an unknown column, prepared": run("SELECT 'süß', ssn, nme FROM customers WHERE id = $1", b"1"),
    "a parameter that cannot be read": run("SELECT id FROM customers WHERE id = $1", b"x"),
}  # fmt: skip

CASES = [
    *(Case(name, sent) for name, sent in SIMPLE.items()),
    *(Case(name, sent) for name, sent in COPY.items()),
    *(Case(f"extended: {name}", sent) for name, sent in EXTENDED.items()),
    *(Case(f"masked: {name}", sent, "devin", "DHWqp") for name, sent in MASKED.items()),
]


@pytest.fixture(scope="module", autouse=True)
def objects(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # Nothing is hidden from grace: else errors of what runs unseen have no details (decision 0038).
    before, open_ = (tmp_path_factory.mktemp("policies") / name for name in ("before.yaml", "open.yaml"))
    text = stack.demo.config.policy_path.read_text(encoding="utf-8")
    everybody = "  - columns: [hr.employees.ssn]\n"
    assert everybody in text
    before.write_text(text, encoding="utf-8")
    open_.write_text(text.replace(everybody, f"{everybody}    unless: {{groups: [dba]}}\n"), encoding="utf-8")
    use_policy(stack, open_)
    stack.direct(OBJECTS)
    with raw_client(stack, "grace") as client:
        until(lambda: values(client.cycle(*query("SELECT id FROM differences"))), "the door does not see the table")
    yield
    use_policy(stack, before)
    stack.direct(GONE)


@contextmanager
def directly(stack: Stack) -> Iterator[RawClient]:
    """A raw client of PostgreSQL itself, logged in as the gateway's own user."""
    upstream = stack.demo.config.connections[0]
    client = RawClient(stack, upstream.port)
    try:
        client.send(StartupRequest(3, 0, {"user": upstream.user, "database": upstream.database}))
        login = Login(upstream.user, upstream.password, "a-nonce", private=True, tls=None)
        while not login.done:
            [request] = client.until(backend.Authentication)
            if (answer := login.answer(request)) is not None:
                client.send(answer)
        client.until(backend.ReadyForQuery)
        yield client
    finally:
        client.socket.close()


def heard(client: RawClient, case: Case) -> list[Any]:
    """Everything that is answered, up to the end of a query of our own."""
    client.send(*case.sent, Sync(), *query("SELECT 'the end'"))
    found: list[Any] = []
    while not found or found[-1] != backend.DataRow((b"the end",)):
        message = client.receive()
        if message is None:
            return [*found, "closed"]
        found.append(message)
    return [_compared(message, case.scrubbed) for message in found]


def _compared(message: Any, scrubbed: str) -> Any:
    if isinstance(message, backend.NotificationResponse):
        return (message.channel, message.payload)
    if not isinstance(message, backend.ErrorResponse | backend.NoticeResponse):
        return message
    return (type(message).__name__, {k: v for k, v in message.fields.items() if k not in scrubbed + _SOURCE})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_door_answers_as_postgresql_does(stack: Stack, case: Case) -> None:
    with directly(stack) as client:
        expected = heard(client, case)
    with raw_client(stack, case.who) as client:
        assert heard(client, case) == expected


# What the door answers by itself, because it does not ask PostgreSQL to run what it has not understood.
OUR_OWN = [
    ("SELECT E'\\u12'", "42601", "invalid Unicode escape", "22025", "invalid Unicode escape"),
    (
        "SELECT no(1, 'x')", "42883", "function no() does not exist",
        "42883", "function no(integer, unknown) does not exist",
    ),
    (
        "SET no_such = 1", "42501",
        "the setting `no_such` may not be changed here: it is not on the list of harmless settings",
        "42704", 'unrecognized configuration parameter "no_such"',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "code", "text", "directly_code", "directly_text"), OUR_OWN)
def test_what_the_door_words_in_its_own_way(
    stack: Stack, sql: str, code: str, text: str, directly_code: str, directly_text: str
) -> None:
    with directly(stack) as client:
        assert errors(client.cycle(*query(sql))) == [(directly_code, directly_text)]
    with raw_client(stack, "grace") as client:
        assert errors(client.cycle(*query(sql))) == [(code, text)]


@pytest.mark.parametrize(("minor", "options"), [(0, ()), (2, ()), (2, ("_pq_.x", "_pq_.y")), (99, ("_pq_.x",))])
def test_versions_and_options_are_negotiated_as_postgresql_does(
    stack: Stack, minor: int, options: tuple[str, ...]
) -> None:
    told: list[list[Any]] = []
    for port in (stack.demo.config.connections[0].port, stack.port):
        with raw_client(stack, port=port) as client:
            user = {"user": "countersign_gateway", "database": stack.database}
            client.send(StartupRequest(3, minor, user | dict.fromkeys(options, "1")))
            told.append(client.until(backend.Authentication)[:-1])
    direct, through = told
    assert through == direct


def test_a_notification_names_the_session_that_sent_it_as_that_session_knows_itself(stack: Stack) -> None:
    with raw_client(stack, "grace") as listener, raw_client(stack) as sender:
        [key] = [m for m in sender.start(stack, "grace") if isinstance(m, backend.BackendKeyData)]
        listener.cycle(*query("LISTEN who"))
        sender.cycle(*query("NOTIFY who"))
        [heard] = [m for m in listener.until(backend.NotificationResponse) if m.TAG == b"A"]
        assert heard.pid == key.pid
        assert values(sender.cycle(*query("SELECT pg_backend_pid()"))) == [(str(key.pid).encode(),)]
