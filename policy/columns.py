"""Which columns of its relations a statement touches, for rules about columns: never too few.

INVARIANT: a column that can reach the result, a condition or a stored value is touched. Read is every column whose
name stands anywhere in the statement, as a column, an alias or a function, with what it is generated from; and all of
them, where anything could stand for the whole row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from policy.masking import Masking
from policy.model import Action, Columns, Demand, ObjectKind
from policy.names import is_system
from policy.parse import Node
from policy.reading import Reading, Reference, Role
from policy.tree import Tree, nodes, row_name

COLUMNED: Final = frozenset((Action.SELECT, Action.INSERT, Action.UPDATE))

_ROW_NAMES: Final = frozenset(("old", "new", "excluded"))
_SYSTEM_COLUMNS: Final = frozenset(("ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"))


def with_columns(reading: Reading, masking: Masking) -> tuple[Demand, ...]:
    """The demands of a statement, each with the columns that it touches, where the statement itself shows them.

    `masking` knows what generated columns are computed from.
    """
    references: dict[int, list[Reference]] = {}
    for reference in reading.references:
        references.setdefault(reference.relation.oid, []).append(reference)
    return tuple(
        demand._replace(columns=_columns(reading, masking, demand, found))
        if (found := references.get(demand.oid or 0)) and _is_shown(reading, demand, found[0])
        else demand
        for demand in reading.analysis.demands
    )


def _is_shown(reading: Reading, demand: Demand, reference: Reference) -> bool:
    """Whether the statement's own text tells all that the demand is about."""
    return (
        demand.action in COLUMNED
        and demand.object.kind is ObjectKind.RELATION
        and (demand.action, demand.object) not in reading.unseen
        and bool(reference.relation.columns)
        and not is_system(reference.relation)
    )


def _columns(reading: Reading, masking: Masking, demand: Demand, references: Sequence[Reference]) -> Columns:
    own = frozenset(column.name for column in references[0].relation.columns)
    if demand.action is Action.SELECT:
        for reference in references:
            if (whole := whole_row(reading.mentions, reference, own)) is not None:
                return Columns(own, whole)
        named = own & reading.mentions.words
        sources = masking.sources(references[0].relation)
        generated = sorted(named & sources.keys())
        further = own & frozenset[str]().union(*map(sources.__getitem__, generated)) - named
        return Columns(named | further, generated=tuple(generated) if further else ())
    written: set[str] = set()
    for names in written_by(reading.tree, demand.action, references):
        if names is None:
            return Columns(own, "a write without a list of columns")
        written |= names
    return Columns(own & written)


def whole_row(tree: Tree, reference: Reference, own: frozenset[str]) -> str | None:
    """What may stand for all columns of the relation here, or None."""
    var = reference.var
    if tree.joins_rows:
        return "a natural join, or a join with a name of its own,"
    if "colnames" in var.get("alias", {}):
        return "the alias with names of its own for columns"
    if reference.role is Role.COPY_OUT and not any(
        "attlist" in body for body in _statements(tree.tree, "CopyStmt") if body.get("relation") is var
    ):
        return "COPY without a list of columns"
    if "conname" in tree.tags:
        return "ON CONSTRAINT"
    writes = reference.role is not Role.SOURCE
    if writes and "ReturningOption" in tree.tags:
        return "a new name for the row in RETURNING"
    rows = {row_name(var), var["relname"], *(_ROW_NAMES if writes else ())}
    if tree.holds_row_star or any(not words or words[-1] in rows for words in tree.stars):
        return "`*`"
    known = own | _SYSTEM_COLUMNS
    for row in rows:
        for words in tree.columns.get(row, ()):
            if len(words) == 1:
                return f"`{row}`"
            if words[1] not in known:
                return f"`{row}.{words[1]}`"  # calls the function with the whole row
    for words in tree.columns.get(reference.relation.schema, ()):
        if words[1:2] == (reference.relation.name,) and (len(words) == 2 or words[2] not in known):
            return f"`{'.'.join(words)}`"
    return None


def written_by(tree: Node, action: Action, references: Sequence[Reference]) -> Iterator[set[str] | None]:
    """The columns that each write of this kind to the relation sets; None where it names none of them."""
    own = {id(reference.var) for reference in references}
    found = False
    for node in nodes(tree):
        for tag, body in node.items():
            if not isinstance(body, dict) or id(body.get("relation")) not in own:
                continue
            if tag == "InsertStmt" and action is Action.INSERT:
                found = True
                yield _names(body["cols"]) if "cols" in body else None if "selectStmt" in body else set()
            elif tag == "InsertStmt" and "onConflictClause" in body:
                found = True
                yield _names(body["onConflictClause"].get("targetList", ()))
            elif tag == "UpdateStmt" and action is Action.UPDATE:
                found = True
                yield _names(body["targetList"])
            elif tag == "CopyStmt" and action is Action.INSERT:
                found = True
                yield {item["String"]["sval"] for item in body["attlist"]} if "attlist" in body else None
            elif tag == "MergeStmt":
                found = True
                yield from _merged(body, action)
    if not found:
        yield None  # whatever it is, it may write any


def _merged(body: Node, action: Action) -> Iterator[set[str] | None]:
    command = "CMD_INSERT" if action is Action.INSERT else "CMD_UPDATE"
    for clause in (item["MergeWhenClause"] for item in body["mergeWhenClauses"]):
        if clause.get("commandType") == command:
            named = "targetList" in clause
            yield _names(clause["targetList"]) if named else None if "values" in clause else set()


def _names(targets: Sequence[Node]) -> set[str]:
    return {target["ResTarget"].get("name", "") for target in targets}


def _statements(tree: Node, tag: str) -> Iterator[dict[str, Any]]:
    return (node[tag] for node in nodes(tree) if tag in node)
