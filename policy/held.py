"""Catalogs of PostgreSQL's that hold values of user tables: the bounds of partitions, and what fills a new column.

Names, constraints, defaults and other expressions are the schema: whoever wrote them chose to show them. A bound of a
partition is a value that rows have, and so is what `ALTER TABLE … ADD COLUMN … DEFAULT` gives the rows that are there.
"""

from __future__ import annotations

from typing import Final

from policy.columns import whole_row
from policy.functions import HELD_COLUMNS, TELLS_BOUNDS
from policy.masking import Masked, Masking
from policy.parse import NotAnalysableError
from policy.reading import Reading, Reference

# Statements that give bounds, and the fields of a bound that hold values (nodes/parsenodes.h).
_BINDS: Final = frozenset(("CreateStmt", "AlterTableStmt"))
_VALUES: Final = frozenset(("listdatums", "lowerdatums"))


def shown(masking: Masking, reading: Reading, reference: Reference) -> Masked:
    """The masked columns of a relation that a statement could show where it mentions it.

    A catalog whose held column is not named, and for which nothing stands as a whole, is read as it is.
    """
    relation = reference.relation
    columns = masking.columns(relation)
    if columns and (name := HELD_COLUMNS.get(relation.oid)) is not None and name not in reading.mentions.words:
        own = frozenset(column.name for column in relation.columns)
        return columns if whole_row(reading.mentions, reference, own) is not None else {}
    return columns


def check(reading: Reading, masking: Masking) -> None:
    """Refuse what would tell bounds of partitions that are masked values. Raises NotAnalysableError `mask.bounds`."""
    calls = [demand for demand in reading.analysis.demands if demand.object.name == TELLS_BOUNDS]
    if calls and masking.hidden_bounds():
        raise NotAnalysableError(
            "mask.bounds",
            f"`{TELLS_BOUNDS}` would show the bounds of partitions, and some are values that are masked for you",
            cure="Leave it out (`\\d` of psql does, `\\d+` does not), or ask somebody for whom they are not masked.",
            location=calls[0].location,
        )
    if reading.analysis.kind not in _BINDS or _VALUES.isdisjoint(reading.mentions.tags):
        return
    for reference in reading.references:
        if not reference.relation.bound_by.isdisjoint(masking.columns(reference.relation)):
            raise NotAnalysableError(
                "mask.bounds",
                f"the bounds of the partitions of `{reference.relation.qualified}` are values that are masked for you,"
                " and whether a new one fits would tell some",
                cure="Ask somebody for whom they are not masked.",
                location=reference.location,
            )
