"""PostgreSQL's own tools through the wire door: pg_dump and pgbench, compared with a direct connection."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from server.postgres import binaries
from tests.stack import Stack


def tool(stack: Stack, who: str | None, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """A tool through the wire door as this person, or directly as the gateway's own role."""
    upstream = stack.demo.config.connections[0]
    host, port, user, password = (
        (upstream.host, upstream.port, upstream.user, upstream.password)
        if who is None
        else (stack.host, stack.port, who, stack.tokens[who])
    )
    return subprocess.run(
        [str(word) for word in command],
        env={
            "PGHOST": host, "PGPORT": str(port), "PGUSER": user, "PGPASSWORD": password,
            "PGDATABASE": stack.database, "PATH": "/usr/bin:/bin",
        },
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def dump(stack: Stack, who: str | None, *options: str) -> str:
    """What pg_dump of the server's own version writes, without its random words."""
    done = tool(stack, who, binaries() / "pg_dump", *options)
    assert done.returncode == 0, done.stderr
    words = ("\\restrict", "\\unrestrict")
    return "\n".join(line for line in done.stdout.splitlines() if not line.startswith(words))


def test_a_dump_of_the_schema_is_the_same_as_directly(stack: Stack) -> None:
    assert dump(stack, "grace", "--schema-only", "-n", "public") == dump(stack, None, "--schema-only", "-n", "public")


def test_a_dump_of_data_is_the_same_for_whoever_sees_all(stack: Stack) -> None:
    assert dump(stack, "grace", "-t", "customers") == dump(stack, None, "-t", "customers")


def test_a_dump_of_data_is_masked_for_the_agent(stack: Stack) -> None:
    done = tool(stack, "devin", binaries() / "pg_dump", "--data-only", "-t", "customers")
    for (ssn,) in stack.direct("SELECT ssn FROM customers"):
        assert ssn not in done.stdout
    assert done.returncode == 0, done.stderr
    assert "[redacted]" in done.stdout


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_pgbench_runs_in_every_mode(stack: Stack, tmp_path: Path, mode: str) -> None:
    pgbench = shutil.which("pgbench") or binaries() / "pgbench"
    script = tmp_path / "script.sql"
    script.write_text("\\set id random(1, 1000)\nSELECT name, ssn FROM customers WHERE id = :id;\n", encoding="utf-8")
    done = tool(stack, "devin", pgbench, "-n", "-f", script, "-M", mode, "-c", "4", "-t", "25")
    assert done.returncode == 0, done.stderr
    assert "100/100" in done.stdout


def test_a_transactions_isolation_can_be_set_after_it_began(stack: Stack) -> None:
    done = stack.psql(
        "devin", None, "-c", "BEGIN", "-c", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "-c", "COMMIT"
    )
    assert (done.returncode, done.stderr) == (0, "")
