"""A session's temporary relations on top of the shared snapshot: what names mean then, without a server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.temporary import Temporary, laid_over
from policy.analyse import analyse
from policy.catalog import Catalog, Column, Relation, RelationKind
from policy.model import Facts
from policy.parse import NotAnalysableError
from tests.policy.sample import CATALOG

COLUMNS = (Column(1, "id", "integer", 23), Column(2, "card", "text", 25))
OWN = Relation(99_001, "pg_temp", "customers", RelationKind.TABLE, COLUMNS, frozenset((99_001,)))
HEIR = replace(OWN, oid=99_002, name="heir", opaque="it shares rows with other relations")
FIRST, LAST = ("pg_temp_3", "pg_catalog", "public"), ("pg_catalog", "public", "pg_temp_3")


def _catalog(*relations: Relation, stray: str | None = None) -> Catalog:
    return laid_over(CATALOG, Temporary("pg_temp_3", relations, {}, "digest", stray))


def _demands(catalog: Catalog, sql: str, path: tuple[str, ...] = FIRST) -> set[str]:
    reading = analyse(Facts("shop", catalog, path), sql.encode())
    assert reading is not None
    return {str(d) for d in reading.analysis.demands if not d.builtin}


@pytest.mark.parametrize(
    ("sql", "path", "demands"),
    [
        ("SELECT * FROM customers", FIRST, {"select pg_temp.customers"}),
        ("SELECT * FROM customers", LAST, {"select public.customers"}),
        ("SELECT * FROM pg_temp.customers", LAST, {"select pg_temp.customers"}),
        ("SELECT * FROM pg_temp_3.customers", LAST, {"select pg_temp.customers"}),
        ("SELECT * FROM public.customers", FIRST, {"select public.customers"}),
        ("SELECT * FROM orders", FIRST, {"select public.orders"}),
        ("INSERT INTO customers VALUES (1)", FIRST, {"insert pg_temp.customers"}),
        ("DROP TABLE customers", FIRST, {"drop pg_temp.customers"}),
        ("DROP INDEX some_index", FIRST, {"drop pg_temp.some_index", "drop public.some_index"}),
        ("CREATE TABLE made (id int)", FIRST, {"create public.made"}),
        ("CREATE TEMP TABLE made (id int)", FIRST, {"create pg_temp.made"}),
    ],
)
def test_names_mean_what_postgresql_means(sql: str, path: tuple[str, ...], demands: set[str]) -> None:
    assert _demands(_catalog(OWN), sql, path) == demands


@pytest.mark.parametrize(
    ("sql", "path"),
    [
        ("SELECT * FROM orders", ("pg_temp_7", *FIRST)),
        ("SELECT * FROM pg_temp_7.orders", FIRST),
        ("SELECT * FROM pg_toast_temp_3.pg_toast_1", FIRST),
        ("CREATE TABLE pg_temp_7.t (id int)", FIRST),
        ("SELECT 1::pg_temp_7.t", FIRST),
    ],
)
def test_other_sessions_are_out_of_reach(sql: str, path: tuple[str, ...]) -> None:
    with pytest.raises(NotAnalysableError) as caught:
        _demands(_catalog(OWN), sql, path)
    assert caught.value.reason.code == "name.temporary"


def test_a_type_that_cannot_be_analysed_makes_every_name_unsure() -> None:
    catalog = _catalog(OWN, stray="int4")
    for sql in ("SELECT * FROM orders", "SELECT 1::int4", "SELECT * FROM pg_temp.customers"):
        with pytest.raises(NotAnalysableError, match="the type `int4`"):
            _demands(catalog, sql)
    assert _demands(catalog, "SELECT * FROM public.orders") == {"select public.orders"}


def test_an_heir_that_cannot_be_analysed_is_not_written_to_through_its_parent() -> None:
    catalog = _catalog(HEIR)
    tickets = catalog.relation("public", "tickets")
    assert tickets is not None
    catalog = replace(
        catalog, relations=catalog.relations | {tickets.oid: replace(tickets, children=frozenset((HEIR.oid,)))}
    )
    with pytest.raises(NotAnalysableError, match="shares rows"):
        _demands(catalog, "DELETE FROM tickets WHERE id = 1")
    assert _demands(catalog, "SELECT id FROM tickets") == {"select public.tickets"}


def test_only_the_session_hears_of_changes_to_what_is_its_own() -> None:
    for sql, everybody in (
        ("CREATE TEMP TABLE t (id int)", False),
        ("ALTER TABLE customers ADD COLUMN n int", False),
        ("DROP TABLE customers", False),
        ("DROP TABLE customers, public.orders", True),
        ("DROP TABLE public.customers", True),
    ):
        reading = analyse(Facts("shop", _catalog(OWN), FIRST), sql.encode())
        assert reading is not None
        effects = reading.analysis.effects
        assert (effects.catalog, effects.search_path or everybody) == (everybody, True), sql
