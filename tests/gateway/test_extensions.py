"""Columns and functions of extensions, read from real servers of each version: what computes needs no rule."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from policy.catalog import Catalog, Function, Volatility
from policy.engine import decide
from policy.extensions import PURE, is_pure, refusal_of_extension
from policy.load import load_policy
from policy.model import Decision, Effect, Facts, Principal, PrincipalKind
from server.postgres import Postgres
from tests.servers import found_binaries, rows, snapshot

READER = Principal("reader", "https://issuer.example", PrincipalKind.HUMAN)
POLICY = load_policy(
    """
rules:
  - {name: reads, effect: allow, actions: [select, insert, explain], relations: ["app.*"]}
  - {name: calls, effect: allow, actions: [call], functions: ["app.*"]}
masks:
  - {columns: [app.hidden.email], with: {partial: {keep_first: 1}}}
""",
    "policy.yaml",
)
READS = load_policy(
    "rules:\n  - {name: reads, effect: allow, actions: [select, insert], relations: ['app.*']}\n", "p.yaml"
)
REFUSED = ("tablefunc", "dblink", "pageinspect", "pg_stat_statements", "xml2", "adminpack")


@pytest.fixture(scope="module", params=found_binaries(), ids=lambda folder: folder.parent.name)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("postgres"), bin_folder=request.param) as running:
        known = {name for (name,) in rows(running, "SELECT name FROM pg_available_extensions")}
        made = [name for name in (*PURE, *REFUSED) if name in known]
        assert {"citext", "hstore", "pg_trgm", "ltree", "tablefunc", "dblink"} <= set(made)
        script = ["CREATE SCHEMA app; SET search_path = app;"]
        script += [f'CREATE EXTENSION "{name}" CASCADE;' for name in made]
        script += [
            "CREATE TABLE people (id int, email citext UNIQUE, tags hstore, path ltree, words text, n int[]);",
            "CREATE TABLE logins (email citext, at timestamptz);",
            "CREATE INDEX ON people USING gin (words gin_trgm_ops);",
            "CREATE TABLE hidden (id int, email citext NOT NULL); INSERT INTO hidden VALUES (1, 'Ada@example.com');",
            "CREATE FUNCTION similarity(int, int) RETURNS int LANGUAGE sql RETURN 1;",
            "CREATE FUNCTION in_citext() RETURNS int LANGUAGE sql RETURN 1;",
            "ALTER EXTENSION citext ADD FUNCTION in_citext();",
        ]
        running.run_script("\n".join(script))
        yield running


@pytest.fixture(scope="module")
def catalog(server: Postgres) -> Catalog:
    return snapshot(server, "postgres")


def _decided(catalog: Catalog, sql: str, *, calls: bool = False) -> Decision:
    facts = Facts("test", catalog, ("pg_catalog", "app"))
    return decide(POLICY if calls else READS, READER, facts, sql.encode())


NATURAL = [
    "SELECT * FROM people WHERE email = 'x' AND email <> $1 AND email IN ('a', 'b')",
    "SELECT p.id FROM people p JOIN logins l ON p.email = l.email ORDER BY p.email DESC",
    "SELECT id FROM people JOIN logins USING (email) WHERE email LIKE 'a%' AND email ~ 'b' AND email !~~* 'c'",
    "SELECT email::text, lower(email), max(email), count(DISTINCT email) FROM people GROUP BY email",
    "SELECT replace(email, 'a', 'b'), split_part(email, '@', 2), strpos(email, '@'), email || 'x' FROM people",
    "SELECT 'x'::citext, CAST(words AS citext) FROM people",
    "INSERT INTO people (id, email) VALUES (1, 'x') ON CONFLICT (email) DO NOTHING",
    "SELECT tags -> 'a', tags ? 'b', tags @> 'a=>1', skeys(tags), hstore('a', 'b') FROM people",
    "SELECT e.key FROM people, each(tags) AS e",
    "SELECT words % 'x', words <-> 'y', show_trgm(words), word_similarity(words, 'x') FROM people",
    "SELECT subpath(path, 0, 1), path <@ 'a', nlevel(path) FROM people",
    "SELECT levenshtein(words, 'x'), soundex(words), unaccent(words), sort(n), n & ARRAY[1] FROM people",
]


@pytest.mark.parametrize("sql", NATURAL)
def test_a_read_rule_is_enough_for_what_computes(catalog: Catalog, sql: str) -> None:
    verdict = _decided(catalog, sql).verdict
    assert verdict.effect is Effect.ALLOW, [r.text for r in verdict.reasons]


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("SELECT * FROM crosstab('SELECT 1, 2, 3') AS x (a int, b int)", "runs SQL given as text"),
        ("SELECT * FROM connectby('people', 'id', 'id', '1', 1) AS x (a int)", "runs SQL given as text"),
        ("SELECT * FROM dblink('dbname=postgres', 'SELECT 1') AS x (a int)", "opens a database session of its own"),
        ("SELECT get_raw_page('app.hidden', 0)", "reads the server's files"),
        ("SELECT * FROM pg_stat_statements(true)", "shows the statements of others"),
    ],
)
def test_what_no_rule_can_describe_is_refused_whatever_the_rules_say(catalog: Catalog, sql: str, why: str) -> None:
    verdict = _decided(catalog, sql, calls=True).verdict
    assert (verdict.effect, verdict.reasons[0].code) == (Effect.DENY, "function.refused")
    assert why in verdict.reasons[0].text


def test_whatever_else_extensions_bring_needs_a_rule(catalog: Catalog) -> None:
    # Volatile ones; an overload that a user has made; and what somebody has put into an extension.
    for sql in (
        "SELECT set_limit(0.1)",
        "SELECT similarity(1, 2)",
        "SELECT in_citext()",
        "SELECT normal_rand(1, 2, 3)",
    ):
        verdict = _decided(catalog, sql).verdict
        assert (verdict.effect, verdict.reasons[0].code) == (Effect.DENY, "rule.none"), sql
        assert _decided(catalog, sql, calls=True).verdict.effect is Effect.ALLOW


def _of(catalog: Catalog, extension: str) -> list[Function]:
    return [f for overloads in catalog.functions.values() for f in overloads if f.extension == extension]


@pytest.mark.parametrize("extension", PURE)
def test_every_volatile_function_of_a_pure_extension_is_known(catalog: Catalog, extension: str) -> None:
    known = PURE[extension]
    volatile = {f.name for f in _of(catalog, extension) if f.volatility is Volatility.VOLATILE} - {"in_citext"}
    assert volatile <= known.harmless | known.needs_a_rule
    assert {f.name for f in _of(catalog, extension) if is_pure(f)} & known.needs_a_rule <= {"isn_weak"}


def test_no_pure_function_is_given_sql_or_a_relation_by_its_name(server: Postgres, catalog: Catalog) -> None:
    telling = """
        SELECT p.oid FROM pg_proc p WHERE p.oid >= 16384 AND (
          coalesce(proargnames, '{}') && ARRAY['query', 'sql', 'relname', 'relation', 'tbl', 'cursor']
          OR proargtypes::oid[] && ARRAY['regclass', 'regproc', 'refcursor']::regtype[]::oid[])"""
    found = [f for (oid,) in rows(server, telling) if (f := catalog.function(oid)) is not None]
    assert [f.name for f in found if is_pure(f)] == []
    assert any(refusal_of_extension(f) for f in found)


def test_citext_is_masked_as_text(server: Postgres, catalog: Catalog) -> None:
    decision = _decided(catalog, "SELECT email FROM app.hidden", calls=True)
    assert decision.verdict.rewrite is not None, decision.verdict.reasons
    assert rows(server, decision.verdict.rewrite.sql.decode()) == [("A**************",)]
