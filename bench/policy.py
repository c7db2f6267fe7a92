"""The engine's own figures: `python -m bench.policy`. Decisions against the sample catalog, and a large catalog read.

The catalog is made on a PostgreSQL of its own: 8,500 tables of eight columns and 1,500 views over them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import uvloop

from gateway import catalog as reader
from gateway.connections import Connections
from gateway.deciding import Decider
from gateway.model import ClientInfo, Connection, Door, Session
from gateway.policies import PolicyBook
from gateway.recorder import Recorder
from policy.catalog import Column, Relation, RelationKind
from policy.engine import decide
from policy.load import load_policy
from policy.model import Circumstances
from policy.parse import statements
from server.postgres import SUPERUSER, Postgres
from tests.policy.sample import CATALOG, PATH, PRINCIPALS, facts
from wire.upstream import Factory

_POLICY = Path(__file__).parents[1] / "examples" / "policy.yaml"
_ACCOUNTS = Relation(
    90_000,
    "public",
    "pgbench_accounts",
    RelationKind.TABLE,
    tuple(Column(n, name, "integer", 23) for n, name in enumerate(("aid", "bid", "abalance"), 1)),
    frozenset((90_000,)),
)
_PGBENCH = b"SELECT abalance FROM pgbench_accounts WHERE aid = 4711;"
_JOIN = b"""SELECT c.name, c.email, o.id, o.status, sum(o.total) AS total, count(t.id) AS tickets
  FROM customers AS c
  JOIN orders AS o ON o.customer_id = c.id
  LEFT JOIN tickets AS t ON t.customer_id = c.id AND t.status <> 'closed'
 WHERE o.created_at >= '2026-01-01' AND o.status IN ('paid', 'sent', 'open')
   AND c.ssn IS NOT NULL
 GROUP BY c.name, c.email, o.id, o.status
HAVING sum(o.total) > 100
 ORDER BY total DESC, c.name
 LIMIT 50"""
_TABLES, _VIEWS = 8_500, 1_500
_SCRIPT = f"""
SET client_min_messages = error;
DO $$ BEGIN
  FOR i IN 1..{_TABLES} LOOP
    EXECUTE format('CREATE TABLE t%s (id int, a text, b text, c numeric, d timestamptz, e jsonb, f int[], g boolean)', i);
    IF i % 500 = 0 THEN COMMIT; END IF;
  END LOOP;
  FOR i IN 1..{_VIEWS} LOOP
    EXECUTE format('CREATE VIEW v%s AS SELECT x.id, x.a, y.b, y.c + 1 AS c FROM t%s x JOIN t%s y ON y.id = x.id', i, i, i + 1);
    IF i % 500 = 0 THEN COMMIT; END IF;
  END LOOP;
