"""What PostgreSQL runs unseen, read from real servers of each version and demanded by the analysis."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from policy.analyse import analyse
from policy.catalog import Catalog, Function
from policy.functions import NEEDS_A_RULE, is_builtin, is_harmless_volatile, is_risky, refusal_of_function
from policy.model import Facts
from policy.parse import NotAnalysableError
from server.postgres import Postgres
from tests.servers import found_binaries, rows, snapshot

SCRIPT = Path(__file__).with_name("stored_code.sql").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=found_binaries(), ids=lambda folder: folder.parent.name)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("postgres"), bin_folder=request.param) as running:
        yield running


@pytest.fixture(scope="module")
def catalog(server: Postgres) -> Catalog:
    server.run_script(SCRIPT)
    return snapshot(server, "postgres")


def _demands(catalog: Catalog, sql: str) -> set[str]:
    reading = analyse(Facts("test", catalog, ("pg_catalog", "app", "public")), sql.encode())
    assert reading is not None
    return {str(d) for d in reading.analysis.demands if not d.builtin}


def _calls(catalog: Catalog, sql: str) -> set[str]:
    return {d.removeprefix("call app.") for d in _demands(catalog, sql) if d.startswith("call ")}


UNSEEN: list[tuple[str, set[str]]] = [
    ("SELECT * FROM plain", set()),
    ("INSERT INTO plain (n) VALUES (1)", set()),
    ("SELECT * FROM defaults", set()),
    ("INSERT INTO defaults (id) VALUES (1)", {"f_default"}),
    ("UPDATE defaults SET n = DEFAULT WHERE id = 1", {"f_default"}),
    ("DELETE FROM defaults WHERE id = 1", set()),
    ("COPY defaults (id) FROM STDIN", {"f_default"}),
    ("INSERT INTO generated (id) VALUES (1)", {"f_generated"}),
    ("INSERT INTO checked VALUES (1)", {"f_check"}),
    ("INSERT INTO indexed VALUES (1)", {"f_index", "f_predicate"}),
    ("REINDEX TABLE indexed", {"f_index", "f_predicate"}),
    ("INSERT INTO parted VALUES (1)", {"f_partition"}),
    ("INSERT INTO part_low VALUES (1)", {"f_partition"}),
    ("SELECT * FROM secured", {"f_policy"}),
    ("SELECT * FROM described", set()),
    ("ANALYZE described", {"f_statistics"}),
    ("INSERT INTO triggered VALUES (1)", {"f_trigger"}),
    ("UPDATE triggered SET id = 2 WHERE id = 1", {"f_update_trigger", "f_when"}),
    ("DELETE FROM triggered WHERE id = 1", set()),
    ("INSERT INTO triggered VALUES (1) ON CONFLICT DO NOTHING", {"f_trigger"}),
    ("TRUNCATE emptied", {"f_trigger"}),
    ("DELETE FROM emptied WHERE id = 1", set()),
    ("DELETE FROM family_parent WHERE id = 1", {"f_trigger"}),
    ("DELETE FROM family_child WHERE id = 1", {"f_trigger"}),
    ("SELECT * FROM calls_view", {"f_view"}),
    ("SELECT * FROM nested_view", {"f_view"}),
    ("COPY (SELECT * FROM nested_view) TO STDOUT", {"f_view"}),
    ("COPY calls_matview TO STDOUT", set()),
    ("SELECT * FROM draws", {"call pg_catalog.nextval"}),
    ("SELECT * FROM calls_matview", set()),
    ("REFRESH MATERIALIZED VIEW calls_matview", {"f_matview"}),
    ("SELECT * FROM nested_matview", set()),
    ("REFRESH MATERIALIZED VIEW nested_matview", {"f_view"}),
    ("ALTER VIEW nested_view RENAME TO other", set()),
    ("ANALYZE", {"f_default", "f_generated", "f_check", "f_index", "f_predicate", "f_statistics", "f_domain"}),
    ("INSERT INTO simple_view VALUES (1)", {"f_trigger"}),
    ("INSERT INTO instead_view VALUES (1)", {"f_instead"}),
    ("SELECT 1::positive", {"f_domain"}),
    ("SELECT positive(1)", {"f_domain"}),
    ("SELECT CAST(ARRAY[1] AS positive[])", {"f_domain"}),
    ("SELECT '(1,2)'::app.pair", {"f_domain"}),
    ("SELECT json_populate_record(null::paired, '{}')", {"f_domain"}),
    ("SELECT * FROM json_to_record('{}') AS x (a positive)", {"f_domain"}),
    ("SELECT * FROM casts_view", {"f_domain"}),
    ("INSERT INTO paired VALUES (1)", {"f_domain"}),
    ("SELECT '[1,2]'::span", {"f_subtype_diff"}),
    ("SELECT 1 <<<< 2", {"f_operator"}),
    ("SELECT * FROM operator_view", {"f_operator"}),
    ("SELECT total(1)", {"total", "f_state", "f_final"}),
    ("SELECT * FROM aggregate_view", {"total", "f_state", "f_final"}),
    ("SELECT sum(n) OVER (ORDER BY id) FROM plain", set()),
    ("SELECT * FROM moods", {"f_cast"}),
    ("SELECT 'low'::mood", {"f_cast"}),
    ("SELECT $1", {"f_cast"}),
    ("SELECT date_trunc('month', now())", {"date_trunc"}),
    ("SELECT date_trunc('month', now(), 'UTC')", set()),
    ("SELECT lower('A')", set()),
    ("SELECT lower(1, 2)", {"lower"}),
    ("SELECT many(1, 2, 3)", {"many"}),
]


@pytest.mark.parametrize(("sql", "expected"), UNSEEN, ids=[sql for sql, _ in UNSEEN])
def test_what_a_statement_runs_unseen_is_demanded(catalog: Catalog, sql: str, expected: set[str]) -> None:
    assert _calls(catalog, sql) == expected


def test_the_columns_that_a_generated_column_reads_are_known(catalog: Catalog) -> None:
    relation = catalog.relation("app", "computed")
    assert relation is not None
    names = {column.number: column.name for column in relation.columns}
    read = {c.name: {names[number] for number in c.computed_from} for c in relation.columns if c.computed_from}
    assert read == {"tail": {"secret", "other"}, "twice": {"id"}}


def test_a_view_over_a_function_that_is_never_called_is_never_read(catalog: Catalog) -> None:
    with pytest.raises(NotAnalysableError) as caught:
        _demands(catalog, "SELECT text FROM reads_files")
    assert caught.value.reason.text == (
        "the query of `app.reads_files` calls `pg_catalog.pg_read_file`, which is never called here: "
        "it reads files of the server"
    )


def test_a_function_that_makes_values_of_a_type_by_name_needs_all_that_types_run(catalog: Catalog) -> None:
    sql = "SELECT pg_input_is_valid('1', 'app.positive')"
    if catalog.server_version >= 160000:
        assert _calls(catalog, sql) == {"f_domain", "f_subtype_diff"}
    else:
        with pytest.raises(NotAnalysableError, match="does not exist"):
            _calls(catalog, sql)


def test_what_foreign_keys_do_is_demanded(catalog: Catalog) -> None:
    assert _demands(catalog, "DELETE FROM parent WHERE id = 1") >= {"delete app.cascaded", "update app.nulled"}
    assert "delete app.kept" not in _demands(catalog, "DELETE FROM parent WHERE id = 1")
    assert "update app.moved" in _demands(catalog, "UPDATE parent SET other = 1 WHERE id = 1")
    assert "update app.moved" not in _demands(catalog, "UPDATE parent SET name = 'x' WHERE id = 1")
    emptied = _demands(catalog, "TRUNCATE parent CASCADE")
    assert emptied == {f"truncate app.{name}" for name in ("parent", "cascaded", "nulled", "kept", "moved")}


def test_a_snapshot_of_an_unchanged_database_has_the_same_epoch(server: Postgres, catalog: Catalog) -> None:
    assert snapshot(server, "postgres").epoch == catalog.epoch
    assert len(bytes.fromhex(catalog.epoch)) == 32  # decisions are kept by it, and clients choose names that are in it


def _of_server(catalog: Catalog) -> list[Function]:
    return [f for overloads in catalog.functions.values() for f in overloads if is_builtin(f)]


def test_every_volatile_function_of_the_server_is_listed_as_harmless_or_refused(catalog: Catalog) -> None:
    risky = {f.name for f in _of_server(catalog) if is_risky(f) and refusal_of_function(f.name) is None}
    assert risky == NEEDS_A_RULE
    harmless = {f.name for f in _of_server(catalog) if is_harmless_volatile(f.name)}
    assert {name for name in harmless if refusal_of_function(name)} == set()


# Arguments that hold SQL, or name a relation, schema or cursor to be read; and types by their OID in I/O functions.
_TELLING = """
SELECT DISTINCT proname FROM pg_proc
 WHERE pronamespace = 'pg_catalog'::regnamespace AND oid < 16384 AND (
   coalesce(proargnames, '{}') && ARRAY['query', 'sql', 'sqlquery', 'cursor', 'tbl']
   OR prorettype <> 'cstring'::regtype AND (pronargs > 0 AND proargtypes[0] = 'cstring'::regtype AND proname ~ '_in$'
     OR pronargs > 1 AND proargtypes[0] = 'internal'::regtype AND proname ~ '_recv$')
   AND pronargs = 3 AND proargtypes[1] = 'oid'::regtype AND proargtypes[2] = 'int4'::regtype)"""
# I/O functions of one built-in type each: what they make has no code of users. Those of pseudo-types only fail.
_OF_ONE_TYPE = re.compile(
    "(bit|varbit|bpchar|varchar|numeric|date|time|timetz|timestamp|timestamptz|interval)_?(in|recv)|any.*_in"
)


def test_every_function_that_is_given_sql_or_a_type_by_number_is_refused(server: Postgres, catalog: Catalog) -> None:
    found = {name for (name,) in rows(server, _TELLING)}
    assert {"query_to_xml", "table_to_xml", "ts_stat", "domain_in", "array_recv"} <= found
    assert {n for n in found if refusal_of_function(n) is None and not _OF_ONE_TYPE.fullmatch(n)} == set()
