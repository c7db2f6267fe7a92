"""One client's conversation after start-up: each message decided, recorded, sent on; each answer relayed.

Two directions. The client's messages are taken one at a time by `run`. The upstream's bytes come through
`wire.relaying`, and pass to the client untouched but for errors, whose texts and positions are mapped
back. `Replies` knows which answer belongs to which message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from gateway.admission import Gateway, Grant
from gateway.errors import CountersignError
from gateway.model import Outcome, Session, Statement, Status
from gateway.upstream import UpstreamError, UpstreamLostError
from policy.detection import NOTHING
from policy.detectors import Kinds
from policy.model import Decision, Effect
from wire import backend, copy, cursors, frontend, implicit, reports, searching, sqlstate
from wire.batch import Batch
from wire.batched import POISON, BatchedRuns
from wire.client import ClientConnection, ClientGoneError
from wire.codec import Received
from wire.fields import ProtocolError
from wire.idling import IdleClock, Waiting
from wire.limiting import Limiter
from wire.occupancy import DoorLimits
from wire.parking import Parking
from wire.rechecking import recheck, renewed
from wire.relaying import Relaying
from wire.replies import InvariantError, Owed, Owes, Replies
from wire.reports import RefusalError, Report
from wire.session import EndedError, Event, Phase, Portal, Prepared, WireSession, check_name
from wire.simple import decide_each
from wire.stopping import stop
from wire.texts import forward_all, forward_one
from wire.upstream import UpstreamSession

log = logging.getLogger(__name__)

_CANCEL_SECONDS = 5.0  # for a cancelled statement to answer; then its outcome is unknown
# Messages sent on without an answer: a pipeline longer than this is answered in between.
_UNANSWERED = 10_000
# Messages that may be taken one after the other while all other clients wait.
_AT_ONCE = 50


class Conversation:
    """The relay between one client and its own upstream session."""

    def __init__(
        self,
        client: ClientConnection,
        wire: WireSession,
        upstream: UpstreamSession,
        session: Session,
        gateway: Gateway,
        limits: DoorLimits,
    ) -> None:
        self._client = client
        self._wire = wire
        self._upstream = upstream
        self._session = session
        self._gateway = gateway
        self._replies = Replies(
            wire, self._settle, self._transaction_ended, looks_for=self._looks_for, name=session.client.name or ""
        )
        self._progress = asyncio.Event()
        self._over: EndedError | None = None
        self._batch = Batch()
        self._parking = Parking(client, gateway, upstream)
        self._batched = BatchedRuns(client, upstream, self._replies, gateway, self._forward, self._until_idle)
        self._limiter = Limiter(wire, self._replies, self.cancel)
        self._cancelling: asyncio.Task[None] | None = None
        self._refreshed_in_batch = False
        self._executed = False  # an Execute of the open batch was sent on
        self._joined = False  # a simple query has joined such a batch: `wire.implicit`
        self._drained: Report | None = None  # what to end with as soon as nothing runs
        self._parted = False  # the client left; nothing went wrong
        self._listening = False  # waits for the client's next message
        self._idle = IdleClock(limits, self._waiting, self.end)
        client.on_gone = self._client_gone
        client.on_writable = upstream.resume_reading
        session.on_end.append(self._session_ended)
        self._relaying = Relaying(
            client,
            upstream,
            self._replies,
            self._limiter,
            self._idle,
            self._progress,
            end=self.end,
            violated=self._violated,
        )
        upstream.attach(self._relaying)

    # -- the client's messages ------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the client, the upstream or the session ends it. Raises EndedError with what to tell the client."""
        self._idle.start()
        taken = 0  # messages since others had their turn
        try:
            while True:
                if self._upstream.congested:
                    await self._uncongested()
                if taken == _AT_ONCE:
                    await asyncio.sleep(0)
                    taken = 0
                self._check()
                received = self._client.ready()
                if received is None:
                    received, taken = await self._next(), 0
                taken += 1
                self._idle.touch()
                if isinstance(received.message, frontend.Terminate):
                    self._parted = True
                    return
                if self._drained is not None and self.quiet:
                    raise EndedError(self._drained)
                if self._cancelling is not None and not self._cancelling.done():
                    # The signal is on its way: it must not meet what this message begins.
                    await self._cancelling
                before = self._wire.receive(received.message)
                await self._handle(before, received)
        except ClientGoneError:
            self._parted = True
            raise EndedError(None) from None
        except ProtocolError as error:
            raise EndedError(reports.fatal(error.sqlstate, str(error))) from None
        except (UpstreamError, UpstreamLostError) as error:
            raise EndedError(reports.fatal(sqlstate.CONNECTION_FAILURE, str(error))) from None
        except CountersignError as error:
            raise EndedError(reports.of_error(error, severity="FATAL")) from None

    async def close(self) -> None:
        """Let nothing run on, and give every statement an outcome. The client hears nothing of it any more."""
        self._replies.unheard = True
        self._idle.stop()
        reusable = self._parted and self.quiet and self._upstream.plain and not self._upstream.batch_open
        self._batch.clear(self._replies)
        self._upstream.resume_reading()
        with contextlib.suppress(ValueError):
            self._session.on_end.remove(self._session_ended)
        if any(True for _ in self._replies.unsettled()) and self._upstream.connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CANCEL_SECONDS):
                    await stop(self._upstream, self._replies, self._progress)
        self._replies.abandon(Status.UNKNOWN, sqlstate.CONNECTION_FAILURE, "the connection ended before an answer came")
        if self._cancelling is not None:
            await self._cancelling
        if reusable and not self._upstream.cancelled and not self._upstream.congested:
            self._upstream.detach()
            self._upstream.transaction_status = "I"
            await self._gateway.connections.give_back(self._upstream)
        else:
            await self._upstream.disconnect()

    def cancel(self) -> None:
        """A CancelRequest came: withdraw what waits for approval, or cancel what runs."""
        if self._parking.withdraw() or self._replies.idle:
            return
        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.create_task(self._upstream.cancel())

    def end(self, report: Report | None) -> None:
        """End it from outside: the client's last message is this report, or the FATAL that the server has sent."""
        if self._over is None:
            fatal = self._replies.fatal
            self._over = EndedError(report) if fatal is None else EndedError(None, fatal["M"])
        self._parking.abandon()
        self._progress.set()
        self._client.wake()

    def drain(self, report: Report) -> None:
        """End it as soon as nothing runs and no transaction is open: nothing new begins."""
        self._drained = report
        if self.quiet:
            self.end(report)

    @property
    def quiet(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return self._replies.idle and not self._parking.occupied and self._replies.status == "I"

    @property
    def mid_row(self) -> bool:
        """Whether the client has got a part of a row, so that it would take a message for the rest."""
        return self._relaying.mid_row

    def _waiting(self) -> Waiting:
        if self._listening and (self._replies.copying or self._batch.held):
            return Waiting.CLIENT_IN_TRANSACTION
        if not self._listening or not self._replies.idle:
            return Waiting.SERVER
        in_transaction = self._upstream.batch_open or self._replies.status != "I"
        return Waiting.CLIENT_IN_TRANSACTION if in_transaction else Waiting.CLIENT

    async def _next(self) -> Received:
        self._listening = True
        try:
            while True:
                await self._client.more()
                self._check()
                if (received := self._client.ready()) is not None:
                    return received
        finally:
            self._listening = False

    def _check(self) -> None:
        if self._over is not None:
            raise self._over

    async def _handle(self, before: Phase, received: Received) -> None:
        message = received.message
        if before is Phase.SKIPPING and not isinstance(message, frontend.Sync):
            return
        try:
            if before is Phase.BATCH and isinstance(message, frontend.Query | frontend.FunctionCall):
                await self._drain()
                if self._wire.phase is Phase.SKIPPING:
                    return
                self._wire.happened(Event.QUERIED)
                self._before_query()
            match message:
                case copy.CopyData() | copy.CopyDone() | copy.CopyFail():
                    await self._copy(received)
                case frontend.Query():
                    await self._query(message)
                case frontend.Parse():
                    await self._parse(message)
                case frontend.Bind():
                    await self._bind(message, received.raw)
                case frontend.Describe():
                    await self._describe(message, received.raw)
                case frontend.Execute():
                    await self._execute(message, received.raw)
                case frontend.Close():
                    await self._close_name(message, received.raw)
                case frontend.Flush():
                    self._forward(received.raw)
                    await self._uncongested()
                case frontend.Sync():
                    await self._sync(before, received.raw)
                case frontend.FunctionCall():
                    raise RefusalError(reports.FAST_PATH)
                case _:
                    raise ProtocolError(f"unexpected {type(message).__name__} message")
        except RefusalError as refusal:
            await self._refuse(before, message, refusal.report)

    # -- simple query ---------------------------------------------------------------------------------

    async def _query(self, message: frontend.Query) -> None:
        await self._until_idle()
        statements, decisions, starts = await decide_each(
            message.text, self._session, self._gateway, self._wire.portals, self._freshen
        )
        grants = await self._begin(message.text, statements, decisions, starts)
        forwarded = forward_all(
            message.text, [(start, grant.rewrite) for start, grant in zip(starts, grants, strict=True)]
        )
        self._wire.simple_query()
        self._joined = self._joined or self._executed
        self._batch_over()
        if len(grants) == 1 and grants[0].counted:
            await self._batched.counted(grants[0], forwarded)
            return
        deliveries = tuple(self._limiter.delivery(grant) for grant in grants)
        if len(grants) == 1 and searching.copies(decisions[0]):
            await self._batched.searched(deliveries[0], forwarded)
            return
        self._replies.expect(
            Owed(
                Owes.QUERY,
                text=forwarded,
                deliveries=deliveries,
                origins=frozenset().union(*(grant.rewrite.origins for grant in grants)),
            )
        )
        self._upstream.write(frontend.Query(forwarded.sql).encode())
        await self._until(lambda: self._replies.idle or self._replies.copying)

    # -- extended query -------------------------------------------------------------------------------

    async def _parse(self, message: frontend.Parse) -> None:
        check_name(message.name)
        await self._freshen()
        decision = await self._gateway.decide(self._session, message.text, runs=False)
        if decision.verdict.effect is Effect.DENY:
            await self._begin(message.text, [Statement(self._session, message.text)], [decision], [0])
        rewrite = decision.verdict.rewrite
        assert rewrite is not None, "a verdict that is no deny has a rewrite"
        forwarded = forward_one(message.text, rewrite)
        self._session.prepared.pop(message.name, None)
        undo = self._wire.prepare(Prepared(message.name, forwarded, decision, message.types))
        await self._send(
            Owed(Owes.PARSE, text=forwarded, undo=undo),
            frontend.Parse(message.name, rewrite.sql, message.types).encode(),
        )

    async def _bind(self, message: frontend.Bind, raw: bytes) -> None:
        check_name(message.portal)
        await self._freshen()
        prepared = await self._renewed(self._wire.prepared(message.statement))
        formats, search_path = message.results, self._session.search_path
        parameters = message.readable(prepared.parameter_types)
        portal = Portal(message.portal, prepared, parameters, search_path, formats=formats)
        await self._send(Owed(Owes.BIND, text=prepared.text, undo=self._wire.bind(portal)), raw)

    async def _renewed(self, prepared: Prepared) -> Prepared:
        """The statement, prepared again under its name if a new policy rewrites it in another way."""
        if prepared.decision.policy == self._gateway.policies.current.hash:
            return prepared
        decision = await self._gateway.decide(self._session, prepared.text.client, runs=False)
        if (again := renewed(prepared, decision)) is None:
            return prepared
        parse = frontend.Parse(again.name, again.text.sql, again.types)
        await self._send(Owed(Owes.CLOSE, hidden=True), frontend.Close(b"S", again.name).encode())
        await self._send(Owed(Owes.PARSE, text=again.text, undo=self._wire.prepare(again), hidden=True), parse.encode())
        return again

    async def _describe(self, message: frontend.Describe, raw: bytes) -> None:
        await self._freshen()
        portal = self._wire.portal(message.name) if message.kind == b"P" else None
        prepared = portal.prepared if portal else self._wire.prepared(message.name)
        rewrite = prepared.decision.verdict.rewrite
        owed = Owed(
            Owes.DESCRIBE,
            text=prepared.text,
            origins=rewrite.origins if rewrite else frozenset(),
            description=prepared.description,
            formats=portal.formats if portal else (),
        )
        await self._send(owed, raw)

    async def _execute(self, message: frontend.Execute, raw: bytes) -> None:
        await self._freshen()
        portal = self._wire.executable(message.portal)
        prepared, session = portal.prepared, self._session
        text = prepared.text.client
        decision = await self._gateway.decide(session, text, portal.parameters)
        decision = await cursors.checked(decision, self._wire.portals, session, self._gateway)
        if decision.analysis is not None and decision.analysis.kind == "Empty":
            await self._send(Owed(Owes.EXECUTE, text=prepared.text), raw)
            return
        counted = self._gateway.counts(decision)
        catalog = await self._gateway.catalog(session)
        decision = recheck(decision, portal, session.search_path, catalog, in_parts=counted and message.max_rows > 0)
        statement = Statement(session, text, portal.parameters)
        [grant] = await self._begin(text, [statement], [decision], [0])
        if grant.sql != prepared.text.sql:
            # The approval took its time, and the policy changed meanwhile: what was approved is not what runs.
            self._settle(grant, Outcome(Status.FAILED, message="the rewrite changed while it waited"))
            raise RefusalError(reports.CHANGED)
        delivery = self._limiter.delivery(grant, portal)
        self._executed = True
        for described, asking in searching.describing(delivery, message.portal, prepared.text):
            await self._send(described, asking)
        await self._send(
            Owed(
                Owes.EXECUTE,
                text=prepared.text,
                deliveries=(delivery,),
                origins=grant.rewrite.origins,
                withhold=grant.counted,
            ),
            raw,
        )
        if grant.counted:
            await self._batched.settle(grant)
        if decision.analysis is not None and decision.analysis.effects.copy_in:
            # Only the server's word says whether the client's next messages are COPY data.
            self._forward(frontend.Flush().encode())
            await self._until(lambda: self._replies.idle or self._replies.copying)

    async def _close_name(self, message: frontend.Close, raw: bytes) -> None:
        check_name(message.name)
        if message.kind == b"S":
            self._session.prepared.pop(message.name, None)
        await self._send(Owed(Owes.CLOSE, undo=self._wire.close(message.kind, message.name)), raw)

    async def _sync(self, before: Phase, raw: bytes) -> None:
        if before in (Phase.COPY_SIMPLE, Phase.COPY_BATCH):
            return  # the server ignores it there, and so do we
        if self._joined and before is not Phase.SKIPPING:
            for owed in implicit.begun():
                self._replies.expect(owed)
            raw = implicit.BEGIN + raw
        self._joined = False
        self._end_batch(Owed(Owes.SYNC), raw)
        await self._uncongested()
        if self._replies.waiting >= _UNANSWERED:
            await self._until_idle()

    async def _send(self, owed: Owed, raw: bytes) -> None:
        """One message of a batch goes on, unless the batch failed while the message was being decided.

        Neither what the server does not take nor what it does not answer may pile up here.
        """
        if self._wire.phase is Phase.SKIPPING:
            self._replies.skip(owed)
            return
        self._replies.expect(owed)
        self._upstream.batch_open = True
        if self._batch.hold(owed, raw):
            self._forward(b"")
            await self._uncongested()
        if self._replies.waiting >= _UNANSWERED:
            await self._drain()

    def _before_query(self) -> None:
        """A batch that has executed nothing is ended: else what we ask in it would be what a simple query joins."""
        if not self._executed:
            self._end_batch(Owed(Owes.SYNC, hidden=True), frontend.Sync().encode())

    def _end_batch(self, owed: Owed, raw: bytes) -> None:
        self._replies.expect(owed)
        self._forward(raw)
        self._batch_over()

    def _forward(self, raw: bytes) -> None:
        """Send what was held back of the batch, and this behind it."""
        self._upstream.write(self._batch.take() + raw)

    # -- COPY -----------------------------------------------------------------------------------------

    async def _copy(self, received: Received) -> None:
        if not self._replies.copying:
            return  # what a client still sends after its COPY failed
        self._upstream.write(received.raw)
        if isinstance(received.message, copy.CopyData):
            await self._uncongested()
            return
        self._replies.copy_ended()
        if self._wire.phase is Phase.READY:
            await self._until_idle()

    # -- admission ------------------------------------------------------------------------------------

    async def _begin(
        self, text: bytes, statements: list[Statement], decisions: list[Decision], starts: list[int]
    ) -> list[Grant]:
        """Grants. Raises RefusalError; a failing audit ends the session."""
        try:
            grants = await self._parking.begin(
                text, statements, decisions, starts, in_transaction=self._replies.status == "T"
            )
        except asyncio.CancelledError:
            self._check()
            if self._client.gone:
                raise ClientGoneError from None
            raise
        self._limiter.time(grants)
        return grants

    async def _freshen(self) -> None:
        """Make sure that what was sent before has taken effect in what the next decision is made on."""
        if self._replies.moving:
            await self._drain()
        if self._session.stale and not self._replies.aborted:
            await self._drain()
            await self._refresh()

    async def _refresh(self) -> None:
        """Read the catalog anew, unless the transaction or the batch failed meanwhile: then nothing can be read."""
        if self._replies.aborted or self._wire.phase is Phase.SKIPPING:
            return
        # Inside an unfinished batch the server has an implicit transaction open.
        self._refreshed_in_batch = self._replies.dirty
        self._upstream.transaction_status = "T" if self._replies.dirty else self._replies.status
        await self._gateway.refresh(self._session, self._upstream)

    def _batch_over(self) -> None:
        """What was read inside a batch ends with it: by a failure, or as SET LOCAL does, by succeeding."""
        self._upstream.batch_open = False
        self._executed = False
        if self._refreshed_in_batch:
            self._refreshed_in_batch = False
            self._session.stale = True

    async def _drain(self) -> None:
        """Wait until everything sent so far is answered."""
        if not self._replies.idle and self._upstream.batch_open:
            self._forward(frontend.Flush().encode())
        await self._until_idle()

    # -- refusals -------------------------------------------------------------------------------------

    async def _refuse(self, before: Phase, message: object, report: Report) -> None:
        """Answer with our own error, in order, with PostgreSQL's own consequences for the transaction."""
        if self._wire.phase is Phase.SKIPPING:
            return  # the batch had failed already, and the client has heard why
        simple = isinstance(message, frontend.Query | frontend.FunctionCall)
        if not simple:
            await self._send(Owed(Owes.POISON, substitute=report), POISON)
            await self._drain()
        elif before is Phase.BATCH or self._replies.status == "T":
            self._end_batch(Owed(Owes.QUERY, substitute=report), frontend.Query(b"refused by the gateway").encode())
            await self._until_idle()
        else:
            ready = backend.ReadyForQuery(self._replies.status)
            self._client.send(backend.ErrorResponse(report).encode() + ready.encode())

    # -- waiting --------------------------------------------------------------------------------------

    async def _until_idle(self) -> None:
        await self._until(lambda: self._replies.idle)

    async def _uncongested(self) -> None:
        await self._until(lambda: not self._upstream.congested)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds. Raises EndedError, ClientGoneError."""
        while not condition():
            self._check()
            if self._client.gone:
                raise ClientGoneError
            self._progress.clear()
            await self._progress.wait()
        self._check()

    def _client_gone(self) -> None:
        self._replies.unheard = True
        self._parking.abandon()
        self._progress.set()

    def _session_ended(self, reason: str) -> None:
        self.end(reports.fatal(sqlstate.ADMIN_SHUTDOWN, f"terminating connection: {reason}"))

    # -- what the upstream's direction tells ----------------------------------------------------------

    def _violated(self, error: InvariantError) -> None:
        """A raw masked column was about to leave: nothing of it does, and the session ends."""
        log.critical("%s", error.detail)
        if error.grant is not None:
            self._gateway.invariant_violated(error.grant, error.detail)
        self._replies.abandon(Status.FAILED, sqlstate.DATA_CORRUPTED, error.detail)
        self.end(reports.NOT_MASKED)

    def _transaction_ended(self) -> None:
        if self._session.schema_changed:
            # What it changed is everybody's only now: others may have looked since, and seen nothing.
            self._gateway.connections.changed(self._session)

    def _looks_for(self) -> Kinds:
        detection = self._gateway.policies.current.detection(self._session.principal, self._session.connection.name)
        return detection.kinds if detection is not None else NOTHING

    def _settle(self, grant: Grant, outcome: Outcome) -> None:
        self._gateway.settle(grant, outcome)
        if grant.decision.analysis is not None and outcome.status is Status.COMPLETED:
            self._wire.completed(grant.decision, grant.statement.text, self._session.search_path)
