"""Migrations: several statements proposed as one, rehearsed in a rolled-back transaction, approved, and run once.

Each statement is decided with what those before it have done, in the rehearsal and again in the run, and has an
intent and an outcome of its own; the migration as a whole has them too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from audit.approvals import ApprovalRecord, State
from gateway import rehearsal, schema_changes
from gateway.admission import Gateway, Grant
from gateway.approvals import Pending, rejection
from gateway.errors import ApprovalPendingError, ApprovalRejectedError, MigrationError, RefusedError
from gateway.lint import lint
from gateway.model import Outcome, Session, Statement, Status
from gateway.upstream import Upstream, UpstreamError
from policy.catalog import Catalog
from policy.engine import NotAnalysableError, split
from policy.model import Analysis, Decision, Effect, Effects, Rewrite, Verdict

# A run waits so long for each lock, then lets everybody else go first, so many times.
_LOCK_TIMEOUT = "3s"
_ATTEMPTS = 4
_PAUSE_SECONDS = 1.0
_LOCK_NOT_AVAILABLE = "55P03"
_OUTSIDE = ("VacuumStmt", "ReindexStmt", "CreatedbStmt", "DropdbStmt")
_OF_SESSIONS = ("VariableSetStmt", "VariableShowStmt", "DiscardStmt", "DeclareCursorStmt", "ListenStmt")
_EVENT_TRIGGERS = "SELECT evtname FROM pg_catalog.pg_event_trigger WHERE evtenabled IN ('O', 'A') LIMIT 1"


@dataclass(slots=True)
class _Walk:
    """What came of going through a migration's statements."""

    decisions: list[Decision] = field(default_factory=list)
    steps: list[dict[str, object]] = field(default_factory=list)
    changes: list[dict[str, str | None]] = field(default_factory=list)
    search_path: tuple[str, ...] = ()
    why_not: str | None = None  # why nothing was run