END $$;
"""  # noqa: E501 - generated SQL


def _microseconds(work: Callable[[], object], rounds: int) -> float:
    """The fastest of many short runs, each of so many calls, in CPU time: what others do here does not count."""
    taken = []
    for _ in range(400):
        start = time.process_time()
        for _ in range(rounds):
            work()
        taken.append((time.process_time() - start) / rounds)
    return min(taken) * 1e6


def _pace() -> None:
    """How fast this machine runs Python now: the figures below grow with it."""

    def additions() -> None:
        total = 0
        for number in range(10_000):
            total += number

    print(f"{'pace of the machine: 10,000 additions in a loop':<52}{_microseconds(additions, 4):>10,.2f} µs")


def _decisions() -> None:
    policy = load_policy(_POLICY.read_text(encoding="utf-8"), "policy.yaml")
    catalog = replace(CATALOG, relations={**CATALOG.relations, _ACCOUNTS.oid: _ACCOUNTS})
    known = replace(facts(catalog=catalog), circumstances=Circumstances(None, datetime.now(UTC), "wire"))
    devin = PRINCIPALS["devin"]
    for name, text, rounds, target in (
        ("uncached decision, pgbench select", _PGBENCH, 25, 60),
        ("uncached decision, 10-line join with masks", _JOIN, 4, 1_200),
    ):
        decision = decide(policy, devin, known, text)
        assert str(decision.verdict.effect) == "allow", decision.verdict.reasons
        taken = _microseconds(lambda text=text: decide(policy, devin, known, text), rounds)
        _line(name, taken, "µs", target)
        print(f"{'  of which the parser':<52}{_microseconds(lambda text=text: statements(text), rounds):>10.2f} µs")


def _cached() -> None:
    devin = PRINCIPALS["devin"]
    connection = Connection("shop", "127.0.0.1", 0, "shop", SUPERUSER, "")
    now = datetime.now(UTC)
    session = Session("se-bench", devin, connection, Door.WIRE, ClientInfo(), now, now + timedelta(hours=1), PATH)
    session.catalog = CATALOG
    # Nothing is recorded by deciding, and no policy is loaded again here.
    decider = Decider(PolicyBook(_POLICY, cast("Recorder", None)), Connections((), Factory()))

    def decided() -> None:
        # It never waits where the catalog is at hand.
        with contextlib.suppress(StopIteration):
            decider.decide(session, _JOIN).send(None)

    decided()
    _line("cached decision", _microseconds(decided, 200), "µs", 5)


async def _large_catalog(server: Postgres) -> None:
    connection = Connection("bench", server.host, server.port, "postgres", SUPERUSER, server.password, "disable")
    upstream = await Factory().connect(connection, application_name="bench", settings={"search_path": "pg_catalog"})
    try:
        [(pid,)] = await upstream.probe("SELECT pg_catalog.pg_backend_pid()")
        taken, used = [], []
        before = _resident()
        catalog = None
        for _ in range(5):
            catalog = None
            start, ours, theirs = time.perf_counter(), time.process_time(), _cpu_seconds(int(pid or 0))
            catalog = await reader.load(upstream)
            taken.append(time.perf_counter() - start)
            used.append((time.process_time() - ours, _cpu_seconds(int(pid or 0)) - theirs))
        assert catalog is not None
        relations = sum(relation.oid >= 16384 for relation in catalog.relations.values())
        _line(f"catalog of {relations:,} relations: load, best of 5", min(taken), "s", 2)
        for name, seconds in zip(("the gateway", "the server"), map(min, zip(*used, strict=True)), strict=True):
            print(f"{'  CPU time of ' + name:<52}{seconds:>10.2f} s")
        _line("  the process has grown by", (_peak() - before) / 1e6, "MB", 150)
        for name, asked in (("anything was committed", reader.committed), ("it changed", reader.version)):
            taken = []
            for _ in range(5):
                start = time.perf_counter()
                await asked(upstream)
                taken.append(time.perf_counter() - start)
            print(f"{'  asked whether ' + name:<52}{statistics.median(taken) * 1e3:>10,.1f} ms")
    finally:
        await upstream.disconnect()


def _status(name: str) -> int:
    """A line of the process's status, in bytes. Not getrusage: what it counts includes the parent's."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return int(found[1]) * 1024


def _cpu_seconds(pid: int) -> float:
    """What a process has used so far (utime and stime of proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _line(name: str, figure: float, unit: str, target: float) -> None:
    print(f"{name:<52}{figure:>10,.2f} {unit:<3} (wanted: at most {target:,})")


def main() -> None:
    """Print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-catalog", action="store_true", help="only the decisions: needs no PostgreSQL")
    arguments = parser.parse_args()
    _pace()
    _decisions()
    _cached()
    if arguments.no_catalog:
        return
    with tempfile.TemporaryDirectory(prefix="countersign-bench-") as folder:
        Path(folder).chmod(0o755)
        with Postgres(Path(folder) / "postgres", settings={"max_locks_per_transaction": "512"}) as server:
            server.run_script(_SCRIPT)
            uvloop.run(_large_catalog(server))


if __name__ == "__main__":
    main()
