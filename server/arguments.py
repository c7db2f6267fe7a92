"""Arguments and options that several commands have, so that they mean the same everywhere."""

from __future__ import annotations

from pathlib import Path

import click

CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="COUNTERSIGN_CONFIG",
    default=Path("countersign.yaml"),
    show_default=True,
    help="The gateway's configuration file: what is not named otherwise is as it says.",
)
STORE = click.argument("store", required=False, type=click.Path(path_type=Path, dir_okay=False))