class Migrations:
    """Proposes and runs them, on the one path."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def propose(self, session: Session, text: bytes, title: str, request: dict[str, str]) -> Pending:
        """Ask people about a migration, with what a rehearsal showed.

        Raises RefusedError where the policy denies a statement, MigrationError for what is no migration or fails
        in the rehearsal, AuditUnavailableError, UpstreamUnavailableError.
        """
        texts = self._split(text)
        base = await self._gateway.connections.latest(session.connection)
        walk = await self._rehearse(session, texts)
        decision = _combined(text, walk.decisions, base)
        outside = any(map(_outside, walk.decisions))
        evidence: rehearsal.Evidence = {
            "migration": {
                "title": title,
                "rehearsed": walk.why_not is None,
                "why_not": walk.why_not,
                "how": "one by one, outside of a transaction: what is done stays done if a later one fails"
                if outside
                else f"in one transaction, waiting {_LOCK_TIMEOUT} for each lock, {_ATTEMPTS} times",
                "statements": walk.steps,
                "changes": walk.changes,
            }
        }
        statement = Statement(replace(session, search_path=walk.search_path), text, request=request)
        try:
            await self._gateway.propose(statement, decision, evidence)
        except ApprovalPendingError as pending:
            return pending.pending
        raise AssertionError("a proposal always waits")

    async def run(self, record: ApprovalRecord, session: Session) -> Grant:
        """Run an approved migration, once, for who proposed it; returns its grant, settled.

        It is rehearsed again first, so that a difference voids it before anything is used up. Raises
        ApprovalRejectedError, RefusedError, MigrationError with what PostgreSQL said.
        """
        if record.state is not State.APPROVED:
            raise rejection(record)
        text = record.statement.encode()
        texts = self._split(text)
        base = await self._gateway.connections.latest(session.connection)
        walk = await self._rehearse(session, texts)
        decision = _combined(text, walk.decisions, base)
        statement = Statement(replace(session, search_path=walk.search_path), text, request={"approval": record.id})
        async with self._gateway.admit_decided(record, statement, decision) as whole:
            tried = await self._run(whole, texts, any(map(_outside, walk.decisions)))
            whole.finish(Outcome(Status.COMPLETED, tag=f"MIGRATION {len(texts)}", message=f"attempt {tried}"))
        self._gateway.connections.changed(session)
        return whole

    # -- inside ---------------------------------------------------------------------------------------

    def _split(self, text: bytes) -> list[bytes]:
        try:
            texts = [text[start:end] for start, end in split(text)]
        except NotAnalysableError as error:
            raise MigrationError(f"the migration cannot be read: {error}", cure="Send plain PostgreSQL.") from None
        if not texts:
            raise MigrationError("the migration holds no statement")
        return texts

    async def _rehearse(self, session: Session, texts: Sequence[bytes]) -> _Walk:
        """Decide each statement and run it in a transaction that is rolled back."""
        walk, gateway = _Walk(), self._gateway
        shadow = replace(session, stale=True, catalog=None, on_end=[])
        async with gateway.connections.aside(session) as upstream:
            await gateway.refresh(shadow, upstream)
            walk.search_path = shadow.search_path
            await _begin(upstream, rehearsal.LOCK_TIMEOUT, rehearsal.STATEMENT_TIMEOUT)
            walk.why_not = await _not_rehearsed(session, upstream)
            before = await schema_changes.inventory(upstream)
            for number, text in enumerate(texts, 1):
                statement = Statement(shadow, text)
                decision = await gateway.decide(shadow, text)
                if decision.verdict.effect is Effect.DENY:
                    await gateway.begin([statement], [decision])  # records the refusal and raises it
                _check_kind(number, decision)
                walk.decisions.append(decision)
                step = await self._rehearse_step(walk, upstream, statement, decision, number)
                assert decision.analysis is not None
                walk.steps.append(step | {"lint": await lint(decision.analysis.text + b"\n")})
            walk.changes = schema_changes.changes(before, await schema_changes.inventory(upstream))
            await upstream.probe("ROLLBACK")
        return walk

    async def _rehearse_step(
        self, walk: _Walk, upstream: Upstream, statement: Statement, decision: Decision, number: int
    ) -> dict[str, object]:
        gateway, session = self._gateway, statement.session
        step: dict[str, object] = {"text": statement.text.decode(), "kind": _kind(decision)}
        catalog = await gateway.catalog(session)
        why = walk.why_not or ("it cannot run in a transaction" if _outside(decision) else None)
        why = why or rehearsal.outside_effects(decision, catalog) or await rehearsal.draws(upstream, decision, catalog)
        if why is not None:
            walk.why_not = walk.why_not or (None if _outside(decision) else f"statement {number}: {why}")
            return step | {"note": f"not rehearsed: {why}"}
        files = await schema_changes.files(upstream)
        held = await schema_changes.locks(upstream, files)
        async with gateway.rehearsing(statement, decision) as grant:
            started = time.perf_counter()
            tag = await _open(upstream, grant, number)
            step |= {"duration_ms": round((time.perf_counter() - started) * 1000, 1), "tag": tag}
            grant.finish(Outcome(Status.REHEARSED, tag=tag))
        taken = sorted(await schema_changes.locks(upstream, files) - held)
        step |= {
            "locks": [{"relation": relation, "mode": mode} for relation, mode in taken],
            "rewrites": schema_changes.rewritten(files, await schema_changes.files(upstream)),
        }
        await gateway.refresh(session, upstream)
        return step

    async def _run(self, whole: Grant, texts: Sequence[bytes], outside: bool) -> int:
        """Run all statements; the number of attempts that it took."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._attempt(whole, texts, outside)
                return attempt
            except MigrationError as error:
                if outside or error.reported != _LOCK_NOT_AVAILABLE or attempt == _ATTEMPTS:
                    raise
            await asyncio.sleep(_PAUSE_SECONDS * attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, whole: Grant, texts: Sequence[bytes], outside: bool) -> None:
        gateway, session = self._gateway, replace(whole.statement.session, stale=True, catalog=None)
        grants: list[Grant] = []
        # The connection is closed first: what the outcomes say of it is then true.
        async with AsyncExitStack() as settling, gateway.connections.aside(session) as upstream:
            try:
                await gateway.refresh(session, upstream)
                if outside:
                    await upstream.probe(f"SET lock_timeout TO '{_LOCK_TIMEOUT}'")
                else:
                    await _begin(upstream, _LOCK_TIMEOUT, "0")
                for number, text in enumerate(texts, 1):
                    decision = await gateway.decide(session, text)
                    statement = Statement(session, text, request={"migration": whole.id})
                    grant = await settling.enter_async_context(gateway.admit_step(whole, statement, decision))
                    grants.append(grant)
                    grant.finish(Outcome(Status.COMPLETED, tag=await _open(upstream, grant, number)))
                    if decision.analysis is not None and decision.analysis.effects.catalog:
                        gateway.connections.changed(session)
                    await gateway.refresh(session, upstream)
                if not outside:
                    await _commit(upstream)
            except BaseException as error:
                if not outside:
                    _taken_back(grants, error)
                raise


