"""Statements that meet masks sideways: writes that could ask about a hidden value, or store one.

The rule for writes to a masked relation: nothing in the statement may name a masked column, the whole
row or all columns. What cannot name a value cannot ask about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from policy import held
from policy.catalog import Relation
from policy.masking import Masked, Masking
from policy.model import Action
from policy.parse import Node, NotAnalysableError
from policy.reading import Reading, Reference, Role
from policy.session import is_on, options
from policy.tree import Tree, nodes, row_name

_WRITES: Final = frozenset(("InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"))
_STORES: Final = frozenset(("InsertStmt", "UpdateStmt", "MergeStmt"))
# Definitions whose expressions PostgreSQL evaluates on raw rows.
EVALUATES: Final = frozenset(
    (
        "AlterTableStmt",
        "IndexStmt",
        "CreateStmt",
        "CreateTrigStmt",
        "CreatePolicyStmt",
        "AlterPolicyStmt",
        "CreateStatsStmt",
    )
)
# What gives a relation or a column another name, and what puts a table under another one.
MOVES: Final = frozenset(("RenameStmt", "AlterObjectSchemaStmt"))
JOINS: Final = frozenset(("AT_AddInherit", "AT_AttachPartition"))
_DETACHES: Final = frozenset(("AT_DetachPartition", "AT_DropInherit", "AT_DropOf"))
_TRIES: Final = frozenset("COV")  # of ALTER DOMAIN: add or validate a constraint, SET NOT NULL
_ROW_NAMES: Final = frozenset(("old", "new", "excluded"))


def check_change(reading: Reading, masking: Masking) -> None:
    """Refuse writes and definitions that reach what is masked by another way than naming it.

    Raises NotAnalysableError `mask.oracle`, `mask.rename`.
    """
    _check_types(reading, masking)
    _check_structure(reading, masking)


def _check_structure(reading: Reading, masking: Masking) -> None:
    """Refuse what would take a masked relation out of reach of the patterns that mask it.

    Raises NotAnalysableError `mask.rename`.
    """
    for reference in moved(reading):
        if masking.excusing_nobody().columns(reference.relation):
            raise NotAnalysableError(
                "mask.rename",
                f"`{reference.relation.qualified}` has masked columns, and under another name nothing would mask them",
                cure="Change the policy first.",
                location=reference.location,
            )


def has_opaque_body(reading: Reading) -> bool:
    """Whether the statement creates a function whose body is text: nobody can say here what it will read."""
    kind = reading.analysis.kind
    return kind == "CreateFunctionStmt" and "as" in options(reading.tree[kind])


def check_body(*, hides: bool) -> None:
    """Refuse such a function to whoever has something hidden from them. Raises NotAnalysableError `mask.body`."""
    if hides:
        raise NotAnalysableError(
            "mask.body",
            "a function's body that is given as text could read what the policy hides from you",
            cure="Write it as SQL with RETURN or BEGIN ATOMIC, or have it created by somebody who sees everything.",
        )


def moved(reading: Reading) -> Sequence[Reference]:
    """The relations that the statement gives another name or schema, takes out of their family, or has others show.

    A child's or a partition's rows are those of what it is put under, too.
    """
    kind = reading.analysis.kind
    if kind != "AlterTableStmt":
        return reading.references if kind in MOVES else ()
    subtypes = _subtypes(reading.tree)
    if not _DETACHES.isdisjoint(subtypes):
        return reading.references
    if JOINS.isdisjoint(subtypes):
        return ()
    body = reading.tree[kind]
    attached = [node["PartitionCmd"]["name"] for node in nodes(body) if "PartitionCmd" in node]
    children = {id(var) for var in attached or [body["relation"]]}
    return [reference for reference in reading.references if id(reference.var) in children]


def _sorts(reading: Reading) -> bool:
    """Whether the statement puts a relation's rows in the order of an index, now or when it is next asked to."""
    kind = reading.analysis.kind
    return kind == "ClusterStmt" or (kind == "AlterTableStmt" and "AT_ClusterOn" in _subtypes(reading.tree))


