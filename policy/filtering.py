"""Which rows of which relations are there for whom; what cannot be held to them is refused, each with its sentence."""

from __future__ import annotations

from policy.catalog import Relation
from policy.filters import RowFilter
from policy.model import Action, Facts, Principal
from policy.names import Names
from policy.parse import NotAnalysableError
from policy.reading import Reading, Reference, Role
from policy.rules import Policy
from policy.sideways import EVALUATES, check_qualified, is_analyzed, moved


class Filtering:
    """The row filters of a policy for one principal, in one catalog and under one search path."""

    def __init__(self, policy: Policy, principal: Principal, facts: Facts) -> None:
        self._catalog = facts.catalog
        self._path = facts.search_path
        self._principal = principal
        self._all = tuple([f for f, _ in policy.rows])
        self._own = tuple([f for f, who in policy.rows if who is None or who.includes(principal)])

    @property
    def any_filter(self) -> bool:
        """Whether any filter is about this principal."""
        return bool(self._own)

    def filters(self, relation: Relation) -> tuple[RowFilter, ...]:
        """The filters on a relation: its own and, as rows are shared, those of its inheritance or partition family."""
        return self._matching(self._own, relation)

    def any_relation(self) -> bool:
        """Whether rows of any relation of the catalog are filtered."""
        return bool(self._own) and any(map(self.filters, self._catalog.relations.values()))

    def hides(self, relation: Relation) -> Relation | None:
        """The filtered relation that this one is, or reads."""
        return relation if self.filters(relation) else self._behind(relation)

    def condition(self, relation: Relation) -> str | None:
        """The condition that the relation's rows must meet; None where all rows are there.

        Raises NotAnalysableError `rows.impossible`, `rows.path`.
        """
        # By what they say: in the file's order, moving an entry would change the text of every decision.
        filters = sorted(self.filters(relation), key=lambda f: f.condition.sql(self._principal))
        if not filters:
            return None
        own = {column.name for column in relation.columns}
        for row_filter in filters:
            if missing := row_filter.condition.columns - own:
                raise NotAnalysableError(
                    "rows.impossible",
                    f"the filter on the rows of `{relation.qualified}` names `{min(missing)}`, which is none of its "
                    "columns",
                    cure="Whoever keeps the policy must change the filter.",
                )
            row_filter.condition.check_names(Names(self._catalog, self._path))
        return " AND ".join(f"({f.condition.sql(self._principal)})" for f in filters)

    def check(self, reading: Reading) -> None:
        """Refuse what a filter in the text cannot answer for. Raises NotAnalysableError `rows.…`."""
        if not self._all:
            return
        elsewhere = {id(reference.var) for reference in moved(reading)}
        for reference in reading.references:
            if id(reference.var) in elsewhere and self._behind(reference.relation, self._all, itself=True):
                raise _refused("rows.rename", reference, "under another name nothing would filter them")
            if self.filters(reference.relation):
                _check(reading, reference)
            elif reference.role is not Role.STRUCTURE and (read := self._behind(reference.relation)):
                raise NotAnalysableError(
                    "rows.view",
                    f"`{reference.relation.qualified}` reads `{read.qualified}`, of which you see only some rows, and "
                    "what it shows of the others cannot be told",
                    cure=f"Read `{read.qualified}` itself, or have a filter written for this relation too.",
                    location=reference.location,
                )

        self.check_unnamed(reading)

    def check_unnamed(self, reading: Reading) -> None:
        """Refuse what reaches hidden rows without reading them: TRUNCATE, and what foreign keys do and find.

        Raises NotAnalysableError `rows.write`.
        """
        emptied = {d.oid for d in reading.analysis.demands if d.action is Action.TRUNCATE}
        for oid in sorted(oid for oid in emptied | {key.referencing for key in reading.keys} if oid is not None):
            relation = self._catalog.relations.get(oid)
            if relation is not None and self.filters(relation):
                raise NotAnalysableError(
                    "rows.write",
                    f"you see only some rows of `{relation.qualified}`, and the statement would reach, or tell of, the"
                    + (" others" if oid in emptied else " others that refer to what it changes"),
                    cure="Ask somebody who sees all of its rows.",
                )

    def _behind(
        self, relation: Relation, filters: tuple[RowFilter, ...] | None = None, *, itself: bool = False
    ) -> Relation | None:
        """A relation with one of these filters (None: the principal's) that this one reads, through all views."""
        filters = self._own if filters is None else filters
        for oid in sorted(self._catalog.closure((relation.oid,)) - (set() if itself else {relation.oid})):
            read = self._catalog.relations.get(oid)
            if read is not None and self._matching(filters, read):
                return read
        return None

    def _matching(self, filters: tuple[RowFilter, ...], relation: Relation) -> tuple[RowFilter, ...]:
        if not filters:
            return ()
        found = (self._catalog.relations.get(oid) for oid in relation.family | {relation.oid})
        names = [(r.schema, r.name) for r in found if r is not None]
        return tuple(f for f in filters if any(f.relations.matches(name) for name in names))


def _check(reading: Reading, reference: Reference) -> None:
    if reference.sampled:
        raise _refused("rows.sample", reference, "TABLESAMPLE would count the others")
    match reference.role:
        case Role.TARGET | Role.COPY_IN:
            raise _refused("rows.write", reference, "a write could reach, or tell of, the others")
        case Role.STRUCTURE if reading.analysis.kind in EVALUATES:
            raise _refused("rows.structure", reference, "PostgreSQL would check the definition against the others")
        case Role.STRUCTURE:
            return
        case _:
            pass
    if reading.stores is not None:
        raise _refused("rows.store", reference, f"a copy would leave the filter behind: {reading.stores}")
    if reading.analysis.kind == "ExplainStmt" and is_analyzed(reading.tree):
        raise _refused("rows.explain", reference, "EXPLAIN ANALYZE counts the others", "Use EXPLAIN without ANALYZE.")
    check_qualified(reading.mentions, reference, "rows.qualified", "of which you see only some rows")


def _refused(code: str, reference: Reference, why: str, cure: str | None = None) -> NotAnalysableError:
    return NotAnalysableError(
        code,
        f"you see only some rows of `{reference.relation.qualified}`, and {why}",
        cure=cure or "Ask somebody who sees all of its rows.",
        location=reference.location,
    )
