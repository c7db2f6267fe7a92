"""What both doors send is recorded as it left: masked, in order, with its times, and within its bounds."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import psycopg
import pytest
from psycopg import sql

from audit.recording import Chunk, Mode, unpack
from audit.verify import verify
from gateway.model import ClientInfo, Connection, Door, Session
from gateway.parameters import concealed_digest
from gateway.transcript import RecordingBounds, Transcript
from policy.document import DocumentError
from policy.load import load_policy
from policy.model import Principal, PrincipalKind
from tests.doors.mcp_calls import answer, call, client, query
from tests.doors.mcp_calls import error as failure
from tests.stack import Stack
from tests.waiting import until
from wire import backend
from wire.codec import BackendDecoder
from wire.copy import CopyData
from wire.messages import BackendMessage


def recording(stack: Stack, like: str) -> tuple[dict[str, object], list[Chunk]]:
    """(the outcome's body and its statement, the chunks) of the newest statement like this, once it has an outcome."""
    found = (
        "SELECT json_insert(o.body, '$.statement', o.statement) AS body, r.data FROM statements s"
        " LEFT JOIN entries o ON o.statement = s.statement AND o.kind = 'outcome'"
        " LEFT JOIN recordings r ON r.seq = o.seq WHERE s.sql LIKE ? ORDER BY s.seq DESC LIMIT 1"
    )
    until(lambda: stack.audit(found, like)[0]["data"], "the outcome was not recorded")
    [row] = stack.audit(found, like)
    return json.loads(row["body"]), unpack(row["data"])


def said(chunks: Sequence[Chunk]) -> list[BackendMessage]:
    """Everything that the chunks hold, in order."""
    return list(BackendDecoder().feed(b"".join(chunk.data for chunk in chunks)))


def rows(chunks: Sequence[Chunk]) -> list[tuple[bytes | None, ...]]:
    return [message.values for message in said(chunks) if isinstance(message, backend.DataRow)]


def complete(stack: Stack, like: str) -> list[BackendMessage]:
    """The messages of a recording that must hold all that was sent: its rows have the outcome's digest."""
    body, chunks = recording(stack, like)
    told = body["recording"]
    assert isinstance(told, dict)
    assert (told["mode"], told["left_out"]) == ("full", 0)
    data = b"".join(chunk.data for chunk in chunks if chunk.rows)
    key, digest = stack.app.hall.gateway.policies.digest_key, hashlib.sha256(data).hexdigest()
    assert body["digest"] == (concealed_digest(digest, key, str(body["statement"])) if data else None)
    times = [chunk.at for chunk in chunks]
    assert times == sorted(times)
    assert times[-1] / 1000 <= float(str(body["duration_ms"])) + 0.1
    return said(chunks)


def test_psql_is_recorded_as_it_was_served(stack: Stack) -> None:
    assert stack.psql("devin", "SELECT id, ssn, 'psql' AS via FROM customers ORDER BY id LIMIT 3").returncode == 0
    described, *found, tag = complete(stack, "%'psql' AS via%")
    assert isinstance(described, backend.RowDescription)
    assert [column.name for column in described.columns] == ["id", "ssn", "via"]
    [(raw,)] = stack.direct("SELECT ssn FROM customers WHERE id = 1")
    assert found[0] == backend.DataRow((b"1", b"*" * (len(raw) - 4) + raw[-4:].encode(), b"psql"))
    assert (len(found), tag) == (3, backend.CommandComplete("SELECT 3"))


def test_statements_of_one_message_have_a_recording_each(stack: Stack) -> None:
    assert stack.psql("devin", "SELECT 'first of two'; SELECT 'second of two', 2").returncode == 0
    assert rows(recording(stack, "%first of two%")[1]) == [(b"first of two",)]
    assert rows(recording(stack, "%second of two%")[1]) == [(b"second of two", b"2")]


@pytest.mark.parametrize("binary", [False, True])
def test_a_driver_is_recorded_in_the_formats_that_it_asked_for(stack: Stack, binary: bool) -> None:
    text = f"SELECT 7::int4 AS n, 'recorded {binary}' AS t"
    with psycopg.connect(stack.wire_dsn("devin"), autocommit=True) as connection:
        connection.execute(text, binary=binary)
        connection.execute(text, binary=binary, prepare=True)
        connection.execute(text, binary=binary, prepare=True)
    described, row, _ = complete(stack, f"%recorded {binary}%")
    assert isinstance(described, backend.RowDescription)
    assert [column.format for column in described.columns] == [int(binary)] * 2
    assert row == backend.DataRow((b"\0\0\0\7" if binary else b"7", f"recorded {binary}".encode()))


async def test_columns_described_before_are_in_every_run_of_the_statement(stack: Stack) -> None:
    connection = await asyncpg.connect(
        host=stack.host, port=stack.port, user="devin", password=stack.tokens["devin"], database=stack.database
    )
    statement = await connection.prepare("SELECT $1::int4 AS n, 'asyncpg described' AS t")
    for number in (1, 2):
        await statement.fetch(number)
        described, row, _ = complete(stack, "%asyncpg described%")
        assert isinstance(described, backend.RowDescription)
        assert [(column.name, column.format) for column in described.columns] == [("n", 1), ("t", 1)]
        assert row == backend.DataRow((number.to_bytes(4, "big"), b"asyncpg described"))
    await connection.close()


def test_copy_out_is_recorded(stack: Stack) -> None:
    assert stack.psql("devin", "COPY (SELECT id FROM customers ORDER BY id LIMIT 2) TO STDOUT").stdout == "1\n2\n"
    body, chunks = recording(stack, "COPY (SELECT id%")
    assert body["recording"] != {}
    assert b"".join(chunk.data[5:] for chunk in chunks if chunk.rows and chunk.data[:1] == CopyData.TAG) != b""
    assert [chunk.data[:1] for chunk in chunks if not chunk.rows] == [b"H", b"C"]


def test_errors_and_notices_are_recorded_as_the_client_saw_them(stack: Stack) -> None:
    assert stack.psql("devin", "SELECT 1 / (id - 1), 'divides' FROM customers WHERE id = 1").returncode == 1
    *_, last = complete(stack, "%'divides'%")
    assert isinstance(last, backend.ErrorResponse)
    assert (last.fields["C"], last.fields["M"]) == ("22012", "division by zero")
    assert stack.psql("grace", "DROP TABLE IF EXISTS public.never_there_at_all").returncode == 0
    notice, tag = complete(stack, "%never_there_at_all%")
    assert isinstance(notice, backend.NoticeResponse)
    assert "does not exist, skipping" in notice.fields["M"]
    assert tag == backend.CommandComplete("DROP TABLE")


def test_a_long_result_is_cut_at_the_bound_and_what_is_left_out_is_counted(stack: Stack) -> None:
    text = "SELECT g, repeat('x', 100), 'long' FROM generate_series(1, 20000) g"
    assert stack.psql("grace", text, "-o", "/dev/null").returncode == 0
    body, chunks = recording(stack, "%'long' FROM generate_series%")
    told, kept = body["recording"], sum(len(chunk.data) for chunk in chunks if chunk.rows)
    assert isinstance(told, dict)
    assert 250_000 < kept <= 256 * 1024
    assert told["left_out"] > 2_000_000
    assert chunks[-1].data[:1] == b"C"  # the end is there all the same


def test_a_refusal_was_never_granted_and_leaves_no_recording(stack: Stack) -> None:
    assert stack.psql("devin", "SELECT pg_read_file('never granted')").returncode == 1
    found = stack.audit("SELECT status, recorded FROM statements WHERE sql LIKE '%never granted%'")
    assert found == [{"status": "refused", "recorded": None}]


async def test_the_mcp_door_records_the_same_rows(stack: Stack) -> None:
    text = "SELECT id, ssn, NULL AS nothing, 'at both doors' AS t FROM customers ORDER BY id LIMIT 4"
    await query(stack, "devin", text)
    mcp = complete(stack, "%at both doors%")
    with psycopg.connect(stack.wire_dsn("devin"), autocommit=True) as connection:
        connection.execute(sql.SQL(text))
    wire = complete(stack, "%at both doors%")
    assert mcp[1:] == wire[1:]
    assert isinstance(mcp[0], backend.RowDescription)
    assert isinstance(wire[0], backend.RowDescription)
    assert [(c.name, c.type, c.format) for c in mcp[0].columns] == [(c.name, c.type, c.format) for c in wire[0].columns]


async def test_only_the_pages_that_were_asked_for_are_in_the_recording(stack: Stack) -> None:
    text = "SELECT g, 'paged' FROM generate_series(1, 100) g"
    async with client(stack, "devin") as connected:
        first = answer(await connected.call_tool("query", {"sql": text, "max_rows": 2}))
        answer(await connected.call_tool("query", {"cursor": first["cursor"], "max_rows": 3}))
    gateway = stack.app.hall.gateway
    for session in [session for session in gateway.sessions.list() if session.door is Door.MCP]:
        stack.loop.call_soon_threadsafe(gateway.sessions.end, session, "the test is over")
    assert [row[0] for row in rows(recording(stack, "%'paged'%")[1])] == [b"1", b"2", b"3", b"4", b"5"]


async def test_the_mcp_doors_errors_are_recorded(stack: Stack) -> None:
    failure(await call(stack, "devin", "query", sql="SELECT 1 / 0 AS divided"))
    [last] = complete(stack, "%divided%")
    assert isinstance(last, backend.ErrorResponse)
    assert (last.fields["S"], last.fields["C"], last.fields["M"]) == ("ERROR", "22012", "division by zero")


def test_the_audit_with_all_these_recordings_is_intact(stack: Stack) -> None:
    assert verify(stack.audit_path).problem is None


# -- the bounds, without a server ---------------------------------------------------------------------


def session(mode: Mode) -> Session:
    now = datetime.now(UTC)
    connection = Connection("shop", "127.0.0.1", 1, "shop", "gateway", "secret", recording=mode)
    principal = Principal("devin", "https://issuer.example", PrincipalKind.AGENT)
    return Session("se-1", principal, connection, Door.WIRE, ClientInfo(), now, now + timedelta(hours=1))


def made(mode: Mode, bounds: RecordingBounds, *pieces: bytes, of: Session | None = None) -> tuple[list[bytes], int]:
    transcript = Transcript(of or session(mode), bounds, time.perf_counter())
    for piece in pieces:
        (transcript.rows if piece[:1] == b"D" else transcript.message)(piece)
    recorded = transcript.finish()
    return ([chunk.data for chunk in recorded.chunks], recorded.left_out) if recorded else ([], 0)


@pytest.mark.parametrize(
    ("mode", "bounds", "pieces", "kept", "left_out"),
    [
        (Mode.OFF, RecordingBounds(), (b"T", b"D", b"C"), [], 0),
        (Mode.METADATA, RecordingBounds(), (b"T", b"Drow", b"Drow", b"N", b"C"), [b"T", b"", b"N", b"C"], 8),
        (Mode.FULL, RecordingBounds(), (), [], 0),
        (Mode.FULL, RecordingBounds(6, 99), (b"T", b"Drow", b"Drow", b"C"), [b"T", b"Drow", b"D", b"C"], 3),
        (Mode.FULL, RecordingBounds(99, 6), (b"T", b"Drow", b"Drow", b"C"), [b"T", b"Drow", b"D", b"C"], 3),
        (Mode.FULL, RecordingBounds(6, 99), (b"N1234567", b"N1234", b"N1", b"C"), [b"N1234", b"C"], 10),
        (Mode.FULL, RecordingBounds(0, 0), (b"E" * 5000, b"C"), [b"C"], 5000),
        (Mode.FULL, RecordingBounds(0, 0), (b"D1", b"D2", b"C"), [b"", b"C"], 4),
    ],
)
def test_the_bounds(
    mode: Mode, bounds: RecordingBounds, pieces: Sequence[bytes], kept: Sequence[bytes], left_out: int
) -> None:
    assert made(mode, bounds, *pieces) == (kept, left_out)


def test_a_sessions_bound_is_shared_by_its_statements() -> None:
    one, bounds = session(Mode.FULL), RecordingBounds(8, 10)
    assert made(Mode.FULL, bounds, b"D1234567", of=one) == ([b"D1234567"], 0)
    assert made(Mode.FULL, bounds, b"D1234567", of=one) == ([b"D1"], 6)
    assert made(Mode.FULL, bounds, b"D1234567", of=one) == ([b""], 8)


def test_the_policys_word_overrides_the_connections() -> None:
    for said, kept in ((None, [b""]), (Mode.FULL, [b"D1"]), (Mode.OFF, [])):
        assert made(Mode.METADATA, RecordingBounds(mode=said), b"D1")[0] == kept


async def test_a_policy_that_is_loaded_now_holds_at_both_doors(stack: Stack) -> None:
    policies, path = stack.app.hall.gateway.policies, stack.demo.config.policy_path
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\nrecordings:\n  - {{who: {{groups: [ai-agents]}}, mode: off}}\n", encoding="utf-8")
    try:
        stack.call(policies.reload)
        stack.psql("devin", "SELECT 'unseen at the wire door'")
        await query(stack, "devin", "SELECT 'unseen at the MCP door'")
    finally:
        path.write_text(before, encoding="utf-8")
        stack.call(policies.reload)
    stack.psql("devin", "SELECT 'seen again'")
    recording(stack, "SELECT 'seen again'")
    told = stack.audit("SELECT sql, recorded FROM statements WHERE sql LIKE 'SELECT ''%seen a%' ORDER BY sql")
    assert [row["recorded"] for row in told] == ["full", None, None]


POLICY = """
recordings:
  - {who: {groups: [ai-agents]}, mode: metadata}
  - {who: {groups: [ai-agents]}, connections: [pay*], mode: full}
  - {who: {groups: [ai-agents]}, connections: [payments], mode: off}
  - {who: {users: [ada]}, mode: off}
"""


@pytest.mark.parametrize("reverse", [False, True])
def test_of_several_entries_the_one_that_records_most_counts(reverse: bool) -> None:
    head, *entries = POLICY.strip().splitlines()
    policy = load_policy("\n".join([head, *(reversed(entries) if reverse else entries)]), "policy.yaml")
    agent = Principal("devin", "i", PrincipalKind.AGENT, groups=frozenset(("ai-agents",)))
    human = Principal("ada", "i", PrincipalKind.HUMAN)
    told = [policy.recording_of(agent, name) for name in ("shop", "payments")]
    assert told == ["metadata", "full"]
    assert policy.recording_of(human, "shop") == "off"
    assert policy.recording_of(Principal("grace", "i", PrincipalKind.HUMAN), "shop") is None


def test_a_mode_that_there_is_not_is_refused() -> None:
    with pytest.raises(DocumentError, match="`everything`"):
        load_policy("recordings: [{mode: everything}]", "policy.yaml")
