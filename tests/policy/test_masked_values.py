"""Masks against generated statements on real servers: what runs is a function of the unmasked columns alone.

Two databases differ in nothing but the values that are masked. Each rewritten statement is run on both: if one byte
of the results, of the errors or of the plans differs, something of a masked value came through, in whatever form.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from policy.catalog import Catalog
from policy.engine import decide
from policy.load import load_policy
from policy.model import Effect, Facts
from server.postgres import SUPERUSER, Postgres
from tests.policy.sample import MASK_KEY, PATH, PRINCIPALS
from tests.policy.statements import readings
from tests.servers import found_binaries, snapshot

POLICY = load_policy(
    """
rules:
  - {name: read, effect: allow, actions: [select, explain, lock], relations: ["public.*"]}
masks:
  - {columns: [public.customers.card, public.customers.notes], with: null}
  - {columns: [public.customers.email], with: redact}
""",
    "masked.yaml",
)
# The same columns not masked but denied, in the views over them too.
DENYING = load_policy(
    """
rules:
  - {name: read, effect: allow, actions: [select, explain, lock], relations: ["public.*"]}
  - {name: not-these, effect: deny, actions: [select], columns: ["public.*.card", "public.*.notes", "public.*.email"]}
""",
    "denying.yaml",
)
MARK = "ǂ"
# In every form in which a generated statement could show it.
MARKS = (MARK, MARK.encode().hex(), str(ord(MARK)))
EXAMPLES = 300

ROWS = """
INSERT INTO customers SELECT n, 'name ' || n, 'mail ' || n, '000-00-000' || n, NULL, '{}', '2026-01-01'
  FROM generate_series(1, 5) n;
INSERT INTO tickets SELECT n, 1 + n % 5, 'subject ' || n, 'body', 'open', '2026-01-01' FROM generate_series(1, 4) n;
"""
# Different lengths, orders, duplicates and NULLs; in the first, the mark.
SECRETS = {
    "one": f"card = nullif(repeat('{MARK}', 6 - id), '{MARK}'), notes = jsonb_build_object('{MARK}', id),"
    f" email = '{MARK}-' || id",
    "two": "card = CASE WHEN id > 2 THEN '4111-' || id % 2 END, notes = to_jsonb(ARRAY[9 - id]), email = 9 - id || '@'",
}


@dataclass(frozen=True)
class Twins:
    """The two databases, connected to, and their one catalog."""

    catalog: Catalog
    one: psycopg.Connection[tuple[object, ...]]
    two: psycopg.Connection[tuple[object, ...]]


@pytest.fixture(scope="module", params=found_binaries(), ids=lambda folder: folder.parent.name)
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    folder: Path = tmp_path_factory.mktemp("masked")
    # Statistics gathered at some moment, and parallel workers, would change the order of rows.
    quiet = {"autovacuum": "off", "max_parallel_workers_per_gather": "0", "jit": "off"}
    with Postgres(folder, bin_folder=request.param, settings=quiet) as server:
        schema = resources.files("server.sample").joinpath("schema.sql").read_text(encoding="utf-8")
        server.run_script("CREATE DATABASE shop;")
        server.run_script(f"\\set gateway_password unused\n{schema}\n{ROWS}", database="shop")
        for name, secrets in SECRETS.items():
            server.run_script(f"CREATE DATABASE {name} TEMPLATE shop;")
            server.run_script(f"UPDATE customers SET {secrets};", database=name)
        with contextlib.ExitStack() as stack:
            yield Twins(snapshot(server, "one"), *(stack.enter_context(_connected(server, name)) for name in SECRETS))


def _connected(server: Postgres, database: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        host=server.host, port=server.port, user=SUPERUSER, password=server.password, dbname=database,
        options="-c statement_timeout=5s -c search_path=public", client_encoding="UTF8",
    )  # fmt: skip


def outcome(connection: psycopg.Connection[tuple[object, ...]], sql: bytes) -> str:
    """Everything that a client could see of a statement; what it changed is undone."""
    try:
        with connection.cursor() as cursor:
            if b" TO STDOUT" in sql and sql.startswith(b"COPY"):
                with cursor.copy(sql) as copy:
                    return "".join(bytes(block).decode() for block in copy)
            cursor.execute(sql)
            if sql.startswith(b"DECLARE"):
                cursor.execute(b"FETCH ALL FROM held")
            return repr((cursor.description, cursor.fetchall()))
    except psycopg.Error as error:
        shown = error.diag
        return repr((shown.sqlstate, shown.message_primary, shown.message_detail, shown.message_hint, shown.context))
    finally:
        connection.rollback()


def test_masked_values_do_not_reach_the_outcome_of_any_statement(twins: Twins) -> None:
    facts = Facts("shop", twins.catalog, PATH, mask_key=MASK_KEY)
    ran = failed = would_leak = 0

    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(text=readings())
    def run(text: str) -> None:
        nonlocal ran, failed, would_leak
        verdict = decide(POLICY, PRINCIPALS["devin"], facts, text.encode()).verdict
        if verdict.effect is Effect.DENY or verdict.rewrite is None:
            return
        one, two = (outcome(connection, verdict.rewrite.sql) for connection in (twins.one, twins.two))
        assert one == two, verdict.rewrite.shown
        if MARK not in text:
            assert not any(mark in one for mark in MARKS), verdict.rewrite.shown
        ran += 1
        failed += one.startswith("('")
        raw_one, raw_two = (outcome(connection, text.encode()) for connection in (twins.one, twins.two))
        would_leak += raw_one != raw_two

    run()
    # The grammar is worth something: most statements are decided and run, and without masks they would tell.
    assert ran >= EXAMPLES * 0.8
    assert failed <= ran * 0.2
    assert would_leak >= ran * 0.5


def test_columns_that_a_rule_denies_do_not_reach_the_outcome_of_any_statement(twins: Twins) -> None:
    facts = Facts("shop", twins.catalog, PATH)
    ran = denied = 0

    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(text=readings())
    def run(text: str) -> None:
        nonlocal ran, denied
        verdict = decide(DENYING, PRINCIPALS["devin"], facts, text.encode()).verdict
        if verdict.rewrite is None:
            denied += 1
            return
        one, two = (outcome(connection, verdict.rewrite.sql) for connection in (twins.one, twins.two))
        assert one == two, text
        ran += 1

    run()
    # Nearly every statement of the grammar names one of them, or stands for the whole row.
    assert ran >= EXAMPLES * 0.02
    assert denied >= EXAMPLES * 0.5
