"""Results that are read page by page: the task that owns an upstream session, and the cursors that name it.

A `Reading` is the only user of its leased upstream. Its task holds the lease and the grant from the first
row to the outcome, so that a cancelled call, an ended session and a forgotten cursor all end the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from gateway.admission import Gateway, Grant
from gateway.drafts import denial, outcome_of
from gateway.errors import CountersignError, InvariantViolatedError, LimitExceededError, SessionEndedError
from gateway.model import Outcome, Session, Status
from gateway.upstream import ResultColumn, Upstream, UpstreamError, rows_of
from policy.detection import Found
from policy.model import Principal
from server import mcp_messages
from server.mcp_failures import CallError, PostgresError
from server.mcp_messages import Row
from server.mcp_portal import PageLimit, Portal
from server.mcp_types import TypeBook
from server.values import TypeFacts

# Statements that run or can be continued, for one principal: each has a connection to PostgreSQL.
_READINGS_PER_PRINCIPAL = 32

_LOOK_FIRST = "If its statement was running, it may have taken effect: look before you repeat it."


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of one statement. `tag` is None while there are `more`; `dropped` rows were only counted."""

    grant: Grant
    columns: tuple[ResultColumn, ...]
    types: Mapping[int, TypeFacts]
    rows: list[Row]
    tag: str | None
    more: bool
    dropped: int
    notices: tuple[str, ...]
    detected: tuple[Found, ...]  # so far


