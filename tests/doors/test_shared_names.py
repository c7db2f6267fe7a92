"""SQL and the protocol share the names of statements and portals: neither lends its verdict to the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doors.wire_calls import RawClient, errors, raw_client, values
from tests.stack import Stack, use_policy
from wire.frontend import Bind, Close, Describe, Execute, Parse, Query, Sync

# Needs an approval: the WHERE that would bound it is missing.
_PWN = b"UPDATE tickets SET subject = 'pwned' RETURNING id"


def run(sql: str) -> tuple[Parse, Bind, Execute]:
    return Parse("", sql.encode()), Bind("", ""), Execute("")


def query(client: RawClient, sql: str) -> list[tuple[str, str]]:
    return errors(client.cycle(Query(sql.encode())))


def pwned(stack: Stack) -> int:
    [(count,)] = stack.direct("SELECT count(*) FROM tickets WHERE subject = 'pwned'")
    return int(count)


def test_execute_runs_nothing_that_the_protocol_put_under_the_name(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        assert query(client, "PREPARE y AS SELECT 1") == []
        client.cycle(Close(b"S", "y"), Parse("y", _PWN), Sync())
        [(code, text)] = query(client, "EXECUTE y")
        assert code == "42501"
        assert 'prepared statement "y" does not exist' in text
    assert pwned(stack) == 0


def test_execute_of_a_name_that_was_deallocated_in_the_same_message_is_refused(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        query(client, "PREPARE y AS SELECT 1")
        [(code, text)] = query(client, "DEALLOCATE y; PREPARE y AS SELECT count(*) FROM tickets; EXECUTE y")
        assert code == "42501"
        assert "an earlier statement" in text


@pytest.mark.parametrize("read", ["FETCH ALL FROM p", "MOVE ALL IN p", "FETCH FORWARD 1 p"])
@pytest.mark.parametrize("simple", [True, False])
def test_fetch_runs_no_statement_that_was_only_bound(stack: Stack, read: str, simple: bool) -> None:
    with raw_client(stack, "devin") as client:
        query(client, "BEGIN")
        assert errors(client.cycle(Parse("", _PWN), Bind("p", ""), Sync())) == []
        [(code, text)] = errors(client.cycle(*((Query(read.encode()),) if simple else (*run(read), Sync()))))
        assert code == "42501"
        assert "portal of the protocol" in text
        query(client, "COMMIT")
    assert pwned(stack) == 0


def test_a_declared_cursor_is_read_as_ever(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        heard = client.cycle(Query(b"BEGIN; DECLARE c CURSOR FOR SELECT 'row'; FETCH 1 FROM c"))
        assert values(heard) == [(b"row",)]
        query(client, "MOVE 1 IN c; COMMIT")
        client.cycle(*run("BEGIN"), Sync())
        heard = client.cycle(*run("DECLARE c CURSOR FOR SELECT 'again'"), *run("FETCH 1 FROM c"), Sync())
        assert values(heard) == [(b"again",)]


def test_a_cursor_gives_out_nothing_that_a_new_policy_masks(stack: Stack, tmp_path: Path) -> None:
    policy = stack.demo.config.policy_path.read_text(encoding="utf-8")
    before, looser = tmp_path / "before.yaml", tmp_path / "looser.yaml"
    before.write_text(policy, encoding="utf-8")
    looser.write_text(
        policy.replace("  - columns: [public.customers.ssn]\n", "  - columns: [public.customers.id_card]\n"),
        encoding="utf-8",
    )
    try:
        use_policy(stack, looser)
        with raw_client(stack, "devin") as client:
            query(client, "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT ssn FROM customers; COMMIT")
            assert b"*" not in (values(client.cycle(Query(b"FETCH 1 FROM c")))[0][0] or b"*")
            use_policy(stack, before)
            heard = client.cycle(Query(b"FETCH 1 FROM c"))
            assert [code for code, _ in errors(heard)] == ["42501"]
            assert values(heard) == []
            query(client, "CLOSE c")
    finally:
        use_policy(stack, before)


@pytest.mark.parametrize("last", ["SELECT 1/0", "SELECT 1"])
def test_a_search_path_that_ends_with_its_batch_is_forgotten(stack: Stack, last: str) -> None:
    setting = "SET LOCAL" if last == "SELECT 1" else "SET"
    with raw_client(stack, "devin") as client:
        client.cycle(*run(f"{setting} search_path = hr"), *run("SELECT current_schemas(true)"), *run(last), Sync())
        assert values(client.cycle(Query(b"SELECT count(*) > 0 FROM tickets"))) == [(b"t",)]


def test_a_search_path_that_ends_with_its_batch_is_forgotten_by_the_next_one_sent_with_it(stack: Stack) -> None:
    with raw_client(stack, "ada") as client:
        client.send(
            *run("SET LOCAL search_path = hr"), *run("SELECT current_schemas(true)"), Sync(),
            Parse("", b"SELECT count(*) > 0 FROM tickets"), Describe(b"S", ""), Bind("", ""), Execute(""), Sync(),
        )  # fmt: skip
        heard = [*client.cycle(), *client.cycle()]
        assert errors(heard) == []
        assert values(heard)[-1] == (b"t",)
