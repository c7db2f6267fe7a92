"""Django through the wire door, compared with Django on a direct connection."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.stack import Stack

APPLICATION = Path(__file__).with_name("django_app.py")


def django(host: str, port: int, user: str, password: str, database: str) -> dict[str, Any]:
    """What the application found."""
    done = subprocess.run(
        [sys.executable, APPLICATION, host, str(port), user, database],
        env={"PGPASSWORD": password, "PATH": "/usr/bin:/bin"},
        capture_output=True, encoding="utf-8", timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def through(stack: Stack) -> dict[str, Any]:
    return django(stack.host, stack.port, "devin", stack.tokens["devin"], stack.database)


@pytest.fixture(scope="module")
def directly(stack: Stack) -> dict[str, Any]:
    upstream = stack.demo.config.connections[0]
    return django(upstream.host, upstream.port, upstream.user, upstream.password, upstream.database)


def test_inspectdb_finds_what_it_finds_directly(through: dict[str, Any], directly: dict[str, Any]) -> None:
    assert through["inspectdb"] == directly["inspectdb"]
    for model in ("class Customers(", "class Orders202601(", "class CustomerOrders("):
        assert model in through["inspectdb"]


@pytest.mark.parametrize("part", ["chunked", "written", "aggregate"])
def test_the_orm_finds_and_writes_what_it_does_directly(
    through: dict[str, Any], directly: dict[str, Any], part: str
) -> None:
    assert through[part] == directly[part]


def test_the_orm_sees_masks(through: dict[str, Any], directly: dict[str, Any]) -> None:
    for (ssn, card), (raw, _) in zip(through["customer"], directly["customer"], strict=True):
        assert re.fullmatch(r"\*{7}\d{4}", ssn)
        assert ssn[-4:] == raw[-4:]
        assert card == "[redacted]"


def test_errors_and_refusals_cost_no_more_than_their_savepoint(through: dict[str, Any]) -> None:
    errors = through["errors"]
    assert errors["division"][0] == "22012"
    code, detail, hint = errors["refused"]
    assert (code, errors["goes on"]) == ("42501", 1)
    assert "agents-never-drop" in detail
    assert hint
