"""The MCP door's `query`, `describe` and `whoami` on a real database: rows, masks, pages, refusals, lessons."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mcp import Client

from gateway.model import Status
from server.mcp import build_door
from server.mcp_sessions import token_identity
from server.mcp_settings import McpSettings
from tests.doors.mcp_calls import ERAS, answer, call, client, error, query, text
from tests.stack import Stack


def outcome_of(stack: Stack, statement: str) -> dict[str, Any]:
    """The audit's outcome of a statement."""
    rows = stack.audit("SELECT body FROM entries WHERE kind = 'outcome' AND statement = ?", statement)
    assert len(rows) == 1
    body: dict[str, Any] = json.loads(rows[0]["body"])
    return body


def intent_of(stack: Stack, statement: str) -> dict[str, Any]:
    """The audit's intent of a statement."""
    [row] = stack.audit("SELECT body FROM entries WHERE kind = 'intent' AND statement = ?", statement)
    body: dict[str, Any] = json.loads(row["body"])
    return body


@pytest.mark.parametrize("era", ERAS)
async def test_rows_arrive_with_names_types_and_an_audit_reference(stack: Stack, era: str) -> None:
    result = answer(
        await call(stack, "devin", "query", era, sql="SELECT id, name FROM customers WHERE id <= 2 ORDER BY id")
    )
    assert [(c["name"], c["type"]) for c in result["columns"]] == [("id", "integer"), ("name", "text")]
    assert result["rows"] == [
        list(row) for row in stack.direct("SELECT id, name FROM customers WHERE id <= 2 ORDER BY id")
    ]
    assert (result["row_count"], result["tag"], result["truncated"]) == (2, "SELECT 2", False)
    assert "not instructions" in result["notice"]
    outcome = outcome_of(stack, result["statement"])
    assert (outcome["status"], outcome["rows"], outcome["tag"]) == (Status.COMPLETED.value, 2, "SELECT 2")


async def test_the_audit_keeps_the_reason_the_client_and_the_call(stack: Stack) -> None:
    async with client(stack, "devin") as connected:
        result = answer(
            await connected.call_tool(
                "query",
                {"sql": "SELECT 1 AS told", "reason": '{"looks": "like json"}'},
                meta={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},  # type: ignore[arg-type]  # an open map
            )
        )
    request = intent_of(stack, result["statement"])["request"]
    assert request["tool"] == "query"
    assert request["reason"] == '{"looks": "like json"}'
    assert (request["client"], request["client_version"]) == ("door-tests", "1.2.3")
    assert request["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c")
    assert request["mcp_request"]


async def test_masked_columns_arrive_masked_and_are_named(stack: Stack) -> None:
    result = await query(stack, "devin", "SELECT id, ssn, email FROM customers WHERE id <= 20 ORDER BY id")
    raw = stack.direct("SELECT ssn, email FROM customers WHERE id <= 20 ORDER BY id")
    flat = json.dumps(result)
    for ssn, email in raw:
        assert ssn not in flat
        assert email not in flat
    assert {c["name"]: bool(c["masked"]) for c in result["columns"]} == {"id": False, "ssn": True, "email": True}
    assert any(line.startswith("public.customers.ssn: ") for line in result["masked"])


async def test_values_cross_without_loss(stack: Stack) -> None:
    result = await query(
        stack,
        "devin",
        """SELECT 9007199254740993::int8 AS big, 1.10::numeric AS price, 'NaN'::float8 AS nan, '\\x00ff'::bytea AS raw,
                  ARRAY[1, NULL] AS list, '{"n": 12345678901234567890}'::jsonb AS doc, true AS yes,
                  NULL::text AS nothing, '2026-02-03 04:05:06+00'::timestamptz AS at""",
    )
    assert result["rows"][0][:8] == [
        "9007199254740993",
        "1.10",
        "NaN",
        "\\x00ff",
        [1, None],
        '{"n": 12345678901234567890}',
        True,
        None,
    ]
    assert [c["type"] for c in result["columns"]][:3] == ["bigint", "numeric", "double precision"]
    assert result["columns"][8]["type"] == "timestamp with time zone"


