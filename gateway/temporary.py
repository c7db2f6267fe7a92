"""A session's own temporary relations, read from its own upstream and laid over the shared snapshot.

PostgreSQL keeps them in a schema of the session's own, `pg_temp_N`, which it searches for relations and types alone.
Tables and sequences are told in full; whatever else lies there is marked as not to be analysed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gateway import catalog as reader
from gateway import stored_code
from gateway.sheets import Row, Sheet, Sheets
from gateway.upstream import Upstream
from policy.catalog import Catalog, Code, Event, Relation, Type
from policy.names import TEMPORARY

_OWN: Final = "pg_catalog.pg_my_temp_schema()"

_RELATIONS: Final = Sheet(
    "relations",
    "nttnntt",
    f"""
SELECT c.oid, c.relname, c.relkind, t.oid, t.typarray, a.typname,
       CASE WHEN c.relkind NOT IN ('r', 'S') THEN 'it is neither a table nor a sequence'
            WHEN EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent))
            THEN 'it shares rows with other relations'
            WHEN EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal)
              OR EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid)
              OR EXISTS (SELECT FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid)
            THEN 'it has triggers, rules or row security' END
  FROM pg_catalog.pg_class c
  LEFT JOIN pg_catalog.pg_type t ON t.oid = c.reltype
  LEFT JOIN pg_catalog.pg_type a ON a.oid = t.typarray
 WHERE c.relnamespace = {_OWN} AND c.relkind NOT IN ('i', 'I', 'c') ORDER BY c.oid""",  # noqa: S608 - constants only
)

# Types that belong to no such relation, and names that hide PostgreSQL's own types.
_STRAYS: Final = Sheet(
    "strays",
    "t",
    f"""
SELECT t.typname FROM pg_catalog.pg_type t
 WHERE t.typnamespace = {_OWN} AND (
       EXISTS (SELECT FROM pg_catalog.pg_type b
                WHERE b.typname = t.typname AND b.typnamespace = 'pg_catalog'::pg_catalog.regnamespace)
       OR NOT EXISTS (SELECT FROM pg_catalog.pg_class c
                       WHERE c.oid = t.typrelid AND c.relkind <> 'c'
                          OR c.relkind <> 'c' AND c.reltype = t.typelem AND t.typelem <> 0))
 ORDER BY 1""",  # noqa: S608 - constants only
)


@dataclass(frozen=True, slots=True)
class Temporary:
    """What lies in one session's temporary schema. `digest` is of all of it."""

    schema: str  # its real name, pg_temp_N
    relations: tuple[Relation, ...]
    types: Mapping[tuple[str, str], Type]
    digest: str
    stray: str | None = None  # a type that cannot be analysed: then no name can

    @property
    def empty(self) -> bool:
        """Whether nothing is there."""
        return not self.relations and self.stray is None


async def load(upstream: Upstream, path: Sequence[str], catalog: Catalog) -> Temporary | None:
    """What is temporary in the session behind `upstream`; None where its own schema is not on its search path.

    Raises UpstreamError, UpstreamLostError.
    """
    [(own,)] = await upstream.probe(f"SELECT nspname FROM pg_catalog.pg_namespace WHERE oid = {_OWN}") or [(None,)]  # noqa: S608 - constants only
    if own is None or own not in path:
        return None
    sheets = Sheets(upstream, own)
    await sheets.read((_RELATIONS, _STRAYS))
    oids = "{" + ",".join(str(oid) for (oid,) in sheets["relations"].only(0)) + "}"
    among = f"= ANY ('{oids}')"
    trees = stored_code.trees(catalog.functions)
    await sheets.read(
        (
            *reader.columns_of(f"a.attrelid {among}"),
            stored_code.foreign_keys_of(f"c.confrelid {among}"),
            trees._replace(query=f"SELECT * FROM ({trees.query}) t WHERE t.relation {among}"),  # noqa: S608 - OIDs are numbers
        )
    )
    columns = reader.as_columns(sheets, {}, {})
    referenced = stored_code.referenced(stored_code.foreign_keys(sheets["foreign keys"]))
    relations, types = [], {}
    for oid, name, kind, row_type, array_type, array_name, opaque in sheets["relations"]:
        relation = Relation(
            oid=oid,
            schema=TEMPORARY,
            name=name,
            kind=reader.kind_of(kind),
            columns=tuple(columns.get(oid, ())),
            family=frozenset((oid,)),
            row_type=row_type or 0,
            referenced_by=tuple(referenced.get(oid, ())),
            opaque=opaque,
        )
        relations.append(_with_code(relation, catalog, [row[1:] for row in sheets["trees"] if row[0] == oid]))
        if made := _row_type(relation, catalog):
            types[TEMPORARY, relation.name] = made
            types[TEMPORARY, array_name or ""] = replace(made, oid=array_type or 0)
    stray = next((name for (name,) in sheets["strays"]), None)
    return Temporary(own, tuple(relations), types, sheets.digest, stray)


def laid_over(catalog: Catalog, temporary: Temporary) -> Catalog:
    """The snapshot as the session sees it: with its temporary relations."""
    return replace(
        catalog,
        epoch=f"{catalog.epoch}+{temporary.digest}",
        relations={**catalog.relations, **{relation.oid: relation for relation in temporary.relations}},
        types={**catalog.types, **temporary.types},
        schemas=catalog.schemas | {TEMPORARY},
        temporary=temporary.schema,
        stray=temporary.stray,
    )


def _with_code(relation: Relation, catalog: Catalog, trees: Iterable[Row]) -> Relation:
    """The relation with what runs unseen with it, or marked where that cannot be told."""
    code = [
        Code(function, ~Event(0), f"the type of `{column.name}`")
        for column in relation.columns
        if (made := catalog.type(column.type_oid))
        for function in made.code
    ]
    opaque = relation.opaque
    for letters, by, field, named in trees:
        if field in stored_code.FUNCTION_FIELDS:
            code.append(Code(named, stored_code.events(letters), by))
        else:
            opaque = opaque or f"{by} uses operators or types of users"
    return replace(relation, code=tuple(code), opaque=opaque)


def _row_type(relation: Relation, catalog: Catalog) -> Type | None:
    """The relation's row type, if a value of it runs code or may be cast by code."""
    parts = [made for column in relation.columns if (made := catalog.type(column.type_oid))]
    if not parts:
        return None
    return Type(
        relation.row_type,
        frozenset((relation.row_type,)).union(*(part.parts for part in parts)),
        tuple(sorted({function for part in parts for function in part.code})),
    )
