"""Measured evidence: a write is run in a transaction that is rolled back, so that approvers see what it does.

Only what a ROLLBACK takes back is rehearsed. Draws from sequences, functions of users (their triggers too) and
other servers' tables are not: the evidence then says why nothing was measured, and nothing was run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gateway.connections import Connections
from gateway.errors import LimitExceededError, UpstreamUnavailableError
from gateway.model import Connection, Outcome, Status
from gateway.screening import TextScreen
from gateway.upstream import Page, Upstream, UpstreamError, UpstreamLostError
from policy.catalog import Catalog, Relation, RelationKind
from policy.model import Action, Decision, Rewrite
from policy.names import TEMPORARY

if TYPE_CHECKING:
    from gateway.admission import Grant

Evidence = dict[str, object]

_KINDS = ("InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt")
_WRITES = (Action.INSERT, Action.UPDATE, Action.DELETE)
LOCK_TIMEOUT = "2s"
STATEMENT_TIMEOUT = "10s"
# The real run may change so much more or less than the rehearsal did, in per cent, rounded down: few rows exactly.
_TOLERANCE_PERCENT = 10
_SAMPLE_ROWS = 5
_SAMPLE_CHARACTERS = 200  # of one value
_KEPT = "[masked for others]"
_DISCARD_ROWS = 10_000

# nextval, and both of setval: pg_proc.oid of PostgreSQL's own, which never change.
_DRAWS = "1574|1576|1765"
_SEQUENCES = f"""
SELECT a.attrelid::pg_catalog.regclass::pg_catalog.text FROM pg_catalog.pg_attribute a
  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid = ANY ('{{%s}}')
   AND (a.attidentity <> '' OR d.adbin::pg_catalog.text ~ ':funcid ({_DRAWS}) ') LIMIT 1"""  # noqa: S608 - OIDs are numbers
_KEY = """
SELECT a.attname FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
 WHERE i.indrelid = %s AND i.indisprimary ORDER BY pg_catalog.array_position(i.indkey, a.attnum)"""
_TABLES = """
SELECT schemaname || '.' || relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_catalog.pg_stat_xact_user_tables
 WHERE n_tup_ins + n_tup_upd + n_tup_del > 0 ORDER BY 1"""


@dataclass(frozen=True, slots=True)
class Expected:
    """How many rows a run may change to be what was approved, both ends included."""

    rows: int
    at_least: int
    at_most: int

    @classmethod
    def of(cls, rows: int) -> Expected:
        """What a rehearsal that changed `rows` rows permits."""
        slack = rows * _TOLERANCE_PERCENT // 100
        return cls(rows, rows - slack, rows + slack)

    @classmethod
    def read(cls, evidence: Mapping[str, object] | None) -> Expected | None:
        """What stored evidence permits; None where nothing was measured."""
        if evidence is None or not evidence.get("measured"):
            return None
        return cls(*(int(str(evidence[name])) for name in ("rows", "at_least", "at_most")))


class Masked(Protocol):
    """Turns the gateway's own reading of a relation into what the requester may see of it; None for a refusal."""

    async def __call__(self, sql: str) -> Rewrite | None:
        """The rewrite of `sql` under the policy."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How changed rows are shown to those who decide: as who asks sees them, less what others may not."""

    masked: Masked
    kept: frozenset[str]


def size_of(decision: Decision, thresholds: Sequence[int]) -> Evidence:
    """The evidence of a read that is large: what the planner expects, and where the run stops whatever people say.

    An estimate can be wrong by half; a policy's own numbers are never too many.
    """
    expected = decision.expects or 0
    return {"reads": {"rows": expected, "at_most": max(2 * expected, *thresholds[:1])}}


def approved_rows(evidence: Mapping[str, object] | None) -> int | None:
    """How many rows a read may return that people approved; None where its size was not the question."""
    reads = (evidence or {}).get("reads")
    return int(reads["at_most"]) if isinstance(reads, dict) else None


def is_write(decision: Decision) -> bool:
    """Whether the statement is of a kind whose rows could be counted in a rehearsal."""
    return decision.analysis is not None and decision.analysis.kind in _KINDS


