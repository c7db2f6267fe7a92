"""The command and its doors given what is wrong: one specific sentence, the right status, never a traceback."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
import yaml
from click.testing import CliRunner
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from audit.store import Store
from server.cli import main
from tests.doors.mcp_calls import answer, error
from tests.e2e.untrusted import untrusted_upstream
from tests.stack import Stack, psql_path
from tests.waiting import until

COMMAND = [sys.executable, "-m", "server"]


def command(*arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess[str]:
    """`countersign` with these arguments, run to its end, which must be soon."""
    return subprocess.run(
        [*COMMAND, *arguments], env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True,
        encoding="utf-8", timeout=30, check=False,
    )  # fmt: skip


def one_line(status: int, stdout: str, stderr: str) -> str:
    """The sentence that a command refused with."""
    assert status == 2, stderr
    assert stdout == ""
    [line] = stderr.splitlines()
    assert line.startswith("countersign: "), line
    return line.removeprefix("countersign: ")


def refused(*arguments: str, **environment: str) -> str:
    """The sentence of a command that must refuse, in this process: a second less than in one of its own."""
    done = CliRunner().invoke(main, arguments, env=environment, prog_name="countersign")
    return one_line(done.exit_code, done.stdout, done.stderr)


@dataclass(frozen=True)
class Folder:
    """A configuration that is right but for what a test makes wrong in it."""

    path: Path
    right: Mapping[str, Any]

    @property
    def file(self) -> Path:
        return self.path / "countersign.yaml"

    def write(self, text: str | bytes) -> str:
        self.file.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(self.file)

    def with_(self, **changed: Any) -> str:
        return self.write(yaml.safe_dump({**self.right, **changed}, sort_keys=False))

    def connection(self, **changed: Any) -> dict[str, Any]:
        """The `connections` with the shop's changed."""
        return {"shop": {key: v for key, v in {**self.right["connections"]["shop"], **changed}.items() if v}}


def a_folder(path: Path, stack: Stack) -> Folder:
    right = yaml.safe_load(stack.demo.config_path.read_text(encoding="utf-8"))
    for name in ("policy.yaml", "upstream-password", "mask-key"):
        (path / name).write_bytes((stack.demo.state / name).read_bytes())
    free = {"host": "127.0.0.1", "port": 0}
    return Folder(path, {**right, "wire": free, "mcp": free})


@pytest.fixture
def folder(tmp_path: Path, stack: Stack) -> Folder:
    return a_folder(tmp_path, stack)


