"""`countersign doctor`: connects to each upstream as the gateway would, and says what is wrong with what it finds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from gateway.doctor import Examination, Finding, Severity, examine, missing
from gateway.errors import ConfigurationError
from gateway.model import Connection
from gateway.policies import read_policy
from gateway.upstream import UpstreamError, UpstreamLostError
from policy.rules import Policy
from server.arguments import CONFIG

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: None}


@dataclass(frozen=True, slots=True)
class _Found:
    """A finding with where it belongs; `user` is None for what concerns all users of the connection."""

    connection: str
    user: str | None
    finding: Finding


@click.command()
@CONFIG
@click.option("--connection", default=None, help="Look at this connection only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one finding a line.")
@click.pass_context
def doctor(context: click.Context, config_path: Path, connection: str | None, as_json: bool) -> None:
    """Say what is too strong, unsafe or missing about the gateway's own users in PostgreSQL; changes nothing.

    Exit status 1 where there is an error or a warning.
    """
    from server.config import load_config

    config = load_config(config_path)
    policy, _ = read_policy(config.policy_path)
    chosen = [c for c in config.connections if connection in (None, c.name)]
    if not chosen:
        known = ", ".join(f"`{c.name}`" for c in config.connections)
        raise ConfigurationError(f"there is no connection `{connection}`", cure=f"The configured connections: {known}.")
    found = asyncio.run(_examined(chosen, policy, config.wire.limits.connections if config.wire else 0))
    for one in found:
        click.echo(_as_json(one) if as_json else _as_text(one))
    serious = sum(one.finding.severity is not Severity.NOTE for one in found)
    if not as_json:
        click.echo(f"looked at {len(chosen)}: {len(found)} findings, {serious} to be cured")
    context.exit(1 if serious else 0)


async def _examined(connections: Sequence[Connection], policy: Policy, clients: int) -> list[_Found]:
    found: list[_Found] = []
    for connection in connections:
        examinations: list[Examination] = []
        users = [connection, *(replace(connection, user=r.user, password=r.password) for r in connection.roles)]
        for as_user in users:
            try:
                examination = await _examine(as_user, policy, clients)
            except (UpstreamError, UpstreamLostError) as error:
                cure = "Check that the server is up, and that user, password and `sslmode` are right."
                failure = Finding(Severity.ERROR, f"`{as_user.user}` cannot connect: {error}", cure)
                found.append(_Found(connection.name, as_user.user, failure))
                continue
            examinations.append(examination)
            found += [_Found(connection.name, as_user.user, finding) for finding in examination.findings]
        if len(examinations) == len(users):
            found += [_Found(connection.name, None, finding) for finding in missing(connection, examinations)]
    return found


async def _examine(connection: Connection, policy: Policy, clients: int) -> Examination:
    from wire.upstream import Factory

    upstream = await Factory().connect(
        connection, application_name="countersign/doctor", settings={"search_path": "pg_catalog"}
    )
    try:
        return await examine(connection, upstream, policy, clients)
    finally:
        await upstream.disconnect()


def _as_text(one: _Found) -> str:
    finding = one.finding
    severity = click.style(finding.severity.value, fg=_COLOURS[finding.severity])
    return f"{one.connection}: {severity}: {finding.text}\n    {finding.cure}"


def _as_json(one: _Found) -> str:
    finding = one.finding
    told = {
        "connection": one.connection, "user": one.user, "severity": finding.severity.value,
        "text": finding.text, "cure": finding.cure,
    }  # fmt: skip
    return json.dumps(told, ensure_ascii=False)
