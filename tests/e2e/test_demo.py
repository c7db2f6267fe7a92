"""The demo as people start it: its files, its sample data, its ports, its end, and its tour."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from rich.console import Console

from gateway.errors import ConfigurationError
from server.app import serve
from server.demo import PEOPLE, prepare
from server.guide import pasteable
from server.postgres import SUPERUSER, Postgres
from server.sample import rows
from server.sample.load import DATABASE, GATEWAY_ROLE, load_sample
from server.tour import play
from tests.stack import Stack

ROOT = Path(__file__).parents[2]
_SECONDS = 90


@contextmanager
def demo(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`countersign demo` in a process of its own; what is left of it at the end is killed."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "server", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """What the process prints, up to a line that matches; the run's own time limit bounds it."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if re.search(pattern, line):
            return said
    raise AssertionError(f"it ended without `{pattern}`: {said}{process.stderr and process.stderr.read()}")


# -- the sample data ----------------------------------------------------------------------------------


def column(table: str, name: str, seed: int = 2026) -> list[rows.Value]:
    for found, columns, data in rows.tables(seed):
        if found == table:
            return [row[columns.index(name)] for row in data]
    raise AssertionError(f"no table {table}")


def test_the_same_seed_makes_the_same_rows_and_another_seed_others() -> None:
    assert rows.copy_script(7) == rows.copy_script(7)
    assert rows.copy_script(7) != rows.copy_script(8)


def test_no_social_security_number_was_ever_issued() -> None:
    for table in ("public.customers", "hr.employees"):
        for number in map(str, column(table, "ssn")):
            area, group, serial = number.split("-")
            assert 900 <= int(area) <= 999  # never issued by the SSA
            assert 10 <= int(group) <= 49  # nor by the IRS as an ITIN
            assert len(serial) == 4
            assert serial != "0000"


def test_cards_are_valid_numbers_of_test_ranges() -> None:
    cards = [str(card).replace(" ", "") for card in column("public.customers", "card") if card]
    assert len(cards) > 900
    for card in cards:
        assert len(card) == 16
        assert card.startswith(("424242", "400000", "555555"))
        doubled = [int(digit) * (2 if place % 2 == 0 else 1) for place, digit in enumerate(card)]
        assert sum(value // 10 + value % 10 for value in doubled) % 10 == 0


def test_every_address_is_under_a_reserved_domain() -> None:
    for table in ("public.customers", "hr.employees"):
        for address in map(str, column(table, "email")):
            assert re.fullmatch(r"[a-z.]+\d+@(\w+\.)?example\.(com|org)", address), address


def test_free_text_holds_personal_data_and_orders_to_whoever_reads_it() -> None:
    bodies = [str(body) for body in column("public.tickets", "body")]
    numbers = {str(number) for number in column("public.customers", "ssn")}
    assert sum(any(number in numbers for number in re.findall(r"\d{3}-\d\d-\d{4}", body)) for body in bodies) >= 3
    assert bodies[rows.INJECTION_TICKET - 1] == rows.INJECTION


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("shop")) as server:
        load_sample(server, "gateway-password")
        yield server


def ask(server: Postgres, user: str, password: str, sql: str) -> list[tuple[object, ...]]:
    parameters = {"host": server.host, "port": server.port, "user": user, "password": password}
    with psycopg.connect(dbname=DATABASE, autocommit=True, **parameters) as connection:  # type: ignore[arg-type]
        return connection.execute(sql.encode()).fetchall()


def test_the_shop_has_its_rows_and_every_month_its_orders(shop: Postgres) -> None:
    def direct(sql: str) -> list[tuple[object, ...]]:
        return ask(shop, SUPERUSER, shop.password, sql)

    counts = "SELECT (SELECT count(*) FROM {}), (SELECT count(*) FROM {}), (SELECT count(*) FROM {})"
    tables = ("public.customers", "public.orders", "public.tickets")
    assert direct(counts.format(*tables)) == [(rows.CUSTOMERS, rows.ORDERS, rows.TICKETS)]
    by_month = direct("SELECT tableoid::regclass::text, count(*) FROM orders GROUP BY 1 ORDER BY 1")
    assert [name for name, _ in by_month] == [f"orders_2026_{month:02}" for month in range(1, 13)]
    assert direct("SELECT employees FROM hr.headcount") == [(rows.EMPLOYEES,)]
    assert direct("SELECT order_total(3) = total FROM customer_orders WHERE customer_id = 3") == [(True,)]


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("SELECT pg_read_file('PG_VERSION')", "permission denied for function pg_read_file"),
        ("SELECT rolpassword FROM pg_authid", "permission denied for table pg_authid"),
        ("UPDATE hr.employees SET salary = 0", "permission denied for table employees"),
        ("CREATE ROLE another", "permission denied to create role"),
        ("CREATE TEMPORARY TABLE t (n int)", "permission denied to create temporary tables"),
    ],
)
def test_the_gateways_own_role_is_no_superuser(shop: Postgres, sql: str, error: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match=error):
        ask(shop, GATEWAY_ROLE, "gateway-password", sql)


