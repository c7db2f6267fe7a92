"""The table of attacks on approvals: each names tests that hold it off, and all of these exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

TESTS = Path(__file__).parents[1]
ATTACKS: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("approval_threats.yaml").read_text())
FOUND = {
    name
    for path in TESTS.rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
}


@pytest.mark.parametrize("row", ATTACKS, ids=[row["attack"] for row in ATTACKS])
def test_an_attack_on_approvals_has_its_tests(row: dict[str, Any]) -> None:
    assert row["tests"]
    assert set(row["tests"]) <= FOUND
