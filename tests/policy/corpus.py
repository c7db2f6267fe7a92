"""The policy cases as data, for every way of running them: `decide()`, the MCP door, psql.

A file of `cases/` says `policy` (a path from the repository's root) and `who` for all of its `cases`; a case
may say otherwise, and adds `note`, `sql`, `decision`, and where it matters `reasons` (codes of the deciding
reasons, each at least once), `rewritten` and `path` (the session's search path).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from policy.load import load_policy
from policy.rules import Policy
from tests.policy.sample import PATH

ROOT = Path(__file__).parents[2]
_CASES = Path(__file__).with_name("cases")
_COLUMNS = '"id", "name", "email", "ssn", CAST(NULL AS text) AS "card", "notes", "created_at"'
_SHORT = {
    "<customers>": f'SELECT {_COLUMNS} FROM "public"."customers"',
    "<customers only>": f'SELECT {_COLUMNS} FROM ONLY "public"."customers"',
}


@dataclass(frozen=True)
class Case:
    """One line of the corpus."""

    id: str
    note: str
    policy: str
    who: str
    sql: str
    decision: str
    reasons: tuple[str, ...] | None
    rewritten: str | None
    path: tuple[str, ...]


@cache
def policy_of(name: str) -> Policy:
    """A policy that cases name."""
    return load_policy((ROOT / name).read_text(encoding="utf-8"), name)


def load_cases() -> list[Case]:
    """The whole corpus."""
    return [case for file in sorted(_CASES.glob("*.yaml")) for case in _cases_of(file)]


def _cases_of(file: Path) -> list[Case]:
    data: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    cases = []
    for number, raw in enumerate(data["cases"], 1):
        entry = {"policy": data["policy"], "who": data["who"], "path": PATH} | raw
        unknown = entry.keys() - Case.__dataclass_fields__.keys()
        assert not unknown, f"{file.name}: {unknown}"
        reasons, rewritten = entry.get("reasons"), entry.get("rewritten")
        for short, long in _SHORT.items():
            rewritten = rewritten.replace(short, long) if rewritten else rewritten
        cases.append(
            Case(
                id=f"{file.stem}-{number}",
                note=entry["note"],
                policy=entry["policy"],
                who=entry["who"],
                sql=entry["sql"],
                decision=entry["decision"],
                reasons=tuple(reasons) if reasons is not None else None,
                rewritten=rewritten,
                path=tuple(entry["path"]),
            )
        )
    return cases