def check(reading: Reading, masked: Sequence[tuple[Reference, Masked]]) -> None:
    """Refuse what masks by rewriting cannot answer for. Raises NotAnalysableError `mask.…`."""
    if not masked:
        return
    tree = reading.mentions
    for reference, columns in masked:
        if reference.sampled:
            raise refused(
                "mask.sample", reference, "TABLESAMPLE works on tables, and this one is read through its masks"
            )
        if reference.role is Role.SOURCE:
            if reading.stores is not None:
                raise refused("mask.store", reference, f"this statement keeps what it reads: {reading.stores}")
            check_qualified(tree, reference, "mask.qualified", "which is masked")
        elif reference.role in (Role.TARGET, Role.COPY_IN):
            _check_write(tree, reference, columns)
        elif _sorts(reading):
            raise refused("mask.oracle", reference, "in the order of an index its rows could tell how values compare")
        elif reading.analysis.kind in EVALUATES:
            _check_unnamed(tree, reference, columns)
            _check_whole(tree, reference)
            _check_implied_key(tree, reference)
            _check_trigger(reading, reference)
    sources = [(r, c) for r, c in masked if r.role is Role.SOURCE]
    if sources and not _STORES.isdisjoint(tree.tags):
        for reference, columns in sources:
            _check_stored(tree, reference, columns)


def _check_types(reading: Reading, masking: Masking) -> None:
    """Refuse changes of types that reach columns of tables: that are tried on their values, or rename them.

    Raises NotAnalysableError `mask.oracle`, `mask.rename`.
    """
    kind = reading.analysis.kind
    body = reading.tree[kind]
    renames = kind == "RenameStmt" and body.get("renameType") == "OBJECT_ATTRIBUTE"
    if renames and body.get("behavior") == "DROP_CASCADE" and masking.excusing_nobody().any_column():
        raise NotAnalysableError(
            "mask.rename",
            "CASCADE renames columns of every table of the type, and under another name nothing would mask them",
            cure="Leave CASCADE out: then it works where no table is of the type.",
        )
    if kind == "AlterDomainStmt" and body["subtype"] in _TRIES:
        found = masking.of_users_types()
    elif kind == "AlterTableStmt" and body.get("objtype") == "OBJECT_TYPE" and "AT_AlterColumnType" in _subtypes(body):
        found = masking.any_column()
    else:
        return
    if found:
        raise NotAnalysableError(
            "mask.oracle",
            "it is tried on the values of every column of the type, and whether they pass would tell of those that are"
            " masked for you",
            cure="Ask somebody for whom nothing is masked.",
        )


def check_keyed(reading: Reading, keyed: Sequence[tuple[Reference, Masked]]) -> None:
    """Refuse what would show the key of `hash` masks, or make an oracle of a key that is none.

    Raises NotAnalysableError `mask.explain`, `mask.store`.
    """
    sources = [(r, c) for r, c in keyed if r.role in (Role.SOURCE, Role.COPY_OUT)]
    if not sources:
        return
    if reading.analysis.kind == "ExplainStmt" and is_analyzed(reading.tree):
        raise refused(
            "mask.explain",
            sources[0][0],
            "EXPLAIN ANALYZE would show how its pseudonyms are made",
            cure="Use EXPLAIN without ANALYZE.",
        )
    if writes(reading):
        for reference, columns in sources:
            _check_stored(reading.mentions, reference, columns)


