"""Which columns of which relations are masked for whom: by pattern, by family, and through views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from policy.catalog import Catalog, Column, Relation, RelationKind
from policy.functions import FIRST_USER_OID, HELD_COLUMNS, PG_CLASS
from policy.masks import Mask, MaskKind
from policy.model import Principal
from policy.patterns import Pattern
from policy.rules import Policy, is_exempt

VIEWS = (RelationKind.VIEW, RelationKind.MATERIALIZED_VIEW)
_DERIVED = Mask(Pattern("*", (".*",) * 3), MaskKind.NULL, label="derived from a masked relation")

Masked = dict[int, tuple[Mask, ...]]  # by attribute number: one mask of the whole column, or one of each path
_UNKNOWN: Masked = {0: ()}


class Masking:
    """The masked columns of a catalog's relations for one principal; for None as if nobody were excused."""

    def __init__(self, policy: Policy, principal: Principal | None, catalog: Catalog) -> None:
        self.catalog = catalog
        self._policy = policy
        self._masks, self._cleared = _masks_for(policy, principal)
        # INVARIANT: what is remembered depends on nothing but catalog, policy hash, principal and OID.
        self._known: dict[int, Masked] = catalog.remembered.setdefault((policy.hash, principal), {})
        self._begun: set[int] = set()  # not in what is known: an error on the way must leave nothing there

    @property
    def keyed(self) -> tuple[Mask, ...]:
        """The masks that show pseudonyms."""
        return tuple(mask for mask in self._masks if mask.kind is MaskKind.HASH)

    def excusing_nobody(self) -> Masking:
        """The masks of the same policy as if `unless` held for nobody."""
        return Masking(self._policy, None, self.catalog)

    def columns(self, relation: Relation) -> Masked:
        """The masks of a relation's columns by attribute number; empty where nothing is masked.

        A relation shares the masks of its whole inheritance or partition family by column name. A column
        of a view has the mask of the column that it shows. A derived one of a view that reads a masked
        relation anywhere is `null`, and so is a generated column that is computed from a masked one, unless
        the policy calls it `clear`.
        """
        known = self._known.get(relation.oid)
        if known is None:
            if not self._masks or relation.oid in self._begun:
                return {}  # a view cannot read itself, yet a broken snapshot must not hang us
            self._begun.add(relation.oid)
            known = self._known[relation.oid] = self._find(relation)
        return known

    def referring(self, relation: Relation) -> Masked:
        """The columns that hold values of masked ones, by a foreign key, with the masks of those."""
        found: Masked = {}
        for key in relation.refers_by:
            if (to := self.catalog.relations.get(key.referenced)) is not None:
                masks = tuple(mask for number in sorted(key.key) for mask in self.columns(to).get(number, ()))
                found |= dict.fromkeys(key.columns, masks) if masks else {}
        return found

    def any_column(self) -> bool:
        """Whether any column of the catalog is masked."""
        relations = self.catalog.relations.values() if self._masks else ()
        return any(self.columns(one) for one in relations if one.oid not in HELD_COLUMNS)

    def of_users_types(self) -> bool:
        """Whether any masked column has a type that is not PostgreSQL's own: a domain, or what may hold one."""
        return any(
            column.type_oid >= FIRST_USER_OID and column.number in self.columns(relation)
            for relation in (self.catalog.relations.values() if self._masks else ())
            for column in relation.columns
        )

    def hidden_bounds(self) -> frozenset[int]:
        """The partitions, by OID, whose bounds are values of masked columns."""
        keyed = (one for one in self.catalog.relations.values() if one.bound_by)
        return frozenset().union(*(one.children for one in keyed if not one.bound_by.isdisjoint(self.columns(one))))

    def relations(self, oids: frozenset[int]) -> list[Relation]:
        """Those of these relations that have masked columns."""
        known, relations = self._known, self.catalog.relations
        # What is known to have none is passed over before it is looked up.
        found = [relations.get(oid) for oid in oids if known.get(oid, _UNKNOWN)]
        return [relation for relation in found if relation is not None and self.columns(relation)]

    def _find(self, relation: Relation) -> Masked:
        if (name := HELD_COLUMNS.get(relation.oid)) is not None:
            spares = self._spares(relation)
            mask = replace(_DERIVED, label="holds values of masked columns", spares=spares)
            return {c.number: (mask,) for c in relation.columns if c.name == name and spares}
        masked: Masked = {}
        by_member = [
            (member, [m for m in self._masks if m.columns.fits_first((member.schema, member.name))])
            for member in self._family(relation)
        ]
        viewed = relation.kind in VIEWS
        for column in relation.columns:
            found = [
                mask
                for member, masks in by_member
                for mask in masks
                if mask.columns.matches((member.schema, member.name, column.name))
            ]
            if viewed:
                found += self._through_view(relation, column)
            if found:
                masked[column.number] = _strictest(found)
        return masked | self._computed(relation, masked)

    def _spares(self, catalog: Relation) -> str:
        """SQL for the rows of a catalog whose held value may be shown; empty where all may."""
        if catalog.oid == PG_CLASS:
            hidden = ",".join(map(str, sorted(self.hidden_bounds())))
            return f"oid OPERATOR(pg_catalog.<>) ALL (CAST('{{{hidden}}}' AS pg_catalog.oid[]))" if hidden else ""
        tables = (one for one in self.catalog.relations.values() if one.kind not in VIEWS)
        return "false" if any(self.columns(one) for one in tables if one.oid not in HELD_COLUMNS) else ""

    def sources(self, relation: Relation) -> dict[str, frozenset[str]]:
        """What the generated columns are computed from, by name; each member of a family may do it in its own way.

        Those that the policy calls `clear` tell nothing.
        """
        found: dict[str, frozenset[str]] = {}
        for member in self._family(relation):
            for column in member.columns:
                if column.computed_from and not self._vouched(member, column):
                    read = {one.name for one in member.columns if one.number in column.computed_from}
                    found[column.name] = found.get(column.name, frozenset()) | read
        return found

    def _family(self, relation: Relation) -> list[Relation]:
        return [self.catalog.relations[o] for o in relation.family if o in self.catalog.relations] or [relation]

    def _computed(self, relation: Relation, masked: Masked) -> Masked:
        """The generated columns that would show what is masked."""
        names = {column.name for column in relation.columns if column.number in masked}
        sources = self.sources(relation) if names else {}
        return {
            column.number: (_DERIVED,)
            for column in relation.columns
            if column.number not in masked and not names.isdisjoint(sources.get(column.name, ()))
        }

    def _through_view(self, view: Relation, column: Column) -> tuple[Mask, ...]:
        origin = self.catalog.relations.get(column.origin[0]) if column.origin else None
        if origin is not None and column.origin is not None:
            masks = self.columns(origin).get(column.origin[1], ())
            return (_DERIVED,) if masks and origin.oid in HELD_COLUMNS else masks
        if self._vouched(view, column):
            return ()
        read = self.catalog.closure((view.oid,)) - {view.oid}
        return (_DERIVED,) if self.relations(read) else ()

    def _vouched(self, relation: Relation, column: Column) -> bool:
        """Whether the policy says that a computed column holds nothing to hide."""
        return any(pattern.matches((relation.schema, relation.name, column.name)) for pattern in self._cleared)


