"""Decisions: the policy engine asked with everything that a verdict depends on, and its answers kept.

A decision is cached by exact bytes and everything else it depends on, never by a fingerprint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from gateway import explain
from gateway.connections import Connections
from gateway.errors import RowCountError
from gateway.model import Session, Statement
from gateway.policies import PolicyBook
from gateway.temporary import laid_over
from policy.catalog import Catalog
from policy.engine import decide
from policy.model import Action, Circumstances, Decision, Effect, Facts
from policy.names import TEMPORARY

# Decisions kept per process. One is some ten times its text: texts that are longer are decided each time, in a thread.
_CACHE_ENTRIES = 4096
_CACHEABLE_TEXT_BYTES = 4_096
# Long texts that are decided at the same time.
_LARGE_AT_ONCE = 1
# Snapshots with a session's temporary relations on top that are kept.
_LAID_OVER = 32
# Row counts remembered per session.
_MEASURED_ENTRIES = 64


class Decider:
    """Asks the policy in force about sessions' statements, against their catalogs."""

    def __init__(self, policies: PolicyBook, connections: Connections) -> None:
        self._policies = policies
        self._connections = connections
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._cache: dict[tuple[object, ...], Decision] = {}
        self._laid: dict[str, tuple[Catalog, Catalog]] = {}  # by the digest of what is laid over

    async def catalog(self, session: Session) -> Catalog:
        """The snapshot that this session's statements are decided against."""
        return self._seen(session, session.catalog or await self._connections.catalog(session.connection))

    def _seen(self, session: Session, catalog: Catalog) -> Catalog:
        """The snapshot with the session's temporary relations on top, made once for each pair."""
        own = session.temporary
        if own is None:
            return catalog
        if self._laid.get(own.digest, (None, None))[0] is not catalog:
            if len(self._laid) >= _LAID_OVER:
                self._laid.pop(next(iter(self._laid)))
            self._laid[own.digest] = (catalog, laid_over(catalog, own))
        return self._laid[own.digest][1]

    async def decide(
        self, session: Session, text: bytes, parameters: Sequence[bytes | None] = (), *, runs: bool = True
    ) -> Decision:
        """The verdict on one statement's text. Records nothing; runs nothing.

        Where it depends on how many rows the statement changes or returns, it is by the planner's estimate or, with
        `runs` false (it is only prepared), by the hope that there are few.
        """
        catalog = await self.catalog(session)
        decision = await self._decide(session, text, catalog)
        if session.catalog is None and _names_something_unknown(decision):
            # It may have been made elsewhere a moment ago: look again before saying that it is not there.
            latest = await self._connections.latest(session.connection)
            latest = self._seen(session, latest)
            if latest.epoch != catalog.epoch:
                catalog = latest
                decision = await self._decide(session, text, catalog)
        if not decision.counts and not decision.streams:
            return decision
        few = await self._decide(session, text, catalog, rows=0)
        rewrite = few.verdict.rewrite
        if not runs or rewrite is None:
            return few
        rows = session.measured.get((text, tuple(parameters)), 0)
        # The planner could run users' functions, and on another session it finds no temporary relations of this one.
        if not _calls_users_functions(few) and not _is_temporary(few):
            rows = max(rows, await self._connections.estimate(session, rewrite.sql, parameters))
        decision = await self._decide(session, text, catalog, rows=rows)
        if not decision.streams:
            return decision
        return decision._replace(expects=rows, at_most=await self._bound(session, text, catalog, rows, decision))

    async def _bound(
        self, session: Session, text: bytes, catalog: Catalog, rows: int, decision: Decision
    ) -> int | None:
        """How many rows a read may return under this verdict; None where any number may."""
        for threshold in self._policies.current.thresholds:
            if threshold >= rows:
                more = await self._decide(session, text, catalog, rows=threshold + 1)
                if not _covers(decision, more):
                    return threshold
        return None

    async def holds(self, session: Session, text: bytes, before: Decision) -> bool:
        """Whether what was decided before would be allowed now and be the same: it may give out more of its result.

        It is decided again where the policy has changed, or where it would be told something else of time and session.
        """
        policy = self._policies.current
        now = policy.standing(_circumstances(session, None))
        if (before.policy, before.standing) == (policy.hash, now):
            return True
        verdict, then = (await self.decide(session, text)).verdict, before.verdict.rewrite
        same = verdict.rewrite is not None and then is not None and verdict.rewrite.sql == then.sql
        return same and verdict.effect is Effect.ALLOW

    async def too_many(self, statement: Statement, granted: Decision, rows: int) -> RowCountError | None:
        """The error with which a counted statement must be rolled back; None where what was granted covers the count.

        The count is remembered: sent again, the statement is decided by it.
        """
        session, text = statement.session, statement.text
        catalog = session.catalog or self._connections.snapshot(session.connection)
        seen = self._seen(session, catalog) if catalog is not None else None
        again = await self._decide(session, text, seen, rows=rows) if seen is not None else None
        if again is not None and _covers(granted, again):
            return None
        remember(statement, rows)
        why = "; ".join(r.text for r in explain.deciding_reasons(again)) if again else "the catalog is not known"
        asks = again is not None and again.verdict.effect is Effect.APPROVE
        retry = " Send it again to ask for approval: it is decided by this count now." if asks else ""
        return RowCountError(
            f"the statement changes {rows} rows: {why}", cure=f"Nothing was changed. Narrow its condition.{retry}"
        )

    async def _decide(self, session: Session, text: bytes, catalog: Catalog, rows: int | None = None) -> Decision:
        policy, principal = self._policies.current, session.principal
        cacheable = len(text) <= _CACHEABLE_TEXT_BYTES and not session.prepared
        circumstances = _circumstances(session, rows) if policy.conditions else None
        standing = policy.standing(circumstances) if circumstances is not None else ()
        key = (
            text,
            policy.hash,
            catalog.epoch,
            session.search_path,
            session.connection.name,
            principal,
            standing,
            rows,
        )
        if cacheable and (known := self._cache.get(key)) is not None:
            return known
        facts = Facts(
            connection=session.connection.name,
            catalog=catalog,
            search_path=session.search_path,
            prepared=session.prepared,
            mask_key=self._policies.mask_key,
            circumstances=circumstances or _circumstances(session, rows),
        )
        if len(text) > _CACHEABLE_TEXT_BYTES or _any_long(session.prepared):
            # A text of the largest size takes seconds: everybody else goes on meanwhile. The thread gets a
            # catalog of its own, since what the engine remembers of one is filled in while it decides.
            facts = replace(facts, catalog=replace(catalog), prepared=dict(facts.prepared))
            async with self._large:
                decision = await asyncio.to_thread(decide, policy, principal, facts, text)
            if self._policies.current.hash != policy.hash:
                return await self._decide(session, text, catalog, rows)
            return _standing(decision, standing)
        decision = _standing(decide(policy, principal, facts, text), standing)
        if not cacheable:
            return decision
        if len(self._cache) >= _CACHE_ENTRIES:
            self._cache.pop(next(iter(self._cache)))
        self._cache[key] = decision
        return decision