def obstacle(connection: Connection, decision: Decision, catalog: Catalog) -> str | None:
    """Why a write is not rehearsed; None where a ROLLBACK takes back all that it does."""
    if connection.rehearse == "off":
        return "rehearsals are off on this connection"
    if connection.rehearse == "shadow":
        return "rehearsals are on a shadow, which has no rows"
    analysis = decision.analysis
    if analysis is None or not is_write(decision):
        return "only INSERT, UPDATE, DELETE and MERGE are rehearsed"
    for demand in analysis.demands:
        if demand.action not in (*_WRITES, Action.SELECT, Action.CALL, Action.EXPLAIN):
            return f"it demands {demand.action.value} of `{demand.object}`, which is not rehearsed"
    return outside_effects(decision, catalog)


def outside_effects(decision: Decision, catalog: Catalog) -> str | None:
    """What of a statement could reach beyond its transaction; None where nothing does."""
    assert decision.analysis is not None
    for demand in decision.analysis.demands:
        if demand.action is Action.CALL and not demand.builtin:
            name = f"`{demand.object}`" + (f" ({demand.via})" if demand.via else "")
            return f"it calls {name}, and what a function does outside of the transaction cannot be taken back"
    for oid in decision.analysis.relations:
        if (relation := catalog.relations.get(oid)) is None or relation.kind is RelationKind.FOREIGN:
            return "it reaches a foreign table, whose server cannot be rolled back"
        if relation.schema == TEMPORARY:
            return f"it reaches the temporary table `{relation.name}`, which is in the requester's session only"
    return None


def not_measured(decision: Decision, why: str) -> Evidence:
    """The evidence where nothing was run."""
    return {"measured": False, "why": why, "sets_off": sets_off(decision)}


def sets_off(decision: Decision) -> list[str]:
    """The code that the statement runs without naming it, such as "the trigger `t` of `public.orders`"."""
    demands = decision.analysis.demands if decision.analysis else ()
    return list(dict.fromkeys(f"{d.via}: {d.object}" for d in demands if d.via))


async def draws(upstream: Upstream, decision: Decision, catalog: Catalog) -> str | None:
    """Why the statement could draw from a sequence; None where it cannot."""
    assert decision.analysis is not None
    # Rows that are changed get defaults only where the statement, or a foreign key, says DEFAULT.
    written = [d for d in decision.analysis.demands if d.action in _WRITES and d.oid is not None]
    defaults = b"default" in decision.analysis.text.lower() or any(
        "d" in (key.on_update, key.on_delete) for d in written for key in _relation(catalog, d.oid).referenced_by
    )
    oids = sorted({d.oid or 0 for d in written if d.action is Action.INSERT or defaults})
    if not oids:
        return None
    found = await upstream.probe(_SEQUENCES % ",".join(map(str, oids)))
    return f"a default of `{found[0][0]}` draws from a sequence, which no ROLLBACK gives back" if found else None


async def rehearse(connections: Connections, grant: Grant, catalog: Catalog, sampling: Sampling) -> Evidence:
    """Run a granted statement on a session of its own and roll it back; the grant is finished either way.

    What cannot be measured is said in the evidence: a lock that is held, a time-out, an error of PostgreSQL's (by
    its SQLSTATE alone, since its text may quote rows).
    """
    session, decision = grant.statement.session, grant.decision
    try:
        async with connections.aside(session) as upstream, connections.aside(session) as witness:
            if (why := await draws(upstream, decision, catalog)) is not None:
                grant.finish(Outcome(Status.SKIPPED, message=f"not rehearsed: {why}"))
                return not_measured(decision, why)
            target = target_of(decision, catalog)
            evidence = await _measure(upstream, witness, grant, session.search_path, target, sampling)
    except UpstreamError as error:
        grant.finish(Outcome(Status.FAILED, sqlstate=error.sqlstate, message="the rehearsal failed"))
        return not_measured(decision, f"PostgreSQL refused the rehearsal ({error.sqlstate})")
    except (UpstreamLostError, UpstreamUnavailableError):
        grant.finish(Outcome(Status.UNKNOWN, sqlstate="08006", message="the rehearsal's connection was lost"))
        return not_measured(decision, "the database could not be reached for a rehearsal")
    grant.finish(Outcome(Status.REHEARSED, message=f"rolled back; {evidence['rows']} rows"))
    return evidence | {"sets_off": sets_off(decision)}


