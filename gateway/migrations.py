"""Migrations: several statements proposed as one, rehearsed where nothing of it lasts, approved, and run once.

Each statement is decided with what those before it have done, in the rehearsal and again in the run, and has an
intent and an outcome of its own; the migration as a whole has them too, and an entry with the difference that it made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from audit.approvals import ApprovalRecord, State
from audit.entry import Kind
from gateway import rehearsal
from gateway.admission import Gateway, Grant
from gateway.approvals import Pending, rejection
from gateway.drafts import draft
from gateway.errors import ApprovalPendingError, CountersignError, MigrationError, SessionEndedError
from gateway.inventory import Inventory, changes
from gateway.migration_rehearsal import Walk, rehearse
from gateway.migration_run import ATTEMPTS, LOCK_TIMEOUT, Progress, Run, look, unheard
from gateway.model import Outcome, Session, Statement, Status
from gateway.undo import as_script, undo
from gateway.upstream import UpstreamError, UpstreamLostError
from policy.catalog import Catalog
from policy.engine import NotAnalysableError, split
from policy.model import Analysis, Decision, Effect, Effects, Rewrite, Verdict

log = logging.getLogger(__name__)


class Migrations:
    """Proposes and runs them, on the one path."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def propose(self, session: Session, text: bytes, title: str, request: dict[str, str]) -> Pending:
        """Ask people about a migration, with what a rehearsal showed.

        Raises RefusedError where the policy denies a statement, MigrationError for what is no migration or fails
        in the rehearsal, AuditUnavailableError, UpstreamUnavailableError.
        """
        texts = _split(text)
        base = await self._gateway.connections.latest(session.connection)
        async with _while_open(session):
            walk = await rehearse(self._gateway, session, texts, base)
        statement = Statement(replace(session, search_path=walk.search_path), text, request=request)
        try:
            decision = _combined(text, walk.decisions, base)
            await self._gateway.propose(statement, decision, _evidence(session, walk, title))
        except ApprovalPendingError as pending:
            return pending.pending
        raise AssertionError("a proposal always waits")

    async def run(self, record: ApprovalRecord, session: Session, progress: Progress = unheard) -> Grant:
        """Run an approved migration, once, for who proposed it; returns its grant, settled.

        It is rehearsed again first, so that a difference voids it before anything is used up. Raises
        ApprovalRejectedError, RefusedError, MigrationError with what PostgreSQL said.
        """
        if record.state is not State.APPROVED:
            raise rejection(record)
        async with _while_open(session):
            return await self._run(record, session, progress)

    async def _run(self, record: ApprovalRecord, session: Session, progress: Progress) -> Grant:
        text = record.statement.encode()
        texts = _split(text)
        await progress(0, len(texts), "it is rehearsed once more")
        base = await self._gateway.connections.latest(session.connection)
        walk = await rehearse(self._gateway, session, texts, base)
        decision = _combined(text, walk.decisions, base)
        statement = Statement(replace(session, search_path=walk.search_path), text, request={"approval": record.id})
        before = await look(self._gateway, session)
        async with self._gateway.admit_decided(record, statement, decision) as whole:
            run = Run(self._gateway, whole, texts, walk.plan, progress)
            try:
                await run.steps()
            finally:
                self._gateway.connections.changed(session)
                await asyncio.shield(self._record(record, run, before, walk.kinds))
            message = f"attempt {run.attempts}"
            whole.finish(Outcome(Status.COMPLETED, tag=f"MIGRATION {len(texts)}", message=message))
        return whole

    async def _record(self, record: ApprovalRecord, run: Run, before: Inventory, kinds: Sequence[str]) -> None:
        """Write down what became of the schema, however the run ended."""
        body: dict[str, object] = {"approval": record.id, "steps": len(run.plan)}
        body |= {"done": len(run.done), "left": dict(run.left)}
        try:
            after = await look(self._gateway, run.whole.statement.session)
            body |= {"changes": changes(before, after), "undo": as_script(undo(before, after, kinds))}
        except (CountersignError, UpstreamError, UpstreamLostError) as error:
            body["unknown"] = str(error)
        session = run.whole.statement.session
        self._gateway.recorder.post(
            draft(Kind.SCHEMA_CHANGED, session, run.whole.id, **body),
            failed=lambda error: log.error("what a migration changed cannot be recorded: %s", error),
        )


@asynccontextmanager
async def _while_open(session: Session) -> AsyncIterator[None]:
    """Cancel the block when the session ends. Raises SessionEndedError."""
    task = asyncio.current_task()
    assert task is not None

    def ended(_: str) -> None:
        task.cancel()

    session.on_end.append(ended)
    try:
        yield
    except asyncio.CancelledError:
        if session.ended is None:
            raise
        task.uncancel()
        raise SessionEndedError(f"the session is over: {session.ended}", cure="Connect again.") from None
    finally:
        session.on_end.remove(ended)


def is_migration(record: ApprovalRecord) -> bool:
    """Whether an approval is about a migration."""
    return record.evidence is not None and "migration" in record.evidence


def _split(text: bytes) -> list[bytes]:
    try:
        texts = [text[start:end] for start, end in split(text)]
    except NotAnalysableError as error:
        raise MigrationError(f"the migration cannot be read: {error}", cure="Send plain PostgreSQL.") from None
    if not texts:
        raise MigrationError("the migration holds no statement")
    return texts


def _evidence(session: Session, walk: Walk, title: str) -> rehearsal.Evidence:
    """What approvers see of it."""
    patience = f"waiting {LOCK_TIMEOUT} for each lock, {ATTEMPTS} times"
    how, steps = f"in one transaction, {patience}", len(walk.plan)
    if steps > 1 or walk.plan[0].outside:
        how = f"in {steps} step{'s' * (steps > 1)}, {patience}; what a step has done stays done if a later one fails"
    return {
        "migration": {
            "title": title,
            "rehearsed": walk.why_not is None,
            "why_not": walk.why_not,
            "where": "on a shadow without rows" if session.connection.rehearse == "shadow" else "on the live database",
            "how": how,
            "steps": [str(step) for step in walk.plan],
            "statements": walk.steps,
            "changes": walk.changes,
            "read_by": sorted(walk.readers),
            "undo": as_script(walk.undo),
        }
    }


def _combined(text: bytes, decisions: Sequence[Decision], base: Catalog) -> Decision:
    """One decision about the whole: what all statements demand, of what was there before the first."""
    asking = [d for d in decisions if d.verdict.effect is Effect.APPROVE]
    if not asking:
        raise MigrationError("no statement of it needs approval", cure="Run them with `query`.")
    analyses = [d.analysis for d in decisions if d.analysis is not None]
    relations = frozenset(oid for a in analyses for oid in a.relations if oid in base.relations)
    touched = frozenset(d.oid or 0 for a in analyses for d in a.demands) & base.relations.keys()
    return Decision(
        verdict=Verdict(
            Effect.APPROVE,
            tuple(dict.fromkeys(reason for d in asking for reason in d.verdict.reasons)),
            Rewrite(text),
            tuple(dict.fromkeys(terms for d in asking for terms in d.verdict.terms)),
        ),
        analysis=Analysis(
            text=text,
            kind="Migration",
            demands=tuple(demand for a in analyses for demand in a.demands),
            effects=Effects(writes=True, catalog=True),
            relations=relations | touched,
        ),
        policy=decisions[0].policy,
        catalog=base.epoch,
    )
