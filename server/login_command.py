"""`countersign login`: an access token or a SAML login, changed for a short-lived user and password (wire door)."""

from __future__ import annotations

import os
import shlex

import click

from gateway.errors import AuthenticationError
from server.gateway_http import ask, base_of, granted
from server.saml_handover import token_by_browser


@click.command()
@click.option("--url", default="http://127.0.0.1:8765", show_default=True, help="The gateway's HTTP address.")
@click.option("--saml", is_flag=True, help="Log in in the browser, at the gateway's SAML identity provider.")
@click.option("--token", "as_token", is_flag=True, help="With --saml: print the bearer token alone, for the MCP door.")
@click.option("--no-browser", is_flag=True, help="With --saml: only print the address to open.")
def login(url: str, saml: bool, as_token: bool, no_browser: bool) -> None:
    """Print a user and password for the wire door, for an hour at most: `eval "$(countersign login)"`.

    The access token comes from COUNTERSIGN_TOKEN, or from a login in the browser (`--saml`).
    """
    if (as_token or no_browser) and not saml:
        raise click.UsageError("--token and --no-browser go with --saml")
    url = base_of(url)
    token = token_by_browser(url, not no_browser) if saml else os.environ.get("COUNTERSIGN_TOKEN", "")
    if as_token:
        click.echo(token)
        return
    if not token:
        raise AuthenticationError("COUNTERSIGN_TOKEN is not set", cure="Set it to an access token of your issuer.")
    cure = "Give the address of a gateway that has both doors open: `--url`."
    body = granted(ask("POST", f"{url}/wire-secret", lacks="secret", cure=cure, token=token))
    click.echo(f"export PGUSER={shlex.quote(body['user'])}")
    click.echo(f"export PGPASSWORD={shlex.quote(body['password'])}")
    click.echo(f"# until {body['expires']}")
