"""Who sees and ends which sessions, over HTTP and at the terminal; and what a shutdown leaves of them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx2
import psycopg
import pytest
from click.testing import CliRunner

from server.cli import main
from tests.stack import Stack, psql_path, running_stack, use_policy
from tests.waiting import until
from wire.listener import WireDoor


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of this file's own, whose DBAs are operators."""
    with running_stack(tmp_path_factory.mktemp("sessions")) as running:
        policy = tmp_path_factory.mktemp("policy") / "policy.yaml"
        policy.write_text(running.demo.config.policy_path.read_text() + "\noperators:\n  - {groups: [dba]}\n")
        use_policy(running, policy)
        yield running


def base(stack: Stack) -> str:
    return stack.url.removesuffix("/mcp")


def listed(stack: Stack, who: str, token: str = "") -> list[dict[str, Any]]:
    answer = httpx2.get(f"{base(stack)}/sessions", headers={"Authorization": f"Bearer {token or stack.tokens[who]}"})
    assert answer.status_code == 200
    found: list[dict[str, Any]] = answer.json()["sessions"]
    return found


def end(stack: Stack, who: str, session: str, body: object = None) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {stack.tokens[who]}"}
    return httpx2.request("DELETE", f"{base(stack)}/sessions/{session}", headers=headers, json=body)


@contextlib.contextmanager
def inside(stack: Stack, who: str) -> Iterator[tuple[psycopg.Connection[Any], str]]:
    """A client of the wire door, and its session."""
    known = {session["id"] for session in listed(stack, "grace")}
    with contextlib.closing(psycopg.connect(stack.wire_dsn(who), autocommit=True)) as connection:
        [new] = [session["id"] for session in listed(stack, "grace") if session["id"] not in known]
        yield connection, new


def test_each_sees_their_own_and_their_agents_and_an_operator_all(stack: Stack) -> None:
    with inside(stack, "devin") as (_, devins), inside(stack, "ada") as (_, adas), inside(stack, "grace") as (_, own):
        seen = {who: {s["id"] for s in listed(stack, who)} & {devins, adas, own} for who in ("devin", "ada", "grace")}
        assert seen == {"devin": {devins}, "ada": {devins, adas}, "grace": {devins, adas, own}}
        elsewhere = stack.demo.issuer.token("devin", kind="agent", groups=("ai-agents",), on_behalf_of="hans")
        assert devins not in {s["id"] for s in listed(stack, "devin", elsewhere)}
        [described] = [s for s in listed(stack, "ada") if s["id"] == devins]
        told = {name: described[name] for name in ("subject", "kind", "on_behalf_of", "door", "connection")}
        assert told == {
            "subject": "devin", "kind": "agent", "on_behalf_of": "ada", "door": "wire", "connection": stack.database,
        }  # fmt: skip


def test_an_ended_session_is_told_by_whom_and_why(stack: Stack) -> None:
    with inside(stack, "devin") as (connection, session):
        answer = end(stack, "grace", session, {"why": "it runs\x00 wild\n"})
        assert (answer.status_code, answer.json()["id"]) == (200, session)
        with pytest.raises(psycopg.errors.AdminShutdown) as caught:
            connection.execute("SELECT 1")
        said = "the session was ended by `grace`: it runs  wild"
        assert f"terminating connection: {said}" in str(caught.value)
        closed = "SELECT json_extract(body, '$.reason') AS reason FROM entries WHERE kind = 'session.closed'"
        until(
            lambda: [r["reason"] for r in stack.audit(f"{closed} AND session = ?", session)] == [said],
            "no entry names who ended it",
        )
        assert end(stack, "grace", session).status_code == 404


def test_a_session_of_others_is_as_if_it_were_not(stack: Stack) -> None:
    with inside(stack, "ada") as (connection, adas), inside(stack, "grace") as (_, own):
        for who, session in (("devin", adas), ("devin", own), ("ada", own), ("ada", "se-0000000000000000")):
            answer = end(stack, who, session)
            assert answer.status_code == 404
            assert "that you may end" in answer.json()["error_description"]
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert end(stack, "ada", adas).status_code == 200


