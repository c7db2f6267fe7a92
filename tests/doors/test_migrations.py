"""Migrations end to end: proposed by an agent, seen by a DBA with locks and differences, run once; what voids them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.doors.mcp_calls import answer, call, client, error, query, text
from tests.doors.test_approval_commands import finish, process
from tests.stack import Stack, running_stack
from tests.waiting import until

FIVE = """\
ALTER TABLE public.tickets ADD COLUMN priority integer DEFAULT 3 NOT NULL;
CREATE TABLE public.labels (ticket integer REFERENCES public.tickets, label text, PRIMARY KEY (ticket, label));
CREATE INDEX tickets_priority ON public.tickets (priority); -- squawk-ignore require-concurrent-index-creation
ALTER TABLE public.labels ADD COLUMN colour text;
ALTER TABLE public.tickets ALTER COLUMN id TYPE bigint;
"""


# A mask on columns that are not there yet.
PASSPORTS = "  - {columns: [public.*.passport], with: redact}\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose schema these tests change."""
    with running_stack(tmp_path_factory.mktemp("migrations")) as stack:
        path = stack.demo.config.policy_path
        path.write_text(path.read_text().replace("masks:\n", f"masks:\n{PASSPORTS}"))
        stack.call(stack.app.hall.gateway.policies.reload)
        yield stack


async def proposed(stack: Stack, sql: str, **more: Any) -> dict[str, Any]:
    """The agent's proposal, as the DBA sees it."""
    pending = answer(await call(stack, "devin", "propose_migration", title="labels", sql=sql, **more))["pending"]
    return answer(await call(stack, "grace", "approval_status", id=pending["id"]))


async def approve(stack: Stack, approval: dict[str, Any]) -> None:
    answer(await call(stack, "grace", "approve", id=approval["id"], digest=approval["digest"]))


def schema(stack: Stack) -> list[tuple[Any, ...]]:
    return stack.direct(
        "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
        " UNION ALL SELECT tablename, indexname, '' FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2"
    )


async def test_a_dba_sees_what_five_statements_do_and_they_run_once(shop: Stack) -> None:
    before = schema(shop)
    shown = await proposed(shop, FIVE, reason="triage")
    assert schema(shop) == before, "the rehearsal left something behind"
    seen = shown["evidence"]["migration"]
    assert seen["rehearsed"] is True
    assert seen["how"].startswith("in one transaction")
    first, _, third, _, fifth = seen["statements"]
    assert {"relation": "public.tickets", "mode": "AccessExclusiveLock"} in first["locks"]
    assert first["rewrites"] == []
    assert {"relation": "public.tickets", "mode": "ShareLock"} in third["locks"]
    # A comment that tells the lint to look away is not heard.
    assert "require-concurrent-index-creation" in {found["rule"] for found in third["lint"]}
    assert "public.tickets" in fifth["rewrites"]
    assert "changing-column-type" in {found["rule"] for found in fifth["lint"]}
    changes = {(c["what"], c["kind"], c["name"]) for c in seen["changes"]}
    assert {
        ("created", "column", "public.tickets.priority"),
        ("created", "table", "public.labels"),
        ("created", "index", "public.tickets_priority"),
        ("changed", "column", "public.tickets.id"),
    } <= changes
    await approve(shop, shown)
    done = answer(await call(shop, "devin", "await_approval", id=shown["id"]))
    assert (done["status"], done["tag"]) == ("completed", "MIGRATION 5")
    assert shop.direct("SELECT count(*) FROM information_schema.columns WHERE column_name = 'priority'") == [(1,)]
    said = error(await call(shop, "devin", "await_approval", id=shown["id"]))
    assert "already been used" in said["what"]
    undo = ["ALTER TABLE public.labels DROP CONSTRAINT labels_ticket_fkey;", "DROP INDEX public.tickets_priority;"]
    assert [line for line in seen["undo"] if line in undo] == undo
    [changed] = shop.audit("SELECT statement, body FROM entries WHERE kind = 'schema.changed'")
    told = json.loads(changed["body"])
    assert told["changes"] == seen["changes"]
    assert (told["approval"], changed["statement"]) == (shown["id"], done["statement"])
    assert told["undo"] == seen["undo"]
    statuses = shop.audit("SELECT status FROM statements WHERE sql LIKE 'ALTER TABLE public.labels ADD%' ORDER BY seq")
    assert [row["status"] for row in statuses] == ["rehearsed", "rehearsed", "completed"]


