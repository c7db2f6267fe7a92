"""Pure: in which steps a migration runs. What can share a transaction does; what cannot be in one stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policy.parse import Node, base_text, statements

_ALONE = ("CreatedbStmt", "DropdbStmt", "CreateTableSpaceStmt", "DropTableSpaceStmt")
_REINDEXED_ONE_BY_ONE = ("REINDEX_OBJECT_SCHEMA", "REINDEX_OBJECT_SYSTEM", "REINDEX_OBJECT_DATABASE")


@dataclass(frozen=True, slots=True)
class Step:
    """Statements `first` to `last`, counted from 1, in one transaction; or one outside of any, and `why`."""

    first: int
    last: int
    why: str | None = None

    @property
    def outside(self) -> bool:
        """Whether it runs outside of a transaction."""
        return self.why is not None

    @property
    def numbers(self) -> range:
        """The numbers of its statements."""
        return range(self.first, self.last + 1)

    @property
    def name(self) -> str:
        """Its statements in words."""
        return f"statement {self.first}" if self.first == self.last else f"statements {self.first} to {self.last}"

    def __str__(self) -> str:
        how = "in a transaction" if self.why is None else f"outside of a transaction: {self.why}"
        return f"{self.name}, {how}"


def steps_of(texts: Sequence[bytes]) -> list[Step]:
    """The steps of these statements, in their order."""
    trees = [statements(base_text(text))[0][2] for text in texts]
    steps: list[Step] = []
    first = 1
    for number, tree in enumerate(trees, 1):
        why = alone(tree)
        if why is not None and first < number:
            steps.append(Step(first, number - 1))
        if why is not None:
            steps.append(Step(number, number, why))
            first = number + 1
        elif (value := added_value(tree)) is not None and any(value.encode() in text for text in texts[number:]):
            steps.append(Step(first, number))
            first = number + 1
    if first <= len(texts):
        steps.append(Step(first, len(texts)))
    return steps


def alone(tree: Node) -> str | None:
    """Why PostgreSQL refuses this statement in a transaction (its PreventInTransactionBlock); None where it does not.

    A reindexed table that is partitioned is not seen here: the rehearsal is refused then, and says so.
    """
    [(tag, body)] = tree.items()
    what = None
    match tag:
        case "IndexStmt" if body.get("concurrent"):
            what = "CREATE INDEX CONCURRENTLY"
        case "DropStmt" if body.get("concurrent"):
            what = "DROP INDEX CONCURRENTLY"
        case "ReindexStmt" if _is_concurrent(body) or body["kind"] in _REINDEXED_ONE_BY_ONE:
            what = "REINDEX CONCURRENTLY" if _is_concurrent(body) else "REINDEX of several tables"
        case "VacuumStmt" if body.get("is_vacuumcmd"):
            what = "VACUUM"
        case "ClusterStmt" if "relation" not in body:
            what = "CLUSTER of all tables"
        case "AlterTableStmt" if any(map(_detaches_concurrently, body["cmds"])):
            what = "DETACH PARTITION CONCURRENTLY"
        case _ if tag in _ALONE or (tag == "AlterDatabaseStmt" and "tablespace" in _names(body.get("options", ()))):
            what = "a change of databases and tablespaces"
    return f"{what} cannot be in one" if what else None


def added_value(tree: Node) -> str | None:
    """The label that an ALTER TYPE … ADD VALUE adds: nothing can use it before it is committed."""
    body = tree.get("AlterEnumStmt")
    return body["newVal"] if body is not None and "oldVal" not in body else None


def _is_concurrent(body: Node) -> bool:
    return "concurrently" in _names(body.get("params", ()))


def _detaches_concurrently(command: Node) -> bool:
    definition = command["AlterTableCmd"].get("def", {})
    return bool(definition.get("PartitionCmd", {}).get("concurrent"))


def _names(options: Sequence[Node]) -> list[str]:
    return [option["DefElem"]["defname"] for option in options]
