"""Failures: each exception becomes sentences that teach, and a bug of ours shows nothing of its inside."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import pytest

from gateway.errors import AuditUnavailableError, RefusedError, UnknownConnectionError
from gateway.model import ClientInfo, Connection, Door, Session, Statement
from gateway.upstream import UpstreamError, UpstreamLostError
from policy.model import (
    Analysis,
    Decision,
    Effect,
    Principal,
    PrincipalKind,
    Reason,
    Rewrite,
    Splice,
    Verdict,
)
from server.mcp_failures import CallError, PostgresError, as_result, caret, client_position
from tests.doors.mcp_calls import error, text

TEXT = "SELECT c.ssn, nme\n  FROM customers c"


def statement(sql: str = TEXT) -> Statement:
    now = datetime.now(UTC)
    principal = Principal("devin", "https://issuer.example", PrincipalKind.AGENT)
    connection = Connection("shop", "127.0.0.1", 5432, "shop", "gateway", "secret")
    return Statement(Session("se-1", principal, connection, Door.MCP, ClientInfo(), now, now), sql.encode())


def masked_decision(sql: str = TEXT) -> Decision:
    """An allow whose rewrite replaced `customers c` by a longer subquery."""
    start = sql.encode().index(b"customers c")
    replacement = b"(SELECT NULL::text AS ssn FROM public.customers) AS c"
    splice = Splice(start, start + len(b"customers c"), replacement)
    rewritten = sql.encode()[:start] + replacement + sql.encode()[splice.end :]
    verdict = Verdict(Effect.ALLOW, (Reason(Effect.ALLOW, "rule.matched", "fine"),), Rewrite(rewritten, (splice,)))
    return Decision(verdict, Analysis(sql.encode(), "SelectStmt", ()), "policy", "catalog")


def test_a_refusal_says_what_which_rule_and_the_cure() -> None:
    reason = Reason(
        Effect.DENY,
        "rule.matched",
        "`devin` may not drop `public.orders`",
        rule="agents-never-drop (policy.yaml:12)",
        cure="Ask a DBA.",
        location=5,
    )
    decision = Decision(
        Verdict(Effect.DENY, (reason,)), Analysis("DRÖP x".encode(), "DropStmt", ()), "policy", "catalog"
    )
    result = as_result(RefusedError(decision, "st-1"))
    parts = error(result)
    assert parts["what"] == "`devin` may not drop `public.orders`"
    assert parts["rule"] == "agents-never-drop (policy.yaml:12)"
    assert parts["cure"] == "Ask a DBA."
    assert parts["position"] == 5  # a character, though the offset counts bytes
    assert "st-1" in text(result)


def test_a_gateway_error_keeps_its_sentence_and_its_kind() -> None:
    parts = error(as_result(UnknownConnectionError("there is no connection `x`", cure="There is `shop`.")))
    assert parts == {
        "kind": "unknown connection",
        "what": "there is no connection `x`",
        "cure": "There is `shop`.",
        "sqlstate": "3D000",
    }
    assert error(as_result(AuditUnavailableError("disk full")))["kind"] == "audit unavailable"


def test_a_lost_connection_warns_against_blind_repetition() -> None:
    assert "may have taken effect" in error(as_result(UpstreamLostError("the server went away")))["cure"]


def test_a_bug_of_ours_gives_a_reference_and_the_log_has_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="server.mcp_failures"):
        result = as_result(KeyError("secret-table"))
    assert error(result)["kind"] == "internal"
    assert "secret" not in str(result)
    [record] = caplog.records
    assert record.getMessage().rpartition(" ")[2] in text(result)
    assert record.exc_info is not None


def test_a_position_in_the_rewritten_text_is_shown_in_the_clients() -> None:
    decision = masked_decision()
    rewrite = decision.verdict.rewrite
    assert rewrite is not None
    at = rewrite.sql.decode().index("nme") + 1
    assert client_position(str(at), decision, statement()) == TEXT.index("nme") + 1
    generated = rewrite.sql.decode().index("NULL::text") + 1
    assert client_position(str(generated), decision, statement()) is None
    assert client_position(None, decision, statement()) is None
    assert client_position("not a number", decision, statement()) is None


def test_a_position_behind_a_mask_and_behind_wide_characters_is_the_clients() -> None:
    sql = "SELECT 'ü☃', c.ssn FROM customers c WHERE nme = 1"
    decision = masked_decision(sql)
    rewrite = decision.verdict.rewrite
    assert rewrite is not None
    at = rewrite.sql.decode().index("nme") + 1
    assert client_position(str(at), decision, statement(sql)) == sql.index("nme") + 1


def test_the_caret_stands_below_its_character() -> None:
    line, mark = caret("SELECT 1,\n\tnme", 12)
    assert line.startswith("LINE 2: ")
    assert mark.index("^") == line.index("nme")


def test_the_caret_stays_in_view_on_a_long_line() -> None:
    line, mark = caret("SELECT " + "1," * 500 + "nme", 7 + 1000 + 1)
    assert len(line) < 130
    assert line[mark.index("^") :].startswith("nme")


def test_details_are_kept_back_on_request() -> None:
    fields = {"S": "ERROR", "C": "23505", "M": "duplicate key", "D": "Key (ssn)=(900-00-0001) exists.", "H": "hm"}
    quiet = as_result(PostgresError(UpstreamError(fields), statement(), masked_decision(), "st-2", quiet=True))
    assert "900-00-0001" not in str(quiet)
    assert error(quiet)["sqlstate"] == "23505"
    told = as_result(PostgresError(UpstreamError(fields), statement(), masked_decision(), "st-2", quiet=False))
    assert "900-00-0001" in text(told)


def test_a_wrong_call_is_answered_with_its_cure() -> None:
    parts = error(as_result(CallError("`sql` is empty", "Send one SQL statement.")))
    assert (parts["kind"], parts["cure"]) == ("call", "Send one SQL statement.")
