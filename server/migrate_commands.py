"""`countersign migrate`: propose a migration with one's own login, look at it, and run it once it is approved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gateway.errors import ConfigurationError
from server.approval_commands import ID, JSON, URL, Call, print_approval, run
from server.arguments import CONFIG
from server.visible import visible


@click.group()
def migrate() -> None:
    """Propose, show and run migrations. Your access token is read from COUNTERSIGN_TOKEN."""


@migrate.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@CONFIG
@URL
@click.option("--title", default=None, help="What it is for. [default: the file's name]")
@click.option("--reason", default="", help="Why it is needed: approvers read it.")
@click.option("--connection", default="", help="The connection to use. [default: the first configured]")
@JSON
def propose(
    file: Path, config_path: Path, url: str | None, title: str | None, reason: str, connection: str, as_json: bool
) -> None:
    """Rehearse the statements of a file in a transaction that is rolled back, and ask people about them."""
    try:
        sql = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the file `{file}` cannot be read: {error}", cure="Name a UTF-8 file.") from None

    async def ask(call: Call) -> dict[str, Any]:
        answer = await call(
            "propose_migration", title=title or file.name, sql=sql, reason=reason, connection=connection
        )
        return await call("approval_status", id=answer["pending"]["id"])

    print_approval(run(config_path, url, ask), as_json)


@migrate.command()
@ID
@CONFIG
@URL
@JSON
def show(approval_id: str, config_path: Path, url: str | None, as_json: bool) -> None:
    """A proposed migration: its statements, locks, rewrites, lint and what changes, and the votes."""
    print_approval(run(config_path, url, lambda call: call("approval_status", id=approval_id)), as_json)


@migrate.command("run")
@ID
@CONFIG
@URL
@JSON
def run_(approval_id: str, config_path: Path, url: str | None, as_json: bool) -> None:
    """Run an approved migration, once. Exit status 1 while people have not decided."""
    said: list[str] = []

    async def say(done: float, total: float | None, text: str | None) -> None:
        if text is not None and said[-1:] != [text]:
            said.append(text)
            click.echo(visible(text), err=True)

    answer = run(config_path, url, lambda call: call("await_approval", id=approval_id, progress=say))
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
    elif answer["status"] == "pending":
        click.echo(f"still waiting: {answer['pending']['who']} can approve {approval_id}", err=True)
    else:
        click.echo(f"{answer['tag']} in {answer['duration_ms']:.0f} ms, statement {answer['statement']}")
    if answer["status"] == "pending":
        click.get_current_context().exit(1)