async def _commit(upstream: Upstream) -> None:
    try:
        await upstream.probe("COMMIT")
    except UpstreamError as error:
        raise MigrationError(
            f"the migration fails at its end ({error.sqlstate})", cure="Nothing of it lasts.", reported=error.sqlstate
        ) from None


def _taken_back(grants: Sequence[Grant], error: BaseException) -> None:
    """Say of statements that had run what came of them when their transaction did not last, or may not have."""
    known = isinstance(error, MigrationError | ApprovalRejectedError | RefusedError)
    ended = Outcome(
        Status.FAILED if known else Status.UNKNOWN,
        message="rolled back with its migration" if known else "its migration was interrupted",
    )
    for grant in grants:
        if grant.outcome is not None and grant.outcome.status is Status.COMPLETED:
            grant.finish(ended)


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


def _check_kind(number: int, decision: Decision) -> None:
    """Refuse what would end the migration's transaction, or leave something behind in its session."""
    effects = decision.analysis.effects if decision.analysis else Effects()
    if effects.transaction is not None:
        raise MigrationError(
            f"statement {number} of the migration controls the transaction", cure="Leave BEGIN and COMMIT out."
        )
    if effects.copy_in or effects.copy_out or effects.prepares or effects.executes or _kind(decision) in _OF_SESSIONS:
        raise MigrationError(f"statement {number} of the migration needs a client's session", cure="Leave it out.")


def _kind(decision: Decision) -> str:
    return decision.analysis.kind if decision.analysis else ""


def _outside(decision: Decision) -> bool:
    """Whether PostgreSQL may refuse it in a transaction. A name that holds the word only costs the transaction."""
    analysis = decision.analysis
    return analysis is not None and (analysis.kind in _OUTSIDE or b"concurrently" in analysis.text.lower())


async def _begin(upstream: Upstream, lock_timeout: str, statement_timeout: str) -> None:
    await upstream.probe("BEGIN")
    await upstream.probe(f"SET LOCAL lock_timeout TO '{lock_timeout}'")
    await upstream.probe(f"SET LOCAL statement_timeout TO '{statement_timeout}'")


async def _not_rehearsed(session: Session, upstream: Upstream) -> str | None:
    """Why no migration is rehearsed here."""
    if session.connection.rehearse == "off":
        return "rehearsals are off on this connection"
    if found := await upstream.probe(_EVENT_TRIGGERS):
        return f"the event trigger `{found[0][0]}` would run, and what it does outside cannot be taken back"
    return None


async def _open(upstream: Upstream, grant: Grant, number: int) -> str | None:
    """Run one statement; the command tag. Texts of errors in values' classes are kept back: they quote rows."""
    try:
        return (await upstream.open(grant.sql, (), 0)).tag
    except UpstreamError as error:
        grant.finish(Outcome(Status.FAILED, sqlstate=error.sqlstate, message="failed in its migration"))
        said = f": {error}" if error.sqlstate.startswith(("42", "0A", "25", "55", "57")) else ""
        raise MigrationError(
            f"statement {number} of the migration fails ({error.sqlstate}{said})",
            cure="Nothing of it lasts, unless it ran outside of a transaction.",
            reported=error.sqlstate,
        ) from None


def is_migration(record: ApprovalRecord) -> bool:
    """Whether an approval is about a migration."""
    return record.evidence is not None and "migration" in record.evidence


def check_requester(record: ApprovalRecord, session: Session) -> None:
    """Raise ApprovalRejectedError unless this principal proposed it."""
    if (record.requester_issuer, record.requester_subject) != (session.principal.issuer, session.principal.subject):
        raise ApprovalRejectedError(f"approval `{record.id}` was asked for by somebody else")
