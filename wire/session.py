"""A client's side of one session: which message is legal when, and what its names stand for. Sans-IO.

The phases follow PostgreSQL's own loop (tcop/postgres.c): the table below is all of it, and a pair that
is not in it is a protocol violation.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from gateway.parameters import size_of
from policy.model import Decision
from wire import copy, frontend, sqlstate
from wire.backend import RowDescription
from wire.fields import ProtocolError
from wire.reports import RefusalError, Report, report
from wire.texts import Forwarded, forward_one

# Names of ours in the upstream session. A client may not use them.
RESERVED_NAME = "__countersign"


class Phase(StrEnum):
    """Where the client's side stands."""

    STARTUP = "start-up"
    AUTHENTICATION = "authentication"
    READY = "ready"
    BATCH = "extended query"  # after Parse, Bind … until Sync
    SKIPPING = "failed until Sync"
    COPY_SIMPLE = "COPY from stdin"
    COPY_BATCH = "COPY from stdin in an extended query"
    CLOSED = "closed"


class Event(StrEnum):
    """What moves the phase besides the client's messages."""

    AUTHENTICATED = "authenticated"
    COPY_IN = "copy in"  # the server waits for COPY data
    ERROR = "error"  # the open batch, or the COPY, failed
    QUERIED = "queried"  # a simple query ends the open batch as a Sync would


Trigger = type[object] | Event

_EXTENDED = (frontend.Parse, frontend.Bind, frontend.Describe, frontend.Execute, frontend.Close, frontend.Flush)
_COPY = (copy.CopyData, copy.CopyDone, copy.CopyFail)


def _to(phase: Phase, *triggers: Trigger) -> dict[Trigger, Phase]:
    return dict.fromkeys(triggers, phase)


# What one client may keep open: PostgreSQL sets no bound, but a gateway serves many.
_MOST_NAMES = 5_000
_MOST_BYTES = 64 << 20
# Texts and parameters below this are bounded by their number.
_SMALL_BYTES = 8_192

# COPY messages outside of COPY are what a client still sends after its COPY failed: ignored.
# After an error everything but Sync and Terminate is skipped, a Query too.
TRANSITIONS: Mapping[Phase, Mapping[Trigger, Phase]] = {
    Phase.STARTUP: {
        **_to(Phase.STARTUP, frontend.SslRequest, frontend.GssEncRequest),
        **_to(Phase.AUTHENTICATION, frontend.StartupRequest),
        **_to(Phase.CLOSED, frontend.CancelRequest),
    },
    Phase.AUTHENTICATION: {
        **_to(Phase.AUTHENTICATION, frontend.AuthenticationResponse),
        **_to(Phase.READY, Event.AUTHENTICATED),
    },
    Phase.READY: {
        **_to(Phase.READY, frontend.Query, frontend.Sync, frontend.FunctionCall, *_COPY, Event.ERROR),
        **_to(Phase.BATCH, *_EXTENDED),
        **_to(Phase.COPY_SIMPLE, Event.COPY_IN),
        **_to(Phase.CLOSED, frontend.Terminate),
    },
    Phase.BATCH: {
        # A Query stays in the batch until it is known that the batch has not failed: it would be skipped.
        **_to(Phase.BATCH, *_EXTENDED, *_COPY, frontend.Query, frontend.FunctionCall),
        **_to(Phase.READY, frontend.Sync, Event.QUERIED),
        **_to(Phase.SKIPPING, Event.ERROR),
        **_to(Phase.COPY_BATCH, Event.COPY_IN),
        **_to(Phase.CLOSED, frontend.Terminate),
    },
    Phase.SKIPPING: {
        **_to(Phase.SKIPPING, *_EXTENDED, *_COPY, frontend.Query, frontend.FunctionCall, Event.ERROR),
        **_to(Phase.READY, frontend.Sync),
        **_to(Phase.CLOSED, frontend.Terminate),
    },
    Phase.COPY_SIMPLE: {
        **_to(Phase.COPY_SIMPLE, copy.CopyData, frontend.Sync, frontend.Flush),
        **_to(Phase.READY, copy.CopyDone, copy.CopyFail, Event.ERROR),
        **_to(Phase.CLOSED, frontend.Terminate),
    },
    Phase.COPY_BATCH: {
        **_to(Phase.COPY_BATCH, copy.CopyData, frontend.Sync, frontend.Flush),
        **_to(Phase.BATCH, copy.CopyDone, copy.CopyFail),
        **_to(Phase.SKIPPING, Event.ERROR),
        **_to(Phase.CLOSED, frontend.Terminate),
    },
    Phase.CLOSED: {},
}