@pytest.mark.parametrize("body", [b"[]", b"nothing", b'{"why": 7}', b"[" * 5000, b'{"why": "' + b"x" * 9000 + b'"}'])
def test_a_reason_that_is_none_ends_the_session_all_the_same(stack: Stack, body: bytes) -> None:
    with inside(stack, "devin") as (_, session):
        headers = {"Authorization": f"Bearer {stack.tokens['ada']}"}
        answer = httpx2.request("DELETE", f"{base(stack)}/sessions/{session}", headers=headers, content=body)
        assert (answer.status_code, answer.json()["ended"]) == (200, "the session was ended by `ada`")


def test_nobody_without_a_token_learns_anything(stack: Stack) -> None:
    assert httpx2.get(f"{base(stack)}/sessions").status_code == 401
    assert httpx2.request("DELETE", f"{base(stack)}/sessions/x").status_code == 401
    headers = {"Authorization": f"Bearer {stack.tokens['grace']}"}
    assert httpx2.post(f"{base(stack)}/sessions", headers=headers).status_code == 405
    assert httpx2.get(f"{base(stack)}/sessions/x", headers=headers).status_code == 405


def test_a_sessions_secrets_end_with_it(stack: Stack) -> None:
    headers = {"Authorization": f"Bearer {stack.tokens['devin']}"}
    secret = httpx2.post(f"{base(stack)}/wire-secret", headers=headers).json()
    dsn = stack.wire_dsn("devin", user=secret["user"], password=secret["password"])
    with contextlib.closing(psycopg.connect(dsn)):
        [session] = [s["id"] for s in listed(stack, "devin")][-1:]
        assert end(stack, "grace", session).status_code == 200
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(dsn)


def test_at_the_terminal(stack: Stack) -> None:
    def run(*arguments: str, who: str = "ada") -> tuple[int, str]:
        done = CliRunner().invoke(
            main, ["sessions", *arguments, "--url", stack.url], env={"COUNTERSIGN_TOKEN": stack.tokens.get(who, "")}
        )
        return done.exit_code, done.output

    with inside(stack, "devin") as (_, session):
        status, output = run("list", "--json")
        assert status == 0
        assert session in [json.loads(line)["id"] for line in output.splitlines()]
        assert session in run("list")[1]
        assert run("kill", session, "--why", "done for today") == (0, f"{session} of `devin` has ended\n")
    assert run("kill", session) == (
        2, f"countersign: there is no open session `{session}` that you may end\n"
    )  # fmt: skip
    assert "COUNTERSIGN_TOKEN is not set" in run("list", who="nobody")[1]


# -- shutdown --------------------------------------------------------------------------------------------


def test_a_shutdown_lets_what_runs_finish_and_begins_nothing_new(stack: Stack) -> None:
    """One statement that ends by itself, one that never would, and a client that has nothing to do."""
    hall = stack.app.hall
    door = WireDoor(hall.gateway, hall.verifier, hall.secrets, host="127.0.0.1", port=0, tls=None)
    stack.call(door.start)
    dsn = stack.wire_dsn("devin", port=str(door.port))

    def start(sql: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [psql_path(), "-X", "-w", "-At", "-c", sql, "-c", "SELECT 'more'", dsn],
            env={"PATH": "/usr/bin:/bin"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    ending = start("SELECT count(*) FROM generate_series(1, 3000000) drained")
    endless = start("SELECT count(*) FROM generate_series(1, 1000000000) drained")
    idle = psycopg.connect(dsn, autocommit=True)
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '% drained' AND pid <> pg_backend_pid()"
    until(lambda: stack.direct(running) == [(2,)], "the statements did not reach PostgreSQL")
    stack.call(lambda: door.stop(4))
    with contextlib.closing(idle), pytest.raises(psycopg.errors.AdminShutdown, match="administrator command"):
        idle.execute("SELECT 1")
    for process, shown in ((ending, ["3000000"]), (endless, [])):
        output, said = process.communicate(timeout=20)
        assert output.split() == shown
        assert "terminating connection due to administrator command" in said
    outcomes = "SELECT sql, status FROM statements WHERE sql LIKE '% drained' ORDER BY length(sql)"
    until(
        lambda: [r["status"] for r in stack.audit(outcomes)] == ["completed", "cancelled"],
        "each statement has an outcome",
    )
