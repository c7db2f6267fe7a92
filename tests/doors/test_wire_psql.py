"""Real psql through the wire door: its backslash family, errors with positions, COPY, several statements, cancel."""

from __future__ import annotations

import csv
import io
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.stack import Stack, psql_path
from tests.waiting import until


def rows_of(stack: Stack, who: str, sql: str, *args: str) -> list[list[str]]:
    done = stack.psql(who, sql, "-A", "-t", "-F", "\t", *args)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def last_statement(stack: Stack, who: str, like: str) -> dict[str, object]:
    found = stack.audit("SELECT * FROM statements WHERE who = ? AND sql LIKE ? ORDER BY seq DESC LIMIT 1", who, like)
    assert found, f"no statement like {like} in the audit"
    return found[0]


BACKSLASH = [
    r"\d", r"\d+", r"\d customers", r"\d+ orders", r"\d customer_orders", r"\dt", r"\dt+", r"\dt hr.*", r"\dv+",
    r"\di+", r"\ds", r"\dm", r"\df", r"\df+ order_total", r"\dn+", r"\du", r"\dg", r"\dp", r"\ddp", r"\dT", r"\dT+",
    r"\dD", r"\dy", r"\dx", r"\do", r"\dO", r"\da", r"\dc", r"\dC", r"\dd", r"\dF", r"\dL", r"\des", r"\det", r"\dA",
    r"\dAc", r"\dP+", r"\dRp", r"\drds", r"\dconfig work_mem", r"\l", r"\db", r"\sf order_total",
    r"\sv customer_orders", r"\encoding", r"\dX", r"\det+", r"\dew", r"\deu", r"\dRs",
]  # fmt: skip


@pytest.mark.parametrize("command", BACKSLASH)
def test_the_backslash_family_says_what_it_says_directly(stack: Stack, command: str) -> None:
    through, direct = stack.psql("ada", command), direct_psql(stack, command)
    # An old psql fails at some of a newer server's catalogs: then it does so in the same words.
    assert (through.returncode, through.stdout, through.stderr) == (direct.returncode, direct.stdout, direct.stderr)


def test_the_connections_own_words_name_the_gateway(stack: Stack) -> None:
    done = stack.psql("ada", r"\conninfo")
    assert f'"{stack.database}" as user "ada"' in done.stdout
    assert f'port "{stack.port}"' in done.stdout


def direct_psql(stack: Stack, sql: str, *args: str) -> subprocess.CompletedProcess[str]:
    """psql as the gateway's own role, past the gateway: what PostgreSQL itself says."""
    connection = stack.demo.config.connections[0]
    return subprocess.run(
        [psql_path(), "-X", "-w", "-h", connection.host, "-p", str(connection.port), "-U", connection.user,
         "-d", connection.database, *args, "-c", sql],
        env={"PGPASSWORD": connection.password, "PATH": "/usr/bin:/bin"},
        capture_output=True, encoding="utf-8", timeout=30, check=False,
    )  # fmt: skip


def test_masked_columns_arrive_masked_and_the_rest_untouched(stack: Stack) -> None:
    shown = rows_of(stack, "devin", "SELECT id, name, email, ssn, card, notes FROM customers ORDER BY id LIMIT 20")
    truth = stack.direct("SELECT id, name, email, ssn FROM customers ORDER BY id LIMIT 20")
    for seen, (id_, name, email, ssn) in zip(shown, truth, strict=True):
        assert seen[:2] == [str(id_), name]
        assert seen[2] == email[0] + "*" * (len(email) - 1)
        assert seen[3] == "*" * (len(ssn) - 4) + ssn[-4:]
        assert seen[4] == "[redacted]"  # nor does it tell whether there is one
        assert seen[5] == ""


def test_a_refusal_names_the_rule_and_the_cure_and_is_recorded(stack: Stack) -> None:
    done = stack.psql("devin", "DROP TABLE customers", "-v", "VERBOSITY=verbose")
    assert done.returncode == 1
    assert "ERROR:  42501" in done.stderr
    assert "agents-never-drop" in done.stderr
    assert "HINT:" in done.stderr
    assert last_statement(stack, "devin", "DROP TABLE customers")["status"] == "refused"
    assert stack.direct("SELECT count(*) FROM customers") != [(0,)]