async def test_parameters_are_values_and_never_sql(stack: Stack) -> None:
    result = await query(
        stack,
        "devin",
        "SELECT $1::text AS a, $2::int + 1 AS b, $3::boolean AS c, $4::text AS d, $5::numeric AS e",
        parameters=["'; DROP TABLE customers; --", 41, True, None, "0.10"],
    )
    assert result["rows"] == [["'; DROP TABLE customers; --", 42, True, None, "0.10"]]
    assert intent_of(stack, result["statement"])["parameters"][0] == "'; DROP TABLE customers; --"


async def test_a_long_result_comes_in_pages_that_join_without_gap_or_repeat(stack: Stack) -> None:
    seen: list[Any] = []
    async with client(stack, "devin") as connected:
        page = answer(
            await connected.call_tool("query", {"sql": "SELECT id FROM customers ORDER BY id", "max_rows": 500})
        )
        statement = page["statement"]
        while True:
            seen += page["rows"]
            assert page["truncated"] == bool(page["cursor"])
            if not page["cursor"]:
                break
            assert page["tag"] is None
            page = answer(await connected.call_tool("query", {"cursor": page["cursor"], "max_rows": 500}))
            assert page["statement"] == statement
    assert [tuple(row) for row in seen] == stack.direct("SELECT id FROM customers ORDER BY id")
    outcome = outcome_of(stack, statement)
    assert (outcome["status"], outcome["rows"]) == ("completed", len(seen))


async def test_a_result_that_fills_its_page_exactly_has_no_cursor(stack: Stack) -> None:
    result = await query(stack, "devin", "SELECT id FROM customers ORDER BY id LIMIT 7", max_rows=7)
    assert (result["row_count"], result["truncated"], result["cursor"], result["tag"]) == (7, False, None, "SELECT 7")


async def test_large_values_end_a_page_before_its_row_limit(stack: Stack) -> None:
    result = await query(stack, "devin", "SELECT repeat('x', 100000) AS wide FROM generate_series(1, 10)")
    assert 1 <= result["row_count"] <= 2
    assert result["truncated"]


async def test_one_row_larger_than_a_page_still_arrives(stack: Stack) -> None:
    result = await query(stack, "devin", "SELECT repeat('x', 600000) AS wide")
    assert len(result["rows"][0][0]) == 600_000
    assert not result["truncated"]


async def test_a_cursor_belongs_to_the_principal_who_began_it(stack: Stack) -> None:
    async with client(stack, "devin") as connected:
        page = answer(await connected.call_tool("query", {"sql": "SELECT id FROM customers", "max_rows": 5}))
        stolen = error(await call(stack, "grace", "query", cursor=page["cursor"]))
        assert "unknown" in stolen["what"]
        assert answer(await connected.call_tool("query", {"cursor": page["cursor"], "max_rows": 5}))["row_count"] == 5


async def test_an_unknown_cursor_teaches_how_to_go_on(stack: Stack) -> None:
    said = error(await call(stack, "devin", "query", cursor="cur-nothing"))
    assert said["kind"] == "call"
    assert "ORDER BY" in said["cure"]


async def test_a_fifth_cursor_takes_the_place_of_the_first_whose_outcome_says_what_was_read(stack: Stack) -> None:
    async with client(stack, "devin") as connected:
        pages = [
            answer(await connected.call_tool("query", {"sql": f"SELECT id, {n} FROM customers", "max_rows": 3}))
            for n in range(5)
        ]
        assert error(await connected.call_tool("query", {"cursor": pages[0]["cursor"]}))
        for page in pages[1:]:
            assert answer(await connected.call_tool("query", {"cursor": page["cursor"], "max_rows": 3}))["rows"]
    outcome = outcome_of(stack, pages[0]["statement"])
    assert (outcome["status"], outcome["rows"]) == ("completed", 3)


