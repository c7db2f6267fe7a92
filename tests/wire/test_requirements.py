"""The table of the protocol chapter's rules, held from both sides: every rule has its test, every test its rule."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from wire import copy, frontend
from wire.messages import BACKEND, FRONTEND

TESTS = Path(__file__).parents[1]
SECTIONS: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    Path(__file__).with_name("requirements.yaml").read_text(encoding="utf-8")
)
ROWS = [(section, row) for section, rows in SECTIONS.items() for row in rows]
REFUSALS = " ".join((TESTS.parent / "docs/reference/not-supported.md").read_text(encoding="utf-8").split())

CITED_WHOLLY = ("test_wire_protocol.py", "test_wire_login.py")


def named_tests(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node.name for node in tree.body if isinstance(node, kinds) and node.name.startswith("test_")]


FOUND = Counter(name for path in TESTS.rglob("test_*.py") for name in named_tests(path))


@pytest.mark.parametrize(("section", "row"), ROWS, ids=[f"{s}-{r.get('rule') or r['message']}"[:70] for s, r in ROWS])
def test_a_rule_has_its_tests_or_its_refusal(section: str, row: dict[str, Any]) -> None:
    assert set(row) <= {"rule", "message", "tests", "refused"}
    assert ("rule" in row) != ("message" in row)
    assert row.get("tests") or row.get("refused"), f"{section}: nothing holds this rule"
    for name in row.get("tests", ()):
        assert FOUND[name] == 1, f"{section}: there is no one test `{name}`"
    if "refused" in row:
        assert row["refused"] in REFUSALS, f"{section}: not-supported.md does not say `{row['refused']}`"


def test_every_message_that_is_decoded_has_a_row() -> None:
    decoded = {decode.__self__.__name__ for decode in (*FRONTEND.values(), *BACKEND.values())}  # type: ignore[attr-defined]
    packets = {kind.__name__ for kind in frontend.Packet.__args__}
    rows = [row["message"] for _, row in ROWS if "message" in row]
    assert len(set(rows)) == len(rows)
    assert decoded | packets | {copy.CopyData.__name__} <= set(rows)


@pytest.mark.parametrize("file", CITED_WHOLLY)
def test_every_test_of_the_protocol_holds_a_rule(file: str) -> None:
    cited = {name for _, row in ROWS for name in row.get("tests", ())}
    assert sorted(set(named_tests(TESTS / "doors" / file)) - cited) == []
