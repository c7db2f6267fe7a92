"""Texts that the newest grammar and an older server read in two ways."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy.catalog import Catalog, Function, Volatility
from policy.engine import decide
from tests.policy.corpus import policy_of
from tests.policy.sample import CATALOG, PRINCIPALS, facts

POLICY = policy_of("examples/policy.yaml")


def _on(server: int) -> Catalog:
    """A server of this version on which somebody has made functions with the names of SQL/JSON."""
    made = {
        ("public", name): (Function(99000 + i, "public", name, "f", Volatility.VOLATILE, "plpgsql", most=2),)
        for i, name in enumerate(("json_value", "json_object", "json_array"))
    }
    return replace(CATALOG, server_version=server, functions={**CATALOG.functions, **made})


def _codes(server: int, sql: str) -> set[str]:
    decision = decide(POLICY, PRINCIPALS["devin"], facts(catalog=_on(server)), sql.encode())
    return {reason.code for reason in decision.verdict.reasons if reason.effect is decision.verdict.effect}


@pytest.mark.parametrize(
    ("sql", "since"),
    [
        ("SELECT json_value('{}', 'strict $')", 17),
        ("SELECT JSON_EXISTS('{}', '$')", 17),
        ("SELECT json_query('{}', '$')", 17),
        ("SELECT json('{}')", 17),
        ("SELECT json_scalar(1)", 17),
        ("SELECT json_serialize('{}')", 17),
        ("SELECT json_array(1, 2)", 16),
        ("SELECT json_object()", 16),
        ("SELECT json_arrayagg(id) FROM orders", 16),
        ("SELECT system_user", 16),
        ("UPDATE tickets SET status = 'x' WHERE id = 1 AND system_user = 'x'", 16),
    ],
)
def test_a_word_that_an_older_server_takes_for_a_name_is_refused_there(sql: str, since: int) -> None:
    assert "text.version" in _codes((since - 1) * 10000, sql)
    assert "text.version" not in _codes(since * 10000, sql)


def test_a_qualified_name_is_a_call_on_every_server() -> None:
    assert _codes(150000, "SELECT public.json_value('{}', '$')") == {"rule.none"}
    assert _codes(180000, "SELECT public.json_value('{}', '$')") == {"rule.none"}


def test_json_object_may_be_a_users_function_where_it_is_no_word_yet() -> None:
    assert _codes(150000, "SELECT json_object('{}', '{}')") == {"rule.none"}
    assert "rule.none" not in _codes(160000, "SELECT json_object('{}', '{}')")
