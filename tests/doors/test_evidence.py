"""What approvers are shown of a write: measured in a rehearsal that leaves nothing behind, and binding for the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.doors.mcp_calls import answer, call, client, error, query
from tests.doors.test_wire_approvals import Queue
from tests.doors.wire_calls import errors, raw_client
from tests.stack import Stack, running_stack, use_policy
from wire.backend import ReadyForQuery
from wire.frontend import Query

POLICY = Path(__file__).parents[1] / "policy" / "policies" / "rehearsed.yaml"
SCHEMA = """
CREATE TABLE public.numbered (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text);
CREATE TABLE public.serial (id serial PRIMARY KEY, what text);
CREATE TABLE public.watched (id integer PRIMARY KEY, what text);
CREATE TABLE public.parent (id integer PRIMARY KEY);
CREATE TABLE public.child (id integer PRIMARY KEY, parent integer REFERENCES public.parent ON DELETE CASCADE);
CREATE TABLE public.plain (id integer PRIMARY KEY, what text, secret text);
CREATE TABLE public.kept (id integer PRIMARY KEY, what text, secret text);
INSERT INTO public.kept VALUES (7, 'old', 'raw secret');
CREATE FUNCTION public.tell() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN PERFORM nextval('public.serial_id_seq'); RETURN NEW; END $$;
CREATE TRIGGER telling BEFORE UPDATE ON public.watched FOR EACH ROW EXECUTE FUNCTION public.tell();
GRANT ALL ON ALL TABLES IN SCHEMA public TO countersign_gateway;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO countersign_gateway;
INSERT INTO public.watched VALUES (1, 'a');
INSERT INTO public.parent SELECT generate_series(1, 3);
INSERT INTO public.child SELECT n, 1 + n % 3 FROM generate_series(1, 30) n;
INSERT INTO public.plain SELECT n, 'row ' || n FROM generate_series(1, 40) n;
"""


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose policy asks a DBA about every write of an agent's."""
    with running_stack(tmp_path_factory.mktemp("rehearsed")) as stack:
        stack.direct(SCHEMA)
        use_policy(stack, POLICY)
        yield stack


async def asked(stack: Stack, sql: str, **more: Any) -> dict[str, Any]:
    """The approval of an agent's statement, as the DBA sees it."""
    pending = (await query(stack, "devin", sql, **more))["pending"]
    return answer(await call(stack, "grace", "approval_status", id=pending["id"]))


async def approved(stack: Stack, approval: dict[str, Any]) -> None:
    answer(await call(stack, "grace", "approve", id=approval["id"], digest=approval["digest"]))


async def test_the_approver_sees_what_was_measured_and_nothing_has_changed(rehearsed: Stack) -> None:
    before = rehearsed.direct("SELECT * FROM plain ORDER BY id")
    shown = await asked(rehearsed, "UPDATE plain SET what = 'new' WHERE id > $1", parameters=[10])
    evidence = shown["evidence"]
    assert (evidence["measured"], evidence["rows"], evidence["at_least"], evidence["at_most"]) == (True, 30, 27, 33)
    assert evidence["tables"] == [{"relation": "public.plain", "inserted": 0, "updated": 30, "deleted": 0}]
    assert len(evidence["sample"]) == 5
    for row in evidence["sample"]:
        assert row["before"]["what"] == f"row {row['before']['id']}"
        assert row["after"] == {**row["before"], "what": "new"}
    assert rehearsed.direct("SELECT * FROM plain ORDER BY id") == before
    statuses = rehearsed.audit("SELECT status FROM statements WHERE sql = ?", shown["statement"])
    assert sorted(row["status"] for row in statuses) == ["pending", "rehearsed"]


async def test_the_approver_sees_no_column_that_is_masked_for_others_than_who_asks(rehearsed: Stack) -> None:
    token = rehearsed.demo.issuer.token("teller", kind="agent", groups=["ai-agents", "fraud"])
    async with client(rehearsed, "teller", token=token) as teller:
        sql = "UPDATE kept SET what = 'new' WHERE id = 7"
        pending = answer(await teller.call_tool("query", {"sql": sql}))["pending"]
        assert answer(await teller.call_tool("query", {"sql": "SELECT secret FROM kept WHERE id = 7"}))["rows"] == [
            ["raw secret"]
        ]
    shown = await call(rehearsed, "grace", "approval_status", id=pending["id"])
    [row] = answer(shown)["evidence"]["sample"]
    assert row["before"] == {"id": "7", "what": "old", "secret": "[masked for others]"}
    assert "raw secret" not in str(shown)


async def test_rows_that_foreign_keys_delete_are_counted_by_table(rehearsed: Stack) -> None:
    evidence = (await asked(rehearsed, "DELETE FROM parent WHERE id = 1"))["evidence"]
    assert evidence["rows"] == 1
    assert {table["relation"]: table["deleted"] for table in evidence["tables"]} == {
        "public.child": 10,
        "public.parent": 1,
    }
    assert evidence["sample"] == [{"before": {"id": "1"}, "after": None}]


async def test_a_sample_is_masked_as_the_requester_reads(rehearsed: Stack) -> None:
    raw = rehearsed.direct("SELECT ssn, email, card FROM customers WHERE id < 6")
    shown = await asked(rehearsed, "UPDATE customers SET name = 'x' WHERE id < 6")
    assert shown["evidence"]["rows"] == len(shown["evidence"]["sample"]) == 5
    assert not [value for row in raw for value in row if value and value in str(shown)]
    for row in shown["evidence"]["sample"]:
        assert row["before"]["ssn"] == row["after"]["ssn"]
        assert row["after"]["name"] == "x"


