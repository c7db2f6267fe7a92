"""Drivers' own test suites, direct and through the wire door: `python -m tests.conformance.driver_suites [NAME …]`.

Fetches the suites that PyPI's source packages hold (asyncpg, psycopg2, pg8000) into a temporary folder, with an
environment of their own, and runs each twice as the superuser of an empty PostgreSQL: once directly, once through a
gateway whose policy allows everything. Prints what passed, how many passed only directly and for which of the
`REASONS`, and by name those that have none, with the first line of their failure: then the exit status is 1. We keep
no copy of any suite.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from server.app import serve
from server.config import load_config
from server.demo import prepare
from server.postgres import SUPERUSER, Postgres

DATABASE = "postgres"
POLICY = "rules:\n  - {name: everything, effect: allow, actions: ['*']}\n"
_MINUTES = 9


@dataclass(frozen=True)
class Target:
    """Where a suite connects to, always as the superuser's name and to the database `postgres`."""

    host: str
    port: int
    password: str

    @property
    def environment(self) -> dict[str, str]:
        """As libpq and the suites read it."""
        there = {"HOST": self.host, "PORT": str(self.port), "USER": SUPERUSER, "PASSWORD": self.password}
        return {f"PG{name}": value for name, value in there.items()} | {
            "PGDATABASE": DATABASE,
            "PSYCOPG2_TESTDB": DATABASE,
        }


@dataclass(frozen=True)
class Suite:
    """One project's tests: what pytest is to run of its source package, and the folder there that hides the driver."""

    project: str
    version: str
    arguments: tuple[str, ...]
    shadow: str
    without: str = "not nothing"  # pytest's -k


SUITES = (
    Suite("asyncpg", "0.32.0", ("tests",), shadow="asyncpg", without="not sourcecode and not SSL and not subinterp"),
    Suite("psycopg2", "2.9.13", ("tests",), shadow="lib"),
    Suite("pg8000", "1.31.6", ("test",), shadow="src", without="not readme and not auth and not ssl"),
)
NEEDED = ("asyncpg==0.32.0", "psycopg2-binary==2.9.13", "pg8000==1.31.6", "pytest>=9.2,<10", "pytest-timeout",
          "pytest-mock", "pytz", "distro", "uvloop")  # fmt: skip

# Why a test that passes directly may fail through the door: the first expression that is found in its name or failure.
REASONS = (
    (r"(is|are) always refused|is never called here|is never readable here", "needs what is always refused"),
    # These sleep, terminate or look for what they terminated: the first line of their failure is the consequence.
    (
        r"test_prepare_19_concurrent|TestCloseTimeoutPendingCancel|_external_close|on_badconn",
        "needs what is always refused",
    ),
    (
        r"may not be changed here|READ WRITE|may only be UTF8|`options` is refused",
        "sets what is pinned",
    ),
    (r"names private to a session cannot be checked", "needs a temporary table"),
    (r"an earlier statement of the same message may change", "uses in a message what the same message has made"),
    (r'relation "(tab|copytab|cursor_iterable_06)" does not exist', "uses in a message what the same message has made"),
    (r"is a portal of the protocol", "needs FETCH or MOVE of a portal that Bind made"),
    (r'prepared statement "foobar" does not exist', "needs SQL's EXECUTE of what Parse has prepared"),
    (r"more than the limit of 1048576", "sends a text of more than 1 MiB"),
    (r"there is no connection `", "connects to a database that is no connection"),
    (r"test_executemany_server_failure_during_writes", "expects to be stopped earlier: the door reads ahead"),
    (r"from pytest-timeout", "took longer than a minute"),
    (r'type "lepton" already exists', "meets what an earlier test could not clean up"),
)