# -- the configuration --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("audit: {path: x\npolicy: [", "countersign.yaml:2:7: expected ',' or '}', but got ':'; check indentation"),
        ("", "countersign.yaml:1:1: the key `audit` is missing; add it"),
        ("- audit\n", "countersign.yaml:1:1: a mapping is wanted here; write `key: value` lines"),
        ("audit: \0", "countersign.yaml:1:8: a character that YAML does not allow; remove it"),
        ("a: !!python/object/apply:os.system [x]\n", ":1:4: the tag `tag:yaml.org,2002:python/object/apply:os.system`"),
        ("audit: {path: x}\naudit: {path: y}\n", "countersign.yaml:2:1: the key `audit` stands here twice"),
        ("[" * 5000, "countersign.yaml:1:1: the file nests too deep; flatten it"),
        (b"\xff\xfe", "countersign.yaml` is not UTF-8. Save it as UTF-8."),
    ],
    ids=["syntax", "empty", "list", "nul", "tag", "twice", "deep", "not utf-8"],
)
def test_a_configuration_that_cannot_be_read_names_line_and_column(folder: Folder, text: str, said: str) -> None:
    line = refused("serve", "--config", folder.write(text))
    assert said in line
    assert str(folder.path) in line


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"wire": {"prt": 6432}}, r":\d+:3: unknown key `prt`; did you mean `port`\?"),
        ({"wire": {"port": "six"}}, r":\d+:9: `six`: input should be a valid integer"),
        ({"mcp": {"port": 70000}}, r":\d+:9: `70000`: input should be less than or equal to 65535"),
        ({"issuers": []}, r":\d+:10: this must not be empty; give at least one"),
        ({"connections": {}}, r":\d+:14: this must not be empty; give at least one"),
        ({"policy": "nowhere.yaml"}, r"nowhere.yaml` cannot be read: No such file or directory. Name it in `policy:`"),
        ({"policy": "."}, r"cannot be read: Is a directory\. Name it in `policy:`"),
        ({"wire": None, "mcp": None}, r"the configuration opens no door\. Add `wire:` or `mcp:`"),
        ({"audit": {"path": "policy.yaml"}}, r"audit cannot be opened: .* is not an SQLite file; name another one"),
        ({"audit": {"path": "."}}, r"the audit cannot be opened: .* check that its folder exists"),
        ({"audit": {"path": "policy.yaml/audit.db"}}, r"the audit cannot be opened: .*; check the path"),
        ({"wire": {"host": "nowhere.invalid", "port": 0}}, r"wire door cannot listen on nowhere\.invalid:0: .*host`"),
        ({"mcp": {"host": "192.0.2.1", "port": 0}}, r"mcp door cannot listen on 192\.0\.2\.1:0: cannot .*host`"),
        (
            {"wire": {"port": 0, "tls": {"certificate": "policy.yaml", "key": "policy.yaml"}}},
            r"certificate `.*policy.yaml` .* cannot be used: .* Give PEM files that belong together",
        ),
    ],
    ids=[
        "typo", "type", "range", "no issuer", "no connection", "no policy", "policy is a folder", "no door",
        "audit is text", "audit is a folder", "audit below a file", "host unknown", "host elsewhere", "no certificate",
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_used_says_what_and_the_cure(
    folder: Folder, changed: Mapping[str, Any], said: str
) -> None:
    assert re.search(said, refused("serve", "--config", folder.with_(**changed)))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"password_file": "nowhere"}, "the password file `nowhere` of connection `shop` cannot be read: No such file"),
        ({"password_file": "binary"}, "the password file `binary` of connection `shop` is not UTF-8"),
        ({"password_env": "NOT_SET"}, ":10:5: give exactly one of `password_file` and `password_env`"),
        ({"password_file": None, "password_env": "NOT_SET"}, "the environment variable `NOT_SET` with the password of"),
        ({"sslrootcert": "nowhere.pem"}, "nowhere.pem` of connection `shop` cannot be used: No such file or directory"),
        (
            {"sslrootcert": "policy.yaml"},
            "of connection `shop` cannot be used: it holds no PEM certificate",
        ),
        ({"sslmode": "maybe"}, "`maybe`: input should be 'disable', 'prefer', 'require', 'verify-ca' or 'verify-full'"),
    ],
    ids=["no file", "binary file", "both", "not set", "no root", "root is no PEM", "sslmode"],
)
def test_an_upstream_that_cannot_be_meant_is_found_at_start(
    folder: Folder, changed: Mapping[str, Any], said: str
) -> None:
    (folder.path / "binary").write_bytes(b"\xff\xfe")
    assert said in refused("serve", "--config", folder.with_(connections=folder.connection(**changed)))


def test_a_policy_that_is_wrong_names_line_and_column(folder: Folder) -> None:
    (folder.path / "policy.yaml").write_text("rules:\n  - name: x\n    effect: maybe\n", encoding="utf-8")
    said = "policy.yaml:3:13: `maybe`: input should be 'allow', 'approve' or 'deny'"
    assert said in refused("serve", "--config", folder.with_())
    assert said in refused("mcp", "--config", str(folder.file), COUNTERSIGN_TOKEN="x")
    assert said in refused("policy", "check", str(folder.path / "policy.yaml"))


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    for arguments in (("serve",), ("mcp",), ("audit", "verify"), ("audit", "search"), ("policy", "check")):
        line = refused(*arguments, "--config", str(tmp_path / "none.yaml"))
        assert "none.yaml` cannot be read: No such file or directory. Name it with `--config`" in line


