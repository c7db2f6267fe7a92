"""Migrations rehearsed on a shadow: a database with the live one's schema, made for the rehearsal and dropped after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.config import Config
from server.demo import Demo
from server.postgres import SUPERUSER, binaries
from tests.doors.mcp_calls import answer, call, error
from tests.stack import Stack, running_stack

UNIQUE = "CREATE UNIQUE INDEX CONCURRENTLY by_number ON public.accounts (number)"
MIGRATION = f"""\
CREATE TABLE public.accounts (id integer PRIMARY KEY, number text);
{UNIQUE};
ALTER TABLE public.accounts ADD CONSTRAINT number_once UNIQUE USING INDEX by_number;
ALTER TABLE public.tickets ALTER COLUMN id TYPE bigint;
"""


def with_shadows(demo: Demo) -> Config:
    [shop] = demo.config.connections
    # The demo's gateway role may not make databases; an administrator would grant CREATEDB to one of its own.
    maker = replace(shop, name="shop/shadow", database="postgres", user=SUPERUSER, password=demo.postgres.password)
    return replace(demo.config, connections=(replace(shop, rehearse="shadow", shadow=maker),))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch, running_stack(tmp_path_factory.mktemp("shadow"), with_shadows) as stack:
        patch.setenv("PG_BIN", str(binaries()))  # its pg_dump is as new as its server
        yield stack


async def proposed(stack: Stack, sql: str) -> Any:
    return await call(stack, "devin", "propose_migration", title="accounts", sql=sql)


def shadows(stack: Stack) -> list[tuple[Any, ...]]:
    return stack.direct("SELECT datname FROM pg_database WHERE datname LIKE 'countersign_shadow%'")


async def test_all_steps_are_tried_as_they_will_run_and_the_live_database_is_not_touched(shop: Stack) -> None:
    before = shop.direct("SELECT oid, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1")
    pending = answer(await proposed(shop, MIGRATION))["pending"]
    seen = answer(await call(shop, "grace", "approval_status", id=pending["id"]))["evidence"]["migration"]
    assert (seen["rehearsed"], seen["where"]) == (True, "on a shadow without rows")
    assert [step for step in seen["statements"] if "note" in step] == []
    assert "public.tickets" in seen["statements"][3]["rewrites"]
    assert ("created", "constraint", "public.accounts.number_once") in {
        (change["what"], change["kind"], change["name"]) for change in seen["changes"]
    }
    after = shop.direct("SELECT oid, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1")
    assert after == before
    assert shadows(shop) == []
    answer(await call(shop, "grace", "approve", id=pending["id"], digest=pending["digest"]))
    assert answer(await call(shop, "devin", "await_approval", id=pending["id"]))["tag"] == "MIGRATION 4"
    assert shop.direct("SELECT indisvalid FROM pg_index WHERE indexrelid = 'number_once'::regclass") == [(True,)]


async def test_what_fails_on_the_shadow_is_told_and_the_shadow_is_gone(shop: Stack) -> None:
    index = "CREATE INDEX CONCURRENTLY on_parts ON public.orders (id)"
    said = error(await proposed(shop, f"ALTER TABLE public.orders ADD COLUMN fine text; {index}"))
    assert "statement 2 of the migration fails (0A000: cannot create index on partitioned table" in said["what"]
    assert said["cure"] == "Nothing of it lasts: it was a rehearsal."
    assert shadows(shop) == []


async def test_a_yes_given_on_a_shadow_is_bound_to_the_live_schema(shop: Stack) -> None:
    pending = answer(await proposed(shop, "ALTER TABLE public.orders ADD COLUMN note text"))["pending"]
    answer(await call(shop, "grace", "approve", id=pending["id"], digest=pending["digest"]))
    shop.direct("ALTER TABLE public.orders ADD COLUMN other text")
    said = error(await call(shop, "devin", "await_approval", id=pending["id"]))
    assert "the definition of a touched relation" in said["what"]


async def test_without_pg_dump_the_sentence_says_what_to_install(
    shop: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PG_BIN", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    said = error(await proposed(shop, "ALTER TABLE public.orders ADD COLUMN note text"))
    assert said["what"] == "no shadow of `shop` can be made to rehearse on: there is no `pg_dump` on this machine"
    assert "PG_BIN" in said["cure"]
