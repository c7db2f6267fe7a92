"""`countersign policy`: check a policy, explain what it would say to a statement."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from gateway import catalog as catalog_reader
from gateway.connections import Connections
from gateway.errors import ConfigurationError
from gateway.explain import deciding_reasons
from gateway.policies import read_policy
from policy.check import Severity, check
from policy.engine import decide
from policy.load import policy_schema
from policy.model import Decision, Effect, Facts, Principal, PrincipalKind
from server.config import Config, load_config

CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="COUNTERSIGN_CONFIG",
    default=Path("countersign.yaml"),
    show_default=True,
    help="The configuration file.",
)


@click.group()
def policy() -> None:
    """Check the policy, and ask it what it would say."""