async def test_a_schema_that_changed_meanwhile_voids_it_before_it_is_used(shop: Stack) -> None:
    shown = await proposed(shop, "ALTER TABLE public.orders ADD COLUMN note text")
    await approve(shop, shown)
    shop.direct("ALTER TABLE public.orders ADD COLUMN other text")
    said = error(await call(shop, "devin", "await_approval", id=shown["id"]))
    assert "the definition of a touched relation" in said["what"]
    assert shop.direct("SELECT count(*) FROM information_schema.columns WHERE column_name = 'note'") == [(0,)]


async def test_what_the_policy_denies_is_refused_with_its_rule_and_nothing_is_asked(shop: Stack) -> None:
    before = schema(shop)
    sql = "ALTER TABLE public.orders ADD COLUMN gone text; DROP TABLE public.tickets"
    said = error(await call(shop, "devin", "propose_migration", title="x", sql=sql))
    assert "agents-never-drop" in said["rule"]
    assert schema(shop) == before


REFUSED = [
    ("BEGIN; ALTER TABLE public.orders ADD COLUMN a text; COMMIT", "controls the transaction"),
    ("SELECT 1", "no statement of it needs approval"),
    ("ALTER TABLE public.orders ADD CONSTRAINT c CHECK (total > 1000000)", "(23514)"),
    ("ALTER TABLE public.orders ADD COLUMN status text", "42701"),
    (" -- nothing", "holds no statement"),
]


@pytest.mark.parametrize(("sql", "sentence"), REFUSED, ids=lambda v: v[:20])
async def test_what_cannot_be_a_migration_is_told_at_once(shop: Stack, sql: str, sentence: str) -> None:
    before = schema(shop)
    result = await call(shop, "devin", "propose_migration", title="x", sql=sql)
    assert result.is_error
    assert sentence in text(result)
    assert schema(shop) == before


# Calls a function of a user's, so none of its migration is rehearsed: the run meets what it meets.
UNREHEARSED = "UPDATE public.tickets SET subject = public.order_total(1)::text"


async def test_a_later_failure_takes_the_earlier_statements_back_and_the_audit_says_so(shop: Stack) -> None:
    before = shop.direct("SELECT id, subject FROM tickets ORDER BY id")
    index = "CREATE UNIQUE INDEX one_each ON public.tickets (customer_id)"
    shown = await proposed(shop, f"{UNREHEARSED}; {index}")
    seen = shown["evidence"]["migration"]
    assert seen["rehearsed"] is False
    assert "public.order_total" in seen["why_not"]
    await approve(shop, shown)
    said = error(await call(shop, "devin", "await_approval", id=shown["id"]))
    assert "statement 2 of the migration fails (23505)" in said["what"]
    assert shop.direct("SELECT id, subject FROM tickets ORDER BY id") == before
    ends = shop.audit(
        "SELECT body ->> '$.status' AS status, body ->> '$.message' AS message FROM entries WHERE kind = 'outcome'"
        " AND statement IN (SELECT statement FROM statements WHERE sql = ?)",
        UNREHEARSED,
    )
    assert [(row["status"], row["message"]) for row in ends] == [("failed", "rolled back with its migration")]
    again = error(await call(shop, "devin", "await_approval", id=shown["id"]))
    assert "already been used" in again["what"]


