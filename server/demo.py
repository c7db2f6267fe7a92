"""`countersign demo`: PostgreSQL with sample data, a token issuer and both doors, in one process and one folder."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

import uvloop
import yaml
from rich.console import Console

from gateway.errors import ConfigurationError
from server import issuer as local_issuer
from server.app import serve
from server.config import Config, load_config
from server.guide import mcp_json, show_guide
from server.issuer import AUDIENCE, Issuer
from server.postgres import SUPERUSER, Postgres, PostgresError
from server.sample.load import DATABASE, GATEWAY_ROLE, load_sample

DEFAULT_STATE = Path(".demo")

_HOST = "127.0.0.1"
_INTERRUPTED = 130
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody of the story, as the issuer knows them."""

    subject: str
    name: str
    role: str
    groups: tuple[str, ...]
    kind: Literal["human", "agent"] = "human"
    on_behalf_of: str | None = None

    @property
    def email(self) -> str:
        """Under a reserved domain: nobody's."""
        return f"{self.subject}@example.com"


PEOPLE: Mapping[str, Person] = {
    person.subject: person
    for person in (
        Person("devin", "Devin", "coding agent", ("ai-agents",), kind="agent", on_behalf_of="ada"),
        Person("ada", "Ada Rossi", "developer", ("developers",)),
        Person("grace", "Grace Olsen", "DBA", ("dba",)),
    )
}


@dataclass(frozen=True, slots=True)
class Demo:
    """What was prepared: a database, an issuer, tokens, and a configuration that the doors can be opened with.

    `tokens` are access tokens by person; `token_paths` the private files that hold them.
    """

    state: Path
    config_path: Path
    config: Config
    postgres: Postgres
    issuer: Issuer
    connection: str = DATABASE
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    token_paths: Mapping[str, Path] = field(default_factory=dict)

    @property
    def audit_path(self) -> Path:
        """The audit store; it outlives the demo, and the next start goes on with it."""
        return self.config.audit_path

    @property
    def admin_dsn(self) -> str:
        """A libpq connection string for the database itself, past every door, as its superuser."""
        server = self.postgres
        return f"host={server.host} port={server.port} dbname={DATABASE} user={SUPERUSER} password={server.password}"


@asynccontextmanager
async def prepare(state: Path, *, mcp_port: int, wire_port: int) -> AsyncIterator[Demo]:
    """Everything but the doors, in the folder `state`, until the block ends.

    The database is made anew; the audit in `state` is kept. A taken port gives way to a free one, and so
    does 0. Raises PostgresError, and ConfigurationError where another demo runs in `state`.
    """
    with _only_demo_in(state) as folder, Postgres(folder / "postgres") as postgres:
        # Loading blocks, as starting does, and may: nothing else runs on this loop yet.
        password = secrets.token_urlsafe(24)
        load_sample(postgres, password)
        async with local_issuer.serve() as issuer:
            tokens = {name: _token(issuer, person) for name, person in PEOPLE.items()}
            config_path = _write_files(folder, postgres, password, issuer, mcp_port, wire_port)
            yield Demo(
                state=folder,
                config_path=config_path,
                config=load_config(config_path),
                postgres=postgres,
                issuer=issuer,
                tokens=tokens,
                token_paths=_write_tokens(folder / "tokens", tokens),
            )


def demo(state: Path | None, tour: bool, mcp_port: int, wire_port: int) -> int:
    """Run until Ctrl-C, or play the tour and stop; the exit status.

    Raises ConfigurationError or AuditUnavailableError where it cannot start.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(state or DEFAULT_STATE, tour, mcp_port, wire_port))
    except PostgresError as error:
        raise ConfigurationError(str(error)) from None


async def _run(state: Path, tour: bool, mcp_port: int, wire_port: int) -> int:
    console = Console(highlight=False)
    _cancel_on_signals()
    try:
        async with AsyncExitStack() as stack:
            with console.status("starting PostgreSQL, the issuer and both doors"):
                stage = await stack.enter_async_context(prepare(state, mcp_port=mcp_port, wire_port=wire_port))
                app = await stack.enter_async_context(serve(stage.config))
            if tour:
                from server.tour import play  # the MCP client is needed here only

                return await play(stage, app, console)
            _write_private(stage.state / "mcp.json", json.dumps(mcp_json(stage, app), indent=2) + "\n")
            show_guide(console, stage, app)
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        console.print(f"\nstopped; the audit stays in {state}", soft_wrap=True)
    return _INTERRUPTED if tour else 0


def _cancel_on_signals() -> None:
    """The first SIGINT or SIGTERM cancels the running task, so that everything is closed in order."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def once() -> None:
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, lambda: None)  # we are stopping already
        task.cancel()

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, once)


@contextmanager
def _only_demo_in(state: Path) -> Iterator[Path]:
    """Make the folder ours while the block runs; the lock dies with the process, however it dies."""
    state = state.resolve()
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the demo's folder `{state}` cannot be used: {error.strerror}",
            cure="Name another with `--state DIR`.",
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ConfigurationError(
            f"a demo runs in `{state}` already", cure="Stop it, or give this one a folder with `--state DIR`."
        ) from None
    try:
        # Tokens and an audit lie here: nobody should commit them by accident.
        (state / ".gitignore").write_text("*\n", encoding="utf-8")
        yield state
    finally:
        os.close(lock)


def _token(issuer: Issuer, person: Person) -> str:
    return issuer.token(
        person.subject,
        kind=person.kind,
        groups=person.groups,
        on_behalf_of=person.on_behalf_of,
        email=person.email,
        name=person.name,
    )


def _write_tokens(folder: Path, tokens: Mapping[str, str]) -> dict[str, Path]:
    folder.mkdir(mode=0o700, exist_ok=True)
    paths = {name: folder / name for name in tokens}
    for name, path in paths.items():
        _write_private(path, tokens[name] + "\n")
    return paths


def _write_files(state: Path, postgres: Postgres, password: str, issuer: Issuer, mcp_port: int, wire_port: int) -> Path:
    """The configuration, the policy and the upstream's password; the configuration's path."""
    policy = resources.files("server.sample").joinpath("policy.yaml").read_text(encoding="utf-8")
    (state / "policy.yaml").write_text(policy, encoding="utf-8")
    _write_private(state / "upstream-password", password + "\n")
    # Kept from run to run, so that pseudonyms in what people saved stay the same.
    if not (state / "mask-key").exists():
        _write_private(state / "mask-key", secrets.token_hex(32) + "\n")
    configuration = {
        "audit": {"path": "audit.db"},
        "policy": "policy.yaml",
        "mask_key_file": "mask-key",
        "issuers": [{"issuer": issuer.url, "audience": AUDIENCE}],
        "connections": {
            DATABASE: {
                "host": postgres.host,
                "port": postgres.port,
                "database": DATABASE,
                "user": GATEWAY_ROLE,
                "password_file": "upstream-password",
                "sslmode": "disable",
                "recording": "full",
                "description": "the sample shop",
            }
        },
        "wire": {"host": _HOST, "port": _free_or_any(wire_port)},
        "mcp": {"host": _HOST, "port": _free_or_any(mcp_port)},
    }
    text = "# Written by `countersign demo` at each start.\n" + yaml.safe_dump(configuration, sort_keys=False)
    path = state / "countersign.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)  # it may have been there before
        file.write(text)


def _free_or_any(port: int) -> int:
    """The port if it can be had, else 0, which takes a free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return 0
    return port
