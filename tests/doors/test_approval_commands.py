"""`countersign approvals`: what a person at a terminal sees, decides, and is refused; over HTTP and on the store."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.doors.mcp_calls import answer, call, query
from tests.stack import Stack

COMMAND = "import sys; from server.cli import main; sys.exit(main())"
UPDATE = "UPDATE tickets SET subject = subject"
WAYS = ("url", "store")


def process(
    stack: Stack, who: str, way: str, *arguments: str, token: str | None = None, group: str = "approvals"
) -> subprocess.Popen[str]:
    """The command as this person runs it, in a process of its own."""
    where = ["--url", stack.url] if way == "url" else ["--config", str(stack.demo.config_path)]
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, group, *arguments, *where],
        env=kept | {"COUNTERSIGN_TOKEN": stack.tokens[who] if token is None else token, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(running: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, said = running.communicate(timeout=90)
    return running.returncode, out, said


def run(stack: Stack, who: str, way: str, *arguments: str) -> tuple[int, str, str]:
    return finish(process(stack, who, way, *arguments))


async def asked(stack: Stack, sql: str = UPDATE) -> dict[str, str]:
    pending: dict[str, str] = (await query(stack, "devin", sql))["pending"]
    return pending


def lines(out: str) -> Sequence[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("way", WAYS)
async def test_a_dba_lists_shows_and_approves_and_the_requester_who_waits_runs_it(stack: Stack, way: str) -> None:
    pending = await asked(stack)
    id_, digest = pending["id"], pending["digest"]
    status, out, said = await asyncio.to_thread(run, stack, "grace", way, "list", "--json")
    assert (status, said) == (0, "")
    assert id_ in {approval["id"] for approval in lines(out)}
    status, out, said = await asyncio.to_thread(run, stack, "grace", way, "show", id_)
    assert (status, said) == (0, "")
    for shown in (id_, digest, "devin (agent) for ada", "dba", f"    {UPDATE}"):
        assert shown in out
    waiting = asyncio.create_task(call(stack, "devin", "await_approval", id=id_))
    vote = ("approve", id_, "--digest", digest, "--comment", "fine", "--json")
    status, out, said = await asyncio.to_thread(run, stack, "grace", way, *vote)
    assert (status, said) == (0, "")
    assert lines(out)[0]["state"] in ("approved", "consumed")
    assert answer(await asyncio.wait_for(waiting, 30))["tag"].startswith("UPDATE ")
    [entry] = stack.audit("SELECT subject FROM entries WHERE kind = 'approval.voted' AND body LIKE ?", f"%{id_}%")
    assert entry["subject"] == "grace"


async def test_a_rejection_from_the_command_line_reaches_the_requester(stack: Stack) -> None:
    pending = await asked(stack)
    status, out, _ = await asyncio.to_thread(run, stack, "grace", "url", "reject", pending["id"], "--comment", "no")
    assert status == 0
    assert "grace reject: no" in out
    assert "denied" in out


@pytest.mark.parametrize("way", WAYS)
async def test_what_may_not_count_is_one_sentence_and_exit_2(stack: Stack, way: str) -> None:
    pending = await asked(stack)
    cases = [
        ("ada", ("approve", pending["id"], "--digest", pending["digest"]), "on behalf of"),
        ("devin", ("approve", pending["id"], "--digest", pending["digest"]), "agents cannot vote"),
        ("grace", ("approve", pending["id"], "--digest", "0" * 32), "the digest does not belong"),
        ("grace", ("approve", pending["id"]), "no --digest says what you have read"),
        ("grace", ("show", "apr-nothing"), "there is no approval `apr-nothing`"),
    ]
    running = [(process(stack, who, way, *arguments), sentence) for who, arguments, sentence in cases]
    for one, sentence in running:
        status, out, said = await asyncio.to_thread(finish, one)
        assert (status, out) == (2, "")
        assert said.startswith("countersign: ")
        assert sentence in said
        assert said.count("\n") == 1
    assert answer(await call(stack, "devin", "withdraw", id=pending["id"]))["state"] == "cancelled"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["missing", "expired"])
def test_without_a_good_token_nothing_is_shown(stack: Stack, way: str, case: str) -> None:
    token = "" if case == "missing" else stack.demo.issuer.token("grace", lifetime=timedelta(hours=-1))
    status, out, said = finish(process(stack, "grace", way, "list", token=token))
    assert (status, out) == (2, "")
    assert "token" in said
    assert "Traceback" not in said


def test_a_server_that_is_not_there_is_one_sentence(stack: Stack) -> None:
    nobody = replace(stack.app, mcp_url="http://127.0.0.1:1/mcp")
    status, _, said = run(replace(stack, app=nobody), "grace", "url", "list")
    assert status == 2
    assert said.startswith("countersign: no server answers at `http://127.0.0.1:1/mcp`")
    assert said.count("\n") == 1


async def test_a_watch_prints_what_comes_and_what_becomes_of_it(stack: Stack) -> None:
    watching = await asyncio.to_thread(process, stack, "grace", "url", "watch", "--json")
    pending = await asked(stack)
    assert watching.stdout is not None
    seen: list[dict[str, object]] = []

    def next_of(state: str) -> dict[str, object]:
        assert watching.stdout is not None
        for line in watching.stdout:
            seen.append(json.loads(line))
            if (seen[-1]["id"], seen[-1]["state"]) == (pending["id"], state):
                return seen[-1]
        raise AssertionError(f"the watch ended; it printed {seen}")

    try:
        await asyncio.wait_for(asyncio.to_thread(next_of, "requested"), 30)
        answer(await call(stack, "devin", "withdraw", id=pending["id"]))
        await asyncio.wait_for(asyncio.to_thread(next_of, "cancelled"), 30)
    finally:
        watching.kill()
        watching.communicate(timeout=10)


async def test_text_that_would_fool_a_terminal_is_shown_escaped(stack: Stack) -> None:
    pending = await asked(stack, "UPDATE tickets SET subject = subject || '\u202e[red]\x1b[2J'")
    _, out, _ = await asyncio.to_thread(run, stack, "grace", "url", "show", pending["id"])
    assert "\\u{202e}[red]\\u{1b}[2J" in out
    assert "\x1b[2J" not in out
    assert "\u202e" not in out
    answer(await call(stack, "devin", "withdraw", id=pending["id"]))