async def test_a_run_that_does_not_get_its_lock_lets_others_go_first_and_tries_again(shop: Stack) -> None:
    altering = "ALTER TABLE public.orders ADD COLUMN patient text"
    shown = await proposed(shop, f"{UNREHEARSED}; {altering}")
    await approve(shop, shown)
    with psycopg.connect(shop.demo.admin_dsn) as other:
        other.execute("SELECT count(*) FROM orders")  # holds ACCESS SHARE until its transaction ends
        running = asyncio.create_task(call(shop, "devin", "await_approval", id=shown["id"]))
        failed = "SELECT 1 FROM statements WHERE sql = ? AND sqlstate = '55P03'"
        await asyncio.to_thread(until, lambda: shop.audit(failed, altering), "no attempt gave up")
        other.rollback()
        done = answer(await asyncio.wait_for(running, 30))
    assert (done["tag"], done["messages"]) == ("MIGRATION 2", ["attempt 2"])
    assert shop.direct("SELECT count(*) FROM information_schema.columns WHERE column_name = 'patient'") != [(0,)]


async def test_what_cannot_run_in_a_transaction_is_said_and_runs_one_by_one(shop: Stack) -> None:
    shown = await proposed(shop, "CREATE INDEX CONCURRENTLY tickets_body ON public.tickets (body)")
    seen = shown["evidence"]["migration"]
    assert seen["how"].startswith("in 1 step,")
    assert seen["steps"] == ["statement 1, outside of a transaction: CREATE INDEX CONCURRENTLY cannot be in one"]
    assert seen["statements"][0]["note"] == "not rehearsed: CREATE INDEX CONCURRENTLY cannot be in one"
    await approve(shop, shown)
    assert answer(await call(shop, "devin", "await_approval", id=shown["id"]))["tag"] == "MIGRATION 1"
    assert shop.direct("SELECT indisvalid FROM pg_index WHERE indexrelid = 'tickets_body'::regclass") == [(True,)]


async def test_a_failure_in_the_middle_says_what_lasts_and_what_it_left(shop: Stack) -> None:
    shop.direct("CREATE TABLE public.twins (n integer); INSERT INTO public.twins VALUES (1), (1)")
    shop.direct("ALTER TABLE public.twins OWNER TO countersign_gateway")
    first, unique, last = (
        "ALTER TABLE public.twins ADD COLUMN one text",
        "CREATE UNIQUE INDEX CONCURRENTLY twins_n ON public.twins (n)",
        "ALTER TABLE public.twins ADD COLUMN three text",
    )
    shown = await proposed(shop, f"{first}; {unique}; {last}")
    seen = shown["evidence"]["migration"]
    assert [step.partition(":")[0] for step in seen["steps"]] == [
        "statement 1, in a transaction",
        "statement 2, outside of a transaction",
        "statement 3, in a transaction",
    ]
    assert ["note" in step for step in seen["statements"]] == [False, True, False]
    await approve(shop, shown)
    reported: list[str] = []

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        reported.append(message or "")

    async with client(shop, "devin") as agent:
        said = error(await agent.call_tool("await_approval", {"id": shown["id"]}, progress_callback=progress))
    assert "statement 2 of the migration fails (23505)" in said["what"]
    assert "statement 1 of it last; it left the invalid index public.twins_n" in said["what"]
    assert said["cure"].startswith("Clear up by DROP INDEX CONCURRENTLY public.twins_n. Then propose what is left")
    assert reported[0] == "it is rehearsed once more"
    assert [text.partition(":")[0] for text in reported[1:]] == ["statement 1 of 3", "statement 2 of 3"]
    columns = shop.direct("SELECT column_name FROM information_schema.columns WHERE table_name = 'twins' ORDER BY 1")
    assert columns == [("n",), ("one",)]
    told = json.loads(shop.audit("SELECT body FROM entries WHERE kind = 'schema.changed' ORDER BY seq DESC")[0]["body"])
    assert (told["steps"], told["done"]) == (3, 1)
    assert told["left"] == {"the invalid index public.twins_n": "DROP INDEX CONCURRENTLY public.twins_n"}


