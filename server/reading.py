"""What every command that reads the audit shares: which file, and the entry that says who read it."""

from __future__ import annotations

from pathlib import Path

import click

from audit.entry import Draft
from audit.store import AuditUnavailable, Item, Store
from gateway.errors import ConfigurationError
from server.config import load_config


def store_path(store: Path | None, config_path: Path) -> Path:
    """The store that was named, or the configured one. Raises ConfigurationError where there is none."""
    path = store if store is not None else load_config(config_path).audit_path
    if not path.is_file():
        raise ConfigurationError(f"there is no audit store at `{path}`", cure="Name the file, or `--config`.")
    return path


def record_reading(path: Path, draft: Draft) -> None:
    """Who read what is an entry. A copy that cannot be written (an auditor's) is read without one, and says so."""
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
