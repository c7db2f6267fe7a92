"""`countersign sessions`: who is in at a running server, and ending a session, with one's own login."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import click
from rich.table import Table

from gateway.errors import AuthenticationError, SessionEndedError
from server.gateway_http import ask, base_of, granted
from server.terminal import Terminal

_ID_WIDTH = 19  # an id is there to be copied

URL = click.option(
    "--url",
    envvar="COUNTERSIGN_URL",
    default="http://127.0.0.1:8765",
    show_default=True,
    help="The gateway's HTTP address.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, one session a line.")


@click.group()
def sessions() -> None:
    """See who is in, and end sessions. Your access token is read from COUNTERSIGN_TOKEN.

    Everybody sees and ends their own and their agents'; operators, whom the policy names, all of that server.
    """


@sessions.command("list")
@URL
@JSON
def list_(url: str, as_json: bool) -> None:
    """The open sessions, the oldest first."""
    found: list[dict[str, Any]] = _asked("GET", url, "/sessions")["sessions"]
    if as_json:
        for session in found:
            click.echo(json.dumps(session, ensure_ascii=False))
        return
    if not found:
        click.echo("no session is open that you may see")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("session", min_width=_ID_WIDTH)
    for name in ("who", "where", "from", "until (UTC)"):
        table.add_column(name, overflow="fold")
    for session in found:
        human = f" for {session['on_behalf_of']}" if session["on_behalf_of"] else ""
        until = datetime.fromisoformat(session["expires"]).astimezone(UTC)
        table.add_row(
            session["id"],
            f"{session['subject']}{human}",
            f"{session['connection']}, {session['door']}",
            session["address"] or "",
            f"{until:%m-%d %H:%M}",
        )
    Terminal().print(table)


@sessions.command()
@click.argument("session_id", metavar="ID")
@URL
@click.option("--why", default="", help="A sentence for whoever is in, and for the audit.")
def kill(session_id: str, url: str, why: str) -> None:
    """End a session now, in the middle of a statement too; its principal's session secrets end with it.

    A token that is still good opens another: take it away at its issuer.
    """
    ended = _asked("DELETE", url, f"/sessions/{quote(session_id, safe='')}", {"why": why})
    click.echo(f"{ended['id']} of `{ended['subject']}` has ended")


def _asked(method: str, url: str, path: str, body: dict[str, str] | None = None) -> dict[str, Any]:
    """The server's answer. Raises CountersignError with a sentence."""
    token = os.environ.get("COUNTERSIGN_TOKEN", "")
    if not token:
        raise AuthenticationError("COUNTERSIGN_TOKEN is not set", cure="Set it to an access token of your issuer.")
    cure = "Give the address of a running gateway with an MCP door: `--url`."
    answer = ask(method, f"{base_of(url)}{path}", lacks="answer", cure=cure, token=token, json=body)
    if answer.status_code == 404:
        raise SessionEndedError(str(answer.json().get("error_description", "there is no such session")))
    return granted(answer)
