"""An approved migration as it runs: step by step, patient with locks, and exact about what a failure leaves.

A step is a transaction, or one statement that cannot be in one (`gateway.steps`). What a step has done stays done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from gateway import inventory
from gateway.admission import Gateway, Grant
from gateway.errors import ApprovalRejectedError, MigrationError, RefusedError, UpstreamUnavailableError
from gateway.inventory import Inventory
from gateway.migration_rehearsal import run_one
from gateway.model import Outcome, Session, Statement, Status
from gateway.steps import Step
from gateway.upstream import Upstream, UpstreamError, UpstreamLostError

# A run waits so long for each lock, then lets everybody else go first, so many times, each pause twice the last.
LOCK_TIMEOUT = "3s"
ATTEMPTS = 4
_PAUSE_SECONDS = 1.0
_LOCK_NOT_AVAILABLE = "55P03"
_LEFT = """
SELECT pg_catalog.format('the invalid index %s.%s', n.nspname, c.relname),
       pg_catalog.format('DROP INDEX CONCURRENTLY %I.%I', n.nspname, c.relname)
  FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE NOT i.indisvalid AND c.relkind = 'i'
UNION ALL
SELECT pg_catalog.format('the partition %s, which is about to be detached', h.inhrelid::pg_catalog.regclass),
       pg_catalog.format('ALTER TABLE %s DETACH PARTITION %s FINALIZE', h.inhparent::pg_catalog.regclass,
                         h.inhrelid::pg_catalog.regclass)
  FROM pg_catalog.pg_inherits h WHERE h.inhdetachpending"""

# Told before each statement: how many are done, of how many, and what comes now.
Progress = Callable[[int, int, str], Awaitable[None]]
Left = dict[str, str]  # what a failed statement left behind, and the statement that clears it away


async def unheard(done: int, total: int, text: str) -> None:
    """Progress that nobody asked for."""


async def look(gateway: Gateway, session: Session) -> Inventory:
    """The schema as it is now."""
    async with gateway.connections.aside(session) as upstream:
        await upstream.probe("BEGIN READ ONLY")
        return await inventory.inventory(upstream)


@dataclass(slots=True)
class Run:
    """One run under the grant of the whole."""

    gateway: Gateway
    whole: Grant
    texts: Sequence[bytes]
    plan: Sequence[Step]
    progress: Progress = unheard
    attempts: int = 0
    done: list[Step] = field(default_factory=list)
    left: Left = field(default_factory=dict)

    async def steps(self) -> None:
        """Run all steps. Raises MigrationError, which says what lasts and what was left behind."""
        for step in self.plan:
            try:
                await self._step(step)
            except MigrationError as error:
                raise self._explained(error) from None
            self.done.append(step)

    async def _step(self, step: Step) -> None:
        before = await self._remains() if step.outside else {}
        for attempt in range(1, ATTEMPTS + 1):
            self.attempts = max(self.attempts, attempt)
            try:
                await self._attempt(step)
                return
            except MigrationError as error:
                await self._note_left(step, before)
                if self.left or error.reported != _LOCK_NOT_AVAILABLE or attempt == ATTEMPTS:
                    raise
            except BaseException:
                # Cancelled, or the connection is gone: the audit shall know all the same.
                await asyncio.shield(self._note_left(step, before))
                raise
            pause = _PAUSE_SECONDS * 2 ** (attempt - 1)
            said = f"no lock for {step.name} in {LOCK_TIMEOUT}; attempt {attempt + 1} of {ATTEMPTS} in {pause:.0f} s"
            await self.progress(step.first - 1, len(self.texts), said)
            await asyncio.sleep(pause)

    async def _attempt(self, step: Step) -> None:
        gateway, session = self.gateway, replace(self.whole.statement.session, stale=True, catalog=None)
        grants: list[Grant] = []
        # The connection is closed first: what the outcomes say of it is then true.
        async with AsyncExitStack() as settling, gateway.connections.aside(session) as upstream:
            try:
                await gateway.refresh(session, upstream)
                await _prepare(upstream, step)
                for number in step.numbers:
                    await self._statement(settling, grants, upstream, session, number)
                if not step.outside:
                    await _commit(upstream)
            except BaseException as error:
                if not step.outside:
                    _taken_back(grants, error)
                raise

    async def _statement(
        self, settling: AsyncExitStack, grants: list[Grant], upstream: Upstream, session: Session, number: int
    ) -> None:
        gateway, text = self.gateway, self.texts[number - 1]
        said = f"statement {number} of {len(self.texts)}: {_first_words(text)}"
        await self.progress(number - 1, len(self.texts), said)
        decision = await gateway.decide(session, text)
        statement = Statement(session, text, request={"migration": self.whole.id})
        grant = await settling.enter_async_context(gateway.admit_step(self.whole, statement, decision))
        grants.append(grant)
        grant.finish(Outcome(Status.COMPLETED, tag=await run_one(gateway, upstream, grant, number)))
        if decision.analysis is not None and decision.analysis.effects.catalog:
            gateway.connections.changed(session)
        await gateway.refresh(session, upstream)

    async def _note_left(self, step: Step, before: Left) -> None:
        if not step.outside:
            return  # its transaction took everything back
        try:
            now = await self._remains()
        except (UpstreamError, UpstreamLostError, UpstreamUnavailableError):
            self.left["what it left could not be looked at"] = _LEFT_QUERY
            return
        self.left |= {what: cure for what, cure in now.items() if what not in before}

    async def _remains(self) -> Left:
        async with self.gateway.connections.aside(self.whole.statement.session) as upstream:
            return {what or "": cure or "" for what, cure in await upstream.probe(_LEFT)}

    def _explained(self, error: MigrationError) -> MigrationError:
        """The error with what came of the steps before it, and of its own."""
        lasts = f"; {_names(self.done)} of it last" if self.done else ""
        left = f"; it left {', '.join(self.left)}" if self.left else ""
        cure = f"Clear up by {'; '.join(self.left.values())}. " if self.left else ""
        cure += "Then propose what is left of it." if self.done or self.left else "Nothing of it lasts."
        return MigrationError(f"{error.text}{lasts}{left}", cure=cure, reported=error.reported)


_LEFT_QUERY = "SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid"


async def _prepare(upstream: Upstream, step: Step) -> None:
    if step.outside:
        await upstream.probe(f"SET lock_timeout TO '{LOCK_TIMEOUT}'")
        return
    await upstream.probe("BEGIN")
    await upstream.probe(f"SET LOCAL lock_timeout TO '{LOCK_TIMEOUT}'")
    await upstream.probe("SET LOCAL statement_timeout TO '0'")


async def _commit(upstream: Upstream) -> None:
    try:
        await upstream.probe("COMMIT")
    except UpstreamError as error:
        raise MigrationError(f"the migration fails at its end ({error.sqlstate})", reported=error.sqlstate) from None


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


def _names(steps: Sequence[Step]) -> str:
    first, last = steps[0].first, steps[-1].last
    return Step(first, last).name


def _first_words(text: bytes) -> str:
    words = " ".join(text.decode("utf-8", "replace").split())
    return words if len(words) <= 60 else f"{words[:60]} …"
