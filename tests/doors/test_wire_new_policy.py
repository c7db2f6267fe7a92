"""A policy that changes under prepared statements: they stay prepared, and show what the new one lets them."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.doors.wire_calls import errors, kinds, raw_client, values
from tests.stack import Stack, running_stack
from wire.backend import PortalSuspended
from wire.frontend import Bind, Describe, Execute, Flush, Parse, Query, Sync

TEXT = b"SELECT name, ssn FROM customers WHERE id = $1"
MASK = "\nmasks:\n  - columns: [public.customers.name]\n    with: redact\n    unless: {groups: [dba]}\n"

DENY = 'rules:\n  - {name: no-tickets, effect: deny, actions: ["*"], relations: [public.tickets]}\n'


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("policies")) as stack:
        yield stack


@pytest.fixture
def stack(own: Stack) -> Iterator[Stack]:
    """A stack whose policy is put back."""
    before = own.demo.config.policy_path.read_text(encoding="utf-8")
    yield own
    change(own, before)


def change(stack: Stack, text: str) -> None:
    stack.demo.config.policy_path.write_text(text, encoding="utf-8")
    stack.call(stack.app.hall.gateway.policies.reload)


def mask_names(stack: Stack) -> None:
    change(stack, stack.demo.config.policy_path.read_text(encoding="utf-8").replace("\nmasks:\n", MASK))


def test_a_statement_stays_prepared_under_a_new_policy_that_masks_more(stack: Stack) -> None:
    with psycopg.connect(stack.wire_dsn("devin"), autocommit=True) as connection:
        connection.prepare_threshold = 0
        query, parameters = TEXT.decode().replace("$1", "%s"), (1,)
        [(name, ssn)] = connection.execute(query, parameters).fetchall()
        assert name != "[redacted]"
        mask_names(stack)
        for _ in range(3):
            assert connection.execute(query, parameters).fetchall() == [("[redacted]", ssn)]
    rewritten = "SELECT json_extract(body, '$.rewritten') AS ran FROM entries WHERE kind = 'intent' ORDER BY seq DESC"
    assert "redacted" in stack.audit(f"{rewritten} LIMIT 1")[0]["ran"]


@pytest.mark.parametrize("name", ["", "s"])
def test_the_client_hears_nothing_of_it(stack: Stack, name: str) -> None:
    with raw_client(stack, "devin") as client:
        client.cycle(Parse(name, TEXT, (23,)), Describe(b"S", name), Sync())
        mask_names(stack)
        run = (Bind("", name, values=(b"1",)), Describe(b"P", ""), Execute(""), Sync())
        for _ in range(2):
            heard = client.cycle(*run)
            assert kinds(heard) == "2TDCZ"
            assert values(heard)[0][0] == b"[redacted]"
        twice = client.cycle(*run[:3], *run)
        assert kinds(twice) == "2TDC2TDCZ"


def test_a_portal_that_a_new_policy_overtakes_is_not_run(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        client.cycle(Query(b"BEGIN"))
        client.send(Parse("", b"SELECT name FROM customers"), Bind("p", ""), Execute("p", 1), Flush())
        client.until(PortalSuspended)
        mask_names(stack)
        [(code, says)] = errors(client.cycle(Execute("p", 1), Sync()))
        assert code == "42501"
        assert "has changed since it was prepared" in says


def test_a_policy_that_refuses_it_now_refuses_it_by_name(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        client.cycle(Parse("s", b"SELECT id FROM tickets"), Sync())
        text = stack.demo.config.policy_path.read_text(encoding="utf-8")
        change(stack, text.replace("rules:\n", DENY, 1))
        [(code, says)] = errors(client.cycle(Bind("", "s"), Execute(""), Sync()))
        assert code == "42501"
        assert "no-tickets" in says


def test_in_a_failed_transaction_it_fails_as_it_would_have(stack: Stack) -> None:
    with raw_client(stack, "devin") as client:
        client.cycle(Parse("s", b"SELECT name FROM customers WHERE id = 1"), Sync())
        client.cycle(Query(b"BEGIN"))
        client.cycle(Query(b"SELECT 1/0"))
        mask_names(stack)
        assert [code for code, _ in errors(client.cycle(Bind("", "s"), Execute(""), Sync()))] == ["25P02"]
        client.cycle(Query(b"ROLLBACK"))
        assert values(client.cycle(Bind("", "s"), Execute(""), Sync())) == [(b"[redacted]",)]


def test_rules_about_the_session_hold_for_the_session_that_it_is(stack: Stack) -> None:
    denials = (
        'rules:\n  - {name: not-psql, effect: deny, actions: [select], when: {clients: ["psql*"]}}\n'
        "  - {name: not-here, effect: deny, actions: [select], relations: [public.orders],"
        ' when: {networks: [127.0.0.0/8, "::1"], session_at_most: 1h}}\n'
    )
    change(stack, stack.demo.config.policy_path.read_text(encoding="utf-8").replace("rules:\n", denials, 1))
    refused = stack.psql("devin", "SELECT id FROM tickets LIMIT 1")
    assert "the rule `not-psql` does not let `devin` select `public.tickets`" in refused.stderr
    with psycopg.connect(stack.wire_dsn("devin"), application_name="other", autocommit=True) as connection:
        assert connection.execute("SELECT 1 FROM tickets LIMIT 1").fetchall() == [(1,)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="not-here"):
            connection.execute("SELECT id FROM orders LIMIT 1")


def test_errors_do_not_show_columns_that_are_withheld(stack: Stack) -> None:
    policy = (
        "rules:\n"
        "  - {name: some, effect: allow, actions: [select], columns: [public.tickets.id, public.tickets.status]}\n"
        "  - {name: status, effect: allow, actions: [update], columns: [public.tickets.status]}\n"
    )
    change(stack, policy)
    [(body,)] = stack.direct("SELECT body FROM tickets WHERE id = 1")
    failed = stack.psql("devin", "UPDATE tickets SET status = NULL WHERE id = 1", "-v", "VERBOSITY=verbose")
    assert 'null value in column "status"' in failed.stderr
    assert "Failing row" not in failed.stderr
    assert body not in failed.stderr
