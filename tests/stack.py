"""The whole product on real servers, in one process: PostgreSQL, issuer, gateway, both doors.

The gateway runs on a loop in a thread of its own, so that blocking tests (psql in a subprocess) and
asyncio tests meet it alike: over real sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from server.app import App, serve
from server.config import Config
from server.demo import PEOPLE, Demo, prepare

T = TypeVar("T")


@dataclass
class Stack:
    """What tests need to know of the running product."""

    demo: Demo
    loop: asyncio.AbstractEventLoop
    app: App
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """The wire door's host."""
        return self.app.wire_host or ""

    @property
    def port(self) -> int:
        """The wire door's port."""
        return self.app.wire_port or 0

    @property
    def url(self) -> str:
        """The MCP door's endpoint."""
        return self.app.mcp_url or ""

    @property
    def database(self) -> str:
        """The connection's name, which is the wire door's database."""
        return self.demo.connection

    @property
    def audit_path(self) -> Path:
        """The audit store."""
        return self.demo.audit_path

    def call(self, make: Callable[[], Awaitable[T]], timeout: float = 30) -> T:
        """Run a coroutine on the gateway's own loop."""

        async def run() -> T:
            return await make()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(timeout)

    def psql(
        self, who: str, sql: str | None, *args: str, timeout: float = 30, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Real psql through the wire door, as this person; `sql` goes in by -c, or None for args only."""
        command = [psql_path(), "-X", "-w", "-h", self.host, "-p", str(self.port), "-U", who, "-d", self.database]
        command += [*args, *(["-c", sql] if sql is not None else [])]
        return subprocess.run(
            command,
            env={"PGPASSWORD": self.tokens[who], "PATH": "/usr/bin:/bin", "PGCONNECT_TIMEOUT": "10", **env},
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",  # a binary COPY is no text
            timeout=timeout,
            check=False,
        )

    def wire_dsn(self, who: str, **more: str) -> str:
        """A libpq connection string for the wire door."""
        parts = {
            "host": self.host,
            "port": str(self.port),
            "dbname": self.database,
            "user": who,
            "password": self.tokens[who],
            **more,
        }
        return " ".join(f"{k}={v}" for k, v in parts.items())

    def direct(self, sql: str) -> list[tuple[Any, ...]]:
        """The oracle: the database's own truth, as its superuser, past every door."""
        import psycopg

        with psycopg.connect(self.demo.admin_dsn, autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def audit(self, sql: str, *parameters: object) -> list[dict[str, Any]]:
        """Rows of the audit store, read-only."""
        with contextlib.closing(sqlite3.connect(f"file:{self.audit_path}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(sql, parameters)]


def use_policy(stack: Stack, path: Path) -> None:
    """Put another policy in force, as an administrator would: by changing the file."""
    in_force = stack.demo.config.policy_path
    if in_force.read_bytes() != path.read_bytes():
        shutil.copy(path, in_force)
        stack.call(stack.app.hall.gateway.policies.reload)


def psql_path() -> str:
    """The machine's psql, or the embedded package's."""
    if found := shutil.which("psql"):
        return found
    from server.postgres import binaries

    return str(binaries() / "psql")


def _soon_let_go(config: Config) -> Config:
    """A result that a test does not read to its end holds locks, for which other tests of the same stack would wait."""
    return replace(config, mcp=config.mcp and config.mcp.model_copy(update={"cursor": 8.0}))


@contextmanager
def running_stack(folder: Path, configure: Callable[[Demo], Config] | None = None) -> Iterator[Stack]:
    """Everything started on free ports in `folder`, with the demo's configuration or what `configure` makes of it;
    everything stopped at the end."""
    started = threading.Event()
    box: dict[str, Any] = {}

    async def main() -> None:
        stop = box["stop"] = asyncio.Event()
        async with (
            prepare(folder, mcp_port=0, wire_port=0) as demo,
            serve(_soon_let_go(configure(demo) if configure else demo.config)) as app,
        ):
            box["stack"] = Stack(demo, asyncio.get_running_loop(), app, dict(demo.tokens))
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                box["loop"] = runner.get_loop()
                runner.run(main())
        except BaseException as error:
            box["error"] = error
        finally:
            started.set()

    thread = threading.Thread(target=run, name="stack", daemon=True)
    thread.start()
    if not started.wait(60) or "stack" not in box:
        raise RuntimeError("the stack did not start") from box.get("error")
    try:
        assert set(PEOPLE) <= set(box["stack"].tokens)
        yield box["stack"]
    finally:
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join(30)
        if error := box.get("error"):
            raise error
        assert not thread.is_alive(), "the stack did not stop"
