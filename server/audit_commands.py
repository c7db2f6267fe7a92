"""`countersign audit`: verify the chain, and search it. Reading is itself recorded."""

from __future__ import annotations

import getpass
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from audit import search as finder
from audit import verify as verifier
from audit.search import Found, Query, SearchError
from audit.store import AuditUnavailable, Item, Store
from gateway.errors import AuditUnavailableError, ConfigurationError
from server.config import load_config
from server.visible import visible


@click.group()
def audit() -> None:
    """Verify and search the audit."""


def _store_path(store: Path | None, config_path: Path) -> Path:
    path = store if store is not None else load_config(config_path).audit_path
    if not path.is_file():
        raise ConfigurationError(f"there is no audit store at `{path}`", cure="Name the file, or `--config`.")
    return path


STORE = click.argument("store", required=False, type=click.Path(path_type=Path, dir_okay=False))
CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="COUNTERSIGN_CONFIG",
    default=Path("countersign.yaml"),
    show_default=True,
    help="Where to look up the store when no file is named.",
)


@audit.command()
@STORE
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def verify(context: click.Context, store: Path | None, config_path: Path, as_json: bool) -> None:
    """Check the hash chain from the first entry to the last.

    Exit status 0: intact. 1: not intact, and the first bad entry is named. 2: unreadable.
    """
    path = _store_path(store, config_path)
    try:
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=as_json or not console.is_terminal) as progress:
            task = progress.add_task("verifying", total=None)
            report = verifier.verify(path, lambda count: progress.update(task, completed=count))
    except verifier.Unreadable as error:
        raise ConfigurationError(str(error)) from None
    click.echo(json.dumps({**asdict(report), "ok": report.ok}) if as_json else verifier.sentence(report))
    context.exit(0 if report.ok else 1)


@audit.command()
@STORE
@CONFIG
@click.option("--user", help="The subject: exactly.")
@click.option("--group", help="Sessions whose principal is in this group.")
@click.option("--since", help="2h, 7d, 2026-11-24, 2026-11-24T10:00 (UTC).")
@click.option("--until", help="As --since.")
@click.option("--kind", help="intent, outcome, session.opened, approval.voted …")
@click.option("--text", help="Anywhere in the entry, upper or lower case.")
@click.option("--connection", help="The connection's name.")
@click.option("--session", help="The session's id.")
@click.option("--status", help="completed, failed, refused, pending, unknown …")
@click.option("--limit", type=click.IntRange(1, 100_000), default=200, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines, each entry whole.")
def search(
    store: Path | None,
    config_path: Path,
    user: str | None,
    group: str | None,
    since: str | None,
    until: str | None,
    kind: str | None,
    text: str | None,
    connection: str | None,
    session: str | None,
    status: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Find entries by who, when and what, the oldest first."""
    path = _store_path(store, config_path)
    now = datetime.now(UTC)
    try:
        query = Query(
            user=user,
            group=group,
            since=finder.as_time(since, now) if since else None,
            until=finder.as_time(until, now) if until else None,
            kind=kind,
            text=text,
            connection=connection,
            session=session,
            status=status,
            limit=limit,
        )
        found = finder.search(path, query)
    except SearchError as error:
        raise ConfigurationError(str(error)) from None
    except AuditUnavailable as error:
        raise AuditUnavailableError(str(error)) from None
    _record_reading(path, query, len(found))
    if as_json:
        for entry in found:
            click.echo(json.dumps({**asdict(entry), "body": json.loads(entry.body)}, ensure_ascii=False))
    else:
        _show(found)


def _record_reading(path: Path, query: Query, found: int) -> None:
    """Who read what is an entry. A copy that cannot be written (an auditor's) is read without one, and says so."""
    try:
        store = Store.open(path)
    except AuditUnavailable as error:
        click.echo(f"note: this reading is not recorded: {error}", err=True)
        return
    try:
        store.append([[Item(finder.reading(getpass.getuser(), query, found))]])
    except AuditUnavailable as error:
        click.echo(f"note: this reading is not recorded: {error}", err=True)
    finally:
        store.close()


def _show(found: Sequence[Found]) -> None:
    console = Console(soft_wrap=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("seq", "time", "who", "kind", "what"):
        table.add_column(name, no_wrap=name != "what", overflow="fold")
    for entry in found:
        # What clients sent must not reach the terminal as control sequences, nor look like something else.
        cells = (str(entry.seq), entry.time[:19], entry.subject or "", entry.kind, _what(entry))
        table.add_row(*map(visible, cells))
    console.print(table if found else "nothing found", markup=False)


def _what(entry: Found) -> str:
    """The one thing that a reader of this kind of entry wants to see."""
    body = json.loads(entry.body)
    match entry.kind:
        case "intent":
            return f"[{body['verdict']['effect']}] {' '.join(body['text'].split())}"
        case "outcome":
            parts = [body["status"], body.get("tag") or "", body.get("sqlstate") or "", body.get("message") or ""]
            return " · ".join(part for part in parts if part)
        case "session.opened":
            return (
                f"{body['door']} door, {body['client'].get('name') or 'unnamed client'}, until {body['expires'][:19]}"
            )
        case "session.closed" | "session.refused":
            return str(body["reason"])
        case "policy.loaded" | "policy.rejected":
            return f"{body['source']} {body.get('error') or body['policy'][:12]}"
        case "audit.read":
            return f"{body['how']} {json.dumps(body['query'], ensure_ascii=False)}: {body['found']} found"
        case kind if kind.startswith("approval."):
            voter = body.get("voter", {}).get("subject", "")
            return " ".join(str(p) for p in (body["approval"], voter, body.get("choice", "")) if p)
    return ""
