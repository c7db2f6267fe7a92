"""The embedded PostgreSQL runner, with every PostgreSQL that this machine has."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from server import postgres as module
from server.postgres import SUPERUSER, Postgres, PostgresError, binaries
from tests.servers import found_binaries


@pytest.fixture(scope="module", params=found_binaries(), ids=lambda folder: f"{folder.parent.name}")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("postgres"), bin_folder=request.param) as running:
        yield running


def connect(server: Postgres, **changes: object) -> psycopg.Connection[tuple[object, ...]]:
    parameters = {
        "host": server.host,
        "port": server.port,
        "user": SUPERUSER,
        "password": server.password,
        "dbname": "postgres",
    }
    return psycopg.connect(autocommit=True, **(parameters | changes))  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_answers_in_utf8_and_utc(server: Postgres) -> None:
    with connect(server) as connection:
        asked = "SELECT current_setting('server_encoding'), current_setting('TimeZone'), 'Zoë'"
        assert connection.execute(asked).fetchall() == [("UTF8", "UTC", "Zoë")]


def test_only_the_password_opens_it_and_it_never_crosses_the_wire(server: Postgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect(server, password="wrong")
    with connect(server) as connection:
        rules = connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
        assert rules == [("scram-sha-256",)]


def test_it_listens_on_loopback_alone_and_on_no_socket_file(server: Postgres) -> None:
    with connect(server) as connection:
        asked = "SELECT current_setting('listen_addresses'), current_setting('unix_socket_directories')"
        assert connection.execute(asked).fetchall() == [("127.0.0.1", "")]


def test_its_data_and_processes_are_not_roots(server: Postgres) -> None:
    assert server.data.stat().st_uid != 0
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
    assert server.pid is not None
    if Path("/proc").is_dir():
        assert Path(f"/proc/{server.pid}").stat().st_uid == server.data.stat().st_uid


def test_stop_ends_it_with_clients_connected_and_twice_is_fine(tmp_path: Path) -> None:
    server = Postgres(tmp_path / "pg")
    server.start()
    pid = server.pid
    assert pid is not None
    connection = connect(server)
    server.stop()
    server.stop()
    assert not alive(pid)
    assert server.pid is None
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    connection.close()


def test_a_start_where_a_killed_run_left_its_server_replaces_it(tmp_path: Path) -> None:
    left = Postgres(tmp_path / "pg")
    left.start()
    pid, process = left.pid, left._process
    assert pid is not None
    assert process is not None
    with Postgres(tmp_path / "pg") as server:
        assert process.wait(10) is not None
        assert server.pid != pid
        assert server.folder == left.folder
        with connect(server) as connection:
            assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_a_port_taken_in_between_is_given_up_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = module._free_port
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1]]
        monkeypatch.setattr(module, "_free_port", lambda: ports.pop() if ports else choose())
        with Postgres(tmp_path / "pg") as server:
            assert server.port != taken.getsockname()[1]
            with connect(server) as connection:
                assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_a_server_that_does_not_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    server = Postgres(tmp_path / "pg", settings={"shared_buffers": "a lot"})
    with pytest.raises(PostgresError, match=r'(?s)does not start.*"shared_buffers": "a lot"'):
        server.start()
    assert server.pid is None


def test_durable_turns_fsync_on(tmp_path: Path) -> None:
    with Postgres(tmp_path / "pg", durable=True) as server, connect(server) as connection:
        assert connection.execute("SHOW fsync").fetchall() == [("on",)]


def test_a_script_stops_at_its_first_error_and_says_which(server: Postgres) -> None:
    with pytest.raises(PostgresError, match='relation "nowhere" does not exist'):
        server.run_script("CREATE TABLE a (n int); SELECT * FROM nowhere; CREATE TABLE b (n int);")
    with connect(server) as connection:
        assert connection.execute("SELECT to_regclass('a'), to_regclass('b')").fetchall() == [("a", None)]


def test_pg_bin_names_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = found_binaries()[-1]
    monkeypatch.setenv("PG_BIN", str(chosen))
    assert binaries() == chosen
    monkeypatch.setenv("PG_BIN", str(tmp_path))
    with pytest.raises(PostgresError, match=r"has no `postgres`\. Set PG_BIN"):
        binaries()


if os.geteuid() == 0:

    def test_binaries_that_the_servers_user_cannot_reach_run_from_a_copy(tmp_path: Path) -> None:
        private = tmp_path / "home"
        private.mkdir(mode=0o700)
        package = binaries().parents[1]
        for folder in (package, package.with_name(f"{package.name}.libs")):
            shutil.copytree(folder, private / folder.name, symlinks=True)
        server = Postgres(tmp_path / "pg", bin_folder=private / package.name / "pginstall" / "bin")
        with server, connect(server) as connection:
            assert connection.execute("SELECT 1").fetchall() == [(1,)]
            copy = server.bin_folder
            assert not copy.is_relative_to(private)
        assert not copy.exists()
