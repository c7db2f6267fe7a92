"""`countersign approvals`: see what waits for people, and decide with one's own login."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from gateway.errors import ConfigurationError, CountersignError
from server import approval_view as view
from server.approval_view import Approval
from server.arguments import CONFIG

T = TypeVar("T")

# How often a watch asks again: an approver sees a request before its requester has looked up.
_WATCH_SECONDS = 1.0

URL = click.option(
    "--url",
    envvar="COUNTERSIGN_URL",
    default=None,
    help="The MCP endpoint of a running server.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, one approval a line.")
ID = click.argument("approval_id", metavar="ID")
COMMENT = click.option("--comment", default="", help="A sentence for the requester and the audit.")


@click.group()
def approvals() -> None:
    """See what waits for people, approve and reject. Your access token is read from COUNTERSIGN_TOKEN."""


@approvals.command("list")
@CONFIG
@URL
@JSON
@click.option("--unreviewed", is_flag=True, help="Instead: where somebody broke the glass and nobody has reviewed it.")
def list_(config_path: Path, url: str | None, as_json: bool, unreviewed: bool) -> None:
    """What is open now, the oldest first."""
    _print_list(config_path, url, as_json, unreviewed=unreviewed)


def _print_list(config_path: Path, url: str | None, as_json: bool, *, unreviewed: bool) -> None:
    async def ask(call: Call) -> list[Approval]:
        return _open_ones(await call("list_approvals", unreviewed=unreviewed))

    found = run(config_path, url, ask)
    if as_json:
        for approval in found:
            click.echo(_as_json(approval))
    elif found:
        view.console().print(view.table_of(found, datetime.now(UTC)))
    else:
        click.echo("no broken glass waits for a review" if unreviewed else "no approvals are open")


@approvals.command()
@ID
@CONFIG
@URL
@JSON
def show(approval_id: str, config_path: Path, url: str | None, as_json: bool) -> None:
    """One approval whole: the exact statement, who asks and why, what was measured, the votes, the digest."""
    print_approval(run(config_path, url, lambda call: call("approval_status", id=approval_id)), as_json)


@approvals.command()
@ID
@CONFIG
@URL
@click.option("--digest", default=None, help="The digest of what you have read (`show`); without it you are asked.")
@COMMENT
@click.option("--break-glass", is_flag=True, help="An emergency: decide alone, where the policy lets you. Say why.")
@JSON
def approve(
    approval_id: str,
    config_path: Path,
    url: str | None,
    digest: str | None,
    comment: str,
    break_glass: bool,
    as_json: bool,
) -> None:
    """Vote yes. Without --digest the approval is shown first and you are asked."""
    if digest is None and not sys.stdin.isatty():
        raise ConfigurationError(
            "nobody can be asked here, and no --digest says what you have read",
            cure="Give the digest that `countersign approvals show` prints.",
        )

    async def vote(call: Call) -> Approval | None:
        signed = digest
        if signed is None:
            seen = await call("approval_status", id=approval_id)
            view.console().print(view.page_of(seen, datetime.now(UTC)))
            if not click.confirm("Approve exactly this?"):
                return None
            signed = seen["digest"]
        return await call("approve", id=approval_id, digest=signed, comment=comment, break_glass=break_glass)

    if (voted := run(config_path, url, vote)) is not None:
        print_approval(voted, as_json)
    else:
        click.echo("nothing was decided")


@approvals.command()
@ID
@CONFIG
@URL
@COMMENT
@JSON
def reject(approval_id: str, config_path: Path, url: str | None, comment: str, as_json: bool) -> None:
    """Vote no: one rejection ends the request."""
    print_approval(run(config_path, url, lambda call: call("reject", id=approval_id, comment=comment)), as_json)


@approvals.command()
@click.argument("approval_id", metavar="[ID]", required=False)
@CONFIG
@URL
@COMMENT
@JSON
def review(approval_id: str | None, config_path: Path, url: str | None, comment: str, as_json: bool) -> None:
    """Say what you found about a glass that somebody broke; without an ID: what waits for a review."""
    if approval_id is None:
        _print_list(config_path, url, as_json, unreviewed=True)
        return
    if not comment:
        raise ConfigurationError("a review needs a comment", cure="Say with --comment what you found.")
    done = run(config_path, url, lambda call: call("review_approval", id=approval_id, comment=comment))
    print_approval(done, as_json)


@approvals.command()
@CONFIG
@URL
@JSON
@click.option("--once", is_flag=True, help="Stop as soon as something was printed.")
def watch(config_path: Path, url: str | None, as_json: bool, once: bool) -> None:
    """Print each request as it comes and what becomes of it, until interrupted."""

    async def follow(call: Call) -> None:
        known: dict[str, str] = {}
        while True:
            for approval in await _changes(call, known):
                print_approval(approval, as_json) if approval["state"] == "requested" else _print_end(approval, as_json)
                if once:
                    return
            await asyncio.sleep(_WATCH_SECONDS)

    with contextlib.suppress(KeyboardInterrupt):
        run(config_path, url, follow)


async def _changes(call: Call, known: dict[str, str]) -> list[Approval]:
    """What is in another state than `known` says (and now says so there): new ones, decided ones, gone ones."""
    now = {approval["id"]: approval for approval in _open_ones(await call("list_approvals"))}
    for gone in known.keys() - now.keys():
        now[gone] = await call("approval_status", id=gone)
    changed = [approval for id_, approval in now.items() if known.get(id_) != approval["state"]]
    for id_, approval in now.items():
        known[id_] = approval["state"]
        if approval["state"] not in ("requested", "approved"):
            del known[id_]
    return sorted(changed, key=lambda approval: str(approval["created"]))


Call = Callable[..., Awaitable[dict[str, Any]]]


def run(config_path: Path, url: str | None, work: Callable[[Call], Awaitable[T]]) -> T:
    """Do some work with the approval tools, as the person of COUNTERSIGN_TOKEN. Raises CountersignError."""
    # What a connection needs takes a second to import: not for `--help`.
    import uvloop

    from server.approver import approver

    async def main() -> T:
        async with approver(config_path, url, os.environ.get("COUNTERSIGN_TOKEN", "")) as connected:
            try:
                return await work(connected.call)
            except CountersignError as error:
                failure = error  # leaves the connection's task groups as it is, not in a group of exceptions
        raise failure

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def _open_ones(answer: dict[str, Any]) -> list[Approval]:
    found: list[Approval] = answer["approvals"]
    return found


def print_approval(approval: Approval, as_json: bool) -> None:
    """One approval whole, for a person or as a line of JSON."""
    if as_json:
        click.echo(_as_json(approval))
    else:
        view.console().print(view.page_of(approval, datetime.now(UTC)))


def _print_end(approval: Approval, as_json: bool) -> None:
    if as_json:
        click.echo(_as_json(approval))
    else:
        view.console().print(view.table_of([approval], datetime.now(UTC)))


def _as_json(approval: Approval) -> str:
    return json.dumps(approval, ensure_ascii=False)