def _standing(decision: Decision, standing: tuple[bool | None, ...]) -> Decision:
    return decision._replace(standing=standing) if standing else decision


def _covers(granted: Decision, again: Decision) -> bool:
    """Whether what was granted is enough for `again`: nothing stricter, and nobody's word who was not asked."""
    verdict, before = again.verdict, granted.verdict
    return verdict.effect <= before.effect and set(verdict.terms) <= set(before.terms)


def remember(statement: Statement, rows: int) -> None:
    """Keep in mind how many rows a statement had at least, for when it is sent again."""
    measured = statement.session.measured
    if len(measured) >= _MEASURED_ENTRIES:
        measured.pop(next(iter(measured)))
    measured[(statement.text, statement.parameters)] = rows


def _circumstances(session: Session, rows: int | None) -> Circumstances:
    client, now = session.client, datetime.now(UTC)
    return Circumstances(rows, now, session.door.value, client.host, client.name, now - session.opened)


def _any_long(prepared: Mapping[str, Decision]) -> bool:
    """Whether an EXECUTE could be about a long text."""
    return any(d.analysis is not None and len(d.analysis.text) > _CACHEABLE_TEXT_BYTES for d in prepared.values())


def _names_something_unknown(decision: Decision) -> bool:
    return any(r.code in ("relation.unknown", "function.unknown") for r in decision.verdict.reasons)


def _calls_users_functions(decision: Decision) -> bool:
    demands = decision.analysis.demands if decision.analysis else ()
    return any(d.action is Action.CALL and not d.builtin for d in demands)


def _is_temporary(decision: Decision) -> bool:
    demands = decision.analysis.demands if decision.analysis else ()
    return any(d.object.schema == TEMPORARY for d in demands)