class Reading:
    """One statement: admitted, run and read by its own task."""

    def __init__(
        self,
        gateway: Gateway,
        session: Session,
        admit: Callable[[], AbstractAsyncContextManager[Grant]],
        types: TypeBook,
        idle_seconds: float,
    ) -> None:
        self.session = session
        self._gateway = gateway
        self._admit = admit
        self._types = types
        self._idle_seconds = idle_seconds
        self._asks: asyncio.Queue[tuple[PageLimit, asyncio.Future[Piece]]] = asyncio.Queue()
        self._answer: asyncio.Future[Piece] | None = None
        self._why_ended = "the call was cancelled"
        self._grant: Grant | None = None
        self._task = asyncio.create_task(self._run(), name="mcp reading")
        session.on_end.append(self._session_ended)

    async def next(self, limit: PageLimit) -> Piece:
        """The next rows. Raises what the path raises; a cancelled call cancels the statement."""
        if self._task.done():
            raise gone()
        answer: asyncio.Future[Piece] = asyncio.get_running_loop().create_future()
        self._asks.put_nowait((limit, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            self._task.cancel()
            raise

    async def check_standing(self) -> None:
        """End it with a recorded RefusedError where the policy would not allow it any more, or not as it runs."""
        if (grant := self._grant) is None or self._task.done():
            return
        statement, decision = grant.statement, grant.decision
        if await self._gateway.holds(self.session, statement.text, decision):
            return
        self.abandon("the policy says something else of it now")
        await self.finished()  # then nobody finds it any more
        text = "what the policy says of this statement has changed since its first rows"
        await self._gateway.begin(
            [statement], [denial(decision, "statement.outdated", text, "Send the statement again.")]
        )

    def abandon(self, reason: str) -> None:
        """End it soon; its outcome is what was delivered."""
        self._why_ended = reason
        self._task.cancel()

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call back once nothing more will come."""
        self._task.add_done_callback(lambda _: callback())

    async def finished(self) -> None:
        """Return once nothing more will come and the outcome is written."""
        await asyncio.wait([self._task])

    # -- the task -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        error: BaseException
        try:
            self._reply(await self._serve())
            error = gone()
        except asyncio.CancelledError:
            error = SessionEndedError(self._why_ended, cure=_LOOK_FIRST)
        except Exception as failure:  # boundary: it is raised again in the call that waits for it
            error = failure
        finally:
            with contextlib.suppress(ValueError):
                self.session.on_end.remove(self._session_ended)
        if isinstance(error, InvariantViolatedError):
            self._gateway.close_session(self.session, error.text)
        self._fail_waiting(error)

    async def _serve(self) -> Piece | None:
        refused: Exception | None = None
        piece: Piece | None = None
        async with self._gateway.lease(self.session) as upstream:
            try:
                piece = await self._granted(upstream)
            except (CountersignError, PostgresError) as error:
                refused = error  # the upstream is as clean as before: it goes back to the pool
        if refused is not None:
            raise refused
        return piece

    async def _granted(self, upstream: Upstream) -> Piece | None:
        async with self._admit() as grant:
            self._grant = grant
            portal = Portal(upstream, grant)
            try:
                return await self._pages(upstream, grant, portal)
            except UpstreamError as raw:
                error = UpstreamError(portal.screen.report(raw.fields))
                grant.finish(portal.outcome(outcome_of(error)))
                quiet = await self._hides_something(grant)
                failure = PostgresError(error, grant.statement, grant.decision, grant.id, quiet=quiet)
                grant.transcript.message(mcp_messages.report(b"E", failure.shown))
                raise failure from None
            except BaseException as error:
                if grant.outcome is None:
                    grant.finish(portal.outcome(None if portal.done else outcome_of(error)))
                await upstream.disconnect()
                raise

    async def _pages(self, upstream: Upstream, grant: Grant, portal: Portal) -> Piece | None:
        """Deliver pages until the result is read, or nobody asks; the last one is delivered by the caller,
        after the outcome is durable."""
        connection = grant.statement.session.connection.name
        types = await self._types.of(connection, grant.decision.catalog, upstream)
        limit = await self._asked()
        assert limit is not None, "a reading is made for a call that asks at once"
        if grant.counted:
            await upstream.probe("BEGIN")
        await portal.open(limit, lambda columns: self._check_origins(grant, columns))
        while True:
            try:
                rows = await portal.take(limit)
            except LimitExceededError as error:
                grant.finish(portal.refused(error, outcome_of(error)))
                raise
            more = await portal.more()
            notices, portal.notices = tuple(portal.notices), []
            tag = None if more else portal.tag
            piece = Piece(
                grant, portal.columns, types, rows, tag, more, portal.dropped, notices, tuple(portal.screen.findings)
            )
            if not more:
                if grant.counted:
                    await self._commit(upstream, grant, portal)
                grant.finish(portal.completed())
                return piece
            self._reply(piece)
            try:
                asked = await self._asked()
            except asyncio.CancelledError:
                grant.finish(portal.outcome())  # nothing runs: the client has what it asked for
                raise
            if asked is None:
                await portal.close()
                grant.finish(portal.outcome())
                return None
            limit = asked

    async def _commit(self, upstream: Upstream, grant: Grant, portal: Portal) -> None:
        """Make a counted write last, unless it changed more rows than it was allowed for: RowCountError."""
        error = await self._gateway.too_many(grant, rows_of(portal.tag))
        if error is None:
            await upstream.probe("COMMIT")
            return
        await upstream.probe("ROLLBACK")
        rolled_back = Outcome(Status.FAILED, sqlstate=error.sqlstate, message=f"rolled back: {error.text}")
        grant.finish(portal.refused(error, rolled_back))
        raise error

    async def _asked(self) -> PageLimit | None:
        """What the next call asks for; None if none comes in time."""
        try:
            async with asyncio.timeout(self._idle_seconds):
                limit, self._answer = await self._asks.get()
        except TimeoutError:
            return None
        return limit

    def _reply(self, piece: Piece | None) -> None:
        if piece is not None and self._answer is not None and not self._answer.done():
            self._answer.set_result(piece)
        self._answer = None

    def _fail_waiting(self, error: BaseException) -> None:
        waiting = [self._answer] if self._answer is not None else []
        while not self._asks.empty():
            waiting.append(self._asks.get_nowait()[1])
        for answer in waiting:
            if not answer.done():
                answer.set_exception(error)

    def _session_ended(self, reason: str) -> None:
        self._why_ended = f"the session is over: {reason}"
        self._task.cancel()

    async def _hides_something(self, grant: Grant) -> bool:
        """Whether a relation of the statement has rows or columns that the principal may not see raw.

        Then PostgreSQL's details may hold what the answer may not: the whole failing row of a
        constraint, the key that another row has. Asked of the policy, which knows best.
        """
        analysis = grant.decision.analysis
        if analysis is None or grant.rewrite.hides:
            return True
        catalog = await self._gateway.catalog(self.session)
        for oid in analysis.relations:
            relation = catalog.relations.get(oid)
            if relation is None:
                return True
            name = f"{quoted(relation.schema)}.{quoted(relation.name)}"
            reading = await self._gateway.decide(self.session, f"SELECT * FROM {name}".encode())  # noqa: S608 - decided, never run
            if reading.verdict.rewrite is None or reading.verdict.rewrite.splices:
                return True
        return False

    def _check_origins(self, grant: Grant, columns: tuple[ResultColumn, ...]) -> None:
        """INVARIANT: no column of a result comes raw from a masked attribute, or whole from its relation."""
        hidden = grant.rewrite.origins
        relations = {relation for relation, _ in hidden}
        for column in columns:
            raw = (column.table, column.attribute) in hidden
            whole = column.attribute == 0 and column.table in relations
            if raw or whole:
                detail = f"column `{column.name}` comes from {column.table}.{column.attribute}"
                self._gateway.invariant_violated(grant, detail)
                raise InvariantViolatedError(
                    "the gateway failed to mask a column and delivered nothing",
                    cure=f"Report it with the reference {grant.id}.",
                )


def quoted(name: str) -> str:
    """An identifier as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def gone() -> CallError:
    """The answer to a cursor that names nothing (any more)."""
    return CallError(
        "this cursor is unknown, read to its end or expired",
        "Run the query again; with ORDER BY and a WHERE beyond the last row you can go on where you were.",
    )


class Cursors:
    """All readings, and the names by which clients go on with some: a bounded number per session."""

    def __init__(self, gateway: Gateway, *, per_session: int, idle_seconds: float) -> None:
        self._gateway = gateway
        self._per_session = per_session
        self._idle_seconds = idle_seconds
        self._types = TypeBook()
        self._readings: set[Reading] = set()  # also what keeps their tasks alive
        self._named: dict[str, Reading] = {}

    def begin(self, session: Session, admit: Callable[[], AbstractAsyncContextManager[Grant]]) -> Reading:
        """Start to run what `admit` grants, once `Reading.next` asks for rows.

        Each reading holds an upstream session, and one client may not take them all: raises LimitExceededError.
        """
        principal = session.principal
        if sum(reading.session.principal == principal for reading in self._readings) >= _READINGS_PER_PRINCIPAL:
            raise LimitExceededError(
                f"`{principal.subject}` has {_READINGS_PER_PRINCIPAL} statements running or open cursors here",
                cure="Wait for them, or read the open cursors to their end.",
            )
        reading = Reading(self._gateway, session, admit, self._types, self._idle_seconds)
        self._readings.add(reading)
        reading.when_done(lambda: self._readings.discard(reading))
        return reading

    def name(self, reading: Reading) -> str:
        """Give a reading a name. The session's oldest named one makes room if there are too many."""
        mine = [name for name, other in self._named.items() if other.session is reading.session]
        for old in mine[: max(0, len(mine) + 1 - self._per_session)]:
            self._named.pop(old).abandon("newer cursors of this session took its place")
        name = "cur-" + secrets.token_urlsafe(15)
        self._named[name] = reading
        reading.when_done(lambda: self._forget(name))
        return name

    def find(self, name: str, principal: Principal) -> Reading:
        """The reading of this name, for the principal who began it; to all others it does not exist.

        Raises CallError.
        """
        reading = self._named.get(name)
        if reading is None or reading.session.principal != principal:
            raise gone()
        return reading

    def _forget(self, name: str) -> None:
        self._named.pop(name, None)

    async def close(self) -> None:
        """End all readings, outcomes included."""
        for reading in list(self._readings):
            reading.abandon("the gateway is shutting down")
            await reading.finished()
