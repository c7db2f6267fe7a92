"""What clients cost that come and go, and that stay and do nothing: in processes of their own."""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from bench.figure import Figure, Target
from gateway.model import Connection
from gateway.session_secrets import IssuedSecret
from server.config import Config
from server.demo import Demo
from server.postgres import SUPERUSER, Postgres, binaries
from server.wire_config import WireLimitsFile
from tests.stack import Stack, running_stack

_SQL = "SELECT abalance FROM pgbench_accounts WHERE aid = 7"
# What a client sends at start-up, as JDBC does, no reset takes back: its upstream session is its own.
_OWN = ("--setting", "extra_float_digits", "3")
_CLIENTS = (4, 8, 16)
_MANY = "many"
# Besides the clients: the server's own, and files of the gateway's.
_SPARE = 100


def by_secret(stack: Stack, who: str, database: str) -> Target:
    """The wire door by a session secret, so that both sides check the password by SCRAM, as PostgreSQL does."""

    async def issue() -> IssuedSecret:
        hall = stack.app.hall
        return hall.secrets.issue(await hall.verifier.verify(stack.tokens[who]))

    secret = stack.call(issue)
    return Target(stack.host, stack.port, secret.user, secret.password, database)


# -- that come and go --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Visits:
    """How many connects in a second, and the processor time of each, in ms."""

    rate: float
    server: float
    gateway: float


class _Clocks:
    """Processor time of PostgreSQL and of this process, which is the gateway: neither depends on what else runs."""

    def __init__(self, stack: Stack) -> None:
        self._postgres = psutil.Process(stack.demo.postgres.pid)

    def server(self) -> float:
        times = self._postgres.cpu_times()
        own = times.user + times.system + times.children_user + times.children_system
        for child in self._postgres.children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it has just ended
                now = child.cpu_times()
                own += now.user + now.system
        return float(own)

    def run(self, target: Target, command: list[str]) -> tuple[str, float, float]:
        """What a command says, and the seconds that the server and the gateway have used meanwhile."""
        server, gateway = self.server(), time.process_time()
        said = subprocess.run(command, env=target.environment, capture_output=True, text=True, check=True).stdout
        return said, self.server() - server, time.process_time() - gateway


def coming(direct: Target, stack: Stack, seconds: float) -> Iterator[Figure]:
    """Connects by SCRAM, one statement each: by pgbench, which computes for each, and by a client that hardly does."""
    clocks, ours = _Clocks(stack), by_secret(stack, "devin", stack.database)
    for count, threads in zip(_CLIENTS, (1, 2, 2), strict=True):
        name = f"connects by pgbench -C, {count} clients, {threads} thread{'s' * (threads > 1)}"
        theirs, own = (_pgbench(clocks, target, count, threads, seconds) for target in (direct, ours))
        yield Figure(name, "per s", theirs, own, higher=True)
    for count in _CLIENTS:
        yield from _visited(clocks, direct, ours, count, seconds, f"connects, {count} clients")
    yield from _visited(clocks, direct, ours, 8, seconds, "connects with start-up settings, 8 clients", *_OWN)


def _visited(
    clocks: _Clocks, direct: Target, ours: Target, count: int, seconds: float, name: str, *more: str
) -> Iterator[Figure]:
    a, b = (_visit(clocks, target, count, seconds, *more) for target in (direct, ours))
    yield Figure(name, "per s", a.rate, b.rate, higher=True)
    yield Figure(f"{name}: processor time of the server", "ms", a.server, b.server)
    yield Figure(f"{name}: processor time of the gateway", "ms", None, b.gateway)
    yield Figure(f"{name}: what the gateway alone could do", "per s", None, 1000 / b.gateway, higher=True)


def _visit(clocks: _Clocks, target: Target, count: int, seconds: float, *more: str) -> _Visits:
    command = [sys.executable, "-m", "bench.visitor", "--clients", str(count), "--seconds", str(seconds)]
    said, server, gateway = clocks.run(target, [*command, "--sql", _SQL, *more])
    told = json.loads(said)
    visits = told["visits"]
    return _Visits(visits / told["seconds"], server / visits * 1000, gateway / visits * 1000)


def _pgbench(clocks: _Clocks, target: Target, count: int, threads: int, seconds: float) -> float:
    command = [str(binaries() / "pgbench"), "-n", "-S", "-C", "-c", str(count), "-j", str(threads)]
    said, _, _ = clocks.run(target, [*command, "-T", str(max(1, int(seconds)))])
    tps = re.search(r"tps = ([\d.]+)", said)
    assert tps, said
    return float(tps[1])


# -- that stay ---------------------------------------------------------------------------------------------


def staying(count: int) -> Figure:
    """What the gateway's process grows by for each client that does nothing, its end of the socket included.

    Each has a session of its own with PostgreSQL, on a server of its own here that takes so many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * count + _SPARE)), hard))
    with _roomy_stack(count) as stack:
        target = by_secret(stack, "grace", _MANY)
        with _here(target, 20):  # what the first ones bring into memory is no client's
            gc.collect()
            before = psutil.Process().memory_info().rss
            with _here(target, count):
                gc.collect()
                grown = psutil.Process().memory_info().rss - before
                assert len(stack.app.hall.gateway.sessions.list()) == 20 + count
    return Figure(f"{count} idle connections: memory of each", "KB", None, grown / count / 1000)


@contextmanager
def _roomy_stack(count: int) -> Iterator[Stack]:
    """A stack with a door and a server that take so many clients, and some."""
    with tempfile.TemporaryDirectory(prefix="countersign-bench-") as folder:
        os.chmod(folder, 0o755)
        settings = {"max_connections": str(count + _SPARE)}
        with Postgres(Path(folder, "many"), settings=settings) as postgres:
            many = Connection(_MANY, postgres.host, postgres.port, "postgres", SUPERUSER, postgres.password)
            limits = WireLimitsFile.model_validate(
                dict.fromkeys(("connections", "per_principal", "per_address"), count + _SPARE)
            )

            def configure(demo: Demo) -> Config:
                config = demo.config
                assert config.wire is not None
                wire = config.wire.model_copy(update={"limits": limits})
                return replace(config, wire=wire, connections=(*config.connections, many))

            with running_stack(Path(folder, "stack"), configure) as stack:
                yield stack


@contextmanager
def _here(target: Target, count: int) -> Iterator[None]:
    """So many clients of one process, connected."""
    command = [sys.executable, "-m", "bench.visitor", "--stay", str(count)]
    with subprocess.Popen(
        command, env=target.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "here\n", "the clients could not connect"
            yield
        finally:
            process.stdin.close()
