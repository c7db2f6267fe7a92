"""PostgreSQL's own programs through the wire door: pg_dump and pgbench, and what their output is worth."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.postgres import binaries
from tests.stack import Stack


def program(stack: Stack, who: str, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One of the embedded server's own programs, at the wire door, as this person."""
    return subprocess.run(
        [binaries() / name, "-h", stack.host, "-p", str(stack.port), "-U", who, *arguments],
        env={"PGPASSWORD": stack.tokens[who], "PATH": "/usr/bin:/bin"},
        capture_output=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip


def directly(stack: Stack, name: str, *arguments: str) -> str:
    """What the same program says past the gateway, as the gateway's own user."""
    upstream = stack.demo.config.connections[0]
    done = subprocess.run(
        [binaries() / name, "-h", upstream.host, "-p", str(upstream.port), "-U", upstream.user, *arguments],
        env={"PGPASSWORD": upstream.password, "PATH": "/usr/bin:/bin"},
        capture_output=True, encoding="utf-8", timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


def comparable(dump: str) -> str:
    """A dump without the random word of its `\\restrict` lines."""
    return re.sub(r"(?m)^\\(un)?restrict .*$", "", dump)


# -- pg_dump ---------------------------------------------------------------------------------------------

PUBLIC = ("--schema", "public")


@pytest.mark.parametrize(
    "what", [("--schema-only",), (), ("--data-only", "--inserts"), ("--format", "plain", "-t", "orders*")]
)
def test_a_dump_by_an_administrator_is_the_direct_one(stack: Stack, what: tuple[str, ...]) -> None:
    done = program(stack, "grace", "pg_dump", *PUBLIC, *what, stack.database)
    assert done.returncode == 0, done.stderr
    assert comparable(done.stdout) == comparable(directly(stack, "pg_dump", *PUBLIC, *what, "shop"))


def test_an_agents_dump_holds_masks_where_the_values_are(stack: Stack) -> None:
    done = program(stack, "devin", "pg_dump", *PUBLIC, "--data-only", "-t", "customers", stack.database)
    assert done.returncode == 0, done.stderr
    [(ssn, card, email)] = stack.direct("SELECT ssn, card, email FROM customers ORDER BY id LIMIT 1")
    for raw in (ssn, card, email):
        assert raw not in done.stdout
    assert f"*******{ssn[-4:]}" in done.stdout
    [(count,)] = stack.direct("SELECT count(*) FROM customers")
    assert len(re.findall(r"(?m)^\d+\t", done.stdout)) == count


def test_a_restored_dump_is_the_database(stack: Stack, tmp_path: Path) -> None:
    archive = tmp_path / "shop.dump"
    done = program(stack, "grace", "pg_dump", *PUBLIC, "--format", "custom", "-f", str(archive), stack.database)
    assert done.returncode == 0, done.stderr
    restored = subprocess.run(
        [binaries() / "pg_restore", "-f", "-", archive], capture_output=True, encoding="utf-8", timeout=60, check=True
    )
    assert comparable(restored.stdout).count("COPY public.") == len(
        stack.direct("SELECT 1 FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
    )


# -- pgbench ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(stack: Stack) -> Iterator[Stack]:
    done = program(stack, "grace", "pgbench", "-i", "-s", "1", "-q", stack.database)
    assert done.returncode == 0, done.stderr
    yield stack
    stack.direct("DROP TABLE pgbench_accounts, pgbench_branches, pgbench_history, pgbench_tellers")


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
@pytest.mark.parametrize("script", ["tpcb-like", "select-only"])
def test_pgbench_runs_in_every_mode(bench: Stack, mode: str, script: str) -> None:
    done = program(bench, "grace", "pgbench", "-n", "-M", mode, "-b", script, "-c", "4", "-t", "25", bench.database)
    assert done.returncode == 0, done.stderr
    assert "number of transactions actually processed: 100/100" in done.stdout
    assert "number of failed transactions: 0" in done.stdout


def test_pgbench_pipelines(bench: Stack, tmp_path: Path) -> None:
    script = tmp_path / "pipeline.sql"
    select = "SELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"
    script.write_text("\\set aid random(1, 1000)\n\\startpipeline\n" + select * 20 + "\\endpipeline\n")
    done = program(bench, "grace", "pgbench", "-n", "-M", "extended", "-f", str(script), "-t", "10", bench.database)
    assert done.returncode == 0, done.stderr
    assert "number of transactions actually processed: 10/10" in done.stdout


def test_the_sums_of_pgbench_hold(bench: Stack) -> None:
    [sums] = bench.direct(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),"
        " (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
    )
    assert len(set(sums)) == 1
