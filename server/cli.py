"""The command line: `countersign`. Every failure is one sentence and exit status 2; never a traceback."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from gateway.errors import CountersignError
from server.arguments import CONFIG
from server.late_commands import LateGroup

T = TypeVar("T")

# What a shell says of a program that SIGINT ended.
_INTERRUPTED = 130


class _Commands(LateGroup):
    """Turns our own errors into one line on stderr and exit status 2."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse what is no text: neither SQL nor the audit can hold it."""
        for argument in args:
            if not argument.isascii() and any("\ud800" <= char <= "\udfff" for char in argument):
                raise click.UsageError(f"the argument {argument!a} is not UTF-8", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CountersignError as error:
            click.echo(f"countersign: {error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            ctx.exit(_INTERRUPTED)  # a replay or a followed export that was watched enough: nothing to say
        except BrokenPipeError:
            # Our output was a pipe that closed (`| head`): nothing is wrong.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)


_LATE = {
    "approvals": ("server.approval_commands", "See what waits for people, approve and reject."),
    "audit": ("server.audit_commands", "Verify, search and sign the audit."),
    "doctor": ("server.doctor_command", "Say what is too strong, unsafe or missing about the upstream roles."),
    "login": ("server.login_command", "Print a user and password for the wire door, for an hour at most."),
    "migrate": ("server.migrate_commands", "Propose, show and run migrations."),
    "policy": ("server.policy_commands", "Check the policy, and ask it what it would say."),
    "replay": ("server.replay", "Play a session as it was."),
    "sessions": ("server.session_commands", "See who is in, and end sessions."),
}


@click.group(
    cls=_Commands, late=_LATE, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="countersign", prog_name="countersign")
@click.option("--verbose", is_flag=True, help="Log what the gateway does to stderr.")
def main(verbose: bool) -> None:
    """The one point every statement passes between AI agents and PostgreSQL."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


@main.command()
@click.option("--tour", is_flag=True, help="Play the story without hands, check each step, and stop.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder for the demo's database, audit and tokens. [default: .demo in the current folder]",
)
@click.option("--mcp-port", type=click.IntRange(0, 65535), default=8765, show_default=True)
@click.option("--wire-port", type=click.IntRange(0, 65535), default=6432, show_default=True)
def demo(tour: bool, state: Path | None, mcp_port: int, wire_port: int) -> None:
    """Run everything on an embedded PostgreSQL with sample data and a local token issuer."""
    from server.demo import demo as run

    sys.exit(run(state, tour, mcp_port, wire_port))


@main.command()
@CONFIG
def serve(config_path: Path) -> None:
    """Open the configured doors until SIGINT or SIGTERM."""
    from server.config import load_config

    config = load_config(config_path)  # before the import of all that serving needs: a mistake is told at once
    from server.app import serve as open_doors

    async def run() -> None:
        async with open_doors(config) as app:
            if app.mcp_url:
                click.echo(f"MCP door: {app.mcp_url}")
            if app.wire_port:
                click.echo(f"wire door: {app.wire_host}:{app.wire_port}")
            click.echo(f"audit: {config.audit_path}")
            sys.stdout.flush()
            await stopped_by_signal()
            click.echo("stopping: running statements get a moment to finish", err=True)

    run_loop(run())


@main.command("mcp")
@CONFIG
@click.option("--connection", default=None, help="The connection to use. [default: the first configured]")
def mcp_command(config_path: Path, connection: str | None) -> None:
    """Speak MCP over stdio; the access token comes from COUNTERSIGN_TOKEN."""
    from server.config import load_config

    config = load_config(config_path)
    from server.app import gateway_of
    from server.mcp import run_stdio

    async def run() -> None:
        async with gateway_of(config) as hall:
            token = os.environ.get("COUNTERSIGN_TOKEN", "")
            await run_stdio(hall.gateway, hall.verifier, token, connection or config.connections[0].name)

    run_loop(run())


def run_loop(main_coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end on uvloop, the loop of every entry point."""
    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main_coroutine)


async def stopped_by_signal() -> None:
    """Return at the first SIGINT or SIGTERM."""
    import asyncio
    import signal

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        await stop.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
