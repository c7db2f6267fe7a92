"""The command line's half of a SAML login: opens the browser, waits for it on the loopback, changes the code."""

from __future__ import annotations

import http.server
import secrets
import time
import webbrowser
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import click

from gateway.errors import AuthenticationError
from server.gateway_http import ask, granted
from server.saml_challenge import challenge_of

_SECONDS = 300.0
_STEP_SECONDS = 0.5
_DONE = b"Signed in. You may close this page.\n"


def token_by_browser(url: str, browser: bool) -> str:
    """A bearer token of whoever logs in in the browser. Raises AuthenticationError, CountersignError."""
    verifier, state = secrets.token_urlsafe(32), secrets.token_urlsafe(16)
    with _Loopback(state) as loopback:
        begun = {"port": loopback.server_port, "challenge": challenge_of(verifier), "state": state}
        address = f"{url}/saml/login?{urlencode(begun)}"
        click.echo(f"log in at {address}", err=True)
        if browser:
            webbrowser.open(address)
        code = loopback.wait()
    cure = "Give the address of a gateway that has `saml` in its configuration: `--url`."
    sent = {"code": code, "verifier": verifier}
    return str(granted(ask("POST", f"{url}/saml/token", lacks="token", cure=cure, data=sent))["token"])


class _Loopback(http.server.HTTPServer):
    """Takes one code, from the browser that was sent with our state; other requests change nothing."""

    def __init__(self, state: str) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.state = state
        self.code: str | None = None
        self.timeout = _STEP_SECONDS

    def wait(self) -> str:
        """The code. Raises AuthenticationError when nobody comes."""
        until = time.monotonic() + _SECONDS
        while self.code is None:
            if time.monotonic() > until:
                raise AuthenticationError(f"nobody logged in within {_SECONDS:.0f} seconds", cure="Try it again.")
            self.handle_request()
        return self.code


class _Page(http.server.BaseHTTPRequestHandler):
    server: _Loopback
    timeout = 5  # a connection that says nothing holds up the browser's no longer

    def do_GET(self) -> None:
        code = _code(self.path, self.server.state)
        if fits := code is not None:
            self.server.code = code
        self.send_response(200 if fits else 404)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(_DONE if fits else b"Nothing is here.\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: standard output is for `eval`, and a code is nobody's to read."""


def _code(path: str, ours: str) -> str | None:
    """The code of a request that has exactly one, with our state; of any other, nothing."""
    try:
        said = parse_qs(urlsplit(path).query, max_num_fields=8)
        [state], [code] = said["state"], said["code"]
    except (ValueError, KeyError):
        return None
    # What UTF-8 cannot say is no state of ours, and no reason to stop.
    fits = secrets.compare_digest(state.encode("utf-8", "surrogatepass"), ours.encode())
    return code if fits else None
