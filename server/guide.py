"""What the running demo tells its reader: where things are, and lines that work when pasted elsewhere."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from server.postgres import psql_command

if TYPE_CHECKING:
    from server.app import App
    from server.demo import Demo


def command(name: str) -> str:
    """A program of this installation as a shell can call it: by its name only where the PATH finds this one."""
    ours = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not ours.exists() or (found is not None and Path(found).resolve() == ours.resolve()):
        return name
    return shlex.quote(str(ours))


def show_guide(console: Console, stage: Demo, app: App) -> None:
    """Print addresses, people and lines to paste. Long lines are left whole, so that they can be copied."""
    from server.demo import PEOPLE

    console.print("[bold]Countersign demo[/]: one audited point between agents, people and PostgreSQL\n")
    _line(console, "MCP door", str(app.mcp_url))
    _line(console, "wire door", f"{app.wire_host}:{app.wire_port}, database {stage.connection}")
    for person in PEOPLE.values():
        acting = f" for {person.on_behalf_of}" if person.on_behalf_of else ""
        _line(console, person.subject, f"{person.role}{acting}, group {', '.join(person.groups)}")
    _line(console, "folder", f"{stage.state}; their tokens are in tokens/, the policy is policy.yaml")
    for title, line in pasteable(stage, app):
        console.print(f"\n# {title}", style="dim", markup=False, soft_wrap=True)
        console.print(line, markup=False, soft_wrap=True)
    console.print("\nThe tokens live 12 hours. Ctrl-C stops everything.")


def _line(console: Console, name: str, value: str) -> None:
    console.print(Text.assemble((f"{name:<11}", "bold"), value), soft_wrap=True)


def pasteable(stage: Demo, app: App) -> Iterator[tuple[str, str]]:
    """(what it does, the line) for each thing to try; every path is absolute."""
    quoted = {name: shlex.quote(str(path)) for name, path in stage.token_paths.items()}
    audit, config = shlex.quote(str(stage.audit_path)), shlex.quote(str(stage.config_path))
    psql = shlex.join([*psql_command(stage.postgres.bin_folder), "-h", str(app.wire_host), "-p", str(app.wire_port)])
    yield (
        "psql as the agent: try \\d, SELECT * FROM customers LIMIT 3, DROP TABLE customers",
        (f'PGPASSWORD="$(cat {quoted["devin"]})" {psql} -U devin {stage.connection}'),
    )
    yield (
        "Claude Code",
        (
            f"claude mcp add --transport http countersign {app.mcp_url} "
            f'--header "Authorization: Bearer $(cat {quoted["devin"]})"'
        ),
    )
    yield (
        "Devin, over stdio",
        (
            f'devin mcp add countersign -- env COUNTERSIGN_TOKEN="$(cat {quoted["devin"]})" '
            f"{command('countersign')} mcp --config {config}"
        ),
    )
    yield (
        "any other MCP client: its registration, token included",
        (f"cp {shlex.quote(str(stage.state / 'mcp.json'))} .mcp.json"),
    )
    yield "who did what", f"{command('sqlite-utils')} rows {audit} statements"
    yield "nothing was rewritten", f"{command('countersign')} audit verify {audit}"


def mcp_json(stage: Demo, app: App) -> dict[str, object]:
    """The registration that most MCP clients read, with the agent's token in it."""
    headers = {"Authorization": f"Bearer {stage.tokens['devin']}"}
    return {"mcpServers": {"countersign": {"type": "http", "url": app.mcp_url, "headers": headers}}}
