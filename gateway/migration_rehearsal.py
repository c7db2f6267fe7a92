"""A migration gone through before it runs: each statement decided, and tried where nothing of it lasts.

On the live database everything is in one transaction that is rolled back, and what cannot be in one is not tried. On a
shadow, a database without rows that is dropped afterwards, all steps are tried as they will run.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from gateway import catalog, inventory, rehearsal, schema_changes, shadow
from gateway.admission import Gateway, Grant
from gateway.errors import MigrationError
from gateway.inventory import Inventory
from gateway.lint import lint
from gateway.model import Outcome, Session, Statement, Status
from gateway.steps import Step, steps_of
from gateway.undo import Line, undo
from gateway.upstream import Upstream, UpstreamError
from policy.catalog import Catalog, Relation, RelationKind
from policy.model import Action, Analysis, Decision, Demand, Effect, Effects, ObjectKind

_OF_SESSIONS = ("VariableSetStmt", "VariableShowStmt", "DiscardStmt", "DeclareCursorStmt", "ListenStmt")
_EVENT_TRIGGERS = "SELECT evtname FROM pg_catalog.pg_event_trigger WHERE evtenabled IN ('O', 'A') LIMIT 1"
_UNCOMMITTED_VALUE = "55P04"  # a new value of an enum
# What lies in one database, and goes with it.
_IN_A_DATABASE = (ObjectKind.RELATION, ObjectKind.FUNCTION, ObjectKind.SCHEMA, ObjectKind.TYPE)


@dataclass(slots=True)
class Walk:
    """What came of going through a migration's statements. `decisions` are about objects of the live database."""

    plan: list[Step]
    decisions: list[Decision] = field(default_factory=list)
    steps: list[dict[str, object]] = field(default_factory=list)
    changes: list[dict[str, str | None]] = field(default_factory=list)
    undo: Sequence[Line] = ()
    search_path: tuple[str, ...] = ()
    why_not: str | None = None  # why nothing was tried, or nothing further
    skipped: int | None = None  # the first statement that was not tried although those behind it are
    readers: set[str] = field(default_factory=set)  # views over what is touched

    @property
    def kinds(self) -> list[str]:
        """The statements' kinds, by the parser's names."""
        return [kind_of(decision) for decision in self.decisions]


async def rehearse(gateway: Gateway, session: Session, texts: Sequence[bytes], base: Catalog) -> Walk:
    """Decide each statement and try it where nothing of it lasts.

    Raises RefusedError where the policy denies one, MigrationError for what is no migration or fails.
    """
    walk = Walk(steps_of(texts))
    trial = replace(session, stale=True, catalog=None, on_end=[])
    in_shadow = session.connection.rehearse == "shadow"
    async with _stage(gateway, walk, trial) as upstream:
        await _begin(upstream)
        before = await inventory.inventory(upstream)
        for number, text in enumerate(texts, 1):
            decision = await _decided(gateway, Statement(trial, text), number)
            walk.decisions.append(_of_live(decision, await gateway.catalog(trial), base) if in_shadow else decision)
            tried = await _Trial(gateway, walk, upstream, trial, in_shadow).step(decision, text, number)
            assert decision.analysis is not None
            walk.steps.append(tried | {"lint": await lint(decision.analysis.text + b"\n")})
            walk.readers |= _readers(walk.decisions[-1], base)
        after = await inventory.inventory(upstream)
        await upstream.probe("ROLLBACK")
    _compare(walk, before, after)
    return walk


def check_kind(number: int, decision: Decision) -> None:
    """Refuse what would end the migration's transaction, or leave something behind in its session."""
    effects = decision.analysis.effects if decision.analysis else Effects()
    if effects.transaction is not None:
        raise MigrationError(
            f"statement {number} of the migration controls the transaction", cure="Leave BEGIN and COMMIT out."
        )
    if effects.copy_in or effects.copy_out or effects.prepares or effects.executes or kind_of(decision) in _OF_SESSIONS:
        raise MigrationError(f"statement {number} of the migration needs a client's session", cure="Leave it out.")


def kind_of(decision: Decision) -> str:
    """The statement's kind, by the parser's name."""
    return decision.analysis.kind if decision.analysis else ""


