"""Statements that would have values of one's own choosing shown as pseudonyms: guesses, to be compared with the others.

Who sees pseudonyms does not write their columns (`policy.sideways`). Here: nor makes such a column, with a default or
with values that were there before it had the name, nor brings a table's rows among those of one that has them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from policy.masking import Masking
from policy.masks import needs_key
from policy.model import Action, ObjectKind
from policy.parse import NotAnalysableError
from policy.reading import Reading, Reference, Role
from policy.sideways import JOINS, MOVES
from policy.tree import nodes

_SETS_DEFAULT: Final = "T"


def check(reading: Reading, masking: Masking) -> None:
    """Refuse them to whoever sees pseudonyms there. Raises NotAnalysableError `mask.oracle`."""
    if not masking.keyed:
        return
    _check_joined(reading, masking)
    _check_domain(reading, masking)
    names = _names(reading)
    for schema, name in _relations(reading):
        for mask in masking.keyed:
            if not mask.columns.fits_first((schema, name)):
                continue
            if names is None or any(mask.columns.matches((schema, name, column)) for column in names):
                raise _refused(
                    f"`{schema}.{name}` could have a column that is shown to you as pseudonyms, and values of your own"
                    " there would tell what the others stand for",
                    "Choose other names, or have it made by somebody for whom the column is not masked.",
                )


def _check_joined(reading: Reading, masking: Masking) -> None:
    """A table whose rows are shown with those of one that has pseudonyms; a new partition has no rows, nor defaults."""
    for reference in _joined(reading):
        if any(map(needs_key, masking.columns(reference.relation).values())):
            raise _refused(
                f"`{reference.relation.qualified}` has columns that are shown to you as pseudonyms, and rows of another"
                " table among its own would tell what they stand for",
                "Ask somebody for whom they are not masked.",
            )


def _check_domain(reading: Reading, masking: Masking) -> None:
    """The default of a domain is that of all its columns which have none of their own."""
    body = reading.tree.get("AlterDomainStmt", {})
    if body.get("subtype") == _SETS_DEFAULT and "def" in body and masking.of_users_types():
        raise _refused(
            "a default of the domain could become a value of columns that are shown to you as pseudonyms, and tell what"
            " the others stand for",
            "Ask somebody for whom they are not masked.",
        )


def _joined(reading: Reading) -> Iterable[Reference]:
    """The relations that a table is put under; where it is made for that, if defaults could come from elsewhere."""
    body = reading.tree[reading.analysis.kind]
    if any(node.get("subtype") in JOINS for node in nodes(body)):
        return reading.references
    parents = body.get("inhRelations", ()) if "TableLikeClause" in reading.mentions.tags else ()
    own = {id(parent["RangeVar"]) for parent in parents}
    return [reference for reference in reading.references if id(reference.var) in own]


def _relations(reading: Reading) -> list[tuple[str, str]]:
    """The relations that the statement makes, by the names that they get, and those that get columns."""
    made = [
        (demand.object.schema or "", demand.object.name)
        for demand in reading.analysis.demands
        if demand.action is Action.CREATE and demand.object.kind is ObjectKind.RELATION
    ]
    altered = reading.references if reading.analysis.kind in ("AlterTableStmt", "RenameStmt") else ()
    return made + [(reference.relation.schema, reference.relation.name) for reference in altered]


def _names(reading: Reading) -> set[str] | None:
    """What the columns could be called that the statement makes; None for anything."""
    kind, mentions = reading.analysis.kind, reading.mentions
    if "ofTypename" in mentions.tags or "ExecuteStmt" in mentions.tags:
        return None
    if mentions.holds_row_star or (mentions.holds_star and "RangeFunction" in mentions.tags):
        return None
    copied = reading.references if kind in MOVES else [r for r in reading.references if _is_copied(reading, r)]
    return mentions.words | {column.name for reference in copied for column in reference.relation.columns}


def _is_copied(reading: Reading, reference: Reference) -> bool:
    """Whether what is made could have all of this relation's columns, and values in them that it has not."""
    if reading.analysis.kind == "CreateStmt":
        copied = (node["TableLikeClause"] for node in nodes(reading.tree) if "TableLikeClause" in node)
        return any(clause["relation"] is reference.var for clause in copied)
    return reference.role is Role.SOURCE and reading.mentions.holds_star


def _refused(why: str, cure: str) -> NotAnalysableError:
    return NotAnalysableError("mask.oracle", why, cure=cure)