SEQUENCE = "SELECT last_value, is_called FROM %s"
NOT_REHEARSED = [
    ("INSERT INTO numbered (what) VALUES ('a')", "`numbered` draws from a sequence", "numbered_id_seq"),
    ("INSERT INTO serial (what) VALUES ('a')", "`serial` draws from a sequence", "serial_id_seq"),
    ("UPDATE serial SET id = DEFAULT", "`serial` draws from a sequence", "serial_id_seq"),
    ("INSERT INTO plain SELECT nextval('serial_id_seq')", "it calls `pg_catalog.nextval`", "serial_id_seq"),
    ("UPDATE watched SET what = 'b'", "public.tell", "serial_id_seq"),
]


@pytest.mark.parametrize(("sql", "why", "sequence"), NOT_REHEARSED, ids=lambda v: v.split("(")[0])
async def test_what_a_rollback_does_not_take_back_is_not_rehearsed(
    rehearsed: Stack, sql: str, why: str, sequence: str
) -> None:
    before = rehearsed.direct(SEQUENCE % sequence)
    evidence = (await asked(rehearsed, sql))["evidence"]
    assert evidence["measured"] is False
    assert why in evidence["why"]
    assert rehearsed.direct(SEQUENCE % sequence) == before


async def test_triggers_that_will_fire_are_named(rehearsed: Stack) -> None:
    evidence = (await asked(rehearsed, "UPDATE watched SET what = 'b'"))["evidence"]
    assert evidence["sets_off"] == ["the trigger `telling` of `public.watched`: public.tell"]


async def test_a_lock_that_somebody_holds_is_not_waited_for_long(rehearsed: Stack) -> None:
    with psycopg.connect(rehearsed.demo.admin_dsn) as other:
        other.execute("SELECT * FROM plain WHERE id = 7 FOR UPDATE")
        evidence = (await asked(rehearsed, "DELETE FROM plain WHERE id = 7"))["evidence"]
    assert evidence["measured"] is False
    assert "55P03" in evidence["why"]


async def test_what_postgresql_refuses_is_told_by_its_code_alone(rehearsed: Stack) -> None:
    evidence = (await asked(rehearsed, "UPDATE plain SET id = 1"))["evidence"]
    assert evidence["why"] == "PostgreSQL refused the rehearsal (23505)"


async def test_the_run_is_rolled_back_where_it_changes_another_number_of_rows(rehearsed: Stack) -> None:
    sql = "UPDATE parent SET id = id + 100 WHERE id > 50"
    rehearsed.direct("INSERT INTO parent VALUES (51), (52)")
    shown = await asked(rehearsed, sql)
    assert shown["evidence"]["rows"] == 2
    rehearsed.direct("INSERT INTO parent VALUES (53)")
    await approved(rehearsed, shown)
    said = error(await call(rehearsed, "devin", "await_approval", id=shown["id"]))
    assert "changes 3 rows, and people approved 2 (2 to 2)" in said["what"]
    assert rehearsed.direct("SELECT count(*) FROM parent WHERE id > 100") == [(0,)]
    rehearsed.direct("DELETE FROM parent WHERE id > 50")
    statuses = rehearsed.audit("SELECT status FROM statements WHERE sql = ? ORDER BY seq", sql)
    assert statuses[-1]["status"] == "failed"


async def test_the_run_that_changes_what_was_shown_lasts(rehearsed: Stack) -> None:
    shown = await asked(rehearsed, "UPDATE plain SET secret = 'kept' WHERE id < 11")
    await approved(rehearsed, shown)
    done = answer(await call(rehearsed, "devin", "await_approval", id=shown["id"]))
    assert done["tag"] == "UPDATE 10"
    assert rehearsed.direct("SELECT count(*) FROM plain WHERE secret = 'kept'") == [(10,)]


@pytest.mark.parametrize(("added", "tag"), [(0, "UPDATE 2"), (1, None)])
async def test_at_the_wire_door_the_count_binds_too(rehearsed: Stack, added: int, tag: str | None) -> None:
    rehearsed.direct("INSERT INTO plain VALUES (901), (902)")
    queue = Queue(rehearsed)
    try:
        with raw_client(rehearsed, "devin") as client:
            client.send(Query(b"UPDATE plain SET what = 'wire' WHERE id > 900"))
            approval = queue.next()
            if added:
                rehearsed.direct("INSERT INTO plain VALUES (903)")
            shown = answer(await call(rehearsed, "grace", "approval_status", id=approval))
            assert shown["evidence"]["rows"] == 2
            await approved(rehearsed, shown)
            replies = client.until(ReadyForQuery)
        if tag is None:
            [(code, said)] = errors(replies)
            assert code == "42501"
            assert "changes 3 rows, and people approved 2" in said
            assert rehearsed.direct("SELECT count(*) FROM plain WHERE what = 'wire'") == [(0,)]
        else:
            assert errors(replies) == []
            assert rehearsed.direct("SELECT count(*) FROM plain WHERE what = 'wire'") == [(2,)]
    finally:
        rehearsed.direct("DELETE FROM plain WHERE id > 900")


async def test_the_digest_covers_what_was_measured(rehearsed: Stack) -> None:
    first = await asked(rehearsed, "DELETE FROM plain WHERE id = 40")
    second = await asked(rehearsed, "DELETE FROM plain WHERE id = 40")
    assert first["evidence"]["rows"] == second["evidence"]["rows"] == 1
    rehearsed.direct("UPDATE plain SET what = 'other' WHERE id = 40")
    third = await asked(rehearsed, "DELETE FROM plain WHERE id = 40")
    assert third["digest"] not in (first["digest"], second["digest"])