@dataclass(slots=True, eq=False)
class Description:
    """What the server has said of a prepared statement.

    `raw` is the RowDescription that the client was sent; None before, and where it has no rows. `formats` are the
    result formats (Bind's) that it says. `parameters` are the types of the parameters, once they were described.
    """

    raw: bytes | None = None
    formats: tuple[int, ...] = ()
    parameters: tuple[int, ...] = ()

    def in_formats(self, formats: tuple[int, ...]) -> bytes | None:
        """The message as a portal with these result formats would be described."""
        if self.raw is not None and formats != self.formats:
            self.raw = RowDescription.decode(self.raw[5:]).in_formats(formats).encode()
            self.formats = formats
        return self.raw


@dataclass(frozen=True, slots=True)
class Prepared:
    """A statement that Parse made: the client's text, what runs for it, what was decided, its types as given.

    `description` is what the client was told of it.
    """

    name: str
    text: Forwarded
    decision: Decision
    types: tuple[int, ...] = ()
    description: Description = field(default_factory=Description)

    @property
    def parameter_types(self) -> tuple[int, ...]:
        """As far as anybody has said them; 0 for one that is not known."""
        return self.description.parameters or self.types

    @property
    def size(self) -> int:
        """Bytes of its text."""
        return len(self.text.client)


@dataclass(slots=True, eq=False)
class Used:
    """How much of its limits a result has used, over all the Executes or FETCHes that it is read by."""

    rows: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Portal:
    """A portal that Bind made, or SQL's DECLARE (`declared`): that one is read by FETCH, and Describe knows it too.

    `search_path` is what the names in it were resolved under.
    """

    name: str
    prepared: Prepared
    parameters: tuple[bytes | None, ...]
    search_path: tuple[str, ...]
    declared: bool = False
    formats: tuple[int, ...] = ()  # of its results
    used: Used = field(default_factory=Used)

    @property
    def size(self) -> int:
        """Bytes of its parameters."""
        return size_of(self.parameters)


class EndedError(Exception):
    """The conversation is over; `report` is the FATAL to send, None where nobody listens or all is said."""

    def __init__(self, report: Report | None, why: str = "the client disconnected") -> None:
        super().__init__(report["M"] if report else why)
        self.report = report


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Undo(Generic[T]):
    """How to take back one change of a book, if PostgreSQL did not accept what it stood for."""

    book: MutableMapping[str, T]
    name: str
    previous: T | None

    def apply(self) -> None:
        """Put the name back as it was."""
        if self.previous is None:
            self.book.pop(self.name, None)
        else:
            self.book[self.name] = self.previous


