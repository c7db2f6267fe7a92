"""Writes whose success, or whose company, tells of what is hidden: by foreign keys, constraints, policies and views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from policy.catalog import Relation
from policy.columns import written_by
from policy.masking import VIEWS, Masking
from policy.model import Action
from policy.parse import NotAnalysableError, statements
from policy.reading import Reading, Reference, Role
from policy.sideways import masked_names, refused
from policy.tree import Tree

_SETS: Final = frozenset((Action.INSERT, Action.UPDATE))
_ALL: Final = "*"


def words_of_condition(query: str) -> frozenset[str]:
    """The words of what the rows of a view must meet, from the server's own print of its query.

    `*` for whole rows, and for a query that cannot be read: it stands for every word.
    """
    try:
        [(_, _, node)] = statements(query.encode())
    except NotAnalysableError:
        return frozenset((_ALL,))
    tree = Tree(node.get("SelectStmt", {}).get("whereClause", {}))
    return frozenset(tree.words | {_ALL} if tree.holds_star else tree.words)


def check(reading: Reading, masking: Masking) -> None:
    """Refuse writes that PostgreSQL holds against masked values. Raises NotAnalysableError `mask.oracle`."""
    _check_referred(reading, masking)
    _check_keys(reading, masking)
    _check_options(reading, masking)
    _check_ties(reading, masking)


def _check_referred(reading: Reading, masking: Masking) -> None:
    """Refuse taking away what masked columns refer to: what goes with it, or that it may not go, tells who has it."""
    for key in reading.keys:
        referencing, referenced = map(masking.catalog.relations.get, (key.referencing, key.referenced))
        hidden = masking.columns(referencing) if referencing else {}
        if referencing and referenced and not key.columns.isdisjoint(hidden):
            told = min(column.name for column in referencing.columns if column.number in key.columns & hidden.keys())
            raise NotAnalysableError(
                "mask.oracle",
                f"`{referencing.qualified}.{told}` is masked for you and refers to `{referenced.qualified}`: which rows"
                " the change takes along, or that it fails, would tell",
                cure="Leave rows alone that others refer to, or ask somebody for whom the column is not masked.",
            )


def _check_keys(reading: Reading, masking: Masking) -> None:
    """Refuse writes of columns that refer to masked ones: that a row is refused tells that the value is not there."""
    for reference in reading.references:
        relation = reference.relation
        if reference.role not in (Role.TARGET, Role.COPY_IN) or not (relation.refers_by or relation.kind in VIEWS):
            continue
        for written in _set(reading, reference, _SETS):
            for table, columns in masking.catalog.beneath(relation, written):
                if told := masked_names(table, masking.referring(table)) & columns:
                    raise NotAnalysableError(
                        "mask.oracle",
                        f"`{table.qualified}` refers to a column that is masked for you, and whether a value is there"
                        " would tell",
                        cure=f"List the columns, and leave `{'`, `'.join(sorted(told))}` out.",
                        location=reference.location,
                    )


def _check_options(reading: Reading, masking: Masking) -> None:
    """Refuse writes through views WITH CHECK OPTION whose condition names a masked column, there or further below."""
    for reference in reading.references:
        view = reference.relation
        if reference.role not in (Role.TARGET, Role.COPY_IN) or not view.checked:
            continue
        for one in masking.relations(masking.catalog.closure((view.oid,))):
            if told := masked_names(one, masking.columns(one)) & view.checked:
                raise NotAnalysableError(
                    "mask.oracle",
                    f"`{view.qualified}` checks rows by `{one.qualified}.{min(told)}`, which is masked for you: whether"
                    " the write succeeds would tell",
                    cure="Write to the table itself, or ask somebody for whom the column is not masked.",
                    location=reference.location,
                )


def _check_ties(reading: Reading, masking: Masking) -> None:
    """Refuse updates of columns that something compares with masked ones: whether they succeed would tell."""
    for reference in reading.references:
        if reference.role is not Role.TARGET:
            continue
        for names in _set(reading, reference, frozenset((Action.UPDATE,))):
            for relation, written in masking.catalog.beneath(reference.relation, names):
                _check_tied(masking, reference, relation, written)


def _check_tied(masking: Masking, reference: Reference, relation: Relation, written: frozenset[str]) -> None:
    masked = masking.columns(relation)
    for one in masking.catalog.heirs(relation) if masked else ():
        names, hidden = {c.number: c.name for c in one.columns}, masking.columns(one)
        for numbers in (*one.ties, one.bound_by):
            reads = {n for number in numbers for n in (names if number == 0 else (number,))}
            reads |= {n for c in one.columns if c.number in reads for n in c.computed_from}
            if not reads.isdisjoint(hidden) and (
                told := written & {names[n] for n in reads - hidden.keys() if n in names}
            ):
                raise refused(
                    "mask.oracle",
                    reference,
                    f"a constraint compares `{min(told)}` with one of them: whether the write succeeds would tell",
                    cure=f"Leave `{min(told)}` out, or ask somebody for whom they are not masked.",
                )


def _set(reading: Reading, reference: Reference, of: frozenset[Action]) -> Iterator[set[str] | None]:
    """The columns that the statement sets in a relation, write by write; None for any."""
    actions = {demand.action for demand in reading.analysis.demands if demand.oid == reference.relation.oid}
    for action in sorted(actions & of):
        yield from written_by(reading.tree, action, [reference])
