"""A SAML login from the command line through the browser to both doors, and the ways of stealing one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import httpx2
import psycopg
import pytest
from starlette.applications import Starlette

from gateway.bearers import Bearers
from gateway.saml import IdentityProvider as Trusted
from gateway.saml import ServiceProvider, read_metadata
from server.config import Config
from server.demo import Demo
from server.saml_challenge import challenge_of
from server.saml_login import SamlLogin
from tests.doors.mcp_calls import answer, client, query
from tests.identity_provider import ENTITY_ID, IdentityProvider, Said, asked, encoded
from tests.stack import Stack, psql_path, running_stack

IDP = IdentityProvider()
BEGUN = {"port": "40000", "challenge": challenge_of("v" * 43), "state": "s" * 22}


@pytest.fixture(scope="module")
def saml_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that believes the provider."""

    def configure(demo: Demo) -> Config:
        url, certificates = read_metadata(IDP.metadata(demo.state / "idp.xml"), ENTITY_ID)
        return replace(demo.config, saml=Trusted(ENTITY_ID, url, certificates))

    with running_stack(tmp_path_factory.mktemp("saml"), configure) as running:
        yield running


def origin(stack: Stack) -> str:
    return stack.url.removesuffix("/mcp")


def response_to(location: str) -> str:
    """What the provider has the browser post after a login."""
    request = asked(location)
    acs = request.get("AssertionConsumerServiceURL") or ""
    issuer = request.findtext("{urn:oasis:names:tc:SAML:2.0:assertion}Issuer") or ""
    return encoded(IDP.signed(Said(request.get("ID") or "", acs, issuer)))


def in_the_browser(address: str) -> httpx2.Response:
    """A browser that is sent to the provider, logs in, posts the response and follows to the end."""
    with httpx2.Client(follow_redirects=False) as browser:
        sent = browser.get(address)
        acs = asked(sent.headers["location"]).get("AssertionConsumerServiceURL") or ""
        form = {"SAMLResponse": response_to(sent.headers["location"]), "RelayState": "https://evil.test/"}
        back = browser.post(acs, data=form)
        assert back.status_code == 303, back.text
        assert back.headers["location"].startswith("http://127.0.0.1:")
        return browser.get(back.headers["location"])