async def test_a_new_value_of_an_enum_is_there_for_the_statement_behind_it(shop: Stack) -> None:
    shop.direct("CREATE TYPE public.mood AS ENUM ('good'); ALTER TYPE public.mood OWNER TO countersign_gateway")
    use = "ALTER TABLE public.tickets ADD COLUMN mood public.mood DEFAULT 'bad'"
    shown = await proposed(shop, f"ALTER TYPE public.mood ADD VALUE 'bad'; {use}")
    seen = shown["evidence"]["migration"]
    assert len(seen["steps"]) == 2
    assert "PostgreSQL refuses it here (55P04), where statement 1 is not done for good" in seen["statements"][1]["note"]
    assert "-- there is no way back for the type public.mood: it was good" in seen["undo"]
    await approve(shop, shown)
    assert answer(await call(shop, "devin", "await_approval", id=shown["id"]))["tag"] == "MIGRATION 2"
    assert shop.direct("SELECT DISTINCT mood::text FROM tickets") == [("bad",)]


async def test_a_new_column_that_a_mask_is_about_is_masked_from_its_first_row(shop: Stack) -> None:
    shown = await proposed(shop, "ALTER TABLE public.customers ADD COLUMN passport text DEFAULT 'C01X00T47'")
    assert "public.customer_orders" in shown["evidence"]["migration"]["read_by"]
    await approve(shop, shown)
    answer(await call(shop, "devin", "await_approval", id=shown["id"]))
    answered = await query(shop, "devin", "SELECT passport FROM customers LIMIT 1")
    assert "public.customers.passport: redact" in answered["masked"]
    assert "C01X00T47" not in str(answered)
    assert "C01X00T47" not in shop.psql("devin", "TABLE customers").stdout


async def test_the_command_line_proposes_shows_and_runs(shop: Stack, tmp_path: Path) -> None:
    file = tmp_path / "add.sql"
    file.write_text("ALTER TABLE public.customers ADD COLUMN remark text;\n")

    async def migrate(*arguments: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(finish, process(shop, "devin", "url", *arguments, group="migrate"))

    status, out, said = await migrate("propose", str(file), "--reason", "asked")
    assert (status, said) == (0, "")
    for shown in ("migration: add.sql", "created column", "undo: ALTER TABLE", "digest"):
        assert shown in out
    assert re.search(r"^locks +statement +lock +relation *\n +1 +AccessExclusiveLock +public\.customers *$", out, re.M)
    approval = next(word for word in out.split() if word.startswith("apr-"))
    status, _, said = await migrate("run", approval)
    assert status == 1
    assert said.splitlines()[-1].startswith("still waiting")
    await approve(shop, answer(await call(shop, "grace", "approval_status", id=approval)))
    status, out, said = await migrate("run", approval)
    assert status == 0
    assert said.splitlines() == [
        "it is rehearsed once more",
        "statement 1 of 1: ALTER TABLE public.customers ADD COLUMN remark text",
    ]
    assert out.startswith("MIGRATION 1 in ")


async def test_a_migration_ends_with_the_session_that_runs_it(shop: Stack) -> None:
    sessions = shop.app.hall.gateway.sessions

    async def revoke() -> None:
        for session in sessions.list():
            if session.principal.subject == "devin":
                sessions.revoke(session.id)

    shown = await proposed(shop, "ALTER TABLE public.tickets ADD COLUMN too_late text")
    await approve(shop, shown)
    with psycopg.connect(shop.demo.admin_dsn) as blocker:
        blocker.execute("LOCK TABLE public.tickets")
        running = asyncio.create_task(call(shop, "devin", "await_approval", id=shown["id"]))
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'public.tickets'::regclass"
        await asyncio.to_thread(until, lambda: shop.direct(waits), "nothing waits for the lock")
        await asyncio.to_thread(shop.call, revoke)
        assert "the session was revoked" in error(await running)["what"]
        await asyncio.to_thread(until, lambda: not shop.direct(waits), "it still waits")
    assert "too_late" not in str(schema(shop))
