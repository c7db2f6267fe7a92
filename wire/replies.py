"""What the server still owes for the messages that were sent on, and what each answer means. Sans-IO.

Answers come in the order of the messages. The table `ANSWERS` says which answers each message may get
and which one is its last; anything else is a protocol violation by the server. An ErrorResponse ends a
batch up to its Sync: what was skipped is taken out of the books and recorded as skipped.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from gateway.errors import CountersignError, LimitExceededError, UnsearchableError
from gateway.model import Outcome, Status
from gateway.pool import OUR_NAMES
from gateway.screening import searched_report
from policy.detection import NOTHING, hide_text
from policy.detectors import Kinds
from policy.model import Decision, Effects, Transaction
from wire import sqlstate
from wire.backend import (
    CommandComplete,
    ErrorResponse,
    NoticeResponse,
    NotificationResponse,
    ParameterDescription,
    ParameterStatus,
    ReadyForQuery,
    RowDescription,
)
from wire.codec import Frame, Rows
from wire.copy import CopyOutResponse
from wire.fields import ProtocolError
from wire.reports import Report, as_client_sees, found_notice, is_log_line, of_error
from wire.screening import Screen
from wire.session import Description, Event, Phase, Portal, Prepared, Undo, Used, WireSession
from wire.texts import Forwarded

if TYPE_CHECKING:
    from gateway.admission import Grant

Origins = frozenset[tuple[int, int]]

_NO_EFFECTS = Effects()
# Severities of an error that ends the connection.
_LAST_WORDS = ("FATAL", "PANIC")


class Owes(StrEnum):
    """What kind of message an answer is owed for."""

    PARSE = "Parse"
    BIND = "Bind"
    DESCRIBE = "Describe"
    EXECUTE = "Execute"
    CLOSE = "Close"
    SYNC = "Sync"
    QUERY = "Query"
    POISON = "a message of ours that must fail"


class Step(StrEnum):
    """What an answer does to the message that it answers."""

    STAY = "more follows"
    DONE = "the last answer"
    RESULT = "a statement is complete, more follows"
    LAST_RESULT = "a statement is complete, and it was the last"


_RESULTS = {b"T": Step.STAY, b"G": Step.STAY, b"H": Step.STAY, b"c": Step.STAY}

ANSWERS: Mapping[Owes, Mapping[bytes, Step]] = {
    Owes.PARSE: {b"1": Step.DONE},
    Owes.BIND: {b"2": Step.DONE},
    Owes.DESCRIBE: {b"t": Step.STAY, b"T": Step.DONE, b"n": Step.DONE},
    Owes.EXECUTE: {**_RESULTS, **dict.fromkeys((b"C", b"I", b"s"), Step.LAST_RESULT)},
    Owes.CLOSE: {b"3": Step.DONE},
    Owes.SYNC: {b"Z": Step.DONE},
    Owes.QUERY: {**_RESULTS, b"C": Step.RESULT, b"I": Step.RESULT, b"Z": Step.DONE},
    Owes.POISON: {},
}
_STEPS = {owes: {ord(tag): step for tag, step in of.items()} for owes, of in ANSWERS.items()}

_ERROR, _NOTICE, _PARAMETER, _NOTIFICATION = b"ENSA"
_DESCRIPTION, _NO_DATA, _COPY_IN, _COPY_OUT, _COMPLETE, _SUSPENDED, _READY, _PARAMETERS = b"TnGHCsZt"
# What belongs to a statement's recording, besides rows, notices and errors.
_SAID = b"TGHCIs"


class CutError(Exception):
    """A result was too large, and the conversation cannot go on after it; `report` says so."""

    def __init__(self, report: Report) -> None:
        super().__init__(report["M"])
        self.report = {**report, "S": "FATAL", "V": "FATAL"}


class InvariantError(Exception):
    """A RowDescription shows a column that the rewrite should have hidden: a bug of ours."""

    def __init__(self, grant: Grant | None, detail: str) -> None:
        super().__init__(detail)
        self.grant = grant
        self.detail = detail


@dataclass(slots=True, eq=False)
class Delivery:
    """What one grant has delivered to the client so far. `size` is bytes of values, the digest is over whole messages.

    Where the client had the columns described before it ran the statement, `description` holds them, and `formats`
    are those of the results.
    """

    grant: Grant
    used: Used = field(default_factory=Used)
    description: Description | None = None
    formats: tuple[int, ...] = ()
    rows: int = 0
    size: int = 0
    settled: bool = False
    screen: Screen | None = None  # searches the rows, where the policy looks for something
    _hash: Any = None

    def __post_init__(self) -> None:
        if (detection := self.grant.rewrite.detection) is not None:
            self.screen = Screen(detection)

    def add(self, piece: Rows) -> None:
        """Rows, or a piece of one, are sent."""
        self.rows += piece.messages
        self.size += piece.size
        self.used.rows += piece.messages
        self.used.size += piece.size
        if self._hash is None:
            self._hash = hashlib.sha256()
        self._hash.update(piece.data)
        self._describe()
        self.grant.transcript.rows(piece.data)

    def say(self, raw: bytes) -> None:
        """A message that is no row is sent."""
        self._describe()
        self.grant.transcript.message(raw)

    def _describe(self) -> None:
        if self.description is not None:
            described, self.description = self.description.in_formats(self.formats), None
            if described is not None:
                self.grant.transcript.message(described)

    @property
    def effects(self) -> Effects:
        """What the statement changes."""
        analysis = self.grant.decision.analysis
        return analysis.effects if analysis else _NO_EFFECTS

    def outcome(self, status: Status, *, tag: str | None = None, rows: int | None = None) -> Outcome:
        """The outcome of a statement that PostgreSQL has run."""
        return self._outcome(status, tag=tag, rows=self.rows if rows is None else rows)

    def failure(self, status: Status, code: str | None, message: str | None) -> Outcome:
        """The outcome of a statement that did not get through."""
        return self._outcome(status, sqlstate=code, message=message, rows=self.rows)

    def _outcome(self, status: Status, **more: Any) -> Outcome:
        digest = self._hash.hexdigest() if self._hash else None
        detected = tuple(self.screen.findings) if self.screen is not None else ()
        return Outcome(status, size=self.size, digest=digest, detected=detected, **more)


@dataclass(slots=True, eq=False)
class Owed:
    """A message that was sent on and is not answered yet.

    `text` is what its errors are about, `undo` what its failure takes back. `substitute` is our own
    report, which replaces the server's (for a message that was made to fail). The client is not told of
    `hidden` answers: they are to messages of ours.
    """

    owes: Owes
    text: Forwarded | None = None
    deliveries: tuple[Delivery, ...] = ()
    undo: Undo[Prepared] | Undo[Portal] | None = None
    substitute: Report | None = None
    origins: Origins = frozenset()
    description: Description | None = None  # what the answer describes, in these `formats`
    formats: tuple[int, ...] = ()
    hidden: bool = False
    rows_only: bool = False  # of a Describe that the client did not send: NoData is hidden
    cut: bool = False  # its result was too large: the rest of it is hidden, and `substitute` ends it
    withhold: bool = False  # the completion waits for `take_withheld`
    describes: Delivery | None = None  # of a Describe of ours: whose columns the answer tells
    next: int = 0  # which delivery the next answer belongs to

    @property
    def current(self) -> Delivery | None:
        """The delivery that the next answer belongs to."""
        return self.deliveries[self.next] if self.next < len(self.deliveries) else None


@dataclass(frozen=True, slots=True)
class Withheld:
    """A CommandComplete that the client has not got yet, the row count that it tells, and whose it is."""

    delivery: Delivery
    completion: bytes
    rows: int


@dataclass(slots=True)
class Replies:
    """The queue of one session, and the outcomes that wait for their transaction.

    `looks_for` says what the policy looks for in messages to this client now.
    `settle` writes an outcome. Outside an explicit transaction a statement's success is only final with
    the ReadyForQuery that follows: until then it is held, and an error turns it into a failure. `ended` hears
    of each transaction's end.
    """

    session: WireSession
    settle: Callable[[Grant, Outcome], None]
    ended: Callable[[], None] = lambda: None
    status: str = "I"  # of the last ReadyForQuery
    dirty: bool = False  # something was sent since: the server may have an implicit transaction open
    copying: bool = False  # the server waits for COPY data
    unheard: bool = False  # nothing reaches the client any more: nothing is delivered
    fatal: Report | None = None  # with which the server has ended the connection
    looks_for: Callable[[], Kinds] = lambda: NOTHING
    searches: bool = False  # rows of some statement must be seen whole
    name: str = ""  # what the client called itself at start-up
    _withheld: Withheld | None = None
    _queue: deque[Owed] = field(default_factory=deque)
    _held: list[tuple[Delivery, Outcome]] = field(default_factory=list)
    _transaction_ran: bool = False
    _quiet: bool = False  # something that hides a thing ran in this transaction: a late error may quote it
    _moving: bool = False  # what is owed may hold a statement that `matters`
    _called: str | None = None  # the application_name that the client was told last

    def __post_init__(self) -> None:
        self._called = self.name

    @property
    def idle(self) -> bool:
        """Whether everything is answered."""
        return not self._queue

    @property
    def waiting(self) -> int:
        """How many messages are not answered yet."""
        return len(self._queue)

    @property
    def aborted(self) -> bool:
        """Whether the transaction is known to have failed: it cannot be asked anything."""
        return self.status == "E" and not self._transaction_ran

    def unsettled(self) -> Iterable[Delivery]:
        """The deliveries whose statements may still run."""
        return (d for owed in self._queue for d in owed.deliveries[owed.next :] if not d.settled)

    @property
    def moving(self) -> bool:
        """Whether a statement still runs that may change what the next one's names mean."""
        # Asked before every message: what is owed is looked through only where there was such a one.
        self._moving = self._moving and any(matters(delivery) for delivery in self.unsettled())
        return self._moving

    def expect(self, owed: Owed) -> None:
        """A message was sent on."""
        self._queue.append(owed)
        self._moving = self._moving or any(matters(delivery) for delivery in owed.deliveries)
        self.searches = self.searches or any(delivery.screen is not None for delivery in owed.deliveries)
        self.dirty = owed.owes not in (Owes.SYNC, Owes.QUERY)

    # -- answers --------------------------------------------------------------------------------------

    def rows(self, piece: Rows) -> bytes:
        """Rows or COPY data were received: what of them the client is to get.

        Raises ProtocolError where nobody asked, LimitExceededError the first time that they exceed what it may
        have, UnsearchableError where what the policy looks for cannot be found in them.
        """
        owed = self._queue[0] if self._queue else None
        current = owed.current if owed else None
        if owed is None or current is None:
            raise ProtocolError("the server sent rows that nobody asked for")
        if owed.cut:
            return b""
        error = current.grant.too_large(current.used.rows + piece.messages, current.used.size + piece.size)
        if error is not None and not current.effects.writes and not self.copying:
            raise _cut(owed, current, error)
        if current.screen is not None:
            try:
                piece = current.screen.rows(piece)
            except (LimitExceededError, UnsearchableError) as error:
                raise _cut(owed, current, error) from None
        if not self.unheard:
            current.add(piece)
        return piece.data

    def received(self, frame: Frame) -> bytes:
        """Any other message was received; returns what the client is to get for it.

        Raises ProtocolError for what the protocol does not allow here, and InvariantError.
        """
        tag = frame.tag
        if tag == _NOTICE:
            return self._noticed(frame)
        if tag == _NOTIFICATION and self.looks_for():
            return self.notification(NotificationResponse.decode(frame.body))
        if tag == _PARAMETER:
            return self.setting(ParameterStatus.decode(frame.body))
        if tag == _NOTIFICATION:
            return frame.raw
        if tag == _ERROR:
            return self._failed(frame)
        if not self._queue:
            raise ProtocolError(f"the server sent a `{chr(tag)}` message that nobody asked for")
        owed = self._queue[0]
        step = _STEPS[owed.owes].get(tag)
        if step is None:
            raise ProtocolError(f"the server answered {owed.owes.value} with a `{chr(tag)}` message")
        self._quiet = self._quiet or (owed.text is not None and owed.text.masked)
        if tag == _DESCRIPTION and owed.origins:
            self._check_invariant(owed, frame)
        if tag == _COPY_IN:
            self.copying = True
            self.session.happened(Event.COPY_IN)
        if owed.cut and tag == _READY:
            owed.hidden = False
        elif owed.cut:
            return self._ended_early(owed, step)
        if tag in (_DESCRIPTION, _COPY_OUT):
            _tell_screen(owed, frame)
        told = self._tell_found(owed) if tag in (_COMPLETE, _SUSPENDED) else b""
        unseen = owed.hidden or (owed.rows_only and tag == _NO_DATA) or (owed.withhold and tag == _COMPLETE)
        if tag in _SAID and not unseen:
            self._said(owed, frame.raw)
        if tag == _DESCRIPTION and owed.description is not None:
            owed.description.raw, owed.description.formats = frame.raw, owed.formats
        if tag == _PARAMETERS and owed.description is not None:
            owed.description.parameters = ParameterDescription.decode(frame.body).types
        if step in (Step.RESULT, Step.LAST_RESULT):
            self._completed(owed, frame)
        if step in (Step.DONE, Step.LAST_RESULT):
            self._queue.popleft()
        if tag == _READY:
            self._ready(frame)
        return told if unseen else told + frame.raw

    def setting(self, message: ParameterStatus) -> bytes:
        """A setting as the client is to get it: where the server says what we call the session, what the client did."""
        if message.name != "application_name":
            return message.encode()
        value = self.name if message.value.startswith(OUR_NAMES) else message.value
        if value == self._called:
            return b""  # PostgreSQL reports what has changed
        self._called = value
        return replace(message, value=value).encode()

    def notification(self, message: NotificationResponse) -> bytes:
        """A notification as the client is to get it: its payload may hold anything."""
        return replace(message, payload=hide_text(message.payload, self.looks_for())).encode()

    def _tell_found(self, owed: Owed) -> bytes:
        """The notice that something in the result was hidden, ahead of the result's end."""
        delivery = owed.current
        if delivery is None or delivery.screen is None or not delivery.screen.findings:
            return b""
        notice = NoticeResponse(found_notice(delivery.screen.findings)).encode()
        self._said(owed, notice)
        return notice

    def _ended_early(self, owed: Owed, step: Step) -> bytes:
        """A result that was cut came to its end before the cancel request did: the client gets the error for it.

        Raises CutError where the client has sent more that the server goes on with: it would be out of step.
        """
        if step is Step.STAY:
            return b""
        current = owed.current
        assert current is not None, "what is cut has a statement"
        assert owed.substitute is not None, "what is cut has a report"
        others = owed.deliveries[owed.next + 1 :] or any(later.deliveries for later in list(self._queue)[1:])
        cut = CutError(owed.substitute) if others else None
        told = ErrorResponse(cut.report if cut else owed.substitute).encode()
        self._said(owed, told)
        owed.next += 1
        self._settle(current, current.failure(Status.FAILED, owed.substitute["C"], owed.substitute["M"]))
        if cut is not None:
            raise cut
        if step is Step.LAST_RESULT:
            self._queue.popleft()
        return told

    def take_withheld(self) -> Withheld | None:
        """The completion that was withheld; None if there is none."""
        withheld, self._withheld = self._withheld, None
        return withheld

    def _said(self, owed: Owed | None, raw: bytes) -> None:
        """The client gets this message, of the statement that is answered now."""
        if owed is not None and (current := owed.current) is not None and not self.unheard:
            current.say(raw)

    def copy_ended(self) -> None:
        """The client's end of the COPY data was sent on."""
        self.copying = False

    def _check_invariant(self, owed: Owed, frame: Frame) -> None:
        hidden, relations = owed.origins, {table for table, _ in owed.origins}
        for column in RowDescription.decode(frame.body).columns:
            raw_row = column.attribute == 0 and column.table in relations
            if raw_row or (column.table, column.attribute) in hidden:
                current = owed.current
                raise InvariantError(
                    current.grant if current else None,
                    f"invariant.violated: result column `{column.name}` comes raw from attribute "
                    f"{column.attribute} of relation {column.table}, which is masked",
                )

    def _completed(self, owed: Owed, frame: Frame) -> None:
        if (delivery := owed.current) is None:
            # An empty query string has no statement, and PostgreSQL's rewrite rules add no tags of their own.
            return
        owed.next += 1
        if frame.tag == _COMPLETE:
            complete = CommandComplete.decode(frame.body)
            outcome = delivery.outcome(Status.COMPLETED, tag=complete.tag, rows=complete.rows)
            if owed.withhold:
                self._withheld = Withheld(delivery, frame.raw, complete.rows or 0)
                self._held.append((delivery, outcome))
                return
        else:
            outcome = delivery.outcome(Status.COMPLETED)
        effects = delivery.effects
        if effects.transaction is not None:
            self._transaction_ran = True
            self._release()
        if self.status == "I" and not self._transaction_ran and not changes_context(effects):
            self._held.append((delivery, outcome))
        else:
            self._settle(delivery, outcome)

    def _ready(self, frame: Frame) -> None:
        self.status = ReadyForQuery.decode(frame.body).status
        self._transaction_ran = False
        self._release()
        if self.status == "I":
            self._quiet = False
            self.ended()
        if self.status == "I" and not self.dirty:
            self.session.transaction_over()

    def _noticed(self, frame: Frame) -> bytes:
        fields = NoticeResponse.decode(frame.body).fields
        if is_log_line(fields):
            return b""
        owed = self._queue[0] if self._queue else None
        seen = self._without_found(as_client_sees(fields, owed.text if owed else None, quiet=self._quiet), owed)
        raw = frame.raw if seen == fields else NoticeResponse(seen).encode()
        self._said(owed, raw)
        return raw

    # -- errors ---------------------------------------------------------------------------------------

    def _failed(self, frame: Frame) -> bytes:
        fields = ErrorResponse.decode(frame.body).fields
        if fields.get("V", fields.get("S")) in _LAST_WORDS:
            self.fatal = fields
        if not self._queue:
            # A FATAL out of the blue: the connection ends with it.
            seen = self._without_found(fields, None)
            return frame.raw if seen == fields else ErrorResponse(seen).encode()
        owed = self._queue[0]
        fields = owed.substitute or self._without_found(as_client_sees(fields, owed.text, quiet=self._quiet), owed)
        code, message, raw = fields.get("C"), fields.get("M"), ErrorResponse(fields).encode()
        status = Status.CANCELLED if code == sqlstate.QUERY_CANCELED else Status.FAILED
        self._said(owed, raw)
        for delivery, _ in self._held:
            text = f"rolled back: {message}"
            self._settle(delivery, delivery.failure(Status.FAILED, code, text))
        self._held.clear()
        if (failed := owed.current) is not None:
            owed.next += 1
            self._settle(failed, failed.failure(status, code, message))
        if owed.owes is Owes.QUERY:
            self._skip(owed)
        elif owed.owes is not Owes.SYNC:
            self._skip_batch()
        if self.copying:
            self.copying = False
            self.session.happened(Event.ERROR)
        return raw

    def _without_found(self, fields: Report, owed: Owed | None) -> Report:
        current = owed.current if owed is not None else None
        findings = current.screen.findings if current is not None and current.screen is not None else None
        return searched_report(fields, self.looks_for(), findings)

    def skip(self, owed: Owed) -> None:
        """A message was not sent on, because an earlier one failed: as if the server had skipped it."""
        self._skip(owed)
        if owed.undo is not None:
            owed.undo.apply()

    def withdraw(self, owed: Owed) -> None:
        """A message is not sent after all; one that an error has skipped already is not there any more."""
        if owed in self._queue:
            self._queue.remove(owed)
            self.skip(owed)

    def _skip(self, owed: Owed) -> None:
        while (delivery := owed.current) is not None:
            owed.next += 1
            self._settle(delivery, delivery.failure(Status.SKIPPED, None, "an earlier error kept it from running"))

    def _skip_batch(self) -> None:
        """The server now skips everything until the batch's Sync."""
        skipped: list[Owed] = []
        while self._queue and self._queue[0].owes is not Owes.SYNC:
            skipped.append(self._queue.popleft())
        for owed in skipped:
            self._skip(owed)
        for owed in reversed(skipped):
            if owed.undo is not None:
                owed.undo.apply()
        if not self._queue and self.session.phase is Phase.BATCH:
            self.session.happened(Event.ERROR)

    # -- outcomes -------------------------------------------------------------------------------------

    def _release(self) -> None:
        for delivery, outcome in self._held:
            self._settle(delivery, outcome)
        self._held.clear()

    def _settle(self, delivery: Delivery, outcome: Outcome) -> None:
        if not delivery.settled:
            delivery.settled = True
            self.settle(delivery.grant, outcome)

    def abandon(self, status: Status, code: str, message: str) -> None:
        """The connection is over: whatever has no outcome gets this one."""
        unheard = [d for d, _ in self._held] + list(self.unsettled())
        self._held.clear()
        self._queue.clear()
        for delivery in unheard:
            self._settle(delivery, delivery.failure(status, code, message))


