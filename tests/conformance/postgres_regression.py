"""PostgreSQL's own regression SQL against the analysis: `python -m tests.conformance.postgres_regression FOLDER`.

FOLDER holds the `*.sql` files of PostgreSQL's `src/test/regress/sql`; we keep no copy. psql runs each against an
embedded server that logs what it was asked, and every statement is then decided against that server's catalog.
A statement that the server's grammar accepted (PostgreSQL logs statements after parsing them) must not be a syntax
error here, and none may meet a failure of our own or a kind of node that we do not know. Prints the figures; the
exit status is 1 if any of this does not hold.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from policy.engine import NotAnalysableError, decide, split
from policy.load import load_policy
from policy.model import Decision, Effect, Facts, Principal, PrincipalKind
from server.postgres import Postgres
from tests.servers import snapshot

POLICY = load_policy("rules:\n  - {name: everything, effect: allow, actions: ['*']}\n", "everything.yaml")
SOMEBODY = Principal("somebody", "https://issuer.example", PrincipalKind.HUMAN)
# Never right, whatever the statement.
FAILURES = ("syntax", "internal", "node.unknown")

_MARK = "@@"
_STATEMENT = re.compile(rf"{_MARK}LOG:  (?:statement|execute [^:]*): (.*)")
_STRINGS = re.compile(rb"(?i)^\s*(?:set|reset) +standard_conforming_strings *(?:=|to|) *(\w*)")
_SECONDS_PER_FILE = 60


def main(folder: Path) -> int:
    """Run every file; the exit status."""
    counted: Counter[str] = Counter()
    failures: list[str] = []
    logging = {"log_statement": "all", "log_line_prefix": _MARK, "statement_timeout": "2s", "wal_level": "logical"}
    with tempfile.TemporaryDirectory() as place, Postgres(Path(place), settings=logging) as server:
        files = sorted(folder.glob("*.sql"), key=lambda path: (path.stem != "test_setup", path.stem))
        for file in files:
            asked = _asked(server, file)
            known = Facts("test", snapshot(server, "postgres"), ("pg_catalog", "public"))
            standard = True
            for text in asked:
                if (change := _STRINGS.search(text)) is not None:
                    standard = change[1].lower() in (b"on", b"default", b"")
                if not standard:
                    continue  # the gateway pins the setting: such a text cannot reach it
                for statement, decision in _decisions(known, text):
                    counted[_code(decision)] += 1
                    if _code(decision) in FAILURES:
                        failures.append(f"{file.name}: {_reason(decision)}\n    {statement[:300]!r}")
    print(f"{sum(counted.values())} statements of {len(files)} files")
    for code, number in counted.most_common():
        print(f"{number:8} {code}")
    for failure in failures:
        print(failure)
    return 1 if failures else 0


def _asked(server: Postgres, file: Path) -> list[bytes]:
    """What the server logs while psql runs a file; errors and time-outs are the file's own business."""
    before = server.log_path.stat().st_size
    try:
        subprocess.run(
            [server.bin_folder / "psql", "-Xq", "-f", file],
            env=server.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=file.parent,
            timeout=_SECONDS_PER_FILE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print(f"{file.name} took longer than {_SECONDS_PER_FILE} s; what it asked until then counts")
    with server.log_path.open("rb") as log:
        log.seek(before)
        lines = log.read().decode("utf-8", "surrogateescape").split("\n")
    found: list[str] = []
    for line in lines:
        if start := _STATEMENT.match(line):
            found.append(start[1])
        elif line.startswith("\t"):
            if found and found[-1]:
                found[-1] += "\n" + line[1:]
        elif found and found[-1]:
            found.append("")
    return [text.encode("utf-8", "surrogateescape") for text in found if text]


def _decisions(known: Facts, text: bytes) -> Iterator[tuple[bytes, Decision]]:
    try:
        ranges = split(text)
    except NotAnalysableError:
        ranges = ((0, len(text)),)
    for start, end in ranges:
        yield text[start:end], decide(POLICY, SOMEBODY, known, text[start:end])


def _code(decision: Decision) -> str:
    verdict = decision.verdict
    if verdict.effect is not Effect.DENY:
        return "allowed"
    return next(r.code for r in verdict.reasons if r.effect is Effect.DENY)


def _reason(decision: Decision) -> str:
    return next(r.text for r in decision.verdict.reasons if r.effect is Effect.DENY)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