async def run_one(gateway: Gateway, upstream: Upstream, grant: Grant, number: int) -> str | None:
    """Run one statement; the command tag. Texts of errors in values' classes are kept back: they quote rows.

    Raises MigrationError, also where it changes more rows than it was allowed for.
    """
    try:
        page = await upstream.open(grant.sql, (), 0)
    except UpstreamError as error:
        grant.finish(Outcome(Status.FAILED, sqlstate=error.sqlstate, message="failed in its migration"))
        said = f": {error}" if error.sqlstate.startswith(("42", "0A", "25", "55", "57")) else ""
        raise MigrationError(
            f"statement {number} of the migration fails ({error.sqlstate}{said})", reported=error.sqlstate
        ) from None
    if (many := await gateway.too_many(grant, page.counted)) is not None:
        grant.finish(Outcome(Status.FAILED, sqlstate=many.sqlstate, message=many.text))
        raise MigrationError(f"statement {number} of the migration: {many.text}", cure=many.cure)
    return page.tag


@dataclass(frozen=True, slots=True)
class _Trial:
    """One statement's trial."""

    gateway: Gateway
    walk: Walk
    upstream: Upstream
    session: Session
    in_shadow: bool

    async def step(self, decision: Decision, text: bytes, number: int) -> dict[str, object]:
        """What it did: locks, rewrites, time; or why it was not tried."""
        said: dict[str, object] = {"text": text.decode(), "kind": kind_of(decision)}
        plan = next(step for step in self.walk.plan if number in step.numbers)
        if (why := await self._unfit(decision, plan, number)) is not None:
            return said | {"note": f"not rehearsed: {why}"}
        if self.in_shadow and (plan.outside or number == plan.first):
            # As it will run: what is before it is committed.
            await self.upstream.probe("COMMIT")
            if not plan.outside:
                await _begin(self.upstream)
        elif not self.in_shadow and plan is not self.walk.plan[0]:
            await self.upstream.probe("SAVEPOINT step")
        try:
            said |= await self._measured(Statement(self.session, text), decision, number)
        except MigrationError as error:
            awaited = self.walk.skipped or (plan.first - 1 if error.reported == _UNCOMMITTED_VALUE else None)
            if error.reported is None:
                raise  # too many rows: PostgreSQL would have done it
            if awaited is None or self.in_shadow:
                error.cure = "Nothing of it lasts: it was a rehearsal."
                raise
            await self.upstream.probe("ROLLBACK TO SAVEPOINT step")
            why = f"PostgreSQL refuses it here ({error.reported}), where statement {awaited} is not done for good"
            return said | {"note": f"not rehearsed: {why}"}
        finally:
            if self.in_shadow and plan.outside and self.upstream.connected:
                await _begin(self.upstream)
        return said

    async def _unfit(self, decision: Decision, plan: Step, number: int) -> str | None:
        """Why the statement is not tried."""
        walk = self.walk
        if walk.why_not is not None:
            return walk.why_not
        if plan.outside and not self.in_shadow:
            walk.skipped = walk.skipped or number
            return plan.why
        known = await self.gateway.catalog(self.session)
        why = rehearsal.outside_effects(decision, known)
        if why is None:
            why = _beyond(decision) if self.in_shadow else await rehearsal.draws(self.upstream, decision, known)
        if why is not None:
            walk.why_not = f"statement {number}: {why}"
        return why

    async def _measured(self, statement: Statement, decision: Decision, number: int) -> dict[str, object]:
        upstream, gateway = self.upstream, self.gateway
        in_transaction = upstream.transaction_status != "I"
        files = await schema_changes.files(upstream)
        held = await schema_changes.locks(upstream, files)
        async with gateway.rehearsing(statement, decision) as grant:
            started = time.perf_counter()
            tag = await run_one(gateway, upstream, grant, number)
            said: dict[str, object] = {"duration_ms": round((time.perf_counter() - started) * 1000, 1), "tag": tag}
            grant.finish(Outcome(Status.REHEARSED, tag=tag))
        if in_transaction:  # outside of one they are gone with the statement
            taken = sorted(await schema_changes.locks(upstream, files) - held)
            said["locks"] = [{"relation": relation, "mode": mode} for relation, mode in taken]
        said["rewrites"] = schema_changes.rewritten(files, await schema_changes.files(upstream))
        if self.in_shadow:
            self.session.catalog = await catalog.load(upstream)
        else:
            await gateway.refresh(self.session, upstream)
        return said


