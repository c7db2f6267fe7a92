"""What every command that reads the audit shares: which file, and the entry that says who read it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from audit.entry import Draft
from audit.segments import Segment, elsewhere
from audit.store import AuditUnavailable, Item, Store
from gateway.errors import ConfigurationError


def store_path(store: Path | None, config_path: Path) -> Path:
    """The store that was named, or the configured one. Raises ConfigurationError where there is none."""
    if store is not None:
        path = store
    else:
        from server.config import load_config  # all that a configuration can name is slow to import

        path = load_config(config_path).audit_path
    return existing(path)


def existing(path: Path) -> Path:
    """The path, if a store is there. Raises ConfigurationError: no command that asks a store makes one."""
    if not path.is_file():
        raise ConfigurationError(f"there is no audit store at `{path}`", cure="Name the file, or `--config`.")
    if path.stat().st_size == 0:  # SQLite would take it for a new one, and what was lost would go unnoticed
        raise ConfigurationError(f"`{path}` is empty, and no audit store", cure="Name another, or restore it.")
    return path


def unread(path: Path) -> str:
    """Which segments are elsewhere, so that they cannot be read, in words; empty where there are none."""
    with contextlib.suppress(AuditUnavailable):  # whoever reads says why it cannot be read
        return _told(elsewhere(path))
    return ""


def _told(away: Sequence[Segment]) -> str:
    return f"{len(away)} of its segments are elsewhere (up to entry {away[-1].last})" if away else ""


def record_reading(path: Path, draft: Draft) -> None:
    """Who read what is an entry. A copy that cannot be written (an auditor's) is read without one, and says so.

    So does what could not be read, as its segment is elsewhere.
    """
    with contextlib.suppress(AuditUnavailable):  # whoever reads has said why it cannot be read
        away = elsewhere(path)
        if away:
            # In the entry too: whoever is handed an export learns what is not in it.
            draft = replace(draft, body={**draft.body, "elsewhere": [[one.first, one.last] for one in away]})
            click.echo(f"note: {_told(away)}, and were not read; `audit segments` lists them", err=True)
    try:
        store = Store.open(path)
    except AuditUnavailable as error:
        click.echo(f"note: this reading is not recorded: {error}", err=True)
        return
    try:
        store.append([[Item(draft)]])
    except AuditUnavailable as error:
        click.echo(f"note: this reading is not recorded: {error}", err=True)
    finally:
        store.close()
