"""Columns of PostgreSQL's own catalogs that nobody may read: their relations are read without them, or not at all."""

from __future__ import annotations

from collections.abc import Sequence

from policy.functions import SECRET_COLUMNS
from policy.names import Names, is_system
from policy.parse import Node, NotAnalysableError
from policy.reading import Reference, Role
from policy.tree import Tree, row_name


def check(names: Names, statement: Node, references: Sequence[Reference]) -> None:
    """Raise NotAnalysableError `catalog.refused` where a statement could reach a secret column.

    It must not name the column, nor stand for whole rows: by a star, the row's name, a list of new column
    names, or `row.function`.
    """
    tree: Tree | None = None
    for reference in references:
        if not is_system(reference.relation) or reference.relation.name not in SECRET_COLUMNS:
            continue
        tree = tree or Tree(statement)
        secret, reason = SECRET_COLUMNS[reference.relation.name]
        row = row_name(reference.var)
        whole = (
            tree.holds_star
            or reference.role is not Role.SOURCE
            or "colnames" in reference.var.get("alias", {})
            or any(len(words) == 1 or names.overloads(words[1:2]) for words in tree.columns.get(row, ()))
        )
        if whole or secret in tree.words or any(words[1:2] == (reference.relation.name,) for words in tree.qualified):
            raise NotAnalysableError(
                "catalog.refused",
                f"`{reference.relation.qualified}` is only readable here without `{secret}`: {reason}",
                cure=f"Name the columns you need, without `{secret}`.",
                location=reference.location,
            )