def could_meet_masks(reading: Reading, anyone: Masking) -> bool:
    """Whether a parameter of the statement could be compared with a masked value, or be written in its place.

    No column that is masked for anybody is named, nothing stands for a whole row, and no function that somebody
    else wrote is called: then it cannot.
    """
    analysis = reading.analysis
    if any(d.action is Action.CALL and not d.builtin for d in analysis.demands):
        return anyone.any_column()
    meets = ((r, held.shown(anyone, reading, r) | anyone.referring(r.relation)) for r in reading.references)
    masked = [(reference, columns) for reference, columns in meets if columns]
    return any(_could_meet(reading.mentions, reference, columns) for reference, columns in masked)


def _could_meet(tree: Tree, reference: Reference, columns: Masked) -> bool:
    try:
        _check_unnamed(tree, reference, columns)
        _check_whole(tree, reference)
    except NotAnalysableError:
        return True
    if "colnames" in reference.var.get("alias", {}):
        return True
    return reference.role in (Role.TARGET, Role.COPY_IN) and None in _written(tree.tree, reference)


def runs_unseen(reading: Reading) -> bool:
    """Whether something else than the statement's text says what is done: a function, a trigger, a foreign key."""
    return bool(reading.unseen) or any(d.action is Action.CALL and not d.builtin for d in reading.analysis.demands)


def is_analyzed(tree: Node) -> bool:
    """Whether an EXPLAIN runs its statement. Whatever is not plainly off counts as on."""
    return is_on(options(tree["ExplainStmt"]).get("analyze", {"Boolean": {}}))


def writes(reading: Reading) -> bool:
    """Whether the statement holds an INSERT, UPDATE, DELETE or MERGE."""
    return not _WRITES.isdisjoint(reading.mentions.tags)


def is_countable(reading: Reading) -> bool:
    """Whether the command tag will say how many rows the statement has changed: it is one write, on its own."""
    kind = reading.analysis.kind
    return kind in _WRITES and sum(tag in _WRITES for node in nodes(reading.tree) for tag in node) == 1


def is_streamed(reading: Reading) -> bool:
    """Whether the statement's rows will pass the gateway one by one, and nothing is written: it can be stopped."""
    kind, effects = reading.analysis.kind, reading.analysis.effects
    reads = kind in ("SelectStmt", "DeclareCursorStmt") or effects.copy_out
    return reads and not effects.writes


def is_plan(reading: Reading) -> bool:
    """Whether the statement only asks how a read would run."""
    return reading.analysis.kind == "ExplainStmt" and not is_analyzed(reading.tree) and not writes(reading)


def _check_write(tree: Tree, reference: Reference, columns: Masked) -> None:
    names = masked_names(reference.relation, columns)
    for written in _written(tree.tree, reference):
        if written is None:
            raise refused(
                "mask.write",
                reference,
                "without a column list it writes masked columns too",
                cure="List the columns, and leave the masked ones out.",
            )
        if overlap := names & set(written):
            raise refused("mask.write", reference, f"it writes the masked column `{min(overlap)}`")
    _check_unnamed(tree, reference, columns)
    _check_whole(tree, reference)


def _check_whole(tree: Tree, reference: Reference) -> None:
    """Nothing may stand for the whole raw row: a star, the relation's name, or `row.function`."""
    if tree.holds_star:
        raise refused("mask.oracle", reference, "`*` stands for masked columns too", cure="Name the columns.")
    if "ReturningOption" in tree.tags:
        raise refused("mask.oracle", reference, "it gives new names to whole rows")
    rows = _ROW_NAMES | {row_name(reference.var)}
    own = {column.name for column in reference.relation.columns}
    for row in sorted(rows):
        for words in sorted(tree.columns.get(row, ())):
            if len(words) == 1:
                raise refused("mask.oracle", reference, f"`{row}` could mean the whole row")
            if len(words) == 2 and words[1] not in own:
                # `row.name` without such a column calls the function `name` with the whole row.
                raise refused("mask.oracle", reference, f"`{row}.{words[1]}` is none of its columns")
    full = (reference.relation.schema, reference.relation.name)
    if full in tree.qualified or full in tree.columns.get(full[0], ()):
        raise refused("mask.oracle", reference, "it names columns with the schema", cure="Use an alias.")