def logged_in(stack: Stack, *options: str) -> str:
    """What the real command prints after the browser has been where it says."""
    command = [sys.executable, "-m", "server", "login", "--saml", "--no-browser", "--url", origin(stack), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        page = in_the_browser(process.stderr.readline().removeprefix("log in at ").strip())
        assert "You may close this page" in page.text
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    return out


def test_psql_runs_as_the_person_who_logged_in_in_the_browser(saml_stack: Stack) -> None:
    lines = [line.removeprefix("export ") for line in logged_in(saml_stack).splitlines() if line[:1] != "#"]
    done = subprocess.run(
        [psql_path(), "-X", "-w", "-At", "-h", saml_stack.host, "-p", str(saml_stack.port),
         "-d", saml_stack.database, "-c", "SELECT id FROM tickets WHERE id = 1"],
        env=os.environ | dict(line.split("=", 1) for line in lines),
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout == "1\n", done.stderr
    [row] = saml_stack.audit("SELECT who FROM statements WHERE sql = 'SELECT id FROM tickets WHERE id = 1'")
    assert row["who"] == "noor@example.test"


async def test_a_person_with_saml_only_approves_over_mcp(saml_stack: Stack) -> None:
    token = logged_in(saml_stack, "--token").strip()
    pending = (await query(saml_stack, "devin", "UPDATE tickets SET subject = subject"))["pending"]
    async with client(saml_stack, "noor", token=token) as dba:
        vote = {"id": pending["id"], "digest": pending["digest"]}
        assert answer(await dba.call_tool("approve", vote))["state"] == "approved"


def refused(stack: Stack) -> str:
    [row] = stack.audit("SELECT body FROM entries WHERE kind LIKE '%refused%' ORDER BY seq DESC LIMIT 1")
    return str(row["body"])


def test_a_response_in_another_browser_is_refused_and_only_the_audit_says_why(saml_stack: Stack) -> None:
    location = httpx2.get(f"{origin(saml_stack)}/saml/login", params=BEGUN).headers["location"]
    back = httpx2.post(f"{origin(saml_stack)}/saml/acs", data={"SAMLResponse": response_to(location)})
    assert (back.status_code, "browser" in back.text) == (403, False)
    assert "another browser" in refused(saml_stack)


def test_a_response_serves_once_and_its_code_once_and_only_with_the_verifier(saml_stack: Stack) -> None:
    with httpx2.Client() as browser:

        def code() -> str:
            location = browser.get(f"{origin(saml_stack)}/saml/login", params=BEGUN).headers["location"]
            form = {"SAMLResponse": response_to(location)}
            cookies = dict(browser.cookies)
            back = browser.post(f"{origin(saml_stack)}/saml/acs", data=form)
            again = httpx2.post(f"{origin(saml_stack)}/saml/acs", data=form, cookies=cookies)
            assert again.status_code == 403
            assert "no request of ours" in refused(saml_stack)
            [found] = parse_qs(urlsplit(back.headers["location"]).query)["code"]
            return found

        def redeem(code: str, verifier: str) -> int:
            form = {"code": code, "verifier": verifier}
            return httpx2.post(f"{origin(saml_stack)}/saml/token", data=form).status_code

        first, second, third = code(), code(), code()
        assert [redeem(first, "v" * 43), redeem(first, "v" * 43)] == [200, 400]
        assert [redeem(second, "w" * 43), redeem(second, "v" * 43)] == [400, 400]
        assert httpx2.post(f"{origin(saml_stack)}/saml/token", data={"code": third}).status_code == 400


@pytest.mark.parametrize("wrong", [{"port": "80"}, {"port": "x"}, {"challenge": ""}, {"state": "https://evil.test"}])
def test_a_login_that_no_command_line_began_is_refused(saml_stack: Stack, wrong: dict[str, str]) -> None:
    assert httpx2.get(f"{origin(saml_stack)}/saml/login", params=BEGUN | wrong).status_code == 400


def test_an_oversized_form_is_refused(saml_stack: Stack) -> None:
    back = httpx2.post(f"{origin(saml_stack)}/saml/acs", data={"SAMLResponse": "A" * 600_000})
    assert back.status_code == 403


def test_our_metadata_names_where_responses_go(saml_stack: Stack) -> None:
    assert f"{origin(saml_stack)}/saml/acs" in httpx2.get(f"{origin(saml_stack)}/saml/metadata").text


async def test_over_https_the_cookie_is_this_hosts_own_and_goes_along_with_the_providers_post(
    saml_stack: Stack,
) -> None:
    """`__Host-` is a cookie of no other host; the provider's POST comes from another site."""
    trusted = saml_stack.app.hall.config.saml
    assert trusted is not None
    login = SamlLogin(ServiceProvider(trusted, "https://gate.test"), Bearers(), saml_stack.app.hall.gateway)
    transport = httpx2.ASGITransport(app=Starlette(routes=login.routes()))
    async with httpx2.AsyncClient(transport=transport, base_url="https://gate.test") as browser:
        set_cookie = (await browser.get("/saml/login", params=BEGUN)).headers["set-cookie"]
    name, *attributes = set_cookie.split("; ")
    assert name.startswith("__Host-countersign-saml=")
    assert {word.lower() for word in attributes} == {"httponly", "max-age=300", "path=/", "samesite=none", "secure"}


def test_over_http_on_this_machine_the_cookie_is_still_hidden_from_scripts(saml_stack: Stack) -> None:
    set_cookie = httpx2.get(f"{origin(saml_stack)}/saml/login", params=BEGUN).headers["set-cookie"].lower()
    assert "httponly" in set_cookie
    assert "secure" not in set_cookie


def test_who_ends_a_persons_session_ends_their_bearer_tokens(saml_stack: Stack) -> None:
    bearer = {"Authorization": f"Bearer {logged_in(saml_stack, '--token').strip()}"}
    sessions = f"{origin(saml_stack)}/sessions"
    secret = httpx2.post(f"{origin(saml_stack)}/wire-secret", headers=bearer).json()
    with psycopg.connect(
        host=saml_stack.host, port=saml_stack.port, dbname=saml_stack.database,
        user=secret["user"], password=secret["password"], autocommit=True,
    ):  # fmt: skip
        [session, *_] = httpx2.get(sessions, headers=bearer).json()["sessions"]
        assert httpx2.delete(f"{sessions}/{session['id']}", headers=bearer).status_code == 200
        assert httpx2.get(sessions, headers=bearer).status_code == 401


def test_garbage_does_not_fill_the_audit(saml_stack: Stack) -> None:
    """The last of this file: what comes after it within a minute is not recorded."""
    count = "SELECT count(*) AS n FROM entries WHERE kind LIKE '%refused%'"
    [before] = saml_stack.audit(count)
    for _ in range(70):
        assert httpx2.post(f"{origin(saml_stack)}/saml/acs", content=b"garbage").status_code == 403
    [after] = saml_stack.audit(count)
    assert 0 < after["n"] - before["n"] <= 60