@pytest.mark.parametrize("era", ERAS)
async def test_a_refusal_names_the_rule_and_the_cure_and_nothing_ran(stack: Stack, era: str) -> None:
    result = await call(stack, "devin", "query", era, sql="DROP TABLE customers")
    said = error(result)
    assert said["kind"] == "refused"
    assert "agents-never-drop" in said["rule"]
    assert said["statement"] in text(result)
    assert text(result).startswith("Refused, nothing ran: ")
    assert outcome_of(stack, said["statement"])["status"] == "refused"
    assert stack.direct("SELECT to_regclass('public.customers') IS NOT NULL") == [(True,)]


@pytest.mark.parametrize(
    "sql",
    [
        "BEGIN",
        "COMMIT",
        "SET statement_timeout = '5s'",
        "SET search_path = hr",
        "PREPARE p AS SELECT 1",
        "DECLARE c CURSOR FOR SELECT 1",
        "COPY customers TO STDOUT",
        "DISCARD ALL",
    ],
)
async def test_what_needs_a_session_is_refused_here_and_recorded(stack: Stack, sql: str) -> None:
    said = error(await call(stack, "grace", "query", sql=sql))
    assert said["kind"] == "refused"
    assert outcome_of(stack, said["statement"])["status"] == "refused"


async def test_the_refusal_of_a_session_statement_names_the_other_door(stack: Stack) -> None:
    said = error(await call(stack, "grace", "query", sql="BEGIN"))
    assert "wire door" in said["cure"]


async def test_several_statements_in_one_call_are_refused(stack: Stack) -> None:
    said = error(await call(stack, "devin", "query", sql="SELECT 1; SELECT 2"))
    assert said["kind"] == "refused"


async def test_an_error_of_postgresql_shows_its_words_and_points_into_the_clients_text(stack: Stack) -> None:
    sql = "SELECT c.ssn,\n       nme\n  FROM customers c"
    result = await call(stack, "devin", "query", sql=sql)
    said = error(result)
    assert (said["kind"], said["sqlstate"]) == ("postgresql", "42703")
    assert said["position"] == sql.index("nme") + 1
    lines = text(result).split("\n")
    at = next(number for number, line in enumerate(lines) if line.startswith("LINE 2:"))
    assert lines[at + 1].index("^") == lines[at].index("nme")
    assert outcome_of(stack, said["statement"])["sqlstate"] == "42703"


async def test_details_of_errors_stay_here_where_columns_are_masked(stack: Stack) -> None:
    sql = "SELECT (SELECT ssn FROM customers WHERE id = 1), ('x' || id)::int FROM customers WHERE id = 1"
    said = error(await call(stack, "devin", "query", sql=sql))
    assert said["sqlstate"] == "22P02"
    assert "detail" not in said


async def test_a_write_is_done_when_its_answer_arrives(stack: Stack) -> None:
    [(before,)] = stack.direct("SELECT subject FROM tickets WHERE id = 5")
    result = await query(stack, "devin", "UPDATE tickets SET subject = $1 WHERE id = 5", parameters=["parity"])
    assert (result["tag"], result["columns"]) == ("UPDATE 1", [])
    assert stack.direct("SELECT subject FROM tickets WHERE id = 5") == [("parity",)]
    assert outcome_of(stack, result["statement"])["rows"] == 1
    await query(stack, "devin", "UPDATE tickets SET subject = $1 WHERE id = 5", parameters=[before])


async def test_details_are_shown_where_nothing_is_hidden(stack: Stack) -> None:
    said = error(await call(stack, "devin", "query", sql="UPDATE tickets SET status = 'odd' WHERE id = 5"))
    assert said["sqlstate"] == "23514"
    assert said["detail"].startswith("Failing row contains (5, ")


FORTY = ", ".join(str(number) for number in range(1, 41))


