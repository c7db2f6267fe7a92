"""What tools ask of a database, taken from the tools themselves: a policy that lets read refuses none of it.

psql is made to run each of its commands, and pg_dump to dump a schema, against a server of the same version that
logs what it is asked. Each statement is then decided against that server's catalog.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from policy.engine import decide, split
from policy.load import load_policy
from policy.model import Effect, Facts, Principal, PrincipalKind
from server.postgres import Postgres
from tests.servers import found_binaries, snapshot

SCRIPT = Path(__file__).with_name("stored_code.sql").read_text(encoding="utf-8")
POLICY = load_policy(
    "rules:\n  - {name: read, effect: allow, actions: [select, explain, lock, call],"
    " relations: ['*.*'], functions: ['app.*']}\n",
    "read.yaml",
)
READER = Principal("reader", "https://issuer.example", PrincipalKind.HUMAN)
_MARK = "@@"
_STATEMENT = re.compile(rf"{_MARK}LOG:  (?:statement|execute [^:]*): (.*)")

# Every command of psql that asks the server, in each form that changes the query.
COMMANDS = r"""
\d \dS+ \d+ app.* \dti+ app.* \l+ \da \daS \dA+ \dAc+ \dAf+ \dAo+ \dAp+ \db+ \dc+ \dC+ \dd \ddp \dD+ \dE+ \des+
\det+ \deu \dew+ \df+ app.* \df *.* \dF+ \dFd+ \dFp+ \dFt+ \dg+ \di+ *.* \dl+ \dL+ \dm+ \dn+ \do+ \dO+ \dp *.*
\dP+ \drds \dRp+ \dRs \ds+ *.* \dt+ *.* \dT+ app.* \du+ \dv+ *.* \dx+ \dX \dy+ \z \sf app.f_view \sv app.calls_view
\dconfig+ work_* \conninfo \encoding
"""


@pytest.fixture(scope="module", params=found_binaries(), ids=lambda folder: folder.parent.name)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    logging = {"log_statement": "all", "log_line_prefix": _MARK}
    folder = tmp_path_factory.mktemp("postgres")
    with Postgres(folder, bin_folder=request.param, settings=logging) as running:
        running.run_script("CREATE ROLE reader LOGIN PASSWORD 'reader'; CREATE SCHEMA app AUTHORIZATION reader;")
        running.run_script("SET SESSION AUTHORIZATION reader;\n" + SCRIPT.replace("CREATE SCHEMA app;", ""))
        yield running


def _asked(server: Postgres, program: str, *arguments: str, given: str = "") -> list[str]:
    """The statements that the server logs while a program runs as an ordinary user."""
    before = len(server.log_path.read_text(encoding="utf-8"))
    done = subprocess.run(
        [server.bin_folder / program, *arguments],
        input=given.encode(),
        env=server.environment("reader", "reader"),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, None] = {}
    lines: list[str] = []
    for line in [*server.log_path.read_text(encoding="utf-8")[before:].splitlines(), _MARK]:
        if line.startswith("\t") and lines:
            lines.append(line[1:])
            continue
        if lines:
            found["\n".join(lines)] = None
        start = _STATEMENT.match(line)
        lines = [start[1]] if start else []
    return list(found)


def _refusals(server: Postgres, texts: list[str], path: tuple[str, ...]) -> list[str]:
    known = Facts("test", snapshot(server, "postgres"), path)
    refused = []
    for text in (t.encode() for t in texts):
        for start, end in split(text):
            decision = decide(POLICY, READER, known, text[start:end])
            codes = [r.code for r in decision.verdict.reasons if r.effect is decision.verdict.effect]
            # EXECUTE comes after the PREPARE, which is decided here too.
            if decision.verdict.effect is not Effect.ALLOW and codes != ["prepared.unknown"]:
                refused.append(f"{decision.verdict.reasons[0].text} in {text.decode()}")
    return refused


def test_nothing_that_psql_asks_for_its_commands_is_refused(server: Postgres) -> None:
    commands = re.sub(r" (?=\\)", "\n", COMMANDS)
    asked = _asked(server, "psql", "-X", given=commands)
    assert len(asked) > 100
    assert _refusals(server, asked, ("pg_catalog", "public")) == []


def test_only_what_shows_credentials_is_refused_to_psql(server: Postgres) -> None:
    refused = _refusals(server, _asked(server, "psql", "-X", given="\\deu+\n"), ("pg_catalog", "public"))
    assert [text.partition(" in ")[0] for text in refused] == [
        "`pg_catalog.pg_user_mappings` is only readable here without `umoptions`: it holds credentials"
    ]


def test_nothing_that_pg_dump_asks_for_a_schema_is_refused(server: Postgres) -> None:
    asked = _asked(server, "pg_dump", "--schema-only", "--schema=app", "postgres")
    assert len(asked) > 40
    assert _refusals(server, asked, ("pg_catalog",)) == []
