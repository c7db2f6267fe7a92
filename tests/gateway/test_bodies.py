"""Functions in the language SQL, read from real servers of each version and judged by what they do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from policy.catalog import Catalog
from policy.engine import decide
from policy.load import load_policy
from policy.model import Decision, Effect, Facts, Principal, PrincipalKind
from server.postgres import Postgres
from tests.servers import found_binaries, snapshot

SCRIPT = Path(__file__).with_name("bodies.sql").read_text(encoding="utf-8")
PATH = ("pg_catalog", "app")
READER = Principal("reader", "https://issuer.example", PrincipalKind.HUMAN)
RULES = """
rules:
  - {name: bodies, effect: allow, actions: [call], functions: ['*.*'], bodies: analysed}
"""
TABLES = """
  - {name: tables, effect: allow, actions: [select, insert, delete], relations: [app.*]}
masks:
  - {columns: [app.people.ssn], with: redact}
"""
POLICY = load_policy(RULES + TABLES, "policy.yaml")
BODIES_ALONE = load_policy(RULES, "bodies.yaml")


@pytest.fixture(scope="module", params=found_binaries(), ids=lambda folder: folder.parent.name)
def catalog(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    with Postgres(tmp_path_factory.mktemp("postgres"), bin_folder=request.param) as running:
        running.run_script(SCRIPT)
        yield snapshot(running, "postgres")


def _decided(catalog: Catalog, sql: str, rules: str = "", path: tuple[str, ...] = PATH) -> Decision:
    policy = load_policy(RULES + rules + TABLES, "policy.yaml") if rules else POLICY
    return decide(policy, READER, Facts("test", catalog, path), sql.encode())


def _demands(decision: Decision) -> set[str]:
    assert decision.analysis is not None
    return {str(d) for d in decision.analysis.demands if not d.builtin}


ALLOWED: list[tuple[str, set[str]]] = [
    ("SELECT total(1)", {"call app.total", "select app.orders"}),
    ("SELECT total_text(1)", {"call app.total_text", "select app.orders"}),
    ("SELECT total_own(1)", {"call app.total_own", "select app.orders"}),
    ("SELECT total_none()", {"call app.total_none", "select app.orders"}),
    (
        "SELECT log_line('x')",
        {"call app.log_line", "call app.total", "insert app.log", "delete app.regions", "select app.regions",
         "select app.orders"},
    ),
    ("CALL log_procedure('x')", {"call app.log_procedure", "insert app.log"}),
    ("SELECT outer_text()", {"call app.outer_text", "call app.total_text", "select app.orders"}),
    ("SELECT * FROM region_rows()", {"call app.region_rows", "select app.regions"}),
    ("SELECT by_default()", {"call app.by_default", "call app.total", "select app.orders"}),
    ("SELECT loops(3)", {"call app.loops"}),
    ("SELECT one_of(1)", {"call app.one_of", "select app.regions"}),
    ("SELECT first_of(ARRAY[1])", {"call app.first_of"}),
    ("SELECT empty()", {"call app.empty"}),
    ("INSERT INTO stamps (id) VALUES (1)", {"insert app.stamps", "call app.stamped", "select app.regions"}),
    ("COPY stamps (id) FROM STDIN", {"insert app.stamps", "call app.stamped", "select app.regions"}),
    ("SELECT * FROM totals", {"select app.totals", "call app.total", "select app.orders"}),
    ("INSERT INTO indexed_parsed VALUES (1)", {"insert app.indexed_parsed", "call app.parsed"}),
    ("SELECT of_domain(1)", {"call app.of_domain", "call app.loops"}),
    ("SELECT 1 <+> 2", {"call app.adds", "call app.total", "select app.orders"}),
    ("PREPARE p AS SELECT total_text($1)", {"call app.total_text", "select app.orders"}),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "demands"), ALLOWED, ids=[sql for sql, _ in ALLOWED])
def test_a_call_demands_what_the_body_does(catalog: Catalog, sql: str, demands: set[str]) -> None:
    decision = _decided(catalog, sql)
    assert decision.verdict.effect is Effect.ALLOW, [r.text for r in decision.verdict.reasons]
    assert _demands(decision) == demands
    # And is refused as the statement itself would be, by somebody who may do nothing else.
    alone = decide(BODIES_ALONE, READER, Facts("test", catalog, PATH), sql.encode())
    others = {d for d in demands if not d.startswith("call ")}
    assert alone.verdict.effect is (Effect.DENY if others else Effect.ALLOW)


def test_the_relations_of_a_body_are_relations_of_the_statement(catalog: Catalog) -> None:
    decision = _decided(catalog, "SELECT log_line('x')")
    assert decision.analysis is not None
    names = {catalog.relations[oid].qualified for oid in decision.analysis.relations}
    assert names == {"app.log", "app.regions", "app.orders"}
    assert decision.analysis.effects.writes


REFUSED: list[tuple[str, str, str]] = [
    ("SELECT people_rows()", "mask.function", "`app.people_rows` uses `app.people`, which has columns masked for you"),
    ("SELECT view_rows()", "mask.function", "`app.people_view`"),
    ("SELECT runs_sql('SELECT ssn FROM people')", "body.refused", "runs SQL given as text"),
    ("SELECT runs_sql_parsed('SELECT 1')", "body.refused", "runs SQL given as text"),
    ("SELECT definer()", "body.refused", "its owner's rights"),
    ("SELECT procedural()", "body.refused", "written in `plpgsql`"),
    ("SELECT calls_procedural()", "body.refused", "`app.procedural` cannot be called by what it does"),
    ("SELECT makes()", "body.refused", "`CreateStmt`, which is neither a query nor a write"),
    ("SELECT changes_settings()", "body.refused", "it switches triggers and foreign keys off"),
    ("SELECT total_unsure()", "body.refused", "more than one relation"),
    ("SELECT total_user()", "body.refused", "names `$user`"),
    ("CALL plain_procedure()", "statement.refused", "other languages than SQL"),
    # The body is parsed when it is called: nothing may move its names before then.
    ("SELECT set_config('search_path', 'other', false), total_text(1)", "body.refused", "what names mean"),
    ("SELECT moves('other'), total_text(1)", "body.refused", "what names mean"),
    ("DECLARE c CURSOR WITH HOLD FOR SELECT total_text(1)", "body.refused", "run it later"),
    ("CREATE TABLE app.copy AS SELECT total_text(1)", "body.refused", "run it later"),
    ("EXPLAIN ANALYZE CREATE TABLE app.copy AS SELECT total(1)", "body.refused", "run it later"),
    ("INSERT INTO indexed VALUES (1)", "body.refused", "could run it when the transaction ends"),
    ("CREATE INDEX ON orders (loops(id))", "body.refused", "run it later"),
]


@pytest.mark.parametrize(("sql", "code", "text"), REFUSED, ids=[sql for sql, _, _ in REFUSED])
def test_what_a_body_may_not_do_is_refused(catalog: Catalog, sql: str, code: str, text: str) -> None:
    rules = "  - {name: all, effect: allow, actions: ['*'], schemas: [app], relations: ['*.*']}\n"
    rules = rules.replace("'*'", "create, alter", 1)
    verdict = _decided(catalog, sql, rules).verdict
    assert verdict.effect is Effect.DENY
    assert (verdict.reasons[0].code, text in verdict.reasons[0].text) == (code, True), verdict.reasons[0]


def test_a_rule_without_bodies_trusts_the_function(catalog: Catalog) -> None:
    rules = "  - {name: trusted, effect: allow, actions: [call], functions: [app.people_rows, app.procedural]}\n"
    decision = _decided(catalog, "SELECT people_rows(), procedural()", rules)
    assert decision.verdict.effect is Effect.ALLOW
    assert _demands(decision) == {"call app.people_rows", "call app.procedural"}
    # But what runs beside it could change what the names of a text mean, and not those of a parsed body.
    assert _decided(catalog, "SELECT procedural(), total_text(1)", rules).verdict.effect is Effect.DENY
    assert _decided(catalog, "SELECT procedural(), total(1)", rules).verdict.effect is Effect.ALLOW
    assert _decided(catalog, "SELECT calls_procedural()", rules).verdict.effect is Effect.ALLOW


def test_a_deny_of_the_call_holds_whatever_the_body_does(catalog: Catalog) -> None:
    rules = "  - {name: never, effect: deny, actions: [call], functions: [app.total]}\n"
    for sql in ("SELECT total(1)", "SELECT log_line('x')", "SELECT by_default()"):
        assert _decided(catalog, sql, rules).verdict.effect is Effect.DENY
    asks = "  - {name: ask, effect: approve, actions: [select], relations: [app.orders], approvers: {groups: [dba]}}\n"
    assert _decided(catalog, "SELECT total(1)", asks).verdict.effect is Effect.APPROVE


def test_rows_that_are_filtered_are_not_read_by_a_body(catalog: Catalog) -> None:
    policy = load_policy(RULES + TABLES + "rows:\n  - {relations: [app.orders], filter: customer = 1}\n", "p.yaml")
    for sql in ("SELECT total(1)", "SELECT * FROM totals", "SELECT total_text(1)"):
        verdict = decide(policy, READER, Facts("test", catalog, PATH), sql.encode()).verdict
        assert verdict.effect is Effect.DENY
        assert verdict.reasons[0].code in ("rows.function", "rows.view"), verdict.reasons[0]


def test_a_text_means_what_the_callers_search_path_says(catalog: Catalog) -> None:
    parsed = _decided(catalog, "SELECT app.total(1)", path=("pg_catalog", "other"))
    assert _demands(parsed) == {"call app.total", "select app.orders"}
    text = _decided(catalog, "SELECT app.total_text(1)", path=("pg_catalog", "other"))
    assert text.verdict.effect is Effect.DENY
    assert _demands(text) == {"call app.total_text", "select other.orders"}
    unknown = _decided(catalog, "SELECT app.total_text(1)", path=("pg_catalog",)).verdict
    assert unknown.reasons[0].text.endswith('relation "orders" does not exist')


def test_an_execute_is_judged_by_the_body_of_its_moment(catalog: Catalog) -> None:
    facts = Facts("test", catalog, PATH)
    prepared = decide(POLICY, READER, facts, b"PREPARE p (text) AS SELECT total_text(1)")
    held = replace(facts, prepared={"p": prepared})
    assert decide(POLICY, READER, held, b"EXECUTE p ('x')").verdict.effect is Effect.ALLOW
    moved = decide(POLICY, READER, held, b"EXECUTE p (set_config('search_path', 'other', false))").verdict
    assert (moved.effect, moved.reasons[0].code) == (Effect.DENY, "body.refused")
    elsewhere = replace(held, search_path=("pg_catalog", "other", "app"))
    assert decide(POLICY, READER, elsewhere, b"EXECUTE p ('x')").verdict.effect is Effect.DENY
