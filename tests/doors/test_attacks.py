"""The attacks of the corpus with an oracle: the database's own state, and every byte that a client got.

Run on a stack whose upstream role may write: if a refusal did not hold, the state would show it. The raw values
of masked columns are read past the doors; none may occur in what the agent was sent.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from policy.engine import decide
from tests.doors.mcp_calls import client, text
from tests.policy.corpus import ROOT, Case, load_cases, policy_of
from tests.policy.sample import PATH, PRINCIPALS, facts
from tests.stack import Stack, running_stack, use_policy

AGENT = "devin"
DEMO, CARD = "examples/policy.yaml", "tests/policy/policies/card.yaml"
# The columns whose raw values the agent may not see under each policy.
HIDDEN = {DEMO: ("ssn", "card", "email", "notes::text"), CARD: ("card",)}

CORPUS = [case for case in load_cases() if case.path == tuple(PATH) and case.who == AGENT]
REFUSED = [case for case in CORPUS if case.decision == "deny" and case.policy == DEMO]


def reads(case: Case) -> bool:
    """Whether the case is an allowed statement that changes nothing."""
    decision = decide(policy_of(case.policy), PRINCIPALS[case.who], facts(case.path), case.sql.encode())
    return case.decision == "allow" and decision.analysis is not None and not decision.analysis.effects.writes


MASKED = [
    case
    for case in CORPUS
    if case.policy in HIDDEN and "customer" in case.sql.lower() and "tickets" not in case.sql and reads(case)
]


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("attacks")) as stack:
        yield stack


def state(stack: Stack) -> dict[str, object]:
    """Everything an attack could change: each table's rows, the catalogs' user rows, roles, settings, other files."""
    tables = stack.direct(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p') AND c.oid >= 16384 AND n.nspname IN ('public', 'hr') ORDER BY 1"
    )
    found: dict[str, object] = {
        name: stack.direct(f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {name} t")
        for (name,) in tables
    }
    for catalog, condition in (
        ("pg_class", "relkind NOT IN ('t', 'i')"), ("pg_attribute", "attnum > 0"), ("pg_proc", "true"),
        ("pg_namespace", "nspname !~ '^pg_(toast_)?temp'"), ("pg_trigger", "true"), ("pg_extension", "true"),
        ("pg_largeobject_metadata", "true"),
    ):  # fmt: skip
        key = "attrelid" if catalog == "pg_attribute" else "oid"
        found[catalog] = stack.direct(
            f"SELECT count(*), sum(hashtext({catalog}.xmin::text || {key})) FROM {catalog}"
            f" WHERE {key} >= 16384 AND {condition}"
        )
    found["roles"] = stack.direct("SELECT rolname, rolsuper, rolconfig FROM pg_roles ORDER BY 1")
    found["settings"] = stack.direct(
        "SELECT name, setting FROM pg_settings WHERE source NOT IN ('default', 'session', 'client') ORDER BY 1"
    )
    return found


def secrets_of(stack: Stack, policy: str) -> list[bytes]:
    """The raw values that an agent may never see, less those too short to be told from chance."""
    columns = HIDDEN[policy]
    rows = stack.direct(f"SELECT {', '.join(columns)} FROM customers")
    rows += stack.direct("SELECT ssn FROM hr.employees") if policy == DEMO else []
    return sorted({value.encode() for row in rows for value in row if value is not None and len(value) >= 9})


def leaked(output: bytes, secrets: list[bytes]) -> list[bytes]:
    return [secret for secret in secrets if secret in output]


async def test_no_refused_attack_changes_anything_or_shows_a_masked_value(victim: Stack) -> None:
    use_policy(victim, ROOT / DEMO)
    secrets, before = secrets_of(victim, DEMO), state(victim)
    assert len(REFUSED) >= 80
    async with client(victim, AGENT) as mcp:
        for case in REFUSED:
            answer = await mcp.call_tool("query", {"sql": case.sql})
            assert answer.is_error, case
            assert not leaked(text(answer).encode(), secrets), case
    for case in REFUSED:
        done = victim.psql(AGENT, case.sql)
        assert done.returncode != 0, case
        assert not leaked((done.stdout + done.stderr).encode(), secrets), case
    after = state(victim)
    assert after == before, {key: (before.get(key), after[key]) for key in after if after[key] != before.get(key)}


@pytest.mark.parametrize("case", MASKED, ids=lambda case: case.id)
async def test_an_allowed_read_of_a_masked_relation_shows_no_raw_value(victim: Stack, case: Case) -> None:
    use_policy(victim, ROOT / case.policy)
    secrets = secrets_of(victim, case.policy)
    done = victim.psql(AGENT, case.sql)
    assert not leaked((done.stdout + done.stderr).encode(), secrets), case.sql
    async with client(victim, AGENT) as mcp:
        answer = await mcp.call_tool("query", {"sql": case.sql})
    assert not leaked((text(answer) + str(answer.structured_content)).encode(), secrets), case.sql