def masked_for_others(policy: Policy, principal: Principal, catalog: Catalog, relation: Relation) -> frozenset[str]:
    """The columns of which somebody else sees less than this principal."""
    own, least = (Masking(policy, one, catalog).columns(relation) for one in (principal, None))
    return frozenset(c.name for c in relation.columns if own.get(c.number) != least.get(c.number))


@lru_cache(maxsize=1024)
def _masks_for(policy: Policy, principal: Principal | None) -> tuple[tuple[Mask, ...], tuple[Pattern, ...]]:
    """The masks that hold for this principal, and the view columns that the policy vouches for."""
    masks = tuple(m for m in policy.masks if m.kind is not MaskKind.CLEAR and not _excused(m, principal))
    return masks, tuple(m.columns for m in policy.masks if m.kind is MaskKind.CLEAR)


def _strictest(masks: Sequence[Mask]) -> tuple[Mask, ...]:
    """The mask of the whole column that shows least; else, for each path, the one that shows least."""
    by_path: dict[tuple[str, ...], Mask] = {}
    for mask in masks:
        other = by_path.get(mask.path)
        if other is None or mask.strictness > other.strictness:
            by_path[mask.path] = mask
    if () in by_path:
        return (by_path[()],)
    return tuple(by_path[path] for path in sorted(by_path))


def _excused(mask: Mask, principal: Principal | None) -> bool:
    return principal is not None and is_exempt(principal, mask.exempt_groups, mask.exempt_users)
