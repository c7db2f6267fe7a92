"""The measurements: each pairs the wire door (or the MCP door) with a direct connection in the same run."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from bench import clients
from bench.figure import Figure, Target
from policy.detectors import Kind
from server.postgres import binaries
from tests.stack import Stack, running_stack

Tell = Callable[[str], None]


def measure_all(seconds: float, rows: int, stay: int, tell: Tell) -> Iterator[Figure]:
    """Everything, on stacks of its own with PostgreSQL's durability switched on as shipped."""
    tell(f"{stay} idle connections")
    yield clients.staying(stay)
    with tempfile.TemporaryDirectory(prefix="countersign-bench-") as folder:
        os.chmod(folder, 0o755)
        with running_stack(Path(folder)) as stack:
            upstream = stack.demo.config.connections[0]
            direct = Target(upstream.host, upstream.port, upstream.user, upstream.password, upstream.database)
            ours = Target(stack.host, stack.port, "grace", stack.tokens["grace"], stack.database)
            bouncer = shutil.which("pgbouncer")
            tell("pgbench tables")
            _pgbench_tables(stack)
            for count in (1, 16):
                for mode in ("simple", "extended", "prepared"):
                    tell(f"pgbench -S, {mode}, {count} clients")
                    a = _pgbench(direct, mode, count, seconds)
                    b = _pgbench(ours, mode, count, seconds)
                    yield Figure(f"pgbench -S {mode}, {count} client{'s' * (count > 1)}: latency", "ms", a[0], b[0])
                    yield Figure(
                        f"pgbench -S {mode}, {count} client{'s' * (count > 1)}: throughput",
                        "tps",
                        a[1],
                        b[1],
                        higher=True,
                    )
            if bouncer is None:
                tell("pgbouncer is not installed: left out")
            tell("200 masked rows")
            yield from asyncio.run(_masked_rows(direct, stack))
            tell(f"{rows:,} rows")
            yield _bulk(direct, ours, f"{rows:,} rows through psql", _NUMBERED.format(rows))
            tell(f"{rows:,} rows, searched")
            with _looking_for_everything(stack):
                yield _bulk(direct, ours, f"{rows:,} rows, all searched, nothing found", _NUMBERED.format(rows))
                addressed, some = _ADDRESSED.format(rows // 10), f"{rows // 10:,}"
                yield _bulk(direct, ours, f"{some} rows with an address to hide in each", addressed)
            tell("connects")
            yield from clients.coming(direct, stack, seconds)
            tell("MCP")
            yield asyncio.run(_mcp(stack, direct))


def _pgbench_tables(stack: Stack) -> None:
    postgres, role = stack.demo.postgres, stack.demo.config.connections[0].user
    subprocess.run(
        [str(binaries() / "pgbench"), "-i", "-q", "-s", "5", "-d", stack.demo.config.connections[0].database],
        env=postgres.environment(),
        check=True,
        capture_output=True,
    )
    for table in ("pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"):
        stack.direct(f"GRANT SELECT, INSERT, UPDATE ON {table} TO {role}")


def _pgbench(target: Target, mode: str, clients: int, seconds: float) -> tuple[float, float]:
    """(latency in ms, transactions per second) of select-only pgbench, connection time left out."""
    done = subprocess.run(
        [
            str(binaries() / "pgbench"),
            "-n",
            "-S",
            "-M",
            mode,
            "-c",
            str(clients),
            "-j",
            "1",
            "-T",
            str(max(1, int(seconds))),
        ],
        env=target.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"pgbench failed: {done.stderr.strip()[-800:]}")
    latency = re.search(r"latency average = ([\d.]+) ms", done.stdout)
    tps = re.search(r"tps = ([\d.]+)", done.stdout)
    assert latency, done.stdout
    assert tps, done.stdout
    return float(latency[1]), float(tps[1])


async def _masked_rows(direct: Target, stack: Stack) -> list[Figure]:
    """p50 of reading 200 customers, every mask applied, by asyncpg's simple fetch."""
    sql = "SELECT * FROM customers ORDER BY id LIMIT 200"

    async def p50(connection: asyncpg.Connection) -> float:
        await connection.fetch(sql)
        times = []
        for _ in range(200):
            start = time.perf_counter()
            await connection.fetch(sql)
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1000

    raw = await asyncpg.connect(
        host=direct.host, port=direct.port, user=direct.user, password=direct.password, database=direct.database
    )
    masked = await asyncpg.connect(
        host=stack.host, port=stack.port, user="devin", password=stack.tokens["devin"], database=stack.database
    )
    try:
        return [Figure("200 rows of customers, masked: p50", "ms", await p50(raw), await p50(masked))]
    finally:
        await raw.close()
        await masked.close()


_NUMBERED = "SELECT g, g * 2, 'row ' || g FROM generate_series(1, {}) g"
_ADDRESSED = "SELECT g, g * 2, 'write to row' || g || '@example.com' FROM generate_series(1, {}) g"


@contextmanager
def _looking_for_everything(stack: Stack) -> Iterator[None]:
    """The demo's policy, with content detection of all kinds for everybody."""
    path, policies = stack.demo.config.policy_path, stack.app.hall.gateway.policies
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\ndetect:\n  - kinds: [{', '.join(Kind)}]\n", encoding="utf-8")
    stack.call(policies.reload)
    try:
        yield
    finally:
        path.write_text(before, encoding="utf-8")
        stack.call(policies.reload)


def _bulk(direct: Target, ours: Target, name: str, sql: str) -> Figure:
    """Seconds for psql to read many rows."""

    def run(target: Target) -> float:
        start = time.perf_counter()
        subprocess.run(
            [str(binaries() / "psql"), "-X", "-q", "-A", "-t", "-o", os.devnull, "-c", sql],
            env=target.environment,
            check=True,
        )
        return time.perf_counter() - start

    pairs = [(run(direct), run(ours)) for _ in range(3)]
    return Figure(
        name,
        "s",
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
    )


async def _mcp(stack: Stack, direct: Target) -> Figure:
    """p50 of the `query` tool over HTTP against the same statement by asyncpg directly."""
    import httpx2

    sql = "SELECT id, name, ssn FROM customers WHERE id = 7"
    raw = await asyncpg.connect(
        host=direct.host, port=direct.port, user=direct.user, password=direct.password, database=direct.database
    )
    plain = []
    for _ in range(100):
        start = time.perf_counter()
        await raw.fetch(sql)
        plain.append(time.perf_counter() - start)
    await raw.close()
    times = []
    assert urlsplit(stack.url).hostname
    headers = {"Authorization": f"Bearer {stack.tokens['devin']}"}
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(stack.url, http_client=http)) as client,
    ):
        for _ in range(100):
            start = time.perf_counter()
            answer = await client.call_tool("query", {"sql": sql})
            times.append(time.perf_counter() - start)
            assert not answer.is_error, answer
    return Figure("MCP query over HTTP: p50", "ms", statistics.median(plain) * 1000, statistics.median(times) * 1000)
