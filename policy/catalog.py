"""The catalog as facts: relations, columns and functions of one connection at one moment. Values only."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from enum import Flag, StrEnum, auto
from typing import Any

from policy.forms import Form


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
    `computed_from` is, for a generated column, the attribute numbers that its expression reads.
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
    computed_from: frozenset[int] = frozenset()

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


class Event(Flag):
    """When code that hangs on a relation runs."""

    READ = auto()
    INSERT = auto()
    UPDATE = auto()
    DELETE = auto()
    TRUNCATE = auto()
    BUILD = auto()  # ALTER, REFRESH, REINDEX, ANALYZE and the like


@dataclass(frozen=True, slots=True)
class Code:
    """A function that runs on these events without a statement naming it. `by` says why, such as "the trigger `t`"."""

    function: int  # pg_proc.oid
    on: Event
    by: str


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key: what it refers to, and what happens to the referencing rows."""

    referencing: int  # pg_class.oid
    columns: frozenset[int]  # attribute numbers of the referencing columns
    referenced: int  # pg_class.oid
    key: frozenset[int]  # attribute numbers of the referenced columns
    on_update: str  # pg_constraint.confupdtype: a (nothing), r (restrict), c (cascade), n (null), d (default)
    on_delete: str


@dataclass(frozen=True, slots=True)
class Relation:
    """A row of `pg_class` and what hangs on it.

    `family` is the OIDs of the relations whose rows this one shares by inheritance or partitioning
    (parents and children, all levels, itself included). `reads` is the OIDs of relations that a view's
    or rule's query depends on directly. `children` is the OIDs of its direct partitions and heirs. `code` holds
    what runs unseen: user functions, and built-in ones that are not harmless.
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
    children: frozenset[int] = frozenset()
    code: tuple[Code, ...] = ()
    row_type: int = 0  # pg_class.reltype
    referenced_by: tuple[ForeignKey, ...] = ()
    refers_by: tuple[ForeignKey, ...] = ()
    opaque: str | None = None  # why what happens to it cannot be analysed
    ties: tuple[frozenset[int], ...] = ()  # attribute numbers that a constraint or policy looks at together; 0: all
    checked: frozenset[str] = frozenset()  # of a view WITH CHECK OPTION: the words of what its rows must meet
    bound_by: frozenset[int] = frozenset()  # attribute numbers of the key by which it has partitions, but for hashes

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
class Body:
    """What a function of users in the language SQL runs.

    `text` is its source, which PostgreSQL parses when it is called; or, where `atomic`, the server's print of what
    was parsed when it was made, with names as under `Catalog.printed_under`. So is `defaults`, the list of its
    parameters' defaults. `settings` is `pg_proc.proconfig`; `types` are its parameters' types, by OID.
    """

    text: str
    atomic: bool = False
    definer: bool = False
    settings: tuple[str, ...] = ()
    defaults: str = ""
    types: tuple[int, ...] = ()


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
    extension: str = ""  # the extension that brought it
    least: int = 0  # arguments that a call must give
    most: int | None = None  # arguments that a call may give; None: any number
    results: tuple[int, ...] = ()  # a user function's result types, by OID; OUT parameters in place of `record`
    support: tuple[int, ...] = ()  # an aggregate's own functions (pg_aggregate), by OID
    body: Body | None = None  # of a user function in the language SQL

    def takes(self, arguments: int | None) -> bool:
        """Whether a call with this many arguments could mean it (None: not known)."""
        return arguments is None or (self.least <= arguments and (self.most is None or arguments <= self.most))


@dataclass(frozen=True, slots=True)
class Cast:
    """A user-defined cast that calls a function; the types by OID."""

    source: int
    target: int
    function: int


@dataclass(frozen=True, slots=True)
class Type:
    """A user-defined type, row types of relations included, that runs code or has casts that do.

    `parts` is the OIDs of the types it is made of, all levels, itself included. `code` is the functions that
    making a value of it calls: CHECKs of domains, functions of ranges.
    """

    oid: int
    parts: frozenset[int]
    code: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Catalog:
    """A snapshot. `epoch` is a digest of its contents: equal epochs mean equal snapshots.

    `forms` are the binary forms of all types, by OID, and `subtypes` those that ranges and multiranges are of.
    """

    epoch: str
    server_version: int  # server_version_num, such as 180006
    relations: dict[int, Relation]
    functions: dict[tuple[str, str], tuple[Function, ...]]  # by (schema, name)
    schemas: frozenset[str]
    # The functions behind user-defined operators, by (schema, name) of the operator.
    operators: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    casts: tuple[Cast, ...] = ()
    types: dict[tuple[str, str], Type] = field(default_factory=dict)  # user-defined, by (schema, name)
    printed_under: tuple[str, ...] = ("pg_catalog",)  # the search path of the session that read it
    forms: dict[int, Form] = field(default_factory=dict, repr=False)
    subtypes: dict[int, int] = field(default_factory=dict, repr=False)
    temporary: str = ""  # the schema of the session's own temporary relations, which are in `pg_temp` here
    stray: str | None = None  # a type in it that cannot be analysed
    server_types: frozenset[str] = frozenset()  # the names of the types that come with the server
    _names: dict[tuple[str, str], Relation] = field(init=False, repr=False)
    _functions: dict[int, Function] = field(init=False, repr=False)
    _types: dict[int, Type] = field(init=False, repr=False)
    _closures: dict[int, frozenset[int]] = field(init=False, repr=False)  # of what was asked for, by OID
    # What the engine has found out about it, for as long as there is this snapshot; nothing in it leads back here.
    remembered: dict[Hashable, dict[int, Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = {(r.schema, r.name): r for r in self.relations.values()}
        object.__setattr__(self, "_names", names)
        functions = {f.oid: f for overloads in self.functions.values() for f in overloads}
        object.__setattr__(self, "_functions", functions)
        object.__setattr__(self, "_closures", {})
        object.__setattr__(self, "remembered", {})
        object.__setattr__(self, "_types", {t.oid: t for t in self.types.values()})

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

    def function(self, oid: int) -> Function | None:
        """The function of this OID, or None."""
        return self._functions.get(oid)

    def type(self, oid: int) -> Type | None:
        """The user-defined type of this OID; None where it runs no code and has no casts."""
        return self._types.get(oid)

    def heirs(self, relation: Relation) -> list[Relation]:
        """The relation and all of its partitions and heirs, every level."""
        found, seen = [relation], {relation.oid}
        for one in found:
            for oid in one.children - seen:
                seen.add(oid)
                if child := self.relations.get(oid):
                    found.append(child)
        return found

    def beneath(self, relation: Relation, names: Set[str] | None = None) -> Iterator[tuple[Relation, frozenset[str]]]:
        """The tables that a write to these columns (None: to all) reaches, views opened up, with their own columns.

        A write through a view may reach whatever it reads, though it shows no column of it.
        """
        columns = [column for column in relation.columns if names is None or column.name in names]
        if relation.kind is not RelationKind.VIEW:
            yield relation, frozenset(column.name for column in columns)
            return
        if columns and all(column.origin is None for column in columns):  # nobody could say where they come from
            for oid in sorted(relation.reads):
                if (below := self.relations.get(oid)) is not None:
                    yield from self.beneath(below)
            return
        shown: dict[int, set[int]] = {oid: set() for oid in sorted(relation.reads)}
        for oid, number in (column.origin for column in columns if column.origin is not None):
            shown.setdefault(oid, set()).add(number)
        for oid, numbers in shown.items():
            if (below := self.relations.get(oid)) is not None:
                yield from self.beneath(below, {c.name for c in below.columns if c.number in numbers})

    def closure(self, oids: Iterable[int]) -> frozenset[int]:
        """These relations and all that they read, views opened up and families included."""
        found = [self._closure_of(oid) for oid in oids]
        return found[0] if len(found) == 1 else frozenset().union(*found)

    def _closure_of(self, oid: int) -> frozenset[int]:
        if (known := self._closures.get(oid)) is not None:
            return known
        seen: set[int] = set()
        todo = [oid]
        while todo:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            if relation := self.relations.get(one):
                todo.extend(relation.reads - seen)
                todo.extend(relation.family - seen)
        return self._closures.setdefault(oid, frozenset(seen))
