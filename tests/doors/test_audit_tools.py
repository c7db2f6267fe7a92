"""Other people's tools on the live file, while statements run: sqlite-utils, and Datasette's canned queries."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from audit.verify import verify
from tests.stack import Stack

METADATA = Path(__file__).parents[2] / "examples" / "datasette.yaml"
DATABASE: dict[str, Any] = yaml.safe_load(METADATA.read_text(encoding="utf-8"))["databases"]["audit"]


@contextmanager
def load(stack: Stack) -> Iterator[None]:
    """Statements through the wire door for as long as the block runs; at least one has ended by then."""
    stop, ran = threading.Event(), threading.Event()
    problems: list[BaseException] = []

    def run() -> None:
        try:
            with psycopg.connect(stack.wire_dsn("devin"), autocommit=True) as connection:
                while not stop.is_set():
                    connection.execute("SELECT id, ssn FROM customers ORDER BY id LIMIT 5").fetchall()
                    ran.set()
        except BaseException as error:
            problems.append(error)
            ran.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ran.wait(15)
        yield
    finally:
        stop.set()
        thread.join(15)
    assert problems == []


def sqlite_utils(*arguments: object) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "sqlite_utils", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_sqlite_utils_reads_the_live_file_and_the_audit_stays_intact(stack: Stack) -> None:
    with load(stack):
        newest = sqlite_utils("rows", stack.audit_path, "statements", "--order", "seq desc", "--limit", 20)
        assert {"devin"} == {row["who"] for row in newest[:5]}
        assert {row["view"] for row in sqlite_utils("views", stack.audit_path)} == {
            "statements",
            "sessions",
            "approvals",
        }
    assert verify(stack.audit_path).problem is None


@pytest.mark.parametrize("name", DATABASE["queries"])
def test_every_canned_query_runs_on_the_live_file(stack: Stack, name: str) -> None:
    with load(stack):
        query = DATABASE["queries"][name]["sql"]
        parameters = ["-p", "who", "ada"] if ":who" in query else []
        found = sqlite_utils("query", stack.audit_path, query, *parameters)
    if name in {"of_a_person", "slowest", "masked", "rules", "per_day"}:
        assert found, "the load alone leaves something to find"


def test_the_metadata_names_tables_and_views_that_there_are(stack: Stack) -> None:
    there = {row["name"] for row in stack.audit("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")}
    assert set(DATABASE["tables"]) == there
    for name, table in DATABASE["tables"].items():
        columns = {row["name"] for row in stack.audit(f"SELECT name FROM pragma_table_info('{name}')")}
        assert {table[key] for key in ("sort_desc", "label_column") if key in table} <= columns
