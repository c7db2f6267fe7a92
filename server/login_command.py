"""`countersign login`: an access token changed for a short-lived user and password of the wire door."""

from __future__ import annotations

import os
import shlex

import click
import httpx2

from gateway.errors import AuthenticationError, CountersignError

_SECONDS = 15.0


@click.command()
@click.option("--url", default="http://127.0.0.1:8765", show_default=True, help="The gateway's HTTP address.")
def login(url: str) -> None:
    """Print a user and password for the wire door, for an hour at most: `eval "$(countersign login)"`.

    The access token comes from COUNTERSIGN_TOKEN.
    """
    token = os.environ.get("COUNTERSIGN_TOKEN", "")
    if not token:
        raise AuthenticationError("COUNTERSIGN_TOKEN is not set", cure="Set it to an access token of your issuer.")
    where = f"{url.removesuffix('/').removesuffix('/mcp')}/wire-secret"
    try:
        answer = httpx2.post(where, headers={"Authorization": f"Bearer {token}"}, timeout=_SECONDS)
        body = answer.json()
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise CountersignError(
            f"no secret could be had from {where}: {str(error) or type(error).__name__}",
            cure="Give the address of a gateway that has both doors open: `--url`.",
        ) from None
    if answer.status_code != 200:
        raise AuthenticationError(str(body.get("error_description", f"the gateway answered {answer.status_code}")))
    click.echo(f"export PGUSER={shlex.quote(body['user'])}")
    click.echo(f"export PGPASSWORD={shlex.quote(body['password'])}")
    click.echo(f"# until {body['expires']}")
