"""The session machine: every pair of phase and message is in the table or a protocol violation; the books are right."""

from __future__ import annotations

from typing import Any

import pytest

from policy.model import Decision, Effect, Rewrite, Verdict
from tests.wire.test_messages import FRONTEND_MESSAGES, PACKETS
from wire.copy import CopyData
from wire.fields import ProtocolError
from wire.reports import RefusalError
from wire.session import RESERVED_NAME, TRANSITIONS, Event, Phase, Portal, Prepared, WireSession, check_name
from wire.texts import forward_one

MESSAGES = {type(m).__name__: m for m in [*FRONTEND_MESSAGES, *PACKETS, CopyData.of(b"x")]}

# Each line: the phase, what may come in it and where that leads. Read with PostgresMain beside it.
LEGAL = """
start-up: SslRequest GssEncRequest -> start-up; StartupRequest -> authentication; CancelRequest -> closed
authentication: AuthenticationResponse -> authentication
ready: Query Sync FunctionCall CopyData CopyDone CopyFail -> ready; Terminate -> closed;
    Parse Bind Describe Execute Close Flush -> extended query
extended query: Parse Bind Describe Execute Close Flush CopyData CopyDone CopyFail Query FunctionCall -> extended query;
    Sync -> ready; Terminate -> closed
failed until Sync: Parse Bind Describe Execute Close Flush CopyData CopyDone CopyFail Query FunctionCall
    -> failed until Sync; Sync -> ready; Terminate -> closed
COPY from stdin: CopyData Sync Flush -> COPY from stdin; CopyDone CopyFail -> ready; Terminate -> closed
COPY from stdin in an extended query: CopyData Sync Flush -> COPY from stdin in an extended query;
    CopyDone CopyFail -> extended query; Terminate -> closed
closed:
"""


def table() -> dict[tuple[Phase, str], Phase]:
    found: dict[tuple[Phase, str], Phase] = {}
    for line in LEGAL.replace("\n    ", " ").strip().splitlines():
        phase, _, moves = line.partition(":")
        for move in filter(str.strip, moves.split(";")):
            names, _, to = move.partition("->")
            found |= {(Phase(phase), name): Phase(to.strip()) for name in names.split()}
    return found


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("name", MESSAGES)
def test_every_pair_of_phase_and_message(phase: Phase, name: str) -> None:
    session = WireSession(phase)
    to = table().get((phase, name))
    if to is None:
        with pytest.raises(ProtocolError, match=f"unexpected {name} message during {phase.value}"):
            session.receive(MESSAGES[name])
        assert session.phase is phase
    else:
        assert session.receive(MESSAGES[name]) is phase
        assert session.phase is to


@pytest.mark.parametrize(
    ("phase", "event", "to"),
    [
        (Phase.AUTHENTICATION, Event.AUTHENTICATED, Phase.READY),
        (Phase.READY, Event.COPY_IN, Phase.COPY_SIMPLE),
        (Phase.BATCH, Event.COPY_IN, Phase.COPY_BATCH),
        (Phase.BATCH, Event.QUERIED, Phase.READY),
        (Phase.BATCH, Event.ERROR, Phase.SKIPPING),
        (Phase.COPY_SIMPLE, Event.ERROR, Phase.READY),
        (Phase.COPY_BATCH, Event.ERROR, Phase.SKIPPING),
    ],
)
def test_what_the_server_says_moves_the_client_too(phase: Phase, event: Event, to: Phase) -> None:
    session = WireSession(phase)
    session.happened(event)
    assert session.phase is to


def test_nobody_authenticates_without_having_been_asked() -> None:
    with pytest.raises(KeyError):
        WireSession(Phase.STARTUP).happened(Event.AUTHENTICATED)


def test_no_phase_leads_out_of_closed() -> None:
    assert TRANSITIONS[Phase.CLOSED] == {}


# -- names -----------------------------------------------------------------------------------------------


def prepared(name: str, sql: bytes = b"SELECT 1") -> Prepared:
    rewrite = Rewrite(sql)
    return Prepared(name, forward_one(sql, rewrite), Decision(Verdict(Effect.ALLOW, (), rewrite), None, "p", "c"))


def portal(name: str) -> Portal:
    return Portal(name, prepared("s"), (), ("pg_catalog", "public"))


def test_a_name_stands_for_what_was_prepared_last() -> None:
    session = WireSession(Phase.READY)
    session.prepare(prepared("s", b"SELECT 1"))
    session.prepare(prepared("s", b"SELECT 2"))
    assert session.prepared("s").text.client == b"SELECT 2"


def test_what_postgresql_did_not_accept_is_taken_back_in_reverse_order() -> None:
    session = WireSession(Phase.READY)
    session.prepare(prepared("s", b"SELECT 1"))
    undone: list[Any] = [
        session.close(b"S", "s"),
        session.prepare(prepared("s", b"SELECT 2")),
        session.bind(portal("p")),
        session.close(b"P", "p"),
    ]
    assert session.prepared("s").text.client == b"SELECT 2"
    for undo in reversed(undone):
        undo.apply()
    assert session.prepared("s").text.client == b"SELECT 1"
    assert session.portals == {}


@pytest.mark.parametrize(
    ("kind", "name", "code", "says"),
    [
        ("prepared", "s", "26000", 'prepared statement "s" does not exist'),
        ("prepared", "", "26000", "unnamed prepared statement does not exist"),
        ("portal", "p", "34000", 'portal "p" does not exist'),
        ("portal", "", "34000", 'portal "" does not exist'),
    ],
)
def test_an_unknown_name_gets_postgresqls_own_error(kind: str, name: str, code: str, says: str) -> None:
    with pytest.raises(RefusalError) as refused:
        getattr(WireSession(Phase.READY), kind)(name)
    assert refused.value.report["C"] == code
    assert refused.value.report["M"] == says


def test_a_simple_query_drops_the_unnamed_ones_only() -> None:
    session = WireSession(Phase.READY)
    for name in ("", "kept"):
        session.prepare(prepared(name))
        session.bind(portal(name))
    session.simple_query()
    assert list(session.statements) == ["kept"]
    assert list(session.portals) == ["kept"]


def test_portals_end_with_their_transaction_and_statements_do_not() -> None:
    session = WireSession(Phase.READY)
    session.prepare(prepared("s"))
    session.bind(portal("p"))
    session.transaction_over()
    assert session.portals == {}
    assert list(session.statements) == ["s"]


def test_closing_what_does_not_exist_is_no_error() -> None:
    session = WireSession(Phase.READY)
    session.close(b"S", "nothing").apply()
    session.close(b"P", "nothing").apply()
    assert (session.statements, session.portals) == ({}, {})


def test_the_gateways_own_name_is_refused() -> None:
    with pytest.raises(RefusalError, match="the gateway's own") as refused:
        check_name(RESERVED_NAME)
    assert refused.value.report["C"] == "42939"
    check_name(RESERVED_NAME + "2")
