"""`countersign audit`: verify the chain, search it, shred a recording. Reading is itself recorded."""

from __future__ import annotations

import contextlib
import csv
import getpass
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from audit import search as finder
from audit import segments as sealed
from audit import verify as verifier
from audit.approvals import Conflict
from audit.retention import shredding
from audit.search import Found, Query, SearchError
from audit.store import AuditUnavailable, Store
from gateway.errors import AuditUnavailableError, ConfigurationError
from server.arguments import CONFIG, STORE
from server.late_commands import LateGroup
from server.listing import show
from server.reading import record_reading, store_path
from server.timestamp_roots import time_stamps

# `gateway.model.Status`, which is slow to import: a test compares them.
STATUSES = ("completed", "failed", "cancelled", "refused", "pending", "rehearsed", "skipped", "unknown")

_LATE = {
    "checkpoint": ("server.signing_commands", "Sign all entries there are, and hand the checkpoint to the witnesses."),
    "consistency": ("server.signing_commands", "Prove that a checkpoint carries on an older one."),
    "export": ("server.export_command", "Hand over the entries: JSON lines, OCSF or OpenTelemetry."),
    "key": ("server.signing_commands", "Print the public keys that signed this audit; make the next one."),
    "prove": ("server.signing_commands", "Print a proof that one entry is in the audit."),
    "roll": ("server.signing_commands", "Seal what the store holds as a segment, and move it out."),
    "witnessed": ("server.signing_commands", "Show what witnesses said of checkpoints."),
}


@click.group(cls=LateGroup, late=_LATE)
def audit() -> None:
    """Verify, search and sign the audit."""


@audit.command()
@STORE
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
def segments(store: Path | None, config_path: Path, as_json: bool) -> None:
    """List the segments that were sealed, the oldest first, and which of them are elsewhere."""
    try:
        found = sealed.sealed(store_path(store, config_path))
    except AuditUnavailable as error:
        raise AuditUnavailableError(str(error)) from None
    if not found:
        click.echo("nothing was sealed yet: the store holds all entries", err=True)
    for one in found:
        size = one.path.stat().st_size if one.path.is_file() else None
        if as_json:
            told = {"first": one.first, "last": one.last, "path": str(one.path), "bytes": size}
            click.echo(json.dumps(told))
        else:
            where = f"{one.path}  {size / 1e6:,.1f} MB" if size is not None else "elsewhere"
            click.echo(f"{one.first:>12} to {one.last:>12}  {where}")


@audit.command()
@click.argument("store", required=False, type=click.Path(path_type=Path))
@CONFIG
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file of signed notes from elsewhere, such as a witness; may be repeated.",
)
@click.option("--public-key", "public_keys", multiple=True, help="A key that you know from elsewhere (a vkey).")
@click.option("--witness-key", "witness_keys", multiple=True, help="The vkey of a witness that cosigns.")
@click.option(
    "--timestamp-root",
    "root_files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A PEM file: also hold every time-stamp of a checkpoint to these authorities.",
)
@click.option("--since", type=click.IntRange(min=1), default=1, help="Start at the last checkpoint before this seq.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def verify(
    context: click.Context,
    store: Path | None,
    config_path: Path,
    checkpoints: Sequence[Path],
    public_keys: Sequence[str],
    witness_keys: Sequence[str],
    root_files: Sequence[Path],
    since: int,
    as_json: bool,
) -> None:
    """Check the hash chain, its tree and its signed checkpoints, from the first entry to the last.

    STORE may also be one segment, or a folder of them. What segments are elsewhere is said.

    Exit status 0: intact. 1: not intact, and the first bad entry is named. 2: unreadable.
    """
    path = store if store is not None and store.is_dir() else store_path(store, config_path)
    try:
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=as_json or not console.is_terminal) as progress:
            task = progress.add_task("verifying", total=None)
            report = verifier.verify(
                path,
                lambda count: progress.update(task, completed=count),
                public_keys=public_keys,
                checkpoints=verifier.read_notes(checkpoints),
                witness_keys=witness_keys,
                since=since,
                jobs=verifier.processors(),
            )
    except verifier.Unreadable as error:
        raise ConfigurationError(str(error)) from None
    stamped = time_stamps(path, root_files) if root_files and report.ok else None
    ok = report.ok and (stamped is None or stamped.problem is None)
    if as_json:
        more = {} if stamped is None else {"timestamps": asdict(stamped)}
        click.echo(json.dumps({**asdict(report), **more, "ok": ok}))
    else:
        click.echo(verifier.sentence(report))
        if stamped is not None:
            click.echo(stamped.sentence)
    context.exit(0 if ok else 1)