@asynccontextmanager
async def _gateway(folder: Path) -> AsyncIterator[Target]:
    async with prepare(folder, mcp_port=0, wire_port=0) as demo:
        (folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
        (folder / "superuser").write_text(demo.postgres.password, encoding="utf-8")
        told = yaml.safe_load(demo.config_path.read_text(encoding="utf-8"))
        [shop] = told["connections"].values()
        superuser = {"database": DATABASE, "user": SUPERUSER, "password_file": "superuser", "recording": "metadata"}
        told["connections"] = {DATABASE: {**shop, **superuser}}
        demo.config_path.write_text(yaml.safe_dump(told), encoding="utf-8")
        async with serve(load_config(demo.config_path)) as app:
            assert app.wire_host is not None
            assert app.wire_port is not None
            yield Target(app.wire_host, app.wire_port, demo.tokens["grace"])


@contextmanager
def through_the_door(folder: Path) -> Iterator[Target]:
    """An empty PostgreSQL behind a gateway, which runs in a thread of its own."""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    opened: list[Target] = []
    ready = threading.Event()

    async def run() -> None:
        async with _gateway(folder) as there:
            opened.append(there)
            ready.set()
            await stop.wait()

    def main() -> None:
        with contextlib.closing(loop):
            try:
                loop.run_until_complete(run())
            finally:
                ready.set()

    thread = threading.Thread(target=main)
    thread.start()
    ready.wait(60)
    try:
        yield opened[0]
    finally:
        if opened:
            loop.call_soon_threadsafe(stop.set)
        thread.join(60)


def environment(folder: Path) -> Path:
    """An environment with the drivers and pytest; its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *NEEDED], check=True)
    return python


def fetched(python: Path, suite: Suite, folder: Path) -> Path:
    """The unpacked source package, without the code that the installed one stands for."""
    wanted = f"{suite.project}=={suite.version}"
    download = ["download", "-q", "--disable-pip-version-check", "--no-deps", "--no-binary", suite.project]
    subprocess.run([python, "-m", "pip", *download, "-d", folder, wanted], check=True)
    [archive] = folder.glob(f"{suite.project}-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    source = folder / archive.name.removesuffix(".tar.gz")
    (source / suite.shadow).rename(source / f"{suite.shadow}.away")
    return source


def results(python: Path, suite: Suite, source: Path, target: Target) -> dict[str, str]:
    """Every test that ran, with the text of its failure, which is empty where it passed; skipped ones are left out."""
    report = source / "report.xml"
    report.unlink(missing_ok=True)
    command: list[str | Path] = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", suite.without]
    command += ["-o", "junit_family=xunit1"]
    command += ["--timeout", "60", "--junitxml", report, "-W", "default", *suite.arguments]
    there = {"PATH": os.environ["PATH"], "HOME": str(source), **target.environment}
    with (source / "output.txt").open("w") as output:
        subprocess.run(
            command, cwd=source, env=there, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            timeout=_MINUTES * 60, check=False,
        )  # fmt: skip
    found: dict[str, str] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        if case.find("skipped") is not None:
            continue
        name = f"{case.get('classname')}::{case.get('name')}"
        problems = [p for p in case if p.tag in ("failure", "error")]
        found[name] = "\n".join(f"{p.get('message')}\n{p.text}" for p in problems)
    return found


def reason(name: str, failure: str) -> str | None:
    """Why a test fails through the door only; None where that is not known."""
    return next((why for expression, why in REASONS if re.search(expression, f"{name}\n{failure}")), None)


def compare(suite: Suite, direct: dict[str, str], through: dict[str, str]) -> int:
    """Print the suite's row and its differences; how many of those have no reason."""
    passed = {name for name, failure in direct.items() if not failure}
    both = {name for name in passed if through.get(name, "it did not run") == ""}
    print(f"\n{suite.project} {suite.version}: {len(passed)} pass directly, {len(both)} of them through the door")
    counted: Counter[str] = Counter()
    for name in sorted(passed - both):
        failure = through.get(name, "it did not run")
        if (why := reason(name, failure)) is None:
            why = "no reason known"
            lines = [line for line in failure.splitlines() if line.strip()]
            print(f"  {name}\n      {lines[0][:300] if lines else ''}")
        counted[why] += 1
    for why, number in counted.most_common():
        print(f"  {number:4} {why}")
    return counted["no reason known"]


def main(names: list[str]) -> int:
    """Fetch, run twice, compare; the exit status."""
    unexplained = 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        python = environment(folder / "environment")
        for suite in SUITES:
            if names and suite.project not in names:
                continue
            place = folder / suite.project
            source, began = fetched(python, suite, place), time.monotonic()
            with Postgres(place / "postgres") as server:
                direct = results(python, suite, source, Target(server.host, server.port, server.password))
            with through_the_door(place / "gateway") as target:
                through = results(python, suite, source, target)
            unexplained += compare(suite, direct, through)
            print(f"       took {time.monotonic() - began:.0f} s", flush=True)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