def _check_implied_key(tree: Tree, reference: Reference) -> None:
    """A foreign key without columns means the primary key, whichever columns it has."""
    keys = (node["Constraint"] for node in nodes(tree.tree) if "Constraint" in node)
    if any(key.get("pktable") is reference.var and "pk_attrs" not in key for key in keys):
        name = reference.relation.name
        raise refused(
            "mask.oracle",
            reference,
            "a foreign key to its primary key would tell whether a value exists there",
            cure=f"Name the columns that it refers to, as in `REFERENCES {name} (id)`; none of them may be masked.",
        )


def _check_trigger(reading: Reading, reference: Reference) -> None:
    """A function of somebody's would be handed the whole raw rows of a table that it was not written for."""
    calls = any(d.action is Action.CALL and not d.builtin and d.via is None for d in reading.analysis.demands)
    if reading.analysis.kind == "CreateTrigStmt" and calls:
        raise refused("mask.oracle", reference, "the trigger's function would be handed its raw rows")


def _check_unnamed(tree: Tree, reference: Reference, columns: Masked) -> None:
    if named := masked_names(reference.relation, columns) & tree.words:
        raise refused("mask.oracle", reference, f"it names the masked column `{min(named)}`")


def _check_stored(tree: Tree, reference: Reference, columns: Masked) -> None:
    row = row_name(reference.var)
    own = {column.name for column in reference.relation.columns}
    named = masked_names(reference.relation, columns) & tree.words
    whole = any(len(w) == 1 or (len(w) == 2 and w[1] not in own) for w in tree.columns.get(row, ()))
    if named or whole or "colnames" in reference.var.get("alias", {}) or tree.holds_star:
        raise refused(
            "mask.store",
            reference,
            "the statement would store masks as data",
            cure="Name the columns that are not masked.",
        )


def check_qualified(tree: Tree, reference: Reference, code: str, why: str) -> None:
    """Refuse columns that are named with the schema: a subquery stands in the relation's place."""
    full = (reference.relation.schema, reference.relation.name)
    if full in tree.qualified:
        raise NotAnalysableError(
            code,
            f"columns of `{reference.relation.qualified}`, {why}, cannot be named with its schema",
            cure="Give it an alias and use that.",
            location=tree.qualified[full],
        )


def refused(code: str, reference: Reference, why: str, cure: str | None = None) -> NotAnalysableError:
    """The refusal of what could tell of the masked columns of a relation."""
    return NotAnalysableError(
        code,
        f"`{reference.relation.qualified}` has columns masked for you, and {why}",
        cure=cure or "Leave the masked columns out, or ask somebody for whom they are not masked.",
        location=reference.location,
    )


def masked_names(relation: Relation, columns: Masked) -> set[str]:
    """The names of these columns."""
    return {column.name for column in relation.columns if column.number in columns}


def _written(tree: Node, reference: Reference) -> Iterator[list[str] | None]:
    """The columns that each write to this very target names; None where it names none."""
    for node in nodes(tree):
        for tag, body in node.items():
            if tag == "MergeWhenClause" and body.get("commandType") == "CMD_INSERT" and "targetList" not in body:
                yield None if "values" in body else []
            if not isinstance(body, dict) or body.get("relation") is not reference.var:
                continue
            if tag == "CopyStmt":
                yield [item["String"]["sval"] for item in body["attlist"]] if "attlist" in body else None
            elif tag == "InsertStmt" and "selectStmt" in body:
                yield [c["ResTarget"]["name"] for c in body["cols"]] if "cols" in body else None
            elif tag == "UpdateStmt":
                yield [c["ResTarget"]["name"] for c in body["targetList"]]


def _subtypes(tree: Node) -> set[str]:
    return {node["subtype"] for node in nodes(tree) if "subtype" in node}