@audit.command()
@STORE
@CONFIG
@click.option("--user", help="A subject, an e-mail address, or the human behind an agent: exactly.")
@click.option("--group", help="Sessions whose principal is in this group.")
@click.option("--on-behalf-of", help="Sessions of agents that work for this human.")
@click.option("--since", help="2h, 7d, 2026-11-24, 2026-11-24T10:00 (UTC).")
@click.option("--until", help="As --since.")
@click.option("--kind", help="intent, outcome, session.opened, approval.voted …")
@click.option("--text", help="Anywhere in the entry, upper or lower case.")
@click.option("--connection", help="The connection's name.")
@click.option("--session", help="The session's id.")
@click.option("--statement", help="The statement's id, as its answer and its error say it.")
@click.option("--status", type=click.Choice(STATUSES), help="What came of it.")
@click.option("--words", help='In statements, reasons and messages: all of these; word*, "two words".')
@click.option("--action", help="What a statement demands: select, delete, drop, call …")
@click.option("--relation", help="Of what: public.orders; sales.* for all of a schema.")
@click.option("--column", help="A column that was masked: public.customers.ssn, or *.ssn.")
@click.option("--detected", help="What was found in the result and hidden: card, ssn, iban, email, key; * for any.")
@click.option("--verdict", type=click.Choice(["allow", "approve", "deny"]), help="The policy's word.")
@click.option("--rule", help="A rule that decided, by its name.")
@click.option("--door", type=click.Choice(["mcp", "wire"]), help="Where the statement came in.")
@click.option("--sqlstate", help="The error's code, or how it begins: 42501, 23.")
@click.option("--min-ms", "duration_ms", type=click.FloatRange(0), help="Statements that took at least so long.")
@click.option("--min-rows", "rows", type=click.IntRange(0), help="Statements with at least so many rows.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=200, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines, each entry whole.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV with a header line, each entry whole.")
def search(
    store: Path | None,
    config_path: Path,
    since: str | None,
    until: str | None,
    as_json: bool,
    as_csv: bool,
    **asked: Any,  # the other options, named as the fields of Query are
) -> None:
    """Find entries by who, when and what, the oldest first."""
    path = store_path(store, config_path)
    now = datetime.now(UTC)
    try:
        query = Query(
            since=finder.as_time(since, now) if since is not None else None,
            until=finder.as_time(until, now) if until is not None else None,
            **asked,
        )
        found = finder.search(path, query)
    except SearchError as error:
        raise ConfigurationError(str(error)) from None
    except AuditUnavailable as error:
        raise AuditUnavailableError(str(error)) from None
    record_reading(path, finder.reading(getpass.getuser(), query, len(found)))
    if as_json:
        for entry in found:
            click.echo(json.dumps({**asdict(entry), "body": json.loads(entry.body)}, ensure_ascii=False))
    elif as_csv:
        click.echo(_csv(found), nl=False)
    else:
        show(found)


@audit.command()
@click.argument("statement")
@STORE
@CONFIG
@click.option("--why", required=True, help="Told by the entry that takes the recording's place.")
def shred(statement: str, store: Path | None, config_path: Path, why: str) -> None:
    """Delete the recording of one statement for good; who did it, and why, is an entry. The statement's stay."""
    path = store_path(store, config_path)
    try:
        with contextlib.closing(Store.open(path)) as opened:
            if (seq := opened.outcome_of(statement)) is None:
                raise ConfigurationError(
                    f"there is no outcome of a statement `{statement}`", cure="`audit search` shows what there is."
                )
            [result] = opened.append([[shredding(getpass.getuser(), seq, why)]])
            if isinstance(result, Conflict):
                raise ConfigurationError(str(result))
            sealed.shred(path, seq, seq)
            settled = opened.settle_log()
    except AuditUnavailable as error:
        raise AuditUnavailableError(str(error)) from None
    click.echo(f"shredded: the recording of {statement}, as entry {result[0].seq} says")
    if not settled:
        click.echo("note: others read the file just now; its log holds the bytes until it is next emptied", err=True)


def _csv(found: Sequence[Found]) -> str:
    """RFC 4180, with a header line."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([field.name for field in fields(Found)])
    writer.writerows(astuple(entry) for entry in found)
    return text.getvalue()
