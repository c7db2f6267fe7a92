"""`countersign policy`: check a policy, explain what it says to a statement, publish its schema."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
import uvloop
from rich.console import Console
from rich.table import Table

from gateway import catalog as reader
from gateway.errors import ConfigurationError, UpstreamUnavailableError
from gateway.model import Connection
from gateway.policies import read_policy
from gateway.upstream import UpstreamError, UpstreamLostError
from policy.catalog import Catalog
from policy.check import Severity
from policy.check import check as check_against
from policy.engine import decide
from policy.load import Policy, policy_schema
from policy.model import Decision, Effect, Facts, Principal, PrincipalKind
from policy.pseudonyms import MaskKey
from server.config import Config, load_config
from wire.upstream import Factory

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


@policy.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@CONFIG
@click.pass_context
def check(context: click.Context, file: Path | None, config_path: Path) -> None:
    """Check a policy FILE by itself, or the configured one against its live catalogs.

    Exit status 0: nothing wrong. 1: errors. 2: unreadable, with file, line and column.
    """
    if file is not None:
        context.exit(_report(file.name, read_policy(file)[0], None))
    config = load_config(config_path)
    loaded, _ = read_policy(config.policy_path)
    worst = 0
    for connection in config.connections:
        worst = max(worst, _report(connection.name, loaded, _facts_of(connection).catalog, config.mask_key))
    context.exit(worst)


def _report(name: str, loaded: Policy, catalog: Catalog | None, mask_key: MaskKey | None = None) -> int:
    """Print what is wrong; 1 if any of it is an error."""
    problems = check_against(loaded, catalog, mask_key)
    for problem in problems:
        click.echo(str(problem))
    errors = sum(problem.severity is Severity.ERROR for problem in problems)
    against = f" against {len(catalog.relations)} relations" if catalog else ""
    click.echo(
        f"{name}: {len(loaded.rules)} rules and {len(loaded.masks)} masks checked{against}: "
        f"{errors} errors, {len(problems) - errors} warnings"
    )
    return 1 if errors else 0


@policy.command()
@click.argument("sql")
@CONFIG
@click.option("--connection", help="The connection. [default: the first configured]")
@click.option("--as", "subject", default="somebody", show_default=True, help="The principal's subject.")
@click.option("--group", "groups", multiple=True, help="A group of the principal; may be repeated.")
@click.option("--agent", is_flag=True, help="The principal is an agent.")
def explain(
    sql: str, config_path: Path, connection: str | None, subject: str, groups: tuple[str, ...], agent: bool
) -> None:
    """Say what would happen to SQL, and why. Nothing is run and nothing is recorded."""
    config = load_config(config_path)
    loaded, _ = read_policy(config.policy_path)
    kind = PrincipalKind.AGENT if agent else PrincipalKind.HUMAN
    principal = Principal(subject, "", kind, frozenset(groups))
    facts = replace(_facts_of(_named(config, connection)), mask_key=config.mask_key)
    _show(decide(loaded, principal, facts, sql.encode()))


@policy.command()
def schema() -> None:
    """Print the JSON Schema of policy files, for editors."""
    click.echo(json.dumps(policy_schema(), indent=2))


def _named(config: Config, name: str | None) -> Connection:
    by_name: Mapping[str, Connection] = {c.name: c for c in config.connections}
    if name is None:
        return config.connections[0]
    if name not in by_name:
        known = ", ".join(f"`{n}`" for n in sorted(by_name))
        raise ConfigurationError(f"there is no connection `{name}`", cure=f"The configured connections: {known}.")
    return by_name[name]


async def _facts(connection: Connection) -> Facts:
    """The connection's catalog and search path, as a session would find them."""
    try:
        upstream = await Factory().connect(connection, application_name="countersign/policy")
        try:
            path = await reader.search_path(upstream)
            return Facts(connection.name, await reader.load(upstream), path)
        finally:
            await upstream.disconnect()
    except (UpstreamError, UpstreamLostError) as error:
        raise UpstreamUnavailableError(f"the database behind `{connection.name}` cannot be used: {error}") from None


def _facts_of(connection: Connection) -> Facts:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_facts(connection))


def _show(decision: Decision) -> None:
    colours = {Effect.ALLOW: "green", Effect.APPROVE: "yellow", Effect.DENY: "red"}
    verdict, console = decision.verdict, Console(highlight=False)
    console.print(f"verdict  [bold {colours[verdict.effect]}]{verdict.effect}[/]")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "demand", "why", "rule"):
        table.add_column(name, overflow="fold")
    for reason in verdict.reasons:
        table.add_row(str(reason.effect), str(reason.demand or ""), reason.text, reason.rule or reason.code)
    console.print(table)
    for reason in verdict.reasons:
        if reason.effect is verdict.effect and reason.cure:
            console.print(f"cure     {reason.cure}", markup=False)
    for terms in verdict.terms:
        who = ", ".join(sorted(terms.groups | terms.users))
        console.print(f"approval {terms.quorum} of {who}, within {terms.expires}", markup=False)
    if verdict.rewrite is not None and verdict.rewrite.splices:
        console.print("runs as", style="bold")
        console.print(verdict.rewrite.shown, markup=False, soft_wrap=True)