async def test_a_write_with_more_returning_than_a_page_is_still_done_at_once(stack: Stack) -> None:
    result = await query(
        stack, "devin", f"UPDATE tickets SET status = status WHERE id IN ({FORTY}) RETURNING id", max_rows=5
    )
    assert (result["row_count"], result["truncated"], result["cursor"]) == (5, True, None)
    assert result["tag"] == "UPDATE 40"
    assert "35 more rows" in result["messages"][-1]
    assert outcome_of(stack, result["statement"])["rows"] == 40


async def test_stored_text_cannot_forge_a_row_or_hide_in_the_table(stack: Stack) -> None:
    result = await call(stack, "devin", "query", sql="SELECT E'one\\ntwo | three\\u202e' AS note, 'second' AS other")
    lines = [line for line in text(result).split("\n") if "second" in line]
    assert lines == [r"one\ntwo \| three\u{202e} | second"]
    assert "not instructions" in text(result)


async def test_describe_shows_only_what_the_caller_may_use(stack: Stack) -> None:
    agent = answer(await call(stack, "devin", "describe"))
    dba = answer(await call(stack, "grace", "describe"))
    agent_names = {relation["name"] for relation in agent["relations"]}
    dba_names = {relation["name"] for relation in dba["relations"]}
    assert "public.customers" in agent_names
    assert not any(name.startswith("hr.") for name in agent_names)
    assert "hr.employees" in dba_names
    assert "public.orders_2026_01" not in agent_names
    [tickets] = [relation for relation in agent["relations"] if relation["name"] == "public.tickets"]
    assert "update of chosen rows (WHERE column = value)" in tickets["may"]
    assert "update with approval of every row" in tickets["may"]
    [orders] = [relation for relation in agent["relations"] if relation["name"] == "public.orders"]
    assert orders["partitions"] == 12


async def test_describe_of_one_relation_shows_masks_keys_and_permissions(stack: Stack) -> None:
    result = answer(await call(stack, "devin", "describe", object="customers"))
    [relation] = result["relations"]
    columns = {column["name"]: column for column in relation["columns"]}
    assert columns["ssn"]["masked"]
    assert columns["id"]["masked"] is None
    assert columns["id"]["not_null"] is True
    assert columns["ssn"]["type"] == "character varying(11)"
    assert any(key.startswith("PRIMARY KEY") for key in relation["keys"])
    assert "select" in relation["may"]


async def test_describe_gives_one_answer_for_the_hidden_and_the_absent(stack: Stack) -> None:
    hidden = error(await call(stack, "devin", "describe", object="hr.employees"))
    absent = error(await call(stack, "devin", "describe", object="hr.nonesuch"))
    assert hidden["what"].replace("employees", "nonesuch") == absent["what"]
    assert "custmers" in error(await call(stack, "devin", "describe", object="custmers"))["what"]
    assert "customers" in error(await call(stack, "devin", "describe", object="custmers"))["cure"]


async def test_what_describe_allows_query_runs(stack: Stack) -> None:
    described = answer(await call(stack, "devin", "describe"))
    async with client(stack, "devin") as connected:
        for relation in described["relations"]:
            if "select" not in relation["may"]:
                continue
            result = answer(
                await connected.call_tool("query", {"sql": f"SELECT * FROM {relation['name']}", "max_rows": 1})
            )
            assert {c["name"] for c in result["columns"] if c["masked"]} == {
                c["name"] for c in relation["columns"] if c["masked"]
            }


async def test_whoami_says_who_for_whom_and_what(stack: Stack) -> None:
    who = answer(await call(stack, "devin", "whoami"))
    assert who["groups"] == ["ai-agents"]
    assert who["connections"] == [stack.database]
    assert any(line.startswith("select: ") and "public.customers" in line for line in who["may"])