@pytest.mark.parametrize(
    ("sql", "code", "points_at"),
    [
        ("SELECT id, nme FROM customers", "42703", "nme"),
        ("SELECT c.id, x.name FROM customers c", "42P01", "x.name"),
        ("SELECT 'süß', id FROM customers WHERE nam = 'ü'", "42703", "nam"),
        ("SELECT * FROM nothing", "42P01", "nothing"),
        ("SELEC 1", "42601", "SELEC"),
        ("SELECT nothing(1)", "42883", "nothing"),
    ],
)
def test_an_error_points_into_the_clients_own_text(stack: Stack, sql: str, code: str, points_at: str) -> None:
    done = stack.psql("devin", sql, "-v", "VERBOSITY=verbose")
    assert f"ERROR:  {code}" in done.stderr, done.stderr
    line, caret = re.search(r"^LINE 1: (.*)\n( *)\^", done.stderr, re.M).group(1, 2)  # type: ignore[union-attr]
    assert line[len(caret) - len("LINE 1: ") :].startswith(points_at)


def test_copy_out_is_masked_and_equals_the_select(stack: Stack, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    sql = "SELECT id, email, ssn FROM customers ORDER BY id"
    done = stack.psql("devin", rf"\copy ({sql}) TO '{target}' WITH (FORMAT csv)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("COPY ")
    with target.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == rows_of(stack, "devin", sql)
    whole = stack.psql("devin", "COPY customers (id, ssn) TO STDOUT")
    assert whole.returncode == 0, whole.stderr
    assert all(line.split("\t")[1].startswith("***") for line in whole.stdout.splitlines())


def test_copy_in_writes_where_the_policy_allows_and_only_there(stack: Stack) -> None:
    data = "900001\t1\tvia copy\tbody\topen\t2026-01-01\n900002\t1\tvia copy\tbody\topen\t2026-01-01\n"
    args = [psql_path(), "-X", "-w", "-h", stack.host, "-p", str(stack.port), "-d", stack.database]
    for who, table, good in (("grace", "tickets", True), ("devin", "customers", False)):
        done = subprocess.run(
            [*args, "-U", who, "-c", f"COPY {table} FROM STDIN"], input=data, capture_output=True, text=True,
            env={"PGPASSWORD": stack.tokens[who], "PATH": "/usr/bin:/bin"}, timeout=30, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) is good, done.stderr
    assert stack.direct("SELECT count(*) FROM tickets WHERE subject = 'via copy'") == [(2,)]
    record = last_statement(stack, "grace", "COPY tickets FROM%")
    assert (record["status"], record["rows"]) == ("completed", 2)
    stack.direct("DELETE FROM tickets WHERE subject = 'via copy'")


def test_a_copy_with_bad_data_fails_as_directly(stack: Stack) -> None:
    done = subprocess.run(
        [psql_path(), "-X", "-w", "-h", stack.host, "-p", str(stack.port), "-d", stack.database, "-U", "grace",
         "-c", "COPY tickets FROM STDIN", "-c", "SELECT 'still here'"],
        input="not a number\n", capture_output=True, text=True,
        env={"PGPASSWORD": stack.tokens["grace"], "PATH": "/usr/bin:/bin"}, timeout=30, check=False,
    )  # fmt: skip
    assert "invalid input syntax for type integer" in done.stderr or "missing data" in done.stderr
    assert "still here" in done.stdout
    assert last_statement(stack, "grace", "COPY tickets FROM%")["status"] == "failed"


def test_several_statements_in_one_message_share_one_transaction(stack: Stack) -> None:
    done = stack.psql("grace", "UPDATE tickets SET subject = subject || '!' WHERE id = 1; SELECT 1/0; SELECT 1")
    assert "division by zero" in done.stderr
    [(subject,)] = stack.direct("SELECT subject FROM tickets WHERE id = 1")
    assert not subject.endswith("!")
    last = stack.audit("SELECT sql, status FROM statements WHERE who = 'grace' ORDER BY seq DESC LIMIT 3")
    assert [(r["sql"].strip(), r["status"]) for r in reversed(last)] == [
        ("UPDATE tickets SET subject = subject || '!' WHERE id = 1", "failed"),
        ("SELECT 1/0", "failed"),
        ("SELECT 1", "skipped"),
    ]


def test_one_refused_statement_keeps_its_whole_message_from_running(stack: Stack) -> None:
    done = stack.psql("devin", "UPDATE tickets SET subject = 'changed' WHERE id = 1; DROP TABLE orders")
    assert "agents-never-drop" in done.stderr
    assert stack.direct("SELECT count(*) FROM tickets WHERE subject = 'changed'") == [(0,)]
    last = stack.audit("SELECT status FROM statements WHERE who = 'devin' ORDER BY seq DESC LIMIT 2")
    assert sorted(str(r["status"]) for r in last) == ["refused", "skipped"]


def test_transactions_savepoints_and_failed_blocks_are_postgresqls(stack: Stack) -> None:
    script = (
        "BEGIN;\n\\echo :ROW_COUNT\nSAVEPOINT a;\nSELECT 1/0;\nSELECT 'aborted';\nROLLBACK TO a;\nSELECT 'alive';\n"
        "DROP TABLE orders;\nSELECT 'aborted again';\nROLLBACK;\nSELECT 'out';\n"
    )
    done = subprocess.run(
        [psql_path(), "-X", "-w", "-A", "-t", "-h", stack.host, "-p", str(stack.port), "-d", stack.database,
         "-U", "devin"],
        input=script, capture_output=True, text=True,
        env={"PGPASSWORD": stack.tokens["devin"], "PATH": "/usr/bin:/bin"}, timeout=30, check=False,
    )  # fmt: skip
    assert [line for line in done.stdout.splitlines() if line[:1].islower()] == ["alive", "out"]
    assert done.stderr.count("current transaction is aborted") == 2


def endless(alias: str) -> str:
    """A statement that takes for ever, findable by its alias."""
    return f"SELECT count(*) FROM generate_series(1, 1000000000) {alias}"


def running(stack: Stack, alias: str) -> bool:
    """Whether PostgreSQL runs it."""
    return stack.direct(
        f"SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '% {alias}'"
        " AND pid <> pg_backend_pid()"
    ) == [(1,)]


def test_ctrl_c_cancels_upstream(stack: Stack) -> None:
    process = subprocess.Popen(
        [psql_path(), "-X", "-w", "-h", stack.host, "-p", str(stack.port), "-d", stack.database, "-U", "devin",
         "-c", endless("interrupted")],
        env={"PGPASSWORD": stack.tokens["devin"], "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: running(stack, "interrupted"), "the statement did not reach PostgreSQL")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert "canceling statement due to user request" in err
    assert not running(stack, "interrupted")
    assert last_statement(stack, "devin", "% interrupted")["status"] == "cancelled"


def test_a_client_that_dies_takes_its_statement_with_it(stack: Stack) -> None:
    process = subprocess.Popen(
        [psql_path(), "-X", "-w", "-h", stack.host, "-p", str(stack.port), "-d", stack.database, "-U", "devin",
         "-c", endless("orphaned")],
        env={"PGPASSWORD": stack.tokens["devin"], "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until(lambda: running(stack, "orphaned"), "the statement did not reach PostgreSQL")
    process.kill()
    process.wait(10)
    until(lambda: not running(stack, "orphaned"), "the statement still runs without its client")
    until(lambda: last_statement(stack, "devin", "% orphaned")["status"] == "cancelled", "no outcome was written")


def test_notices_and_settings_reach_psql(stack: Stack) -> None:
    done = stack.psql("grace", "DROP TABLE IF EXISTS not_there")
    assert done.stderr == 'NOTICE:  table "not_there" does not exist, skipping\n'
    done = stack.psql("devin", "SET TimeZone = 'Asia/Tokyo'; SHOW TimeZone", "-A", "-t")
    assert done.stdout.splitlines()[-1] == "Asia/Tokyo"


def test_null_binary_and_wide_results_are_postgresqls_own(stack: Stack) -> None:
    sql = "SELECT g, NULL, repeat('ü', g), E'\\\\x00ff'::bytea, 1.5::numeric FROM generate_series(1, 500) g"
    through, direct = stack.psql("devin", sql, "-A"), direct_psql(stack, sql, "-A")
    assert through.returncode == 0, through.stderr
    assert through.stdout == direct.stdout


def test_psql_from_the_environment_alone(stack: Stack) -> None:
    done = subprocess.run(
        [psql_path(), "-X", "-A", "-t", "-c", "SELECT current_user IS NOT NULL"],
        env={
            "PATH": os.environ["PATH"], "PGHOST": stack.host, "PGPORT": str(stack.port), "PGUSER": "devin",
            "PGDATABASE": stack.database, "PGPASSWORD": stack.tokens["devin"], "PGAPPNAME": "my tool",
        },
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout == "t\n", done.stderr
    record = stack.audit("SELECT * FROM entries WHERE kind = 'session.opened' ORDER BY seq DESC LIMIT 1")[0]
    assert "my tool" in str(record["body"])


def test_the_line_by_line_output_reads_well(stack: Stack) -> None:
    done = stack.psql("devin", "SELECT id, ssn FROM customers ORDER BY id LIMIT 2", "--csv")
    read = list(csv.reader(io.StringIO(done.stdout)))
    assert read[0] == ["id", "ssn"]
    assert len(read) == 3
