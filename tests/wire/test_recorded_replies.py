"""What of a server's answers is recorded: what the client gets, as it gets it, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from audit.recording import Mode
from gateway.admission import _MINT, Grant
from gateway.errors import LimitExceededError
from gateway.model import Outcome, Statement
from policy.limits import Limits
from policy.model import Effects
from tests.wire.test_replies import COMPLETE, DESCRIPTION, ERROR, READY, SESSION, decision
from wire import backend
from wire.codec import BackendDecoder, Frame, Rows
from wire.messages import BackendMessage
from wire.replies import CutError, Delivery, Owed, Owes, Replies
from wire.session import Description, Phase, WireSession

FULL = replace(SESSION, connection=replace(SESSION.connection, recording=Mode.FULL))
ROW = backend.DataRow((b"1234",))
NOTICE = backend.NoticeResponse({"S": "NOTICE", "V": "NOTICE", "C": "00000", "M": "by the way"})
LOG = backend.NoticeResponse({"S": "LOG", "V": "LOG", "C": "00000", "M": "duration: 1 ms  statement: …"})
TOO_MANY = {"S": "ERROR", "V": "ERROR", "C": "54000", "M": "too many"}


class Tape:
    """One conversation whose statements are recorded in full, until their outcome."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.recorded: dict[str, list[BackendMessage]] = {}
        self.replies = Replies(WireSession(Phase.BATCH), self._settle)

    def _settle(self, grant: Grant, outcome: Outcome) -> None:
        made = grant.transcript.finish()
        self.outcomes[grant.id] = outcome
        data = b"".join(chunk.data for chunk in made.chunks) if made else b""
        self.recorded[grant.id] = list(BackendDecoder().feed(data))

    def send(self, owes: Owes, *names: str, limits: Limits | None = None, **more: Any) -> Owed:
        made = []
        for name in names:
            sql = name.encode()
            grant = Grant(_MINT, name, Statement(FULL, sql), decision(sql, Effects()), limits=limits or Limits())
            made.append(Delivery(grant))
        owed = Owed(owes, deliveries=tuple(made), **more)
        self.replies.expect(owed)
        return owed

    def hear(self, *messages: Any) -> None:
        for message in messages:
            if isinstance(message, backend.DataRow):
                self.replies.rows(Rows(message.encode(), ord("D"), 1, 4))
            else:
                self.replies.received(Frame(ord(message.TAG), message.encode()))


def test_what_the_client_gets_is_recorded_in_order() -> None:
    tape = Tape()
    tape.send(Owes.QUERY, "a", "b")
    tape.hear(DESCRIPTION, ROW, LOG, NOTICE, COMPLETE, DESCRIPTION, ERROR, READY)
    assert tape.recorded == {"a": [DESCRIPTION, ROW, NOTICE, COMPLETE], "b": [DESCRIPTION, ERROR]}


@pytest.mark.parametrize("end", [(COMPLETE,), (ERROR,)])
def test_of_a_cut_result_the_rows_that_passed_and_the_error_in_place_of_the_rest(end: tuple[Any, ...]) -> None:
    tape = Tape()
    tape.send(Owes.QUERY, "a", limits=Limits(rows=1))
    tape.hear(DESCRIPTION, ROW)
    with pytest.raises(LimitExceededError):
        tape.hear(ROW)
    tape.hear(ROW, *end, READY)
    *passed, last = tape.recorded["a"]
    assert passed == [DESCRIPTION, ROW]
    assert isinstance(last, backend.ErrorResponse)
    assert (last.fields["S"], last.fields["C"]) == ("ERROR", "54000")


def test_a_cut_result_that_ends_the_conversation_ends_in_what_the_client_is_told() -> None:
    tape = Tape()
    tape.send(Owes.QUERY, "a", "b", limits=Limits(rows=0))
    tape.hear(DESCRIPTION)
    with pytest.raises(LimitExceededError):
        tape.hear(ROW)
    with pytest.raises(CutError) as caught:
        tape.hear(COMPLETE)
    assert tape.recorded["a"] == [DESCRIPTION, backend.ErrorResponse(caught.value.report)]
    assert caught.value.report["S"] == "FATAL"


def counted(tape: Tape) -> None:
    """A counted write that came as a simple query: its other messages are the gateway's own."""
    described = Description()
    tape.send(Owes.PARSE, hidden=True)
    tape.send(Owes.BIND, hidden=True)
    tape.send(Owes.DESCRIBE, description=described, rows_only=True)
    tape.send(Owes.EXECUTE, "a", withhold=True).deliveries[0].description = described
    tape.hear(backend.ParseComplete(), backend.BindComplete(), DESCRIPTION, ROW, COMPLETE)


def test_a_withheld_completion_is_recorded_once_it_is_let_through() -> None:
    tape = Tape()
    counted(tape)
    withheld = tape.replies.take_withheld()
    assert withheld is not None
    withheld.delivery.say(withheld.completion)
    tape.send(Owes.SYNC)
    tape.hear(READY)
    assert tape.recorded == {"a": [DESCRIPTION, ROW, COMPLETE]}


def test_a_withheld_completion_that_is_rolled_back_is_not_recorded_but_the_error_is() -> None:
    tape = Tape()
    counted(tape)
    withheld = tape.replies.take_withheld()
    assert withheld is not None
    owed = Owed(Owes.POISON, deliveries=(withheld.delivery,), substitute=TOO_MANY)
    tape.replies.expect(owed)
    tape.hear(ERROR)
    assert tape.recorded == {"a": [DESCRIPTION, ROW, backend.ErrorResponse(TOO_MANY)]}
    assert tape.outcomes["a"].message == "rolled back: too many"


def test_what_nobody_hears_is_neither_recorded_nor_counted_as_delivered() -> None:
    tape = Tape()
    tape.send(Owes.QUERY, "a")
    tape.hear(DESCRIPTION, ROW)
    tape.replies.unheard = True
    tape.hear(NOTICE, ROW, ERROR)
    assert tape.recorded == {"a": [DESCRIPTION, ROW]}
    assert tape.outcomes["a"].rows == 1


def test_a_description_is_told_in_the_formats_of_each_run() -> None:
    described = Description(DESCRIPTION.encode(), ())
    binary = DESCRIPTION.in_formats((1,)).encode()
    asked: list[tuple[int, ...]] = [(), (1,), (1,), (0,), ()]
    assert [described.in_formats(formats) for formats in asked] == [
        DESCRIPTION.encode(), binary, binary, DESCRIPTION.encode(), DESCRIPTION.encode(),
    ]  # fmt: skip
    assert Description().in_formats((1,)) is None