def test_the_gateways_own_role_can_do_what_a_policy_may_allow(shop: Postgres) -> None:
    allowed = (
        "BEGIN; CREATE TABLE added (n int); ALTER TABLE customers ADD COLUMN n int; DROP TABLE tickets; "
        "UPDATE orders SET total = 0 WHERE id = 1; ROLLBACK; SELECT count(*) FROM hr.employees"
    )
    with psycopg.connect(
        host=shop.host, port=shop.port, user=GATEWAY_ROLE, password="gateway-password", dbname=DATABASE
    ) as connection:
        cursor = connection.execute(allowed.encode())
        while cursor.nextset():
            pass
        assert cursor.fetchall() == [(rows.EMPLOYEES,)]


def test_a_gateway_password_that_could_end_the_script_is_refused(shop: Postgres) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        load_sample(shop, "x'; DROP DATABASE shop; --")


# -- the folder ---------------------------------------------------------------------------------------


def test_the_reference_policy_of_the_examples_is_the_one_that_ships() -> None:
    shipped = ROOT / "server" / "sample" / "policy.yaml"
    assert shipped.read_text() == (ROOT / "examples" / "policy.yaml").read_text()


async def test_secrets_are_private_and_nothing_in_the_folder_gets_committed(tmp_path: Path) -> None:
    async with prepare(tmp_path / "state", mcp_port=0, wire_port=0) as stage:
        private = [*stage.token_paths.values(), stage.state / "upstream-password"]
        assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
        assert stat.S_IMODE((stage.state / "tokens").stat().st_mode) == 0o700
        assert (stage.state / ".gitignore").read_text() == "*\n"
        assert {name: path.read_text().strip() for name, path in stage.token_paths.items()} == dict(stage.tokens)
        assert set(stage.tokens) == set(PEOPLE)
        assert not any(token in stage.config_path.read_text() for token in stage.tokens.values())


async def test_a_second_demo_in_the_same_folder_is_refused_with_the_cure(tmp_path: Path) -> None:
    async with prepare(tmp_path, mcp_port=0, wire_port=0):
        with pytest.raises(ConfigurationError, match=r"a demo runs in .* already.*--state DIR"):
            async with prepare(tmp_path, mcp_port=0, wire_port=0):
                pass
    async with prepare(tmp_path, mcp_port=0, wire_port=0) as again:
        assert again.postgres.pid is not None


async def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        async with prepare(tmp_path / "file", mcp_port=0, wire_port=0):
            pass


async def test_a_taken_port_gives_way_and_a_free_one_is_kept(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ports = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        async with prepare(tmp_path, mcp_port=ports[0], wire_port=ports[1]) as stage:
            assert stage.config.mcp is not None
            assert stage.config.wire is not None
            assert (stage.config.mcp.port, stage.config.wire.port) == (0, ports[1])


# -- the program --------------------------------------------------------------------------------------


def test_every_local_line_that_the_demo_prints_works_when_pasted(stack: Stack) -> None:
    lines = dict(pasteable(stack.demo, stack.app))
    pasted: Sequence[tuple[str, str, str]] = (
        ("psql as the agent", " -c 'SELECT count(*) FROM customers'", str(rows.CUSTOMERS)),
        ("who did what", " --limit 1", '"who"'),
        ("nothing was rewritten", "", ""),
    )
    for title, more, expected in pasted:
        [line] = [line for name, line in lines.items() if name.startswith(title)]
        done = subprocess.run(
            ["sh", "-c", f"{line}{more}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            env=os.environ,
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        assert expected in done.stdout
    for title in ("Claude Code", "Devin"):
        [line] = [line for name, line in lines.items() if name.startswith(title)]
        token = subprocess.run(
            ["sh", "-c", f"set -- {line}; printf '%s\\n' \"$@\""], capture_output=True, text=True, check=True
        )
        assert stack.tokens["devin"] in token.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_and_the_folder_can_be_used_again(tmp_path: Path, number: signal.Signals) -> None:
    with demo("--state", str(tmp_path), "--mcp-port", "0", "--wire-port", "0") as process:
        said = read_until(process, "Ctrl-C stops everything")
        registered = json.loads((tmp_path / "mcp.json").read_text())
        assert registered["mcpServers"]["countersign"]["url"] in said
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=_SECONDS)
        assert (process.returncode, err) == (0, "")
        assert "stopped" in out
    elsewhere = tmp_path / "postgres" / "elsewhere"
    data = Path(elsewhere.read_text().strip()) if elsewhere.exists() else tmp_path / "postgres"
    assert not (data / "data" / "postmaster.pid").exists()


def test_the_tour_keeps_every_promise_twice_in_the_same_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with demo("--tour", "--state", str(tmp_path), "--mcp-port", "0", "--wire-port", "0") as process:
            out, err = process.communicate(timeout=_SECONDS)
        assert (process.returncode, err) == (0, ""), out
        assert "Every promise was kept" in out
        assert "✗" not in out
        assert "\x1b[" not in out  # plain when piped


async def test_a_broken_promise_fails_the_tour_with_expected_and_actual(tmp_path: Path) -> None:
    printed = io.StringIO()
    async with prepare(tmp_path, mcp_port=0, wire_port=0) as stage:
        policy = stage.config.policy_path
        unmasked = policy.read_text().replace("public.customers.card", "public.customers.id")
        policy.write_text(unmasked.replace("with: redact\n    unless: {groups: [dba]}", "with: null"))
        async with serve(stage.config) as app:
            status = await play(stage, app, Console(file=printed, width=100))
    said = printed.getvalue()
    assert status == 1, said
    assert "✗ the description says which columns are masked\n     expected  []\n     actual    ['card']" in said
    assert "Every promise" not in said
