"""Break-glass from end to end: a fresh login, one person's word in an emergency, and the review afterwards."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.doors.mcp_calls import answer, call, client, error, query
from tests.doors.test_approval_commands import lines, run
from tests.stack import Stack, use_policy

POLICY = """\
rules:
  - {name: reading, effect: allow, actions: [select], relations: ["public.*"]}
  - name: changes
    effect: approve
    who: {groups: [ai-agents]}
    actions: [update]
    relations: [public.tickets]
    approvers: {groups: [dba], users: [{subject: hans, issuer: "https://other.example"}]}
    quorum: 2
    break_glass: {groups: [on-call]}
    fresh: 5m
    acr: [mfa]
"""


async def test_who_breaks_the_glass_has_logged_in_just_now_and_is_reviewed(fresh_stack: Stack, tmp_path: Path) -> None:
    stack, file = fresh_stack, tmp_path / "glass.yaml"
    file.write_text(POLICY)
    await asyncio.to_thread(use_policy, stack, file)
    pending = (await query(stack, "devin", "UPDATE tickets SET subject = subject"))["pending"]
    assert pending["who"] == "2 of `dba` or `hans of https://other.example`"

    async def sam(age: timedelta, acr: str) -> Any:
        logged_in = int(time.time() - age.total_seconds())
        token = stack.demo.issuer.token("sam", groups=["on-call"], auth_time=logged_in, acr=acr)
        arguments = {"id": pending["id"], "digest": pending["digest"], "break_glass": True, "comment": "shop is down"}
        async with client(stack, "sam", token=token) as connected:
            return await connected.call_tool("approve", arguments)

    assert "yours is 60 min old" in error(await sam(timedelta(hours=1), "mfa"))["what"]
    said = error(await sam(timedelta(0), "pwd"))
    assert "stronger login" in said["what"]
    assert "max_age=300, acr_values=mfa" in said["cure"]
    assert answer(await sam(timedelta(0), "mfa"))["review"] == "open"
    assert answer(await call(stack, "devin", "await_approval", id=pending["id"]))["tag"].startswith("UPDATE ")

    status, out, _ = await asyncio.to_thread(run, stack, "grace", "url", "list", "--unreviewed", "--json")
    assert (status, [one["id"] for one in lines(out)]) == (0, [pending["id"]])
    assert answer(await call(stack, "devin", "list_approvals", unreviewed=True))["approvals"] != []
    review = ("review", pending["id"])
    status, out, told = await asyncio.to_thread(run, stack, "grace", "url", *review, "--comment", "it was down")
    assert (status, told) == (0, "")
    assert "grace: it was down" in out
    assert answer(await call(stack, "grace", "list_approvals", unreviewed=True))["approvals"] == []
    kinds = stack.audit("SELECT kind, subject FROM entries WHERE kind LIKE 'approval.%' ORDER BY seq")
    assert [(row["kind"].removeprefix("approval."), row["subject"]) for row in kinds] == [
        ("requested", "devin"),
        ("broken_glass", "sam"),
        ("review_opened", "sam"),
        ("approved", "sam"),
        ("consumed", "devin"),
        ("voted", "grace"),
        ("reviewed", "grace"),
    ]
