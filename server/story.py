"""The tour's stage: real clients at both doors, the database's own truth, and promises that are kept or not."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.types import Implementation, TextContent
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from server.app import App
    from server.demo import Demo

_INDENT = 3
_GAP = 2
_COMMAND_SECONDS = 30.0


class BrokenPromiseError(Exception):
    """Something was not as promised; `play` shows expected and actual, and fails."""

    def __init__(self, what: str, expected: object, actual: object) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.actual = actual


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool answered: its structured content and its text; `failed` where it was an error."""

    content: dict[str, Any]
    text: str
    failed: bool

    @property
    def error(self) -> dict[str, Any]:
        """The parts of an error; empty where there is none."""
        error = self.content.get("error")
        return error if isinstance(error, dict) else {}

    @property
    def statement(self) -> str:
        """The statement's reference in the audit."""
        return str(self.content.get("statement") or self.error.get("statement") or "")


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that has ended."""

    status: int
    out: str
    err: str


class Story:
    """Who can be asked to do what, and the printing of it."""

    def __init__(self, console: Console, stage: Demo, app: App, clients: dict[str, Client]) -> None:
        self.console = console
        self.stage = stage
        self._app = app
        self._clients = clients

    # -- doing ----------------------------------------------------------------------------------------

    async def tool(self, who: str, name: str, **arguments: object) -> Answer:
        """A tool call through the MCP door, with that person's token."""
        result = await self._clients[who].call_tool(name, arguments)
        text = "\n".join(part.text for part in result.content if isinstance(part, TextContent))
        return Answer(result.structured_content or {}, text, bool(result.is_error))

    async def tools(self, who: str) -> list[str]:
        """The names of the tools that the MCP door offers."""
        return [tool.name for tool in (await self._clients[who].list_tools()).tools]

    async def psql(self, who: str, sql: str, *options: str) -> Finished:
        """Real psql through the wire door, with that person's token as the password."""
        door = ["-h", str(self._app.wire_host), "-p", str(self._app.wire_port), "-U", who, "-d", self.stage.connection]
        environment = _environment() | {"PGPASSWORD": self.stage.tokens[who]}
        return await _run([str(self._psql), "-Xw", *options, *door, "-c", sql], environment)

    async def direct(self, sql: str) -> list[list[str]]:
        """The database's own truth, past every door: rows of text."""
        environment = self.stage.postgres.environment()
        done = await _run([str(self._psql), "-XqAtF", "\x1f", "-d", self.stage.connection, "-c", sql], environment)
        if done.status != 0:
            raise BrokenPromiseError("the database answers a direct question", "rows", done.err.strip())
        return [line.split("\x1f") for line in done.out.splitlines()]

    async def countersign(self, *arguments: str) -> Finished:
        """Our own command line, in a process of its own."""
        # This very installation, whatever folder called `server` we may have been started in.
        environment = dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[1])}
        return await _run([sys.executable, "-P", "-m", "server", *arguments], environment)

    async def sqlite_utils(self, *arguments: str) -> Finished:
        """The sqlite-utils command line, in a process of its own."""
        return await _run([sys.executable, "-m", "sqlite_utils", *arguments], dict(os.environ))

    @property
    def _psql(self) -> Path:
        return self.stage.postgres.bin_folder / "psql"

    # -- telling --------------------------------------------------------------------------------------

    def promise(self, what: str, expected: object, actual: object) -> None:
        """Check that two values are equal, and say so. Raises BrokenPromiseError."""
        if expected != actual:
            raise BrokenPromiseError(what, expected, actual)
        self.console.print(Text.assemble("   ", ("✓", "bold green"), " ", what), soft_wrap=True)

    def says(self, who: str, line: str, *, door: str) -> None:
        """Show what somebody sends."""
        self.console.print(Text.assemble("   ", (f"{who} ", "bold cyan"), (f"· {door} ", "dim"), line), soft_wrap=True)

    def quote(self, text: str) -> None:
        """Show somebody's words, or a program's, wrapped to the terminal."""
        for line in text.strip().splitlines():
            self.console.print(_indented(Text(line, style="dim")))

    def sql(self, who: str, sql: str, *, door: str) -> None:
        """Show a statement that somebody sends."""
        self.console.print(Text.assemble("   ", (who, "bold cyan"), (f" · {door}", "dim")))
        code = Syntax(sql, "postgresql", theme="ansi_dark", background_color="default").highlight(sql)
        code.rstrip()
        self.console.print(_indented(code))

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[object]], *, give: str) -> None:
        """Show rows; text in them is shown as it is. On a narrow terminal the column `give` is cut short."""
        cells = [[_shown(value) for value in row] for row in rows]
        widths = [max(map(cell_len, column)) for column in zip(headings, *cells, strict=True)]
        given = headings.index(give)
        taken = sum(widths) - widths[given] + _GAP * len(widths) + _INDENT + 2
        room = max(self.console.width - taken, len(give))
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
        for heading in headings:
            table.add_column(heading, no_wrap=True)
        for row in cells:
            texts = [Text(text) for text in row]
            texts[given].truncate(room, overflow="ellipsis")
            table.add_row(*texts)
        self.console.print(_indented(table))


@asynccontextmanager
async def open_story(console: Console, stage: Demo, app: App) -> AsyncIterator[Story]:
    """A story with an MCP client for each person, connected over HTTP."""
    async with AsyncExitStack() as stack:
        clients = {}
        for who, token in stage.tokens.items():
            http = await stack.enter_async_context(create_mcp_http_client(headers={"Authorization": f"Bearer {token}"}))
            transport = streamable_http_client(str(app.mcp_url), http_client=http)
            info = Implementation(name="countersign-tour", version="1")
            clients[who] = await stack.enter_async_context(Client(transport, client_info=info))
        yield Story(console, stage, app, clients)


async def _run(command: Sequence[str], environment: dict[str, str]) -> Finished:
    """Run a program to its end. Raises BrokenPromiseError where it takes too long."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), _COMMAND_SECONDS)
    except TimeoutError:
        raise BrokenPromiseError(
            f"`{Path(command[0]).name}` ends", f"within {_COMMAND_SECONDS:.0f} s", "it runs on"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Finished(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))


def _environment() -> dict[str, str]:
    """Ours without libpq's settings: the tour connects where it says."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")}


def _indented(what: RenderableType) -> Padding:
    return Padding(what, (0, 0, 0, _INDENT + 2), expand=False)


def _shown(value: object) -> str:
    if value is None:
        return "·"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
