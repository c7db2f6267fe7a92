"""Pure: measured evidence in sentences, for approvers at every face."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

Evidence = Mapping[str, Any]


def sentences(evidence: Evidence | None, *, with_locks: bool = True) -> list[str]:
    """What was measured, or why nothing was. Empty for a statement that is not measured at all."""
    if evidence is None:
        return []
    if "migration" in evidence:
        return _migration(evidence["migration"], with_locks)
    if "reads" in evidence:
        reads = evidence["reads"]
        return [f"the planner expects {_rows(reads['rows'])}; the result stops after {reads['at_most']}"]
    if not evidence["measured"]:
        lines = [f"not measured: {evidence['why']}"]
    else:
        rows, least, most = evidence["rows"], evidence["at_least"], evidence["at_most"]
        bounds = f"exactly {rows}" if least == most else f"{least} to {most}"
        lines = [
            f"a rehearsal, rolled back, changed {_rows(rows)} in {evidence['duration_ms']} ms; "
            f"the run is rolled back unless it changes {bounds}"
        ]
        lines += [_changes(table) for table in evidence["tables"]]
    return lines + [f"sets off {code}" for code in evidence.get("sets_off", ())]


def locks(evidence: Evidence | None) -> list[tuple[str, str, str]]:
    """What a migration locked in its rehearsal: statement, mode, relation, in this order; and what it wrote again."""
    steps = (evidence or {}).get("migration", {}).get("statements", ())
    return [
        found
        for number, step in enumerate(steps, 1)
        for found in (
            *((str(number), lock["mode"], lock["relation"]) for lock in step.get("locks", ())),
            *((str(number), "rewrites all rows of", relation) for relation in step.get("rewrites", ())),
        )
    ]


def samples(evidence: Evidence | None) -> list[str]:
    """Some rows before and after, one line a row: only what changes, and what names the row."""
    return [_sample(one["before"], one["after"]) for one in (evidence or {}).get("sample", ())]


def _migration(seen: Evidence, with_locks: bool) -> list[str]:
    lines = [f"migration: {seen['title']}", f"rehearsed {seen['where']}", f"runs {seen['how']}"]
    lines += [f"step {number}: {step}" for number, step in enumerate(seen["steps"], 1) if len(seen["steps"]) > 1]
    if not seen["rehearsed"]:
        lines.append(f"not measured: {seen['why_not']}")
    for number, step in enumerate(seen["statements"], 1):
        time = f", {step['duration_ms']} ms" if "duration_ms" in step else ""
        lines.append(f"statement {number} ({step['kind']}{time})")
        if with_locks:
            lines += [f"  lock {lock['mode']} on {lock['relation']}" for lock in step.get("locks", ())]
            lines += [f"  rewrites {relation}" for relation in step.get("rewrites", ())]
        lines += [f"  lint {found['rule']}: {found['message']}" for found in step["lint"]]
        lines += [f"  {step['note']}"] if "note" in step else []
    lines += [line for change in seen["changes"] for line in _change(change)]
    lines += [f"read by the view {view}" for view in seen["read_by"]]
    return lines + [f"undo: {line}" for line in seen["undo"] or ["nothing that could be measured"]]


def _change(change: Mapping[str, str | None]) -> list[str]:
    """One line; of a definition of several lines only those that differ."""
    before, after = change["before"] or "", change["after"] or ""
    head = f"{change['what']} {change['kind']} {change['name']}"
    if "\n" not in before + after:
        said = f"{before} -> {after}" if change["what"] == "changed" else before or after
        return [head + (f": {said}" if said else "")]
    different = difflib.ndiff(before.splitlines(), after.splitlines())
    return [head, *(f"  {line}" for line in different if line.startswith(("+ ", "- ")))]


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def _changes(table: Mapping[str, Any]) -> str:
    parts = [f"{table[how]} {how}" for how in ("inserted", "updated", "deleted") if table[how]]
    return f"{table['relation']}: {', '.join(parts)}"


def _sample(before: Mapping[str, str | None], after: Mapping[str, str | None] | None) -> str:
    if after is None:
        return "- " + ", ".join(f"{name}={_value(value)}" for name, value in before.items())
    first = next(iter(before))
    changed = [name for name in before if before[name] != after.get(name)]
    shown = [f"{first}={_value(before[first])}"] if first not in changed else []
    shown += [f"{name}: {_value(before[name])} -> {_value(after.get(name))}" for name in changed]
    return "~ " + ", ".join(shown if changed else [*shown, "unchanged"])


def _value(value: str | None) -> str:
    return "NULL" if value is None else repr(value)