@pytest.mark.parametrize("door", ["wire", "mcp"])
def test_a_port_that_is_taken_is_named_with_its_door(folder: Folder, door: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        line = refused("serve", "--config", folder.with_(**{door: {"host": "127.0.0.1", "port": port}}))
    assert f"the {door} door cannot listen on 127.0.0.1:{port}: the port is taken. Stop what uses it" in line
    with contextlib.closing(Store.open(folder.path / "audit.db")) as store:
        assert store.open_sessions() == store.open_statements() == []


def test_an_audit_that_is_locked_is_said_and_nothing_opens(folder: Folder) -> None:
    path = folder.path / "audit.db"
    Store.open(path).close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        line = refused("serve", "--config", folder.with_())
        other.execute("ROLLBACK")
    assert "the audit cannot be opened: " in line
    assert "another process holds its lock; find it" in line


# -- the other commands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("audit", "verify", "none.db"), "there is no audit store at `none.db`. Name the file, or `--config`."),
        (("audit", "verify", "policy.yaml"), "`policy.yaml` cannot be read: file is not a database"),
        (("audit", "verify", "other.db"), "other.db` is not an audit store"),
        (("audit", "search", "policy.yaml"), "it is not an SQLite file; name another one"),
        (("audit", "search", "other.db"), "other.db` is not an audit store; name another file"),
        (("audit", "search", "audit.db", "--since", "yesterday"), "`yesterday` is not a time: write it like"),
        (("audit", "search", "audit.db", "--kind", "no.kind"), "there is no kind `no.kind`; the kinds are process"),
        (("policy", "check", "none.yaml"), "the policy file `none.yaml` cannot be read: No such file or directory"),
        (("policy", "explain", "SELECT 1", "--connection", "no"), "there is no connection `no`. The configured"),
        (("mcp", "--connection", "no"), "COUNTERSIGN_TOKEN is not set. Put an access token"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_each_command_refuses_with_one_line(
    folder: Folder, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store.open(folder.path / "audit.db").close()
    with contextlib.closing(sqlite3.connect(folder.path / "other.db")) as other:
        other.execute("CREATE TABLE theirs (x)")
    folder.with_()
    monkeypatch.chdir(folder.path)
    assert said in refused(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "search", "--text", b"\xff"),
        ("policy", "explain", b"SELECT '\xff'"),
        ("serve", "--no-such-option"),
        ("no-such-command",),
        ("audit", "search", "--limit", "0"),
    ],
    ids=["text", "sql", "option", "command", "limit"],
)
def test_arguments_that_cannot_be_meant_show_the_usage(arguments: tuple[str | bytes, ...]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Usage: countersign ")
    assert "Traceback" not in done.stderr


def test_a_reading_that_cannot_be_recorded_says_so(folder: Folder) -> None:
    path = folder.path / "audit.db"
    Store.open(path).close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = command("audit", "search", str(path))
    assert (done.returncode, done.stdout) == (0, "nothing found\n")
    [line] = done.stderr.splitlines()
    assert line.startswith("note: this reading is not recorded: ")


def test_a_policy_cannot_be_checked_against_an_upstream_that_is_down(folder: Folder) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))  # bound and not listening: refused for as long as we hold it
        config = folder.with_(connections=folder.connection(port=holder.getsockname()[1]))
        for arguments in (("check",), ("explain", "SELECT 1")):
            line = refused("policy", *arguments, "--config", config)
            assert "the database behind `shop` cannot be used: " in line
            assert "connection refused. Check that it is up" in line


def test_a_process_ends_with_one_sentence_and_status_2(folder: Folder) -> None:
    path = folder.path / "audit.db"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (x)")
    for arguments, said in (
        (("serve", "--config", folder.with_()), "is another program's database, not an audit store; name another file"),
        (("mcp", "--config", str(folder.file)), "is another program's database, not an audit store; name another file"),
        (("audit", "verify", str(path)), "is not an audit store"),
        (("policy", "check", str(path)), "is not UTF-8. Save it as UTF-8."),
    ):
        done = command(*arguments)
        assert said in one_line(done.returncode, done.stdout, done.stderr)


# -- both doors of a running gateway ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A `countersign serve` whose connections are all wrong but `shop`."""

    wire: int
    mcp: str
    stack: Stack
    audit: Path

    async def knock(self, database: str = "shop", password: str | None = None) -> asyncpg.PostgresError:
        """What the wire door says to a login that must fail."""
        with pytest.raises(asyncpg.PostgresError) as failed:
            await asyncpg.connect(
                host="127.0.0.1", port=self.wire, user="devin", database=database, ssl=False,
                password=self.stack.tokens["devin"] if password is None else password,
            )  # fmt: skip
        return failed.value

    def psql(self, database: str, password: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [psql_path(), "-X", "-w", "-h", "127.0.0.1", "-p", str(self.wire), "-U", "devin", "-d", database, "-c", ""],
            env={"PGPASSWORD": password, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=30,
            check=False,
        )  # fmt: skip

    async def query(self, sql: str, **more: str) -> Any:
        headers = {"Authorization": f"Bearer {self.stack.tokens['devin']}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=30) as http,
            Client(streamable_http_client(self.mcp, http_client=http)) as connected,
        ):
            return await connected.call_tool("query", {"sql": sql, **more})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, stack: Stack) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("bad-input")
    folder = a_folder(path, stack)
    (path / "wrong-password").write_text("not the password", encoding="utf-8")
    shop = folder.right["connections"]["shop"]
    with (
        untrusted_upstream(path) as untrusted,
        socket.socket() as down,
        open(path / "stderr", "w+", encoding="utf-8") as stderr,
    ):
        down.bind(("127.0.0.1", 0))
        wrong = {
            "down": {"port": down.getsockname()[1]},
            "plain": {"sslmode": "require"},
            "untrusted": {"sslmode": "verify-full", "port": untrusted},
            "locked_out": {"password_file": "wrong-password"},
            "elsewhere": {"database": "no_such_database"},
        }
        config = folder.with_(connections={"shop": shop, **{name: {**shop, **v} for name, v in wrong.items()}})
        process = subprocess.Popen(
            [*COMMAND, "serve", "--config", config], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(3)]
            found = re.search(r"MCP door: (\S+)\nwire door: 127\.0\.0\.1:(\d+)\naudit: ", "".join(lines))
            assert found, (lines, (path / "stderr").read_text(encoding="utf-8"))
            yield Served(int(found[2]), found[1], stack, path / "audit.db")
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        assert process.returncode == 0
        stderr.seek(0)
        assert "Traceback" not in stderr.read()


