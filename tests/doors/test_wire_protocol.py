"""What no well-behaved driver sends: the wire door answers as PostgreSQL would, refuses, or ends the connection."""

from __future__ import annotations

from typing import Any

import pytest

from tests.doors.wire_calls import RawClient, errors, kinds, raw_client, values
from tests.stack import Stack
from tests.waiting import until
from wire import backend
from wire.copy import CopyData, CopyDone
from wire.frontend import (
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
)


def run(sql: str, name: str = "") -> tuple[Any, ...]:
    return Parse(name, sql.encode()), Bind("", name), Execute("")


def test_byte_by_byte_is_the_same_conversation(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        for byte in b"".join(m.encode() for m in (*run("SELECT 'slowly'"), Sync())):
            client.send(bytes((byte,)))
        assert values(client.until(backend.ReadyForQuery)) == [(b"slowly",)]


def test_a_name_means_what_was_parsed_last(stack: Stack) -> None:
    # THREATS 20: parse something benign, close it, parse something else under the same name, bind.
    with raw_client(stack, "devin") as client:
        client.cycle(Parse("s", b"SELECT 1"), Sync())
        heard = client.cycle(Close(b"S", "s"), Parse("s", b"DROP TABLE orders"), Bind("", "s"), Execute(""), Sync())
        assert [code for code, _ in errors(heard)] == ["42501"]
        assert kinds(heard) == "3EZ"
    assert stack.direct("SELECT count(*) > 0 FROM orders") == [(True,)]


def test_a_refused_parse_leaves_the_old_statement_as_postgresql_would(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        client.cycle(Parse("s", b"SELECT 'old'"), Sync())
        client.cycle(Parse("t", b"DROP TABLE orders"), Sync())
        assert values(client.cycle(Bind("", "s"), Execute(""), Sync())) == [(b"old",)]
        assert errors(client.cycle(Bind("", "t"), Sync())) == [("26000", 'prepared statement "t" does not exist')]


def test_parsing_a_name_twice_is_postgresqls_own_error(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        heard = client.cycle(Parse("s", b"SELECT 1"), Parse("s", b"SELECT 2"), Sync())
        assert errors(heard) == [("42P05", 'prepared statement "s" already exists')]
        # The whole batch was rolled back, but prepared statements do not take part in transactions.
        assert values(client.cycle(Bind("", "s"), Execute(""), Sync())) == [(b"1",)]


def test_execute_without_sync_is_answered_at_flush(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        client.send(*run("SELECT 'flushed'"), Flush())
        assert values(client.until(backend.CommandComplete)) == [(b"flushed",)]
        assert kinds(client.cycle(Sync())) == "Z"


def test_a_simple_query_behind_an_open_batch_is_answered_after_it(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        heard = client.cycle(*run("SELECT 'batch'"), Query(b"SELECT 'simple'"))
        assert values(heard) == [(b"batch",), (b"simple",)]


def test_what_a_simple_query_wrote_in_a_batch_is_kept_by_its_sync(stack: Stack) -> None:
    # PostgreSQL itself, of late, says that it is idle and loses both at the session's next statement: `wire.implicit`.
    insert = "INSERT INTO tickets VALUES ({}, 1, 'in a batch', '', 'open', now())"
    with raw_client(stack, "grace") as client:
        client.cycle(*run(insert.format(990_011)), Query(insert.format(990_012).encode()))
        assert kinds(client.cycle(Close(b"S", "nobody"), Sync())) == "3Z"
        assert values(client.cycle(Query(b"SELECT count(*) FROM tickets WHERE id IN (990011, 990012)"))) == [(b"2",)]
        assert stack.direct("DELETE FROM tickets WHERE id IN (990011, 990012) RETURNING 1") == [(1,), (1,)]
        client.cycle(*run("SELECT 1"), Query(b"SELECT 2"))
        client.send(*run("SELECT 1/0"), Flush())
        client.until(backend.ErrorResponse)
        assert kinds(client.cycle(Sync())) == "Z"


def test_a_simple_query_in_a_batch_that_only_the_gateway_has_asked_something_stands_by_itself(stack: Stack) -> None:
    insert = b"INSERT INTO tickets VALUES (990013, 1, 'alone', '', 'open', now())"
    with raw_client(stack, "grace") as client:
        client.cycle(Query(b"ROLLBACK"))  # the search path is asked for again
        heard = client.cycle(Close(b"S", "s"), Query(insert))
        assert heard[-1] == backend.ReadyForQuery("I")
    assert stack.direct("DELETE FROM tickets WHERE id = 990013 RETURNING 1") == [(1,)]


def test_a_simple_query_behind_a_failed_batch_is_skipped_until_sync(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        heard = client.cycle(*run("SELECT 1/0"), Query(b"SELECT 'never'"), Sync())
        assert values(heard) == []
        assert kinds(heard) == "1EZ"  # PostgreSQL computes constants while it binds
    assert stack.audit("SELECT * FROM statements WHERE sql = 'SELECT ''never''' AND status = 'completed'") == []


def test_a_refusal_answers_once_and_skips_until_sync(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        heard = client.cycle(*run("SELECT 1"), *run("DROP TABLE orders"), *run("SELECT 2"), Sync(), *run("SELECT 3"))
        assert kinds(heard) == "12DCEZ"
        assert values(client.cycle(Sync())) == [(b"3",)]


def test_a_row_limit_suspends_the_portal_and_goes_on(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        client.send(Query(b"BEGIN"))
        client.until(backend.ReadyForQuery)
        client.send(Parse("", b"SELECT g FROM generate_series(1, 5) AS g"), Bind("p", ""), Execute("p", 2), Flush())
        assert values(client.until(backend.PortalSuspended)) == [(b"1",), (b"2",)]
        heard = client.cycle(Execute("p", 2), Execute("p", 0), Sync())
        assert values(heard) == [(b"3",), (b"4",), (b"5",)]
        assert kinds(heard) == "DDsDCZ"
        assert errors(client.cycle(Query(b"COMMIT"), Sync())) == []
    statements = stack.audit("SELECT status FROM statements WHERE sql LIKE 'SELECT g FROM%(1, 5) AS g' ORDER BY seq")
    assert [s["status"] for s in statements] == ["completed"] * 3


def test_a_portal_ends_with_its_transaction(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        client.cycle(Parse("", b"SELECT 1"), Bind("p", ""), Sync())
        assert errors(client.cycle(Execute("p"), Sync())) == [("34000", 'portal "p" does not exist')]


def test_describe_names_types_and_masked_columns_as_if_they_were_the_tables(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        client.send(Parse("s", b"SELECT id, ssn FROM customers WHERE id = $1"), Describe(b"S", "s"), Sync())
        heard = client.until(backend.ReadyForQuery)
    [parameters] = [m for m in heard if isinstance(m, backend.ParameterDescription)]
    [description] = [m for m in heard if isinstance(m, backend.RowDescription)]
    assert parameters.types == (23,)
    assert [(c.name, c.type) for c in description.columns] == [("id", 23), ("ssn", 1043)]
    [(oid,)] = stack.direct("SELECT 'customers'::regclass::oid")
    assert (oid, 4) not in [(c.table, c.attribute) for c in description.columns]


def test_an_empty_query_is_no_error(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        assert kinds(client.cycle(Query(b""))) == "IZ"
        assert kinds(client.cycle(Query(b" ; ; -- nothing"))) == "IZ"
        assert kinds(client.cycle(*run(""), Sync())) == "12IZ"


def test_the_fast_path_function_call_is_refused(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        heard = client.cycle(FunctionCall(b"\0\0\0\1" + bytes(8)))
        assert [code for code, _ in errors(heard)] == ["0A000"]
        assert values(client.cycle(Query(b"SELECT 1"))) == [(b"1",)]


def test_copy_data_without_a_copy_is_ignored(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        client.send(CopyData.of(b"1\n"), CopyDone())
        assert values(client.cycle(Query(b"SELECT 1"))) == [(b"1",)]


def test_two_statements_in_one_parse_are_refused_in_postgresqls_words(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        heard = client.cycle(Parse("", b"SELECT 1; DROP TABLE orders"), Sync())
        assert errors(heard) == [("42601", "cannot insert multiple commands into a prepared statement")]


@pytest.mark.parametrize("text", [b"SELECT '\xff'", b"\xc3\x28", b"SELECT '\xed\xa0\x80'"])
def test_text_that_is_not_utf8_is_refused_and_the_session_goes_on(stack: Stack, text: bytes) -> None:
    with raw_client(stack, "devin") as client:
        [(code, _)] = errors(client.cycle(Query(text)))
        assert code in ("42501", "22021")
        assert values(client.cycle(Query(b"SELECT 1"))) == [(b"1",)]


def test_a_very_long_text_is_refused_and_the_session_goes_on(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        [(code, said)] = errors(client.cycle(Query(b"SELECT '" + b"x" * (2 << 20) + b"'")))
        assert code == "54000", said
        assert values(client.cycle(Query(b"SELECT 1"))) == [(b"1",)]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02",
        b"z\x00\x00\x00\x04",
        b"Q\xff\xff\xff\xff",
        b"Q\x00\x00\x00\x09a\0b\0\0",
        b"B\x00\x00\x00\x06\0",
        b"p\x00\x00\x00\x05x",
        StartupRequest(3, 0, {"user": "devin"}).encode(),
    ],
)
def test_garbage_ends_the_connection_with_a_protocol_violation(stack: Stack, garbage: bytes) -> None:
    with raw_client(stack, "devin") as client:
        client.send(garbage + bytes(16))
        heard = client.until_closed()
    assert [code for code, _ in errors(heard)] == ["08P01"]
    assert heard[-1].fields["S"] == "FATAL"


# -- before the start ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "code", "says"),
    [
        ({"user": "devin", "options": "-c search_path=hr"}, "0A000", "`options` is refused"),
        ({"user": "devin", "replication": "database"}, "0A000", "replication"),
        ({"user": "devin", "replication": "1"}, "0A000", "replication"),
        ({"user": "devin", "client_encoding": "LATIN1"}, "22023", "`latin1` is not supported"),
        ({"user": "devin", "session_authorization": "postgres"}, "42501", "gateway's user must stay"),
        ({"user": "devin", "standard_conforming_strings": "off"}, "42501", "analysed"),
        ({"database": "shop"}, "28000", "no PostgreSQL user name"),
    ],
)
def test_a_start_up_that_asks_for_too_much_is_refused(
    stack: Stack, parameters: dict[str, str], code: str, says: str
) -> None:
    with raw_client(stack) as client:
        client.send(StartupRequest(3, 0, parameters))
        [(found, text)] = errors(client.until_closed())
    assert found == code
    assert says in text


def test_a_newer_minor_version_is_negotiated_down(stack: Stack) -> None:
    with raw_client(stack) as client:
        client.send(StartupRequest(3, 9999, {"user": "devin", "database": stack.database, "_pq_.new": "1"}))
        assert client.receive() == backend.NegotiateProtocolVersion(2, ("_pq_.new",))
        assert isinstance(client.receive(), backend.Authentication)


@pytest.mark.parametrize(("minor", "size"), [(0, 4), (1, 4), (2, 32), (9999, 32)])
def test_a_cancel_key_is_as_long_as_the_protocol_lets_it_be(stack: Stack, minor: int, size: int) -> None:
    with raw_client(stack) as client:
        client.send(StartupRequest(3, minor, {"user": "devin", "database": stack.database}))
        said = client.until(backend.Authentication)
        assert [type(m) for m in said[:-1]] == ([backend.NegotiateProtocolVersion] if minor > 2 else [])
        client.password(stack, "devin")
        [key] = [m for m in client.until(backend.ReadyForQuery) if isinstance(m, backend.BackendKeyData)]
        assert len(key.key) == size
        client.send(Query(b"SELECT count(*) FROM generate_series(1, 1000000000)"))
        for wrong in (key.key[:4] + bytes(len(key.key) - 4), key.key[:4]) if size > 4 else ():
            _cancel(stack, CancelRequest(key.pid, wrong))
        until(lambda: stack.direct(RUNNING) == [(1,)], "the statement does not run")
        _cancel(stack, CancelRequest(key.pid, key.key))
        assert [code for code, _ in errors(client.until(backend.ReadyForQuery))] == ["57014"]


RUNNING = (
    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
    " AND query = 'SELECT count(*) FROM generate_series(1, 1000000000)'"
)


def _cancel(stack: Stack, request: CancelRequest) -> None:
    with raw_client(stack) as client:
        client.send(request)
        assert client.until_closed() == []


@pytest.mark.parametrize("major", [2, 4])
def test_another_major_version_is_refused(stack: Stack, major: int) -> None:
    with raw_client(stack) as client:
        client.send(StartupRequest(major, 0, {"user": "devin"}))
        assert "unsupported frontend protocol" in errors(client.until_closed())[0][1]


def test_settings_at_start_up_are_in_force(stack: Stack) -> None:
    with raw_client(stack, "devin", TimeZone="Asia/Tokyo", application_name="raw") as client:
        assert values(client.cycle(Query(b"SHOW TimeZone"))) == [(b"Asia/Tokyo",)]


def test_encryption_that_is_not_configured_is_declined_and_the_start_goes_on(stack: Stack) -> None:
    with raw_client(stack) as client:
        client.send(GssEncRequest())
        assert client.socket.recv(1) == b"N"
        client.send(SslRequest())
        assert client.socket.recv(1) == b"N"
        client.start(stack, "devin")
        assert values(client.cycle(Query(b"SELECT 1"))) == [(b"1",)]


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x07\0\0\0", b"\xff" * 8, b"\0\0\x27\x11" + bytes(8)]
)
def test_another_protocol_is_turned_away(stack: Stack, first: bytes) -> None:
    with raw_client(stack) as client:
        client.send(first)
        assert [code for code, _ in errors(client.until_closed())] == ["08P01"]


def test_a_cancel_request_is_never_answered(stack: Stack) -> None:
    with raw_client(stack) as client:
        client.send(CancelRequest(1, b"\0\0\0\1"))
        assert client.until_closed() == []


def test_a_client_that_leaves_before_its_sync_has_run_nothing(stack: Stack) -> None:
    insert = "INSERT INTO tickets VALUES (990001, 1, 'no sync', '', 'open', now())"
    with raw_client(stack, "grace") as client:
        client.send(*run(insert))
    outcome = "SELECT status FROM statements WHERE sql = ?"
    until(lambda: stack.audit(outcome, insert) == [{"status": "skipped"}], "no outcome was written")
    with raw_client(stack, "grace") as client:
        client.send(*run(insert), Flush())
        client.until(backend.CommandComplete)
    until(lambda: len(stack.audit(f"{outcome} AND status <> 'running'", insert)) == 2, "no outcome was written")
    assert stack.direct("SELECT count(*) FROM tickets WHERE id = 990001") == [(0,)]


def test_many_clients_that_vanish_leave_nothing_behind(stack: Stack) -> None:
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'countersign/%vanishing'"
    clients = [RawClient(stack) for _ in range(20)]
    for client in clients:
        client.start(stack, "devin", application_name="vanishing")
    assert stack.direct(sessions) == [(20,)]
    for number, client in enumerate(clients):
        if number % 2:
            client.send(Query(b"SELECT count(*) FROM generate_series(1, 1000000000)"))
        if number % 3:
            client.send(Terminate())
        client.socket.close()
    until(lambda: stack.direct(sessions) == [(0,)], "upstream sessions were left behind")
    until(
        lambda: stack.audit("SELECT * FROM statements WHERE status IS NULL") == [],
        "a statement was left without outcome",
    )


def test_the_gateway_asks_nothing_between_begin_and_set_transaction(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        for text in (b"SET search_path = public", b"BEGIN", b"SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"):
            assert errors(client.cycle(Query(text))) == []
        assert values(client.cycle(Query(b"SHOW transaction_isolation"))) == [(b"serializable",)]