def _tell_screen(owed: Owed, frame: Frame) -> None:
    """The columns of rows that must be searched are known now."""
    delivery = owed.describes or owed.current
    if delivery is None or delivery.screen is None:
        return
    if frame.tag == _DESCRIPTION:
        delivery.screen.describe(RowDescription.decode(frame.body))
    else:
        delivery.screen.begin_copy(CopyOutResponse.decode(frame.body))


def _cut(owed: Owed, delivery: Delivery, error: CountersignError) -> Exception:
    """What to raise where a result cannot go on. What a write has done cannot be taken back: its session ends."""
    if delivery.effects.writes:
        return CutError(of_error(error))
    owed.cut, owed.substitute = True, of_error(error)
    return error


def changes_context(effects: Effects) -> bool:
    """Whether later statements of the session may be decided differently once this one has run."""
    named = (effects.prepares, effects.deallocates, effects.declares, effects.closes)
    return effects.search_path or effects.catalog or any(name is not None for name in named)


def matters(delivery: Delivery) -> bool:
    """Whether a statement that still runs may change what the next one's names mean."""
    return changes_context(delivery.effects) or delivery.effects.transaction is not None


def moves_context(decision: Decision) -> bool:
    """Whether later statements of the same message can no longer be decided once this one has run."""
    if decision.analysis is None:
        return False
    effects = decision.analysis.effects
    return changes_context(effects) or effects.transaction in (Transaction.COMMIT, Transaction.ROLLBACK)


def depends_on_context(decision: Decision) -> bool:
    """Whether what a statement does depends on names, of objects or of a prepared statement."""
    analysis = decision.analysis
    return analysis is not None and bool(
        analysis.demands or analysis.relations or analysis.effects.executes is not None
    )


def reported(frame: Frame) -> ParameterStatus | None:
    """The setting that a frame reports, if it is a ParameterStatus."""
    return ParameterStatus.decode(frame.body) if frame.tag == _PARAMETER else None
