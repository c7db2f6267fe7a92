"""Content detection at both doors: what no column rule covers is found in what leaves, in every format, and hidden.

The values are published examples: test cards of payment providers, SSA's and SWIFT's own examples, AWS's key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from policy.forms import Form, form_of
from tests.doors.mcp_calls import call, error, query, text
from tests.doors.wire_calls import errors, raw_client, values
from tests.policy.corpus import ROOT
from tests.stack import Stack, running_stack, use_policy
from tests.waiting import until
from wire import backend, frontend
from wire.copy import CopyData, CopyDone

CARD, SSN, IBAN, EMAIL, KEY = (
    "4111 1111 1111 1111",
    "078-05-1120",
    "DE89 3704 0044 0532 0130 00",
    "ada.lovelace@example.com",
    "AKIAIOSFODNN7EXAMPLE",
)
ALL = (CARD, SSN, IBAN, EMAIL, KEY)
PROSE = f"pay with {CARD}, I am {SSN}, from {IBAN}; write to {EMAIL}\nkey {KEY}"
HIDDEN = (
    "pay with **** **** **** ****, I am ***-**-****, from **** **** **** **** **** **; write to "
    "***.********@*******.***\nkey ********************"
)
DOCUMENT = {"n": 4111111111111111, "s": "line\n4111111111111111", "to": [EMAIL], "plain": "nothing"}

SCHEMA = """
CREATE TYPE leak_mood AS ENUM ('calm', 'ada@example.com');
CREATE DOMAIN leak_note AS text;
CREATE TYPE leak_pair AS (what text, number bigint);
CREATE TABLE leaks (
    id integer PRIMARY KEY, prose text, doc jsonb, raw json, list text[], pair leak_pair, big bigint, num numeric,
    mood leak_mood, note leak_note, numbers int8range, docs jsonb[], noted leak_note[], at timestamptz, uid uuid
);
GRANT ALL ON leaks TO shop_owner;
"""


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("detection")) as stack:
        stack.direct(SCHEMA)
        with psycopg.connect(stack.demo.admin_dsn, autocommit=True) as admin:
            admin.execute(
                "INSERT INTO leaks VALUES (1, %s, %s, %s, %s, ROW(%s, 4111111111111111), 4111111111111111,"
                " 4111111111111111.50, 'ada@example.com', %s, '[4111111111111111,4111111111111112)', ARRAY[%s::jsonb],"
                " ARRAY[%s]::leak_note[], '2026-11-25 12:00+00', '41111111-1111-1111-1111-111111111111')",
                (
                    PROSE,
                    json.dumps(DOCUMENT),
                    json.dumps(DOCUMENT, indent=1),
                    [PROSE, "x"],
                    PROSE,
                    EMAIL,
                    json.dumps(DOCUMENT),
                    EMAIL,
                ),
            )
            admin.execute("INSERT INTO leaks (id, prose) VALUES (2, 'nothing here')")
        use_policy(stack, ROOT / "tests/policy/policies/detecting.yaml")
        yield stack


def leaked(delivered: bytes | str) -> list[str]:
    """What of the values can be read in what was delivered."""
    whole = delivered if isinstance(delivered, str) else delivered.decode("latin-1")
    bare = {value.replace(" ", "") for value in ALL} | {*ALL, "ada@example.com"}
    return sorted(value for value in bare if value in whole)


def last(stack: Stack, like: str) -> dict[str, Any]:
    asked = (
        "SELECT o.body AS body FROM entries i JOIN entries o ON o.statement = i.statement AND o.kind = 'outcome'"
        " WHERE i.kind = 'intent' AND i.body ->> '$.text' LIKE ? ORDER BY o.seq DESC LIMIT 1"
    )
    until(lambda: bool(stack.audit(asked, like)), "the statement has no outcome")
    body: dict[str, Any] = json.loads(stack.audit(asked, like)[0]["body"])
    return body


def test_psql_gets_stars_and_a_notice_and_a_dba_what_is_there(leaky: Stack) -> None:
    done = leaky.psql("ada", "SELECT prose FROM leaks WHERE id = 1", "-At")
    assert done.stdout == HIDDEN + "\n"
    assert done.stderr.count("NOTICE:  the policy hid in this result: prose: 1 card; prose: 1 email;") == 1
    assert leaky.psql("grace", "SELECT prose FROM leaks WHERE id = 1", "-At").stdout == PROSE + "\n"
    clean = leaky.psql("ada", "SELECT prose FROM leaks WHERE id = 2", "-At")
    assert (clean.stdout, clean.stderr) == ("nothing here\n", "")


def test_every_type_is_searched_and_stays_what_it_is(leaky: Stack) -> None:
    done = leaky.psql("ada", "SELECT * FROM leaks WHERE id = 1", "-At", "-F", "\x1f")
    row = done.stdout.rstrip("\n").split("\x1f")
    assert leaked(done.stdout) == []
    assert json.loads(row[2]) == {**DOCUMENT, "n": 10**15, "s": "line\n" + "*" * 16, "to": ["***.********@*******.***"]}
    assert json.loads(row[3]) == json.loads(row[2])
    assert row[6:8] == ["1000000000000000", "1000000000000000.50"]
    assert row[13:] == ["2026-11-25 12:00:00+00", "41111111-1111-1111-1111-111111111111"]


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_psycopg_reads_the_same_in_text_and_binary(leaky: Stack, binary: bool) -> None:
    columns = "prose, doc, list, big, num, mood::text, note, docs, at, uid"
    with psycopg.connect(leaky.wire_dsn("ada"), autocommit=True) as connection:
        cursor = connection.execute(f"SELECT {columns} FROM leaks WHERE id = 1".encode(), binary=binary)
        prose, doc, listed, big, num, mood, note, docs, at, uid = cursor.fetchone() or ()
    assert (prose, listed, note, mood) == (HIDDEN, [HIDDEN, "x"], "***.********@*******.***", "***@*******.***")
    assert (big, str(num), doc["n"], docs[0]["s"]) == (10**15, "1000000000000000.50", 10**15, "line\n" + "*" * 16)
    assert (at.isoformat()[:10], str(uid)) == ("2026-11-25", "41111111-1111-1111-1111-111111111111")


async def test_asyncpg_gets_every_binary_form(leaky: Stack) -> None:
    connection = await asyncpg.connect(
        host=leaky.host, port=leaky.port, user="ada", password=leaky.tokens["ada"], database=leaky.database, ssl=False
    )
    try:
        row = await connection.fetchrow("SELECT * FROM leaks WHERE id = $1", 1)
        assert row is not None
        assert leaked(repr(dict(row))) == []
        assert tuple(row["pair"]) == (HIDDEN, 10**15)
        assert (row["list"], row["noted"]) == ([HIDDEN, "x"], ["***.********@*******.***"])
        assert (row["numbers"].lower, row["numbers"].upper) == (10**15, 4111111111111112)
        assert (row["big"], str(row["num"]), row["mood"]) == (10**15, "1000000000000000.50", "***@*******.***")
        async with connection.transaction():
            found = [r["prose"] async for r in connection.cursor("SELECT prose FROM leaks ORDER BY id", prefetch=1)]
        assert found == [HIDDEN, "nothing here"]
    finally:
        await connection.close()


COPIES = (
    "COPY leaks (id, prose, doc, list) TO STDOUT",
    "COPY leaks (id, prose, doc, list) TO STDOUT (FORMAT csv, HEADER, FORCE_QUOTE *)",
    "COPY (SELECT id, prose, doc, list FROM leaks) TO STDOUT (DELIMITER '|', NULL 'none')",
    "COPY (SELECT id, prose, doc, list FROM leaks) TO STDOUT (FORMAT csv, QUOTE '''', ESCAPE '\\', DELIMITER ';')",
    "COPY leaks (id, prose, doc, list) TO STDOUT (FORMAT binary)",
    "COPY leaks (id, prose, doc, list, pair, big, num, mood, note, numbers, docs, noted, at, uid) TO STDOUT BINARY",
)


@pytest.mark.parametrize("sql", COPIES)
@pytest.mark.parametrize("extended", [False, True], ids=["simple", "extended"])
def test_copy_delivers_hidden_values_that_can_be_loaded_again(leaky: Stack, sql: str, extended: bool) -> None:
    with raw_client(leaky, "ada") as client:
        if extended:
            asked = (frontend.Parse("", sql.encode()), frontend.Bind("", ""), frontend.Execute(""), frontend.Sync())
            answers = client.cycle(*asked)
        else:
            answers = client.cycle(frontend.Query(sql.encode()))
    assert errors(answers) == []
    data = b"".join(m.encode()[5:] for m in answers if isinstance(m, CopyData))
    assert leaked(data) == []
    assert b"****" in data
    assert [type(m) for m in answers if isinstance(m, CopyDone | backend.CommandComplete | backend.NoticeResponse)] == [
        CopyDone,
        backend.NoticeResponse,
        backend.CommandComplete,
    ]
    if "pair" in sql:
        return  # its types belong to the table; the framing is what loading it proves
    options = sql.partition(" TO STDOUT")[2].replace(", FORCE_QUOTE *", "")
    with psycopg.connect(leaky.demo.admin_dsn) as admin:
        admin.execute("CREATE TEMP TABLE again (id integer, prose text, doc jsonb, list text[])")
        with admin.cursor().copy(f"COPY again FROM STDIN {options}".encode()) as into:
            into.write(data)
        [(prose, doc, listed)] = admin.execute("SELECT prose, doc, list FROM again WHERE id = 1").fetchall()
    assert (prose, doc["n"], listed) == (HIDDEN, 10**15, [HIDDEN, "x"])


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("COPY leaks TO STDOUT (DELIMITER '@')", "DELIMITER `@` could stand inside"),
        ("COPY leaks TO STDOUT (FORMAT csv, QUOTE '-')", "QUOTE `-` could stand inside"),
        ("COPY leaks TO STDOUT (ENCODING 'SJIS')", "encoding `SJIS`"),
        ("SELECT 1; COPY leaks TO STDOUT", "cannot be part of several"),
    ],
)
def test_copy_that_could_not_be_searched_is_refused_with_its_own_sentence(leaky: Stack, sql: str, why: str) -> None:
    done = leaky.psql("ada", sql)
    assert why in done.stderr
    assert leaked(done.stdout) == []
    assert leaky.psql("grace", sql).returncode == 0


def test_cursors_prepared_statements_explain_and_returning_are_searched(leaky: Stack) -> None:
    steps = (
        "BEGIN",
        "DECLARE c CURSOR FOR SELECT prose FROM leaks ORDER BY id",
        "FETCH 1 FROM c",
        "DECLARE b BINARY CURSOR FOR SELECT prose, big FROM leaks ORDER BY id",
        "FETCH 1 FROM b",
        "PREPARE p AS SELECT list FROM leaks WHERE id = 1",
        "EXECUTE p",
        f"EXPLAIN SELECT * FROM leaks WHERE prose = '{EMAIL}'",
        "UPDATE leaks SET prose = prose WHERE id = 1 RETURNING prose",
        "SELECT string_agg(prose, ' | ') FROM leaks",
        "ROLLBACK",
    )
    with raw_client(leaky, "ada") as client:
        for step in steps:
            answers = client.cycle(frontend.Query(step.encode()))
            assert errors(answers) == []
            delivered = b"".join(value or b"" for row in values(answers) for value in row)
            assert leaked(delivered) == [], step
            assert not delivered or b"***" in delivered


def test_errors_notices_and_notifications_are_searched(leaky: Stack) -> None:
    leaky.direct(
        "CREATE FUNCTION public.tell(what text) RETURNS void LANGUAGE plpgsql AS"
        " $$BEGIN RAISE NOTICE 'told: %', what USING DETAIL = what, HINT = what, COLUMN = what, CONSTRAINT = what,"
        " DATATYPE = what, TABLE = what, SCHEMA = what; PERFORM pg_notify('gossip', what); END$$"
    )
    with raw_client(leaky, "ada") as client:
        failed = client.cycle(frontend.Query(b"SELECT prose::integer FROM leaks WHERE id = 1"))
        [(code, message)] = errors(failed)
        assert (code, leaked(message)) == ("22P02", [])
        client.cycle(frontend.Query(b"LISTEN gossip"))
        told = client.cycle(frontend.Query(b"SELECT tell(prose) FROM leaks WHERE id = 1"))
        notice, _ = [m for m in told if isinstance(m, backend.NoticeResponse)]
        assert notice.fields["M"] == f"told: {HIDDEN}"
        assert {notice.fields[field] for field in "DHcndts"} == {HIDDEN}
        [notification] = [m for m in told if isinstance(m, backend.NotificationResponse)]
        assert notification.payload == HIDDEN
    body = last(leaky, "SELECT prose::integer%")
    assert leaked(json.dumps(body)) == []
    assert {(one["column"], one["kind"]) for one in body["detected"]} >= {("", "card"), ("", "email")}


def test_a_value_that_arrives_in_many_chunks_is_found_and_one_too_large_is_refused(leaky: Stack) -> None:
    with psycopg.connect(leaky.wire_dsn("ada"), autocommit=True) as connection:
        large = "SELECT repeat('x', 500000) || ' ' || prose || ' ' || repeat('y', 500000) FROM leaks WHERE id = 1"
        [value] = connection.execute(large.encode()).fetchone() or ()
        assert value.strip("xy") == f" {HIDDEN} "
        with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="larger than the 4 MiB"):
            connection.execute(b"SELECT repeat('x', 5000000) || prose FROM leaks WHERE id = 1")
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_binary_format_that_is_not_known_is_refused_and_as_text_it_is_searched(leaky: Stack) -> None:
    sql = f"SELECT to_tsvector('simple', '{EMAIL}') FROM leaks WHERE id = 1".encode()
    with psycopg.connect(leaky.wire_dsn("ada"), autocommit=True) as connection:
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="binary format of the column `to_tsvector`"):
            connection.execute(sql, binary=True)
        [value] = connection.execute(sql).fetchone() or ()
    assert "***.********@*******.***" in value


async def test_the_mcp_door_hides_the_same_and_says_so(leaky: Stack) -> None:
    sql = "SELECT id, prose, doc, list, pair, big, num FROM leaks ORDER BY id"
    result = await call(leaky, "ada", "query", sql=sql, max_rows=1)
    assert leaked(text(result)) == []
    assert "found in values and hidden by policy: big: 1 card" in text(result)
    answer = result.structured_content
    assert leaked(json.dumps(answer)) == []
    first = answer["rows"][0]
    assert first[1] == HIDDEN
    assert (first[2]["n"], first[3], first[5], first[6]) == (10**15, [HIDDEN, "x"], 10**15, "1000000000000000.50")
    assert {c["name"]: c["detected"] for c in answer["columns"]}["prose"] == "card, email, iban, key, ssn"
    assert "prose: 1 card" in answer["detected"]
    assert (await query(leaky, "ada", "SELECT prose FROM leaks WHERE id = 2"))["detected"] == []
    failed = await call(leaky, "ada", "query", sql="SELECT prose::integer FROM leaks WHERE id = 1")
    assert error(failed)["sqlstate"] == "22P02"
    assert leaked(text(failed) + json.dumps(failed.structured_content)) == []
    assert (await query(leaky, "grace", "SELECT prose FROM leaks WHERE id = 1"))["rows"] == [[PROSE]]
    large = await call(leaky, "ada", "query", sql="SELECT repeat('x', 5000000) || prose FROM leaks WHERE id = 1")
    assert "larger than the 4 MiB" in error(large)["what"]


async def test_both_doors_deliver_the_same_bytes_and_record_the_same(leaky: Stack) -> None:
    sql = "SELECT prose, doc, list, pair, big, num, docs FROM leaks ORDER BY id"
    leaky.psql("ada", sql)
    wire = last(leaky, sql)
    await query(leaky, "ada", sql)
    mcp = last(leaky, sql)
    assert wire["status"] == mcp["status"] == "completed"
    assert wire["digest"] != mcp["digest"]  # of the same rows, each by its statement's own key
    assert (wire["rows"], wire["size"], wire["detected"]) == (mcp["rows"], mcp["size"], mcp["detected"])
    assert {"column": "prose", "kind": "card", "count": 1} in wire["detected"]
    assert leaked(json.dumps(wire)) == []


def test_a_policy_that_begins_to_look_looks_at_what_was_prepared_before(leaky: Stack, tmp_path: Path) -> None:
    blind = tmp_path / "blind.yaml"
    blind.write_text("rules: [{name: everything, effect: allow, actions: ['*']}]\n", encoding="utf-8")
    with psycopg.connect(leaky.wire_dsn("ada"), autocommit=True) as connection:
        try:
            use_policy(leaky, blind)
            read = "SELECT prose FROM leaks WHERE id = %s"
            assert connection.execute(read, (1,), prepare=True).fetchone() == (PROSE,)
        finally:
            use_policy(leaky, ROOT / "tests/policy/policies/detecting.yaml")
        assert connection.execute(read, (1,), prepare=True).fetchone() == (HIDDEN,)


async def test_approvers_see_samples_without_what_is_looked_for(leaky: Stack) -> None:
    leaky.direct(f"UPDATE tickets SET body = 'mail {EMAIL}, card {CARD}'")
    pending = (await query(leaky, "devin", "UPDATE tickets SET status = 'closed'"))["pending"]
    shown = await call(leaky, "grace", "list_approvals")
    [sample, *_] = leaky.audit(
        "SELECT record ->> '$.evidence.sample' AS s FROM approval_records WHERE id = ?", pending["id"]
    )
    assert "mail ***.********@*******.***, card **** **** **** ****" in sample["s"]
    assert leaked(sample["s"] + text(shown)) == []
    await call(leaky, "devin", "withdraw", id=pending["id"])


def test_the_forms_of_all_built_in_types_are_known_but_for_a_few(leaky: Stack) -> None:
    sent = leaky.direct(
        "SELECT DISTINCT p.prosrc FROM pg_type t JOIN pg_proc p ON p.oid = t.typsend WHERE t.typtype <> 'p'"
    )
    unknown = sorted(function for (function,) in sent if form_of(function) is Form.UNKNOWN)
    internal = ("brin_", "pg_ddl_command", "pg_dependencies", "pg_mcv_list", "pg_ndistinct")
    assert [function for function in unknown if not function.startswith(internal)] == ["tsquerysend", "tsvectorsend"]