@dataclass(slots=True)
class WireSession:
    """The phase and the books of one client. Names change when a message is sent on; `Undo` takes that back."""

    phase: Phase = Phase.STARTUP
    statements: dict[str, Prepared] = field(default_factory=dict)
    portals: dict[str, Portal] = field(default_factory=dict)
    fetched: Used = field(default_factory=Used)  # by FETCH in this transaction, of cursors that are in no book

    def receive(self, message: object) -> Phase:
        """Move on by a client's message; returns the phase before. Raises ProtocolError where it is illegal."""
        before = self.phase
        after = TRANSITIONS[before].get(type(message))
        if after is None:
            raise ProtocolError(f"unexpected {type(message).__name__} message during {before.value}")
        self.phase = after
        return before

    def happened(self, event: Event) -> None:
        """Move on by an event; one that the phase does not know is a bug of ours."""
        self.phase = TRANSITIONS[self.phase][event]

    def prepare(self, prepared: Prepared) -> Undo[Prepared]:
        """A Parse is sent on. Raises RefusalError where the client keeps too many."""
        _check_room(self.statements, prepared, "prepared statements", "DEALLOCATE")
        return _set(self.statements, prepared.name, prepared)

    def bind(self, portal: Portal) -> Undo[Portal]:
        """A Bind is sent on. Raises RefusalError where the client keeps too many."""
        _check_room(self.portals, portal, "portals", "Close")
        return _set(self.portals, portal.name, portal)

    def prepared(self, name: str) -> Prepared:
        """The prepared statement of that name. Raises RefusalError."""
        if (found := self.statements.get(name)) is None:
            what = f'prepared statement "{name}"' if name else "unnamed prepared statement"
            raise RefusalError(report(sqlstate.INVALID_SQL_STATEMENT_NAME, f"{what} does not exist"))
        return found

    def portal(self, name: str) -> Portal:
        """The portal of that name. Raises RefusalError."""
        if (found := self.portals.get(name)) is None:
            raise RefusalError(report(sqlstate.INVALID_CURSOR_NAME, f'portal "{name}" does not exist'))
        return found

    def executable(self, name: str) -> Portal:
        """The portal of that name, if it can be executed. Raises RefusalError."""
        if (portal := self.portal(name)).declared:
            told = f"the declared cursor `{name}` cannot be executed as a portal"
            raise RefusalError(report(sqlstate.FEATURE_NOT_SUPPORTED, told, hint="Use FETCH."))
        return portal

    def close(self, kind: bytes, name: str) -> Undo[Prepared] | Undo[Portal]:
        """A Close is sent on."""
        if kind == b"S":
            return Undo(self.statements, name, self.statements.pop(name, None))
        return Undo(self.portals, name, self.portals.pop(name, None))

    def used(self, cursor: str | None, portal: Portal | None = None) -> Used:
        """What a result counts on: that of its portal, of the `cursor` that it fetches from, or its own.

        Cursors that are in no book of ours (a function opened them) count together.
        """
        if cursor is not None:
            declared = self.portals.get(cursor)
            return declared.used if declared is not None else self.fetched
        return portal.used if portal is not None else Used()

    def simple_query(self) -> None:
        """A Query is sent on: it drops the unnamed statement and portal."""
        self.statements.pop("", None)
        self.portals.pop("", None)

    def completed(self, decision: Decision, text: bytes, search_path: tuple[str, ...]) -> None:
        """A statement was run. SQL's DEALLOCATE, DECLARE and CLOSE reach the protocol's names: they are the same."""
        analysis, rewrite = decision.analysis, decision.verdict.rewrite
        if analysis is None or rewrite is None:
            return
        effects = analysis.effects
        _forget(self.statements, effects.deallocates)
        _forget(self.portals, effects.closes)
        if (name := effects.declares) is not None:
            prepared = Prepared(name, forward_one(text, rewrite), decision)
            self.portals[name] = Portal(name, prepared, (), search_path, declared=True)

    def transaction_over(self) -> None:
        """Portals live no longer than their transaction; of those that were declared only the server knows."""
        self.fetched = Used()
        self.portals = {name: portal for name, portal in self.portals.items() if portal.declared}


def check_name(name: str) -> None:
    """Raises RefusalError for a name that is ours."""
    if name == RESERVED_NAME:
        raise RefusalError(
            report(sqlstate.RESERVED_NAME, f"the name `{name}` is the gateway's own", hint="Use another name.")
        )


def _forget(book: dict[str, T], name: str | None) -> None:
    """Drop a name; all names for the empty one."""
    if name == "":
        book.clear()
    elif name is not None:
        book.pop(name, None)


def _check_room(
    book: Mapping[str, Prepared] | Mapping[str, Portal], new: Prepared | Portal, what: str, cure: str
) -> None:
    others = len(book) - (new.name in book)
    large = new.size > _SMALL_BYTES
    if others >= _MOST_NAMES or (
        large and new.size + sum(kept.size for name, kept in book.items() if name != new.name) > _MOST_BYTES
    ):
        text = f"too many {what} are open: at most {_MOST_NAMES}, of {_MOST_BYTES >> 20} MiB together"
        raise RefusalError(report(sqlstate.PROGRAM_LIMIT_EXCEEDED, text, hint=f"{cure} what is not needed any more."))


def _set(book: dict[str, T], name: str, value: T) -> Undo[T]:
    undo = Undo(book, name, book.get(name))
    book[name] = value
    return undo
