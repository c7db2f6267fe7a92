"""The one path: decide, get approval, make the intent durable, hand out the grant, write the outcome.

INVARIANT: a `Grant` exists only if its intent is durable in the audit. Only this module makes one, and
nothing upstream runs a client's statement without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

from audit.approvals import ApprovalRecord, Conflict, State
from audit.entry import Draft, Entry, Kind
from audit.recording import Mode
from audit.writer import Item
from gateway import rehearsal
from gateway.aftermath import note_effects
from gateway.approvals import Approvals, Pending, rejection
from gateway.asking import Asking
from gateway.connections import Connections
from gateway.deciding import Decider, remember
from gateway.drafts import (
    Author,
    denial,
    draft,
    intent_of,
    new_statement_id,
    outcome_entry,
    outcome_of,
    pending_entry,
    refusal_entries,
)
from gateway.errors import (
    ApprovalPendingError,
    ApprovalRejectedError,
    AuditUnavailableError,
    CountersignError,
    LimitExceededError,
    RefusedError,
    RowCountError,
    SessionEndedError,
)
from gateway.identity import VerifiedToken
from gateway.metering import Meter
from gateway.model import ClientInfo, Connection, Door, Outcome, Session, Statement, Status
from gateway.policies import PolicyBook
from gateway.recorder import Recorder, unrecorded
from gateway.rehearsal import Expected
from gateway.sessions import Sessions
from gateway.transcript import RecordingBounds, Transcript
from gateway.upstream import Upstream
from gateway.voting import asked
from policy.catalog import Catalog
from policy.limits import UNLIMITED, Limits
from policy.masking import masked_for_others
from policy.model import Decision, Effect, Principal, Rewrite

_MINT = object()


class Grant:
    """The proof that a statement was decided and its intent is durable. Only this module makes one.

    `rewrite` holds the text to run, `sql`, and what is masked in it; `parameters` go with it; `id` names the
    statement in the audit. A door tells `transcript` what it sends to the client, as it leaves.
    """

    __slots__ = (
        "decision",
        "expected",
        "id",
        "limits",
        "outcome",
        "parameters",
        "rewrite",
        "settled",
        "started",
        "statement",
        "transcript",
    )

    def __init__(
        self,
        mint: object,
        id: str,
        statement: Statement,
        decision: Decision,
        *,
        limits: Limits = UNLIMITED,
        expected: Expected | None = None,
        bounds: RecordingBounds = RecordingBounds(),  # noqa: B008 - frozen
    ) -> None:
        if mint is not _MINT or decision.verdict.rewrite is None:
            raise RuntimeError("a grant is made by gateway.admission only")
        self.id = id
        self.statement = statement
        self.decision = decision
        self.limits = limits
        self.expected = expected  # how many rows people approved
        self.rewrite: Rewrite = decision.verdict.rewrite
        self.parameters = statement.parameters
        self.started = time.perf_counter()
        concealed = statement.parameters if decision.conceals else ()
        self.transcript = Transcript(statement.session, bounds, self.started, concealed)
        self.outcome: Outcome | None = None
        self.settled = False

    @property
    def sql(self) -> bytes:
        """The text to run."""
        return self.rewrite.sql

    @property
    def counted(self) -> bool:
        """Whether its transaction must stay open until `Gateway.too_many` has said nothing against its row count."""
        return self.decision.counts or self.expected is not None

    def too_large(self, rows: int, size: int) -> LimitExceededError | None:
        """The error with which a result of so many rows and bytes must stop; None where it may go on."""
        bound = self.decision.at_most
        if bound is not None and rows > bound:
            remember(self.statement, rows)
            return LimitExceededError(
                f"the result has more than the {bound} rows that it was allowed for",
                cure="What was delivered stays delivered. Ask for less; sent again, it is decided by this count.",
            )
        why = self.limits.exceeded_by(rows, size)
        cure = "Ask for less: a narrower condition, an aggregate or a LIMIT."
        return None if why is None else LimitExceededError(why, cure=cure)

    def finish(self, outcome: Outcome) -> None:
        """Say what came of it; `Gateway.admit` writes it on leaving the block."""
        self.outcome = outcome

    @property
    def duration_ms(self) -> float:
        """Milliseconds since the grant was given."""
        return round((time.perf_counter() - self.started) * 1000, 3)


class Gateway:
    """One per process: everything a door needs."""

    def __init__(
        self,
        *,
        recorder: Recorder,
        approvals: Approvals,
        policies: PolicyBook,
        connections: Connections,
        sessions: Sessions,
        instance: str,
        bounds: RecordingBounds | None = None,
    ) -> None:
        self.recorder = recorder
        self.approvals = approvals
        self.policies = policies
        self.connections = connections
        self.sessions = sessions
        self._author = Author(instance, policies.digest_key)
        self._decider = Decider(policies, connections)
        self._meter = Meter()
        self._asking = Asking(approvals)
        self._bounds = bounds or RecordingBounds()

    # -- sessions -------------------------------------------------------------------------------------

    async def open_session(self, token: VerifiedToken, connection: str, door: Door, client: ClientInfo) -> Session:
        """Start a session; raises UnknownConnectionError, AuthenticationError, AuditUnavailableError."""
        named = self.connections.named(connection)
        return await self.sessions.open(token, self._as_used_by(token.principal, named), door, client)

    def _as_used_by(self, principal: Principal, connection: Connection) -> Connection:
        writes = self.policies.current.may_write(principal, connection.name)
        return connection.for_principal(principal, writes=writes)

    def close_session(self, session: Session, reason: str) -> None:
        """End it and record it; a second call does nothing."""
        self.sessions.close(session, reason)

    async def refuse_login(
        self, error: CountersignError, door: Door, client: ClientInfo, connection: str | None
    ) -> None:
        """Record that somebody was turned away at a door."""
        await self.sessions.record_refusal(error, door, client, connection)

    async def refresh(self, session: Session, upstream: Upstream, *first: str) -> None:
        """Ask the session's own upstream for search path and, in a transaction that changed the schema, catalog.

        Call while `session.stale` and the upstream's transaction status is not `E`. Statements of the gateway's own may
        go `first`, in the same round trip.
        """
        await self.connections.refresh(session, upstream, *first)

    @asynccontextmanager
    async def lease(self, session: Session) -> AsyncIterator[Upstream]:
        """A clean upstream session from the pool, for statements that stand alone; `session` is refreshed on it."""
        # A policy of today may let the principal write, or write no longer.
        session.connection = self._as_used_by(session.principal, session.connection)
        async with self.connections.lease(session) as upstream:
            yield upstream

    # -- deciding -------------------------------------------------------------------------------------

    async def catalog(self, session: Session) -> Catalog:
        """The snapshot that this session's statements are decided against."""
        return await self._decider.catalog(session)

    async def decide(
        self, session: Session, text: bytes, parameters: Sequence[bytes | None] = (), *, runs: bool = True
    ) -> Decision:
        """The verdict on one statement's text; see `gateway.deciding.Decider.decide`."""
        return await self._decider.decide(session, text, parameters, runs=runs)

    async def holds(self, session: Session, text: bytes, before: Decision) -> bool:
        """Whether a statement may give out more of its result; see `gateway.deciding.Decider.holds`."""
        return await self._decider.holds(session, text, before)

    async def too_many(self, grant: Grant, rows: int) -> RowCountError | None:
        """The error with which a counted statement must be rolled back; None where its grant covers the count."""
        if (expected := grant.expected) is not None and not expected.at_least <= rows <= expected.at_most:
            return RowCountError(
                f"the statement changes {rows} rows, and people approved {expected.rows}"
                f" ({expected.at_least} to {expected.at_most})",
                cure="Nothing was changed. Send it again to ask for approval of what it does now.",
            )
        if not grant.decision.counts:
            return None
        return await self._decider.too_many(grant.statement, grant.decision, rows)

    def counts(self, decision: Decision) -> bool:
        """Whether the rows of a statement will be counted, if it runs."""
        return decision.counts or (decision.verdict.effect is Effect.APPROVE and rehearsal.is_write(decision))

    # -- the path -------------------------------------------------------------------------------------

    async def begin(
        self,
        statements: Sequence[Statement],
        decisions: Sequence[Decision],
        *,
        on_pending: Callable[[Pending], Awaitable[None]] | None = None,
    ) -> list[Grant]:
        """Admit a batch: all or none. One fsync for all intents.

        A deny records every refusal and raises RefusedError. An approve with `on_pending` parks: the
        callback hears of it, and the call returns when people have approved (or raises
        ApprovalRejectedError); without it ApprovalPendingError is raised at once. Cancelling the call
        withdraws the request.
        """
        for statement in statements:
            self._check_alive(statement.session)
        worst = max((d.verdict.effect for d in decisions), default=Effect.ALLOW)
        if worst is Effect.DENY:
            raise await self._record_refusal(statements, decisions)
        allowance = self._allowance(statements[0].session) if statements else UNLIMITED
        if statements and (refusal := self._over_limit(statements, allowance)):
            raise await self._record_refusal(statements, [denial(d, *refusal) for d in decisions])
        if worst is Effect.APPROVE:
            if len(statements) != 1:
                text = "a statement that needs approval cannot be part of several in one message"
                decision = denial(decisions[0], "approval.batch", text, "Send it on its own.")
                raise await self._record_refusal(statements, [decision] * len(statements))
            return [await self._begin_approved(statements[0], decisions[0], on_pending)]
        ids = [new_statement_id() for _ in statements]
        limits = self._meter.left(statements[0].session.principal, allowance) if statements else UNLIMITED
        bounds = self._recorded(statements[0].session) if statements else self._bounds
        return await self._granted(
            [intent_of(self._author, *of) for of in zip(ids, statements, decisions, strict=True)],
            lambda: [
                Grant(_MINT, *of, limits=limits, bounds=bounds) for of in zip(ids, statements, decisions, strict=True)
            ],
        )

    def settle(self, grant: Grant, outcome: Outcome) -> None:
        """Queue the outcome, in order, without waiting; if it cannot be written the session ends."""
        if grant.settled:
            return
        session = grant.statement.session
        self._note_effects(grant, outcome)
        self.recorder.post(
            outcome_entry(self._author, grant, outcome),
            failed=lambda error: self.sessions.end(session, unrecorded(error).text),
        )

    @asynccontextmanager
    async def admit(self, statement: Statement, decision: Decision | None = None) -> AsyncIterator[Grant]:
        """`begin` and `settle` around a block, for one statement; the outcome is durable on leaving.

        A block that raises ends in the outcome that its error says: `failed` with PostgreSQL's SQLSTATE,
        `unknown` where the upstream was lost, `cancelled`.
        """
        if decision is None:
            decision = await self.decide(statement.session, statement.text, statement.parameters)
        [grant] = await self.begin([statement], [decision])
        async with self._settled(grant):
            yield grant

    @asynccontextmanager
    async def admit_approved(self, approval_id: str, session: Session) -> AsyncIterator[Grant]:
        """The stored statement of an approved request, once, for the principal who asked.

        `session` must be the requester's, on the request's connection, refreshed. Raises
        ApprovalRejectedError where there is no such permission any more.
        """
        record = await self.approvals.get(approval_id)
        if not asked(record, session.principal):
            raise ApprovalRejectedError(f"approval `{approval_id}` was asked for by somebody else")
        if record.door != session.door.value:
            raise ApprovalRejectedError(
                f"approval `{approval_id}` was asked for at the {record.door} door, where its statement waits to run"
            )
        statement = Statement(
            session=session,
            text=record.statement.encode(),
            parameters=tuple(None if p is None else p.encode() for p in record.parameters),
            request={"approval": approval_id},
        )
        async with self._settled(await self._consume(record, statement)) as grant:
            yield grant

    @asynccontextmanager
    async def rehearsing(self, statement: Statement, decision: Decision) -> AsyncIterator[Grant]:
        """A grant for a run that the caller rolls back, whatever comes of it; the intent says so."""
        statement_id = new_statement_id()
        [grant] = await self._granted(
            [intent_of(self._author, statement_id, statement, decision, rehearsal=True)],
            lambda: [Grant(_MINT, statement_id, statement, decision)],
        )
        async with self._settled(grant):
            yield grant

    async def propose(self, statement: Statement, decision: Decision, evidence: rehearsal.Evidence) -> None:
        """Ask people about a decision that was made and measured elsewhere. Always raises ApprovalPendingError."""
        self._check_alive(statement.session)
        await self._begin_approved(statement, decision, None, evidence)

    @asynccontextmanager
    async def admit_decided(
        self, record: ApprovalRecord, statement: Statement, decision: Decision
    ) -> AsyncIterator[Grant]:
        """The single use of an approval for what was decided just now; it must fit what the yes is bound to."""
        async with self._settled(await self._consume(record, statement, decision)) as grant:
            yield grant

    @asynccontextmanager
    async def admit_step(self, whole: Grant, statement: Statement, decision: Decision) -> AsyncIterator[Grant]:
        """One statement of something approved as a whole, while `whole` is under way and the policy is the same."""
        self._check_alive(whole.statement.session)
        if decision.verdict.effect is Effect.DENY:
            raise await self._record_refusal([statement], [decision])
        if whole.settled or decision.policy != whole.decision.policy:
            raise ApprovalRejectedError("the policy has changed since the approval", cure="Propose it again.")
        statement_id = new_statement_id()
        [grant] = await self._granted(
            [intent_of(self._author, statement_id, statement, decision)],
            lambda: [Grant(_MINT, statement_id, statement, decision)],
        )
        async with self._settled(grant):
            yield grant

    async def refuse(self, statement: Statement, decision: Decision, text: str, cure: str) -> RefusedError:
        """Record that a door itself cannot run a statement; returns the error to show."""
        return await self._record_refusal([statement], [denial(decision, "door", text, cure)])

    def invariant_violated(self, grant: Grant, detail: str) -> None:
        """Record, loudly, that a raw masked column was about to leave. The door ends the session."""
        session = grant.statement.session
        entry = draft(Kind.INVARIANT_VIOLATED, session, grant.id, detail=detail)
        self.recorder.post(entry, failed=lambda error: self.sessions.end(session, str(error)))

    # -- inside ---------------------------------------------------------------------------------------

    def _allowance(self, session: Session) -> Limits:
        return self.policies.current.limits_of(session.principal, session.connection.name)

    def _over_limit(self, statements: Sequence[Statement], allowance: Limits) -> tuple[str, str, str] | None:
        principal = statements[0].session.principal
        return self._meter.refusal(principal, allowance, len(statements), time.monotonic())

    def _recorded(self, session: Session) -> RecordingBounds:
        """How much of what this session is sent is recorded."""
        mode = self.policies.current.recording_of(session.principal, session.connection.name)
        return self._bounds if mode is None else replace(self._bounds, mode=Mode(mode))

    def _check_alive(self, session: Session) -> None:
        if session.ended is None and datetime.now(UTC) >= session.expires:
            self.sessions.end(session, "the session's token has expired")
        if session.ended is not None:
            raise SessionEndedError(f"the session is over: {session.ended}", cure="Connect again.")

    async def _record_refusal(self, statements: Sequence[Statement], decisions: Sequence[Decision]) -> RefusedError:
        """Write intents and refusals of a batch; returns the error of the first denied one."""
        entries, error = refusal_entries(self._author, statements, decisions)
        await self.recorder.record(*entries)
        return error

    async def _begin_approved(
        self,
        statement: Statement,
        decision: Decision,
        on_pending: Callable[[Pending], Awaitable[None]] | None,
        evidence: rehearsal.Evidence | None = None,
    ) -> Grant:
        session, statement_id = statement.session, new_statement_id()
        self._asking.begun(session.principal)
        try:
            if (unfit := await self._asking.unfit(statement, decision)) is not None:
                raise await self._record_refusal([statement], [unfit])
            catalog = await self.catalog(session)
            if evidence is None:
                evidence = await self._evidence(statement, decision, catalog)
        except BaseException:
            self._asking.over(session.principal)
            raise
        request, pending = self.approvals.request_item(
            statement, decision, catalog, statement_id, self._author.parameters(statement, decision), evidence
        )
        outcome = pending_entry(self._author, statement_id, session, pending)
        intent = intent_of(self._author, statement_id, statement, decision, approval=pending.id)
        asking = asyncio.ensure_future(self.recorder.record(intent, outcome, request))
        asking.add_done_callback(lambda _: self._asking.over(session.principal))
        if on_pending is None:
            await asking
            raise ApprovalPendingError(pending)
        try:
            await asyncio.shield(asking)
            await on_pending(pending)
            record = await self.approvals.wait(pending.id, None)
        except BaseException:
            # The client went away or took it back: nobody may approve what nobody waits for.
            with contextlib.suppress(CountersignError):
                await asyncio.shield(self._take_back(asking, pending, session))
            raise
        return await self._consume(record, statement)

    async def _evidence(self, statement: Statement, decision: Decision, catalog: Catalog) -> rehearsal.Evidence | None:
        """What approvers are shown of a write's effect: it runs under a grant of its own, and is rolled back."""
        if decision.streams:
            return rehearsal.size_of(decision, self.policies.current.thresholds)
        if not rehearsal.is_write(decision):
            return None
        if (why := rehearsal.obstacle(statement.session.connection, decision, catalog)) is not None:
            return rehearsal.not_measured(decision, why)

        async def masked(sql: str) -> Rewrite | None:
            reading = await self.decide(statement.session, sql.encode())
            return reading.verdict.rewrite if reading.verdict.effect is Effect.ALLOW else None

        principal, target = statement.session.principal, rehearsal.target_of(decision, catalog)
        # Who decides may see less than who asks.
        kept = masked_for_others(self.policies.current, principal, catalog, target) if target else frozenset[str]()
        async with self.rehearsing(statement, decision) as grant:
            return await rehearsal.rehearse(self.connections, grant, catalog, rehearsal.Sampling(masked, kept))

    async def _take_back(self, asking: Awaitable[object], pending: Pending, session: Session) -> None:
        await asking  # what is not written yet cannot be withdrawn
        await self.approvals.withdraw(pending.id, session)

    async def _consume(self, record: ApprovalRecord, statement: Statement, decision: Decision | None = None) -> Grant:
        """Check that the yes still fits, use it up and make the intent durable: one transaction."""
        if record.state is not State.APPROVED:
            raise rejection(record)
        session = statement.session
        self._check_alive(session)
        if session.catalog is None:
            # The yes is bound to the schema: a snapshot of a moment ago will not do.
            await self.connections.latest(session.connection)
        if decision is None:
            decision = await self.decide(session, statement.text, statement.parameters)
        if decision.verdict.effect is Effect.DENY:
            raise await self._record_refusal([statement], [decision])
        await self.approvals.check_binding(record, statement, decision, await self.catalog(session))
        bounds = (decision.at_most, rehearsal.approved_rows(record.evidence))
        decision = decision._replace(at_most=min((bound for bound in bounds if bound is not None), default=None))
        if (record := await self.approvals.get(record.id)).state is not State.APPROVED:
            raise rejection(record)  # its time ran out while we looked
        statement_id, expected = new_statement_id(), Expected.read(record.evidence)
        recorded, limits = self._recorded(session), self._meter.left(session.principal, self._allowance(session))
        if rehearsal.approved_rows(record.evidence) is not None:
            limits = replace(limits, rows=None)  # people were asked how many
        try:
            [grant] = await self._granted(
                [
                    self.approvals.consume_item(record, session, statement_id),
                    intent_of(self._author, statement_id, statement, decision, approval=record.id),
                ],
                lambda: [
                    Grant(_MINT, statement_id, statement, decision, limits=limits, expected=expected, bounds=recorded)
                ],
            )
        except Conflict:
            raise rejection(await self.approvals.get(record.id)) from None
        return grant

    async def _granted(self, intents: Sequence[Item | Draft], make: Callable[[], list[Grant]]) -> list[Grant]:
        """Make the intents durable, then the grants. Whoever is cancelled meanwhile leaves no statement open."""
        writing = asyncio.ensure_future(self.recorder.record(*intents))

        def nobody_waits(written: asyncio.Future[Sequence[Entry]]) -> None:
            if not written.cancelled() and written.exception() is None:
                for grant in make():
                    self.settle(grant, outcome_of(asyncio.CancelledError()))

        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            writing.add_done_callback(nobody_waits)
            raise
        return make()

    @asynccontextmanager
    async def _settled(self, grant: Grant) -> AsyncIterator[Grant]:
        try:
            yield grant
        except BaseException as error:
            if grant.outcome is None:
                grant.finish(outcome_of(error))
            raise
        finally:
            if not grant.settled:
                outcome = grant.outcome or Outcome(Status.UNKNOWN, message="the door said nothing of it")
                self._note_effects(grant, outcome)
                try:
                    await asyncio.shield(self.recorder.record(outcome_entry(self._author, grant, outcome)))
                except AuditUnavailableError as error:
                    self.sessions.end(grant.statement.session, unrecorded(error).text)
                    raise unrecorded(error) from None

    def _note_effects(self, grant: Grant, outcome: Outcome) -> None:
        """Keep the session's books after a statement: what may have changed is asked for again."""
        grant.settled = True
        self._meter.add_rows(grant.statement.session.principal, outcome.rows)
        note_effects(grant, outcome, self.connections)
