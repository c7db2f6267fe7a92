"""pgcli through the wire door, compared with pgcli on a direct connection."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.stack import Stack

SESSION = Path(__file__).with_name("pgcli_session.py")


def pgcli(home: Path, host: str, port: int, user: str, password: str, database: str) -> dict[str, Any]:
    """What the session found."""
    done = subprocess.run(
        [sys.executable, SESSION, host, str(port), user, database],
        env={"PGPASSWORD": password, "PATH": "/usr/bin:/bin", "HOME": str(home)},
        capture_output=True, encoding="utf-8", timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pgcli")


@pytest.fixture(scope="module")
def through(stack: Stack, home: Path) -> dict[str, Any]:
    return pgcli(home, stack.host, stack.port, "devin", stack.tokens["devin"], stack.database)


@pytest.fixture(scope="module")
def directly(stack: Stack, home: Path) -> dict[str, Any]:
    upstream = stack.demo.config.connections[0]
    return pgcli(home, upstream.host, upstream.port, upstream.user, upstream.password, upstream.database)


def test_completion_and_backslash_commands_find_what_they_find_directly(
    through: dict[str, Any], directly: dict[str, Any]
) -> None:
    compared = sorted(set(directly) - {"masked", "refused"})
    assert [(name, through[name]) for name in compared] == [(name, directly[name]) for name in compared]
    assert "customers" in through["tables"]
    assert "nme" in through["position"]


def test_what_somebody_types_is_masked_and_refused(through: dict[str, Any], directly: dict[str, Any]) -> None:
    [[_, [[ssn, card]], _, _, _], [_, [[one]], _, _, _]] = through["masked"]
    [[_, [[raw, _]], _, _, _], _] = directly["masked"]
    assert (ssn, card, one) == ("*" * 7 + raw[-4:], "[redacted]", 1)
    for told in ("agents-never-drop", "HINT"):
        assert told in through["refused"]
