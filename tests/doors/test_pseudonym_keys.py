"""The key of `hash` masks at the doors: joins work, and neither client nor audit is ever sent the key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.doors.mcp_calls import client, text
from tests.policy.corpus import ROOT
from tests.stack import Stack, running_stack, use_policy


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A server that logs every statement, and would tell clients too."""
    with running_stack(tmp_path_factory.mktemp("keys")) as stack:
        stack.direct("ALTER SYSTEM SET log_min_duration_statement = 0")
        stack.direct("ALTER SYSTEM SET log_statement = 'all'")
        stack.direct("SELECT pg_reload_conf()")
        use_policy(stack, ROOT / "tests/policy/policies/kinds.yaml")
        yield stack


def keys(stack: Stack) -> list[str]:
    key = stack.demo.config.mask_key
    assert key is not None
    return [secret.decode() for pool in ("people", "default") for secret in key.subkey(pool).secrets]


STATEMENTS = [
    "SELECT ssn, card FROM customers ORDER BY id LIMIT 3",
    "SELECT ssn::int FROM customers",
    "EXPLAIN VERBOSE SELECT ssn FROM customers WHERE ssn = 'x' ORDER BY card",
    "EXPLAIN (ANALYZE, VERBOSE) SELECT ssn FROM customers",
    "PREPARE p AS SELECT ssn FROM customers LIMIT 1; EXECUTE p; EXPLAIN VERBOSE EXECUTE p",
    "BEGIN; DECLARE c CURSOR FOR SELECT ssn FROM customers; FETCH 2 FROM c; EXPLAIN VERBOSE FETCH 2 FROM c",
    "COPY customers (ssn) TO STDOUT",
    "SELECT ssn FROM customers WHERE 1 / (id - 1) > 0",
    "SELECT no_such, ssn FROM customers",
]


@pytest.mark.parametrize("level", ["notice", "log", "debug5"])
def test_psql_is_never_sent_a_key(talkative: Stack, level: str) -> None:
    for statement in STATEMENTS:
        arguments = [part for sql in statement.split("; ") for part in ("-c", sql)]
        done = talkative.psql("devin", None, "-c", f"SET client_min_messages = {level}", *arguments)
        said = done.stdout + done.stderr
        assert not any(key in said for key in keys(talkative)), statement
        assert "LOG:" not in said
        assert "DEBUG:" not in said
    assert not any(key in str(talkative.audit("SELECT body FROM entries")) for key in keys(talkative))
    assert "…key…" in str(talkative.audit("SELECT body FROM entries"))


async def test_mcp_is_never_sent_a_key(talkative: Stack) -> None:
    async with client(talkative, "devin") as session:
        for statement in STATEMENTS:
            said = text(await session.call_tool("query", {"sql": statement}))
            assert not any(key in said for key in keys(talkative)), statement


def test_pseudonyms_join_as_the_values_would(talkative: Stack) -> None:
    joined = "SELECT count(*) FROM customers a JOIN customers b ON a.ssn = b.ssn"
    done = talkative.psql("devin", joined, "-At")
    assert done.stdout.strip() == str(talkative.direct(joined)[0][0]), done.stderr
    shown = talkative.psql("devin", "SELECT ssn FROM customers WHERE id = 1", "-At").stdout.strip()
    assert len(shown) == 11
    found = talkative.psql("devin", f"SELECT id FROM customers WHERE ssn = '{shown}'", "-At").stdout
    assert "1" in found.split()
