"""The catalog as facts: relations, columns and functions of one connection at one moment. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class RelationKind(StrEnum):
    """`pg_class.relkind`."""

    TABLE = "r"
    PARTITIONED = "p"
    VIEW = "v"
    MATERIALIZED_VIEW = "m"
    FOREIGN = "f"
    SEQUENCE = "S"
    COMPOSITE = "c"


@dataclass(frozen=True, slots=True)
class Domain:
    """What stands behind a domain: the type beneath all domains, and whether some values are refused.

    `element` and `modifier` are those of the base type, as in `Column`.
    """

    base_oid: int
    element: int = 0
    modifier: int = -1
    not_null: bool = False
    checked: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A live column. `type` is `format_type(atttypid, atttypmod)`, ready for a cast.

    `collation` is the qualified, quoted collation where it is not the database's default, else None.
    `origin` is, for a column of a view, the (relation OID, attribute number) that the server's own
    Describe of the view's query names, or None where the column is derived. `item` is the type OID of an
    array's elements, else 0; `modifier` is `pg_attribute.atttypmod`; `domain` is set where the type is one.
    """

    number: int  # pg_attribute.attnum
    name: str
    type: str
    type_oid: int
    collation: str | None = None
    origin: tuple[int, int] | None = None
    item: int = 0
    modifier: int = -1
    domain: Domain | None = None

    @property
    def base_oid(self) -> int:
        """The OID of the type beneath all domains."""
        return self.domain.base_oid if self.domain else self.type_oid

    @property
    def element(self) -> int:
        """The type OID of the elements where values are arrays, else 0."""
        return self.domain.element if self.domain else self.item

    @property
    def width(self) -> int:
        """How many characters a char or varchar holds; -1 for no limit. Four bytes of `modifier` are a header."""
        modifier = self.domain.modifier if self.domain else self.modifier
        return modifier - 4 if modifier >= 4 else -1


@dataclass(frozen=True, slots=True)
class Relation:
    """A row of `pg_class` and what hangs on it.

    `family` is the OIDs of the relations whose rows this one shares by inheritance or partitioning
    (parents and children, all levels, itself included). `reads` is the OIDs of relations that a view's
    or rule's query depends on directly.
    """

    oid: int
    schema: str
    name: str
    kind: RelationKind
    columns: tuple[Column, ...] = ()
    family: frozenset[int] = frozenset()
    reads: frozenset[int] = frozenset()
    rules: bool = False  # rewrite rules other than a view's own
    triggers: bool = False  # user triggers
    comment: str | None = None

    @property
    def qualified(self) -> str:
        """`schema.name`, unquoted: for people and for patterns."""
        return f"{self.schema}.{self.name}"


class Volatility(StrEnum):
    """`pg_proc.provolatile`."""

    IMMUTABLE = "i"
    STABLE = "s"
    VOLATILE = "v"


@dataclass(frozen=True, slots=True)
class Function:
    """A row of `pg_proc`: one overload."""

    oid: int
    schema: str
    name: str
    kind: str  # pg_proc.prokind: f, p, a, w
    volatility: Volatility
    language: str
    arguments: str = ""  # pg_get_function_identity_arguments


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Catalog:
    """A snapshot. `epoch` is a digest of its contents: equal epochs mean equal snapshots."""

    epoch: str
    server_version: int  # server_version_num, such as 180006
    relations: dict[int, Relation]
    functions: dict[tuple[str, str], tuple[Function, ...]]  # by (schema, name)
    schemas: frozenset[str]
    operators: frozenset[tuple[str, str]] = frozenset()  # (schema, name) of user-defined operators
    _names: dict[tuple[str, str], Relation] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = {(r.schema, r.name): r for r in self.relations.values()}
        object.__setattr__(self, "_names", names)

    def relation(self, schema: str, name: str) -> Relation | None:
        """The relation of exactly this name, or None."""
        return self._names.get((schema, name))

    def resolve(self, name: str, search_path: Sequence[str]) -> Relation | None:
        """The relation an unqualified name means under this search path, or None."""
        for schema in search_path:
            if found := self._names.get((schema, name)):
                return found
        return None

    def overloads(self, schema: str, name: str) -> tuple[Function, ...]:
        """Every function of exactly this name."""
        return self.functions.get((schema, name), ())

    def closure(self, oids: Iterable[int]) -> frozenset[int]:
        """These relations and all that they read, views opened up and families included."""
        seen: set[int] = set()
        todo = list(oids)
        while todo:
            oid = todo.pop()
            if oid in seen:
                continue
            seen.add(oid)
            if relation := self.relations.get(oid):
                todo.extend(relation.reads - seen)
                todo.extend(relation.family - seen)
        return frozenset(seen)
