"""Undo scripts against a real PostgreSQL: run, they lead back to the schema of before, or say what they cannot do."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.inventory import changes, inventory
from gateway.model import Connection
from gateway.undo import as_script, undo
from gateway.upstream import Upstream
from server.postgres import SUPERUSER
from server.sample.load import DATABASE
from tests.stack import Stack
from wire.upstream import Factory

FORTH = """
CREATE TYPE public.mood AS ENUM ('good', 'bad');
CREATE TABLE public.labels (id serial PRIMARY KEY, ticket integer REFERENCES public.tickets, "odd name" public.mood);
CREATE TABLE public.notes (label integer REFERENCES public.labels, body text);
CREATE SEQUENCE public.numbers;
CREATE VIEW public.shown AS SELECT id, "odd name" FROM public.labels;
CREATE FUNCTION public.twice(n integer) RETURNS integer LANGUAGE sql AS 'SELECT 2 * n';
CREATE INDEX by_subject ON public.tickets (subject);
ALTER TABLE public.tickets ADD COLUMN priority numeric(3,1) DEFAULT 1.5 NOT NULL;
ALTER TABLE public.tickets ADD CONSTRAINT positive CHECK (priority > 0);
ALTER TABLE public.tickets ALTER COLUMN body TYPE varchar(2000), ALTER COLUMN body SET DEFAULT 'x'
"""


@pytest.fixture
async def upstream(stack: Stack) -> AsyncIterator[Upstream]:
    """A superuser's session in a transaction that is rolled back."""
    server = stack.demo.postgres
    connection = Connection("test", server.host, server.port, DATABASE, SUPERUSER, server.password, "disable")
    session = await Factory().connect(connection, application_name="test")
    await session.probe("BEGIN")
    yield session
    await session.disconnect()


async def run(upstream: Upstream, script: str) -> None:
    for statement in script.split(";\n"):
        await upstream.probe(statement)


async def test_the_script_leads_back_and_back_again(upstream: Upstream) -> None:
    before = await inventory(upstream)
    await run(upstream, FORTH)
    after = await inventory(upstream)
    assert changes(before, after) != []
    back = undo(before, after)
    for line in back:
        await upstream.probe(line["sql"] or "")
    assert changes(before, await inventory(upstream)) == []
    said = "\n".join(as_script(back))
    assert "-- what was written into the column public.tickets.priority since is lost" in said
    assert "converts the values of public.tickets.body back from character varying(2000) to text" in said
    # What was dropped comes back too, if empty: the way back is undone in the same manner.
    for line in undo(after, before):
        await upstream.probe(line["sql"] or "")
    again = changes(after, await inventory(upstream))
    # A serial column's sequence is no longer its own, and a column comes back at the end.
    assert {change["kind"] for change in again} <= {"sequence", "column"}
    assert "comes back empty" in "\n".join(as_script(undo(after, before)))


async def test_what_has_no_way_back_is_said(upstream: Upstream) -> None:
    await upstream.probe("CREATE TYPE public.mood AS ENUM ('good')")
    before = await inventory(upstream)
    await upstream.probe("ALTER TYPE public.mood ADD VALUE 'bad'")
    await upstream.probe("GRANT SELECT ON public.orders TO PUBLIC")
    script = as_script(undo(before, await inventory(upstream), ["AlterEnumStmt", "UpdateStmt"]))
    assert "-- there is no way back for the type public.mood: it was good" in script
    assert "-- statement 2 changes rows, and nothing here brings back what they were" in script
    assert any(line.startswith("-- the grants of public.orders were ") for line in script)
    assert not [line for line in script if not line.startswith("--")]
