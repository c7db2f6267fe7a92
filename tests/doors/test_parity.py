"""The product's promise: the same statement, by the same person, gets the same verdict at both doors.

The policy corpus, run a second and third time: through a real MCP client and through real psql. What counts is
what the audit says that each door decided. The upstream role is made read-only, so that an allowed DROP is
decided and sent, and changes nothing for the next case.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from policy.engine import decide, split
from tests.doors.mcp_calls import call, error
from tests.policy.corpus import ROOT, Case, load_cases, policy_of
from tests.policy.sample import PATH, PRINCIPALS, facts
from tests.stack import Stack, psql_path, running_stack, use_policy
from tests.waiting import until

CASES = [case for case in load_cases() if case.path == tuple(PATH)]


@pytest.fixture(scope="module")
def parity_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("parity")) as stack:
        role = stack.demo.config.connections[0].user
        stack.direct(f"ALTER ROLE {role} SET default_transaction_read_only = on")
        yield stack


def head(stack: Stack) -> int:
    return int(stack.audit("SELECT coalesce(max(seq), 0) AS seq FROM entries")[0]["seq"])


def decided(stack: Stack, after: int, who: str, door: str) -> list[dict[str, Any]]:
    return stack.audit(
        "SELECT verdict, status, sql, message FROM statements WHERE seq > ? AND who = ? AND door = ?", after, who, door
    )


def through_psql(stack: Stack, case: Case) -> None:
    """Run it, and do not wait for the approval that nobody will give."""
    process = subprocess.Popen(
        [psql_path(), "-X", "-w", "-h", stack.host, "-p", str(stack.port), "-U", case.who, "-d", stack.database,
         "-v", "ON_ERROR_STOP=1", "-c", case.sql],
        env={"PGPASSWORD": stack.tokens[case.who], "PATH": "/usr/bin:/bin", "PGSSLMODE": "disable"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        if case.decision == "approve":
            until(lambda: process.poll() is not None or parked(stack, case), "psql neither parked nor ended")
            process.terminate()
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait(10)


def parked(stack: Stack, case: Case) -> bool:
    rows = stack.audit("SELECT 1 FROM approvals WHERE state = 'requested' AND door = 'wire' AND sql = ?", case.sql)
    return bool(rows)


def agrees(case: Case, rows: list[dict[str, Any]]) -> None:
    """The audit's verdicts of this case are the corpus's."""
    verdicts = {row["verdict"] for row in rows}
    if case.decision == "deny":
        assert "deny" in verdicts, rows
        # Of several statements in one message those that are not refused themselves do not run either.
        assert {(row["verdict"], row["status"]) for row in rows} <= {("deny", "refused"), ("allow", "skipped")}, rows
    elif rows:
        assert verdicts == {case.decision}, rows
    else:
        assert not split(case.sql.encode()), "the door recorded nothing"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_psql_gets_the_verdict_of_the_corpus(parity_stack: Stack, case: Case) -> None:
    use_policy(parity_stack, ROOT / case.policy)
    before = head(parity_stack)
    through_psql(parity_stack, case)
    agrees(case, decided(parity_stack, before, case.who, "wire"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_an_mcp_client_gets_the_verdict_of_the_corpus(parity_stack: Stack, case: Case) -> None:
    use_policy(parity_stack, ROOT / case.policy)
    before = head(parity_stack)
    answer = await call(parity_stack, case.who, "query", sql=case.sql)
    if not answer.is_error and (pending := answer.structured_content["pending"]):
        await call(parity_stack, case.who, "withdraw", id=pending["id"])  # a principal may have only so many open
    rows = decided(parity_stack, before, case.who, "mcp")
    pure = decide(policy_of(case.policy), PRINCIPALS[case.who], facts(case.path), case.sql.encode())
    effects = pure.analysis.effects if pure.analysis else None
    if (
        case.decision != "deny"
        and effects
        and (effects.session or effects.transaction or effects.copy_in or effects.copy_out)
    ):
        # The verdict is the same, but this door cannot carry it: decision 0004.
        assert error(answer)
        assert {row["status"] for row in rows} == {"refused"}
        return
    agrees(case, rows)
