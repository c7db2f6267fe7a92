"""`countersign demo`: PostgreSQL with sample data, a token issuer and both doors, in one process and one folder."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

import uvloop
import yaml
from rich.console import Console
from rich.table import Table

from gateway.errors import ConfigurationError
from server import issuer as local_issuer
from server.app import App, serve
from server.config import Config, load_config
from server.issuer import Issuer
from server.postgres import SUPERUSER, Postgres, PostgresError, psql_command
from server.sample.load import DATABASE, GATEWAY_ROLE, load_sample
from server.tour import play

DEFAULT_STATE = Path(".demo")

_HOST = "127.0.0.1"
_INTERRUPTED = 130


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
        return (
            f"host={server.host} port={server.port} dbname={DATABASE} user={SUPERUSER} password={server.password}"
        )


@asynccontextmanager
async def prepare(state: Path, *, mcp_port: int, wire_port: int) -> AsyncIterator[Demo]:
    """Everything but the doors, in the folder `state`, until the block ends.

    The database is made anew; the audit in `state` is kept. A taken port gives way to a free one, and so
    does 0. Raises PostgresError, and ConfigurationError where another demo runs in `state`.
    """
    state = state.resolve()
    with _only_demo_in(state):
        # Starting PostgreSQL blocks, and may: nothing else runs on this loop yet.
        with Postgres(state / "postgres") as postgres:
            password = secrets.token_urlsafe(24)
            load_sample(postgres, password)
            async with local_issuer.serve() as issuer:
                tokens = {name: _token(issuer, person) for name, person in PEOPLE.items()}
                config_path = _write_files(state, postgres, password, issuer, mcp_port, wire_port)
                yield Demo(
                    state=state,
                    config_path=config_path,
                    config=load_config(config_path),
                    postgres=postgres,
                    issuer=issuer,
                    tokens=tokens,
                    token_paths=_write_tokens(state / "tokens", tokens),
                )


def demo(state: Path | None, tour: bool, mcp_port: int, wire_port: int) -> int:
    """Run until Ctrl-C, or play the tour and stop; the exit status.

    Raises CountersignError where it cannot start.
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
        with console.status("starting PostgreSQL, the issuer and both doors …"):
            stage = prepare(state, mcp_port=mcp_port, wire_port=wire_port)
            prepared = await stage.__aenter__()
    except asyncio.CancelledError:
        return _INTERRUPTED
    raise NotImplementedError(prepared)