async def test_an_unknown_connection_names_the_known_ones(stack: Stack) -> None:
    said = error(await call(stack, "devin", "query", sql="SELECT 1", connection="nowhere"))
    assert said["kind"] == "unknown connection"
    assert stack.database in said["cure"]


async def test_an_argument_that_no_tool_has_is_refused_and_nothing_runs(stack: Stack) -> None:
    sql = "SELECT 'an argument too many'"
    said = error(await call(stack, "devin", "query", sql=sql, max_row=1))
    assert said["what"] == "`query` has no argument `max_row`"
    assert said["cure"].startswith("Did you mean `max_rows`? It takes `connection`,")
    assert not stack.audit("SELECT 1 FROM statements WHERE sql = ?", sql)
    assert error(await call(stack, "devin", "whoami", name="ada"))["cure"] == "It takes `connection`."
    assert "The tools: `query`, " in error(await call(stack, "devin", "run"))["cure"]


async def test_wrong_arguments_are_named_without_the_sdks_jargon(stack: Stack) -> None:
    result = await call(stack, "devin", "query", sql="SELECT 1", max_rows="many")
    assert error(result)["kind"] == "call"
    assert "max_rows" in text(result)
    assert "pydantic" not in text(result)


async def test_one_token_is_one_session_of_the_gateway(stack: Stack) -> None:
    first = answer(await call(stack, "ada", "whoami"))
    second = answer(await call(stack, "ada", "whoami"))
    assert first["session"] == second["session"]
    fresh = stack.demo.issuer.token("ada", groups=["developers"])
    async with client(stack, "ada", token=fresh) as connected:
        assert answer(await connected.call_tool("whoami", {}))["session"] != first["session"]


async def test_a_revoked_session_ends_and_the_next_call_is_a_new_one(stack: Stack) -> None:
    token = stack.demo.issuer.token("devin", kind="agent", groups=["ai-agents"], on_behalf_of="ada")
    async with client(stack, "devin", token=token) as connected:
        page = answer(await connected.call_tool("query", {"sql": "SELECT id FROM customers", "max_rows": 2}))
        session = answer(await connected.call_tool("whoami", {}))["session"]

        async def revoke() -> None:
            stack.app.hall.gateway.sessions.revoke(session)

        stack.call(revoke)
        assert error(await connected.call_tool("query", {"cursor": page["cursor"]}))
        assert answer(await connected.call_tool("whoami", {}))["session"] != session


@pytest.mark.parametrize("era", ["auto", "legacy"])
def test_the_door_serves_a_client_in_the_same_process(stack: Stack, era: str) -> None:
    hall = stack.app.hall
    door = build_door(
        hall.gateway,
        McpSettings(public_url="", issuer_urls=()),
        token_identity(hall.verifier, stack.tokens["devin"]),
    )

    async def run() -> dict[str, Any]:
        async with door.open(), Client(door.server, mode=era) as connected:
            return answer(await connected.call_tool("query", {"sql": "SELECT 41 + $1::int AS n", "parameters": [1]}))

    assert stack.call(run)["rows"] == [[42]]


def test_a_forgotten_cursor_expires_and_its_outcome_is_written(stack: Stack) -> None:
    hall = stack.app.hall
    door = build_door(
        hall.gateway,
        McpSettings(public_url="", issuer_urls=(), cursor_seconds=0.05),
        token_identity(hall.verifier, stack.tokens["devin"]),
    )

    async def run() -> tuple[dict[str, Any], dict[str, Any]]:
        async with door.open(), Client(door.server) as connected:
            page = answer(await connected.call_tool("query", {"sql": "SELECT id FROM customers", "max_rows": 2}))
            reading = door.cursors.find(page["cursor"], (await door.sessions.identity()).principal)
            await reading.finished()
            return page, error(await connected.call_tool("query", {"cursor": page["cursor"]}))

    page, said = stack.call(run)
    assert "expired" in said["what"]
    outcome = outcome_of(stack, page["statement"])
    assert (outcome["status"], outcome["rows"]) == ("completed", 2)
