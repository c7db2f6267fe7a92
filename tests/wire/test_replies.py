"""What the server owes: answers belong to messages in order, and every statement gets exactly one outcome."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.admission import _MINT, Grant
from gateway.errors import LimitExceededError
from gateway.model import ClientInfo, Connection, Door, Outcome, Session, Statement, Status
from policy.detection import Detection, Found
from policy.detectors import Kind
from policy.model import Analysis, Decision, Effect, Effects, Principal, PrincipalKind, Rewrite, Transaction, Verdict
from wire import backend
from wire.codec import Frame, Rows
from wire.copy import CopyInResponse
from wire.fields import ProtocolError
from wire.replies import ANSWERS, CutError, Delivery, InvariantError, Owed, Owes, Replies
from wire.session import Phase, Portal, Prepared, WireSession
from wire.texts import forward_one

NOW = datetime(2026, 11, 24, tzinfo=UTC)
SESSION = Session(
    "s-1",
    Principal("devin", "https://issuer.example", PrincipalKind.AGENT),
    Connection("shop", "127.0.0.1", 5432, "shop", "gateway", "secret"),
    Door.WIRE,
    ClientInfo(),
    NOW,
    NOW + timedelta(hours=1),
)


def decision(sql: bytes, effects: Effects, detection: Detection | None = None) -> Decision:
    rewrite = Rewrite(sql, detection=detection)
    return Decision(Verdict(Effect.ALLOW, (), rewrite), Analysis(sql, "SelectStmt", (), effects), "p", "c")


def grant(name: str, detection: Detection | None = None, **effects: Any) -> Grant:
    """A grant as admission makes them: the table below asks nothing of it but what its statement changes."""
    sql = name.encode()
    return Grant(_MINT, name, Statement(SESSION, sql), decision(sql, Effects(**effects), detection))


class Book:
    """The outcomes that were settled, in order."""

    def __init__(self, phase: Phase = Phase.READY) -> None:
        self.outcomes: list[tuple[str, Outcome]] = []
        self.session = WireSession(phase)
        self.replies = Replies(self.session, lambda g, o: self.outcomes.append((g.id, o)))

    def send(self, owes: Owes, *names: str | Grant, **more: Any) -> None:
        grants = [n if isinstance(n, Grant) else grant(n) for n in names]
        self.replies.expect(Owed(owes, deliveries=tuple(Delivery(g) for g in grants), **more))

    def hear(self, *messages: Any) -> bytes:
        return b"".join(self.replies.received(Frame(ord(m.TAG), m.encode())) for m in messages)

    def rows(self, count: int) -> None:
        row = backend.DataRow((b"1234",)).encode()
        self.replies.rows(Rows(row * count, ord("D"), count, 4 * count))

    @property
    def statuses(self) -> list[tuple[str, str]]:
        return [(name, outcome.status.value) for name, outcome in self.outcomes]


COMPLETE, READY = backend.CommandComplete("SELECT 2"), backend.ReadyForQuery("I")
ERROR = backend.ErrorResponse({"S": "ERROR", "C": "22012", "M": "division by zero"})
DESCRIPTION = backend.RowDescription((backend.Column("id"),))


def test_a_simple_query_is_completed_with_what_was_delivered() -> None:
    book = Book()
    book.send(Owes.QUERY, "a")
    assert book.hear(DESCRIPTION) == DESCRIPTION.encode()
    book.rows(2)
    book.hear(COMPLETE)
    assert book.outcomes == []  # the implicit transaction can still fail
    book.hear(READY)
    [(name, outcome)] = book.outcomes
    assert (name, outcome.status, outcome.tag, outcome.rows, outcome.size) == ("a", Status.COMPLETED, "SELECT 2", 2, 8)
    assert outcome.digest is not None
    assert book.replies.idle


def test_an_error_takes_the_whole_implicit_transaction_with_it() -> None:
    book = Book()
    book.send(Owes.QUERY, "a", "b", "c")
    book.hear(backend.CommandComplete("INSERT 0 1"), ERROR, READY)
    assert book.statuses == [("a", "failed"), ("b", "failed"), ("c", "skipped")]
    assert book.outcomes[0][1].message == "rolled back: division by zero"
    assert book.outcomes[1][1].sqlstate == "22012"


def test_a_statement_that_moves_names_does_so_until_it_is_answered() -> None:
    book = Book()
    book.send(Owes.EXECUTE, "a")
    assert not book.replies.moving
    book.send(Owes.EXECUTE, grant("path", search_path=True))
    book.send(Owes.EXECUTE, "b")
    book.hear(COMPLETE)
    assert book.replies.moving
    book.hear(backend.CommandComplete("SET"))
    assert not book.replies.moving


def test_in_a_transaction_block_success_is_settled_at_once() -> None:
    book = Book()
    book.send(Owes.QUERY, grant("begin", transaction=Transaction.BEGIN))
    book.hear(backend.CommandComplete("BEGIN"), backend.ReadyForQuery("T"))
    book.send(Owes.QUERY, "a")
    book.hear(COMPLETE)
    assert book.statuses == [("begin", "completed"), ("a", "completed")]


def test_a_commit_inside_one_message_makes_what_came_before_it_final() -> None:
    book = Book()
    commit = grant("commit", transaction=Transaction.COMMIT)
    book.send(Owes.QUERY, "a", commit, "b")
    book.hear(COMPLETE, backend.CommandComplete("COMMIT"), ERROR, READY)
    assert book.statuses == [("a", "completed"), ("commit", "completed"), ("b", "failed")]


def test_a_cancelled_statement_is_cancelled_and_not_failed() -> None:
    book = Book()
    book.send(Owes.QUERY, "a")
    book.hear(backend.ErrorResponse({"S": "ERROR", "C": "57014", "M": "canceling statement"}), READY)
    assert book.statuses == [("a", "cancelled")]


def extended(book: Book, *names: str) -> None:
    for name in names:
        book.send(Owes.PARSE)
        book.send(Owes.BIND)
        book.send(Owes.EXECUTE, name)
    book.send(Owes.SYNC)


PARSED = (backend.ParseComplete(), backend.BindComplete())


def test_a_pipeline_is_answered_in_order() -> None:
    book = Book(Phase.BATCH)
    extended(book, "a", "b")
    book.hear(*PARSED, COMPLETE, *PARSED, COMPLETE)
    assert book.outcomes == []
    book.hear(READY)
    assert book.statuses == [("a", "completed"), ("b", "completed")]


def test_an_error_skips_the_batch_up_to_its_sync_and_no_further() -> None:
    book = Book(Phase.BATCH)
    extended(book, "a", "b", "c")
    book.session.phase = Phase.BATCH
    extended(book, "d")
    book.hear(*PARSED, COMPLETE, *PARSED, ERROR, READY)
    assert book.statuses == [("a", "failed"), ("b", "failed"), ("c", "skipped")]
    book.hear(*PARSED, COMPLETE, READY)
    assert book.statuses[-1] == ("d", "completed")
    assert book.replies.idle


def test_names_that_a_skipped_message_made_are_taken_back() -> None:
    book = Book(Phase.BATCH)
    text = forward_one(b"SELECT 1", Rewrite(b"SELECT 1"))
    of = Prepared("s", text, decision(b"SELECT 1", Effects()))
    book.send(Owes.EXECUTE, "fails")
    book.send(Owes.PARSE, undo=book.session.prepare(of))
    book.send(Owes.BIND, undo=book.session.bind(Portal("p", of, (), ())))
    book.hear(ERROR)
    assert (book.session.statements, book.session.portals) == ({}, {})
    assert book.session.phase is Phase.SKIPPING


def test_a_suspended_portal_completes_its_execute_with_the_rows_so_far() -> None:
    book = Book(Phase.BATCH)
    book.send(Owes.EXECUTE, "a")
    book.send(Owes.SYNC)
    book.rows(2)
    book.hear(backend.PortalSuspended(), READY)
    [(_, outcome)] = book.outcomes
    assert (outcome.status, outcome.rows, outcome.tag) == (Status.COMPLETED, 2, None)


def test_a_statement_that_changes_what_names_mean_is_settled_before_its_transaction_is() -> None:
    book = Book(Phase.BATCH)
    book.send(Owes.EXECUTE, grant("set", search_path=True))
    book.hear(backend.CommandComplete("SET"))
    assert book.statuses == [("set", "completed")]


def test_our_own_report_stands_in_for_the_error_that_we_provoked() -> None:
    book = Book(Phase.BATCH)
    book.send(Owes.POISON, substitute={"S": "ERROR", "C": "42501", "M": "refused"})
    assert book.hear(ERROR) == backend.ErrorResponse({"S": "ERROR", "C": "42501", "M": "refused"}).encode()


def test_the_client_hears_nothing_of_what_we_asked_ourselves() -> None:
    book = Book(Phase.BATCH)
    book.send(Owes.CLOSE, hidden=True)
    assert book.hear(backend.CloseComplete()) == b""
    assert book.replies.idle


def test_notices_settings_and_notifications_pass_at_any_time() -> None:
    book = Book()
    for message in (
        backend.NoticeResponse({"M": "hello"}),
        backend.ParameterStatus("TimeZone", "UTC"),
        backend.NotificationResponse(1, "c", ""),
    ):
        assert book.hear(message) == message.encode()


def test_copy_in_moves_the_clients_side_and_its_failure_moves_it_back() -> None:
    book = Book()
    book.send(Owes.QUERY, "a")
    book.hear(CopyInResponse(0, (0,)))
    assert (book.replies.copying, book.session.phase) == (True, Phase.COPY_SIMPLE)
    book.hear(ERROR, READY)
    assert (book.replies.copying, book.session.phase) == (False, Phase.READY)
    assert book.statuses == [("a", "failed")]


@pytest.mark.parametrize("owes", Owes)
def test_an_answer_that_does_not_belong_there_is_a_violation(owes: Owes) -> None:
    fitting = ANSWERS[owes]
    for tag in b"123CIsntTGHcZR":
        if bytes((tag,)) not in fitting:
            book = Book(Phase.BATCH)
            book.send(owes, "a")
            with pytest.raises(ProtocolError, match=f"answered {owes.value} with a `{chr(tag)}`"):
                book.replies.received(Frame(tag, bytes((tag,)) + b"\0\0\0\4"))


@pytest.mark.parametrize("message", [COMPLETE, READY, DESCRIPTION, backend.ParseComplete()], ids=repr)
def test_an_answer_to_nothing_is_a_violation(message: Any) -> None:
    with pytest.raises(ProtocolError, match="nobody asked for"):
        Book().hear(message)


def test_rows_for_nobody_are_a_violation() -> None:
    book = Book()
    with pytest.raises(ProtocolError, match="rows that nobody asked for"):
        book.rows(1)
    book.send(Owes.SYNC)
    with pytest.raises(ProtocolError, match="rows that nobody asked for"):
        book.rows(1)


def test_a_fatal_out_of_the_blue_passes_and_what_runs_is_abandoned_as_unknown() -> None:
    book = Book()
    fatal = backend.ErrorResponse({"S": "FATAL", "C": "57P01", "M": "terminating connection"})
    assert book.hear(fatal) == fatal.encode()
    book.send(Owes.QUERY, "a", "b")
    book.hear(COMPLETE)
    book.replies.abandon(Status.UNKNOWN, "08006", "gone")
    assert book.statuses == [("a", "unknown"), ("b", "unknown")]
    book.replies.abandon(Status.UNKNOWN, "08006", "gone")
    assert len(book.outcomes) == 2


# -- content detection -----------------------------------------------------------------------------------

LOOKS = Detection(frozenset((Kind.EMAIL,)))
FOUND = backend.DataRow((b"ada@example.com",)).encode()


def searched(book: Book, row: bytes, *, whole: bool = True, **effects: Any) -> bytes:
    book.send(Owes.QUERY, grant("a", LOOKS, **effects))
    book.hear(DESCRIPTION)
    return book.replies.rows(Rows(row, ord("D"), 1, len(row) - 11, whole=whole))


def test_what_was_hidden_is_told_in_a_notice_before_the_end_and_in_the_outcome() -> None:
    book = Book()
    assert searched(book, FOUND) == backend.DataRow((b"***@*******.***",)).encode()
    said = book.hear(COMPLETE)
    assert said.startswith(b"N")
    assert said.endswith(COMPLETE.encode())
    assert b"id: 1 email" in said
    book.hear(READY)
    [(_, outcome)] = book.outcomes
    assert outcome.detected == (Found("id", Kind.EMAIL, 1),)
    assert outcome.digest == hashlib.sha256(backend.DataRow((b"***@*******.***",)).encode()).hexdigest()


def test_a_row_that_cannot_be_searched_ends_a_read_and_the_session_of_a_write() -> None:
    book = Book()
    with pytest.raises(LimitExceededError, match="larger than the 4 MiB"):
        searched(book, FOUND, whole=False)
    assert book.replies.rows(Rows(FOUND, ord("D"), 1, 15)) == b""
    with pytest.raises(CutError):
        searched(Book(), FOUND, whole=False, writes=True)


def test_messages_are_searched_by_the_policy_of_the_moment() -> None:
    book = Book()
    report = backend.NoticeResponse({"M": "from ada@example.com", "n": "ada@example.com"})
    notified = backend.NotificationResponse(1, "c", "ada@example.com")
    assert book.hear(report, notified) == report.encode() + notified.encode()
    book.replies.looks_for = lambda: LOOKS.kinds
    hidden = backend.NoticeResponse({"M": "from ***@*******.***", "n": "***@*******.***"})
    assert book.hear(report, notified) == (
        hidden.encode() + backend.NotificationResponse(1, "c", "***@*******.***").encode()
    )


# -- the invariant ---------------------------------------------------------------------------------------

ORIGINS = frozenset({(16400, 3)})


@pytest.mark.parametrize(
    ("columns", "raw"),
    [
        ([(16400, 3)], True),
        ([(0, 0), (16400, 3)], True),
        ([(16400, 0)], True),
        ([(16400, 1), (0, 0)], False),
        ([(16401, 3)], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("owes", [Owes.QUERY, Owes.DESCRIBE, Owes.EXECUTE])
def test_a_raw_masked_column_never_passes_its_description(
    owes: Owes, columns: Sequence[tuple[int, int]], raw: bool
) -> None:
    description = backend.RowDescription(tuple(backend.Column("c", table, number) for table, number in columns))
    book = Book(Phase.BATCH)
    book.send(owes, "a", origins=ORIGINS)
    if not raw:
        assert book.hear(description) == description.encode()
        return
    with pytest.raises(InvariantError, match=r"invariant\.violated") as violated:
        book.hear(description)
    assert violated.value.grant is not None
    assert violated.value.grant.id == "a"


def test_what_we_call_a_session_is_never_told_to_its_client() -> None:
    book = Book()
    book.replies.name = "psql"
    said = [
        ("application_name", "other", b"other"),
        ("application_name", "countersign/pool", b"psql"),  # RESET
        ("application_name", "countersign/se-1/psql", None),  # nothing has changed for the client
        ("TimeZone", "UTC", b"UTC"),
    ]
    for name, value, told in said:
        heard = book.hear(backend.ParameterStatus(name, value))
        assert heard == (b"" if told is None else backend.ParameterStatus(name, told.decode()).encode())
