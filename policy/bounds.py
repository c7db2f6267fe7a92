"""Whether an UPDATE or DELETE says which rows it means."""

from __future__ import annotations

from typing import Any

from policy.parse import Node

_EQUALITY = ("AEXPR_OP", "AEXPR_OP_ANY", "AEXPR_IN")


def is_bounded(statement: Node) -> bool:
    """Whether the WHERE of an UpdateStmt or DeleteStmt pins a column to given values.

    A pin is `column = value`, `column IN (values)`, `column = ANY (value)` or `column BETWEEN value AND
    value`, where a value holds no column. AND needs one pinned side, OR needs all. `WHERE true`,
    `id = id`, `id > 0` and joins are unbounded: they may reach every row. WHERE CURRENT OF is one row.
    """
    where = statement.get("whereClause")
    return where is not None and _pins(where)


def _pins(node: Node) -> bool:
    [(tag, body)] = node.items()
    match tag:
        case "CurrentOfExpr":
            return True
        case "BoolExpr" if body["boolop"] == "AND_EXPR":
            return any(map(_pins, body["args"]))
        case "BoolExpr" if body["boolop"] == "OR_EXPR":
            return all(map(_pins, body["args"]))
        case "A_Expr":
            return _compares(body)
    return False


def _compares(body: Node) -> bool:
    if "lexpr" not in body or "rexpr" not in body:
        return False
    left, right, operator = body["lexpr"], body["rexpr"], body["name"][-1]["String"]["sval"]
    if body["kind"] == "AEXPR_BETWEEN":
        return "ColumnRef" in left and not _holds_column(right)
    if body["kind"] not in _EQUALITY or operator != "=":
        return False
    if "ColumnRef" in left:
        return not _holds_column(right)
    return body["kind"] == "AEXPR_OP" and "ColumnRef" in right and not _holds_column(left)


def _holds_column(value: Any) -> bool:
    """Whether anything below is a column or a subquery (whose values nobody sees here)."""
    if isinstance(value, list):
        return any(map(_holds_column, value))
    if isinstance(value, dict):
        return "ColumnRef" in value or "SubLink" in value or any(map(_holds_column, value.values()))
    return False