@asynccontextmanager
async def _stage(gateway: Gateway, walk: Walk, trial: Session) -> AsyncIterator[Upstream]:
    """Where it is tried, with `trial` refreshed on it, and `walk` told where nothing can be."""
    async with gateway.connections.aside(trial) as live:
        await gateway.refresh(trial, live)
        walk.search_path = trial.search_path
        if trial.connection.rehearse == "off":
            walk.why_not = "rehearsals are off on this connection"
        elif found := await live.probe(_EVENT_TRIGGERS):
            walk.why_not = f"the event trigger `{found[0][0]}` would run, and what it does outside cannot be taken back"
        if trial.connection.rehearse != "shadow" or walk.why_not is not None:
            yield live
            return
        [(path,)] = await live.probe("SHOW search_path")
    async with shadow.made(gateway.connections, trial.connection) as upstream:
        await upstream.probe("SET search_path TO " + (path or "''"))
        trial.catalog = await catalog.load(upstream)
        yield upstream


async def _begin(upstream: Upstream) -> None:
    await upstream.probe("BEGIN")
    await upstream.probe(f"SET LOCAL lock_timeout TO '{rehearsal.LOCK_TIMEOUT}'")
    await upstream.probe(f"SET LOCAL statement_timeout TO '{rehearsal.STATEMENT_TIMEOUT}'")


async def _decided(gateway: Gateway, statement: Statement, number: int) -> Decision:
    decision = await gateway.decide(statement.session, statement.text)
    if decision.verdict.effect is Effect.DENY:
        await gateway.begin([statement], [decision])  # records the refusal and raises it
    check_kind(number, decision)
    return decision


def _compare(walk: Walk, before: Inventory, after: Inventory) -> None:
    walk.changes = inventory.changes(before, after)
    walk.undo = undo(before, after, walk.kinds)


def _beyond(decision: Decision) -> str | None:
    """What of a statement would be seen outside of a shadow."""
    assert decision.analysis is not None
    for demand in decision.analysis.demands:
        if demand.object.kind not in _IN_A_DATABASE:
            return f"it demands {demand.action.value} of `{demand.object}`, which does not go with a shadow"
    return None


def _readers(decision: Decision, base: Catalog) -> set[str]:
    """The views that read what the statement changes."""
    assert decision.analysis is not None
    touched = {d.oid for d in decision.analysis.demands if d.oid and d.action is not Action.SELECT and not d.builtin}
    views = (r for r in base.relations.values() if r.kind in (RelationKind.VIEW, RelationKind.MATERIALIZED_VIEW))
    return {view.qualified for view in views if not touched.isdisjoint(view.reads)}


def _of_live(decision: Decision, there: Catalog, base: Catalog) -> Decision:
    """A decision about a shadow's objects as one about those of the live database, which have other OIDs."""
    analysis = decision.analysis
    assert analysis is not None

    def relation(oid: int) -> int | None:
        found: Relation | None = there.relations.get(oid)
        live = base.relation(found.schema, found.name) if found is not None else None
        return live.oid if live is not None else None

    def function(oid: int) -> int | None:
        found = there.function(oid)
        if found is None:
            return oid  # PostgreSQL's own are the same everywhere
        same = [f.oid for f in base.overloads(found.schema, found.name) if f.arguments == found.arguments]
        return same[0] if same else None

    def demand(one: Demand) -> Demand:
        if one.oid is None:
            return one
        return one._replace(oid=function(one.oid) if one.action is Action.CALL else relation(one.oid))

    relations = frozenset(oid for oid in map(relation, analysis.relations) if oid is not None)
    live: Analysis = analysis._replace(relations=relations, demands=tuple(map(demand, analysis.demands)))
    return decision._replace(analysis=live)