BAD_TOKENS: Mapping[str, tuple[Callable[[Stack], str], str]] = {
    "expired": (lambda s: s.demo.issuer.token("devin", lifetime=timedelta(hours=-1)), "the token expired at"),
    "foreign": (lambda s: s.demo.issuer.token("devin", iss="https://evil.example"), "evil.example` is not trusted"),
    "for another": (lambda s: s.demo.issuer.token("devin", audience="other"), "the token was issued for `other`"),
    "garbage": (lambda s: "hunter2", "the token is not a signed JWT"),
    "binary": (lambda s: "\u2603.\u2603.\u2603", "the token is not a signed JWT"),
    "forged": (lambda s: s.tokens["devin"][:-8] + "AAAAAAAA", "the token's signature is not one of issuer"),
    "long": (lambda s: "a" * 20_000, "the token is longer than 16384 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TOKENS)
async def test_a_bad_token_is_turned_away_at_the_wire_door_and_kept(served: Served, case: str) -> None:
    make, said = BAD_TOKENS[case]
    for database in ("shop", "no_such_connection"):  # who is not known learns nothing of what there is
        failed = await served.knock(database, make(served.stack))
        assert failed.sqlstate == "28000"
        assert said in str(failed)
    with contextlib.closing(sqlite3.connect(f"file:{served.audit}?mode=ro", uri=True)) as db:
        kept = [body for (body,) in db.execute("SELECT body FROM entries WHERE kind = 'session.refused'")]
    assert sum(said in body for body in kept) >= 2


def test_psql_shows_the_reason_and_the_cure(served: Served) -> None:
    done = served.psql("shop", "hunter2")
    assert done.returncode == 2
    assert "FATAL:  the token is not a signed JWT" in done.stderr
    assert "HINT:  Use an access token, not a password or an API key." in done.stderr
    done = served.psql("shop", "")
    assert done.returncode == 2
    assert "no password supplied" in done.stderr


@pytest.mark.parametrize("case", sorted(BAD_TOKENS.keys() - {"binary", "long"}))
async def test_a_bad_token_is_401_at_the_mcp_door(served: Served, case: str) -> None:
    make, said = BAD_TOKENS[case]
    async with httpx2.AsyncClient(timeout=30) as http:
        response = await http.post(served.mcp, json={}, headers={"Authorization": f"Bearer {make(served.stack)}"})
    assert response.status_code == 401
    assert 'error="invalid_token"' in response.headers["www-authenticate"]
    assert said in response.json()["error_description"]


async def test_an_unknown_connection_is_named_at_both_doors(served: Served) -> None:
    failed = await served.knock("nowhere")
    assert failed.sqlstate == "3D000"
    assert failed.args == ("there is no connection `nowhere`",)
    known = "The configured connections: `down`, `elsewhere`, `locked_out`, `plain`, `shop`, `untrusted`."
    assert failed.hint == known
    failure = error(await served.query("SELECT 1", connection="nowhere"))
    assert (failure["kind"], failure["what"], failure["cure"]) == (
        "unknown connection", "there is no connection `nowhere`", known,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("connection", "said"),
    [
        ("down", "connection refused"),
        ("plain", "it does not speak TLS, but sslmode is `require`"),
        ("untrusted", "its certificate is not trusted (self-signed certificate)"),
        ("locked_out", "password authentication failed"),
        ("elsewhere", 'database "no_such_database" does not exist'),
    ],
)
async def test_an_upstream_that_cannot_be_used_is_named_at_both_doors(
    served: Served, connection: str, said: str
) -> None:
    failed = await served.knock(connection)
    # Never class 28: the client's own password is right, and psql would ask for another.
    assert failed.sqlstate == "08006"
    assert f"the database behind `{connection}` cannot be used: " in str(failed)
    assert said in str(failed)
    failure = error(await served.query("SELECT 1", connection=connection))
    assert failure["kind"] == "upstream unavailable"
    assert said in failure["what"]
    assert failure["cure"].startswith("Nothing was executed. Check that it is up")


async def test_all_that_leaves_the_right_connection_working_and_no_session_open(served: Served) -> None:
    assert answer(await served.query("SELECT 1 AS one"))["rows"] == [[1]]
    assert served.psql("shop", served.stack.tokens["devin"]).returncode == 0

    def nobody_is_in() -> bool:
        with contextlib.closing(sqlite3.connect(f"file:{served.audit}?mode=ro", uri=True)) as db:
            return not db.execute("SELECT 1 FROM sessions WHERE closed IS NULL AND door = 'wire'").fetchone()

    until(nobody_is_in, "a session of the wire door stays open")