async def _measure(
    upstream: Upstream,
    witness: Upstream,
    grant: Grant,
    search_path: Sequence[str],
    target: Relation | None,
    sampling: Sampling,
) -> Evidence:
    """Run it on `upstream` and roll back. `witness` reads, beside it, the rows as they were."""
    path = ", ".join('"' + schema.replace('"', '""') + '"' for schema in search_path)
    await upstream.probe("BEGIN")
    await upstream.probe(f"SET LOCAL search_path TO {path}")
    await upstream.probe(f"SET LOCAL lock_timeout TO '{LOCK_TIMEOUT}'")
    await upstream.probe(f"SET LOCAL statement_timeout TO '{STATEMENT_TIMEOUT}'")
    started = time.perf_counter()
    page = await upstream.open(grant.sql, grant.parameters, _DISCARD_ROWS if b"returning" in grant.sql.lower() else 0)
    rows = await _changed(upstream, page)
    duration = round((time.perf_counter() - started) * 1000, 1)
    await upstream.probe("SET CONSTRAINTS ALL IMMEDIATE")
    counts = await upstream.probe(_TABLES)
    expected = Expected.of(rows)
    evidence: Evidence = {
        "measured": True,
        "rows": rows,
        "at_least": expected.at_least,
        "at_most": expected.at_most,
        "duration_ms": duration,
        "tables": [
            {"relation": name, "inserted": int(i or 0), "updated": int(u or 0), "deleted": int(d or 0)}
            for name, i, u, d in counts
        ],
    }
    evidence["sample"] = await _sample(upstream, witness, target, sampling) if target is not None else []
    await upstream.probe("ROLLBACK")
    return evidence


async def _changed(upstream: Upstream, page: Page) -> int:
    rows = len(page.rows)
    while page.suspended:
        page = await upstream.fetch(_DISCARD_ROWS)
        rows += len(page.rows)
    return rows or page.counted


async def _sample(
    upstream: Upstream, witness: Upstream, target: Relation, sampling: Sampling
) -> list[dict[str, dict[str, str | None] | None]]:
    """Some changed rows, before and after, as those who decide may see them. Empty where that cannot be told.

    A row that the open transaction changed is found, by others, by its `xmax`; its key leads to the masked reading.
    """
    name = f"{_quoted(target.schema)}.{_quoted(target.name)}"
    key = [str(column) for (column,) in await upstream.probe(_KEY % target.oid)]
    if not key:
        return []
    [(transaction,)] = await upstream.probe("SELECT pg_catalog.pg_current_xact_id()::pg_catalog.xid::pg_catalog.text")
    columns = ", ".join(f"{_quoted(column)}::pg_catalog.text" for column in key)
    try:
        await witness.probe(f"SET statement_timeout TO '{LOCK_TIMEOUT}'")
        found = await witness.probe(
            f"SELECT {columns} FROM {name} WHERE xmax::pg_catalog.text = '{transaction}' LIMIT {_SAMPLE_ROWS}"  # noqa: S608 - our own
        )
        sample = []
        for values in found:
            where = " AND ".join(f"{_quoted(c)} = {_literal(v or '')}" for c, v in zip(key, values, strict=True))
            rewrite = await sampling.masked(f"SELECT * FROM {name} WHERE {where}")  # noqa: S608 - decided as the requester's
            if rewrite is None:
                return []
            screen = TextScreen(rewrite.detection)
            before = _row(await witness.open(rewrite.sql, (), 0), screen, sampling.kept)
            if before is not None:
                after = _row(await upstream.open(rewrite.sql, (), 0), screen, sampling.kept)
                sample.append({"before": before, "after": after})
        return sample
    except (UpstreamError, LimitExceededError):
        return []  # a key that is masked, a table or row too large to look through: the count stands without it


def _row(page: Page, screen: TextScreen, kept: frozenset[str]) -> dict[str, str | None] | None:
    if not page.rows:
        return None
    [row] = screen.rows(page.columns, page.rows[:1])
    values = zip(page.columns, row, strict=True)
    return {
        c.name: _KEPT if c.name in kept else None if v is None else v.decode("utf-8", "replace")[:_SAMPLE_CHARACTERS]
        for c, v in values
    }


def _relation(catalog: Catalog, oid: int | None) -> Relation:
    return catalog.relations[oid or 0]


def target_of(decision: Decision, catalog: Catalog) -> Relation | None:
    """The one table whose rows are changed or deleted; None where there are several, or rows only come in."""
    demands = decision.analysis.demands if decision.analysis else ()
    changed = {d.oid for d in demands if d.action in (Action.UPDATE, Action.DELETE) and d.via is None}
    relations = [catalog.relations.get(oid or 0) for oid in changed]
    tables = [r for r in relations if r is not None and r.kind in (RelationKind.TABLE, RelationKind.PARTITIONED)]
    return tables[0] if len(tables) == 1 else None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
