"""Statements that make objects, as demands; expressions inside them are walked like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from policy.model import Action, ObjectKind, ObjectName
from policy.names import parts
from policy.objects import (
    Handler,
    changes,
    check_function_options,
    create,
    create_relation,
    existing,
    makes_temporary,
)
from policy.parse import Node, NotAnalysableError
from policy.reading import Role

if TYPE_CHECKING:
    from policy.analyse import Analyser

# -- CREATE -----------------------------------------------------------------------------------------------


def select_into(walk: Analyser, into: Node) -> None:
    """SELECT INTO and CREATE TABLE AS: what they make, and that they store."""
    walk.stores = "it would store the result as data"
    create_relation(walk, into["rel"])
    walk.children("IntoClause", into, ("rel",))


def _create_as(walk: Analyser, body: Node) -> None:
    select_into(walk, body["into"])
    walk.children("CreateTableAsStmt", body, ("into",))


def _view(walk: Analyser, body: Node) -> None:
    var = body["view"]
    if makes_temporary(walk, var):
        raise NotAnalysableError(
            "temporary.create",
            f"the temporary view `{var['relname']}` cannot be made: what it reads is not followed",
            cure="Use a common table expression.",
            location=var.get("location", 0),
        )
    create_relation(walk, var)
    if body.get("replace") and (found := walk.names.find(var)):
        walk.demand_on(Action.ALTER, found, var.get("location", 0))
    walk.stores = "the view would read it with its owner's rights"
    walk.children("ViewStmt", body, ("view",))


def _table(walk: Analyser, body: Node) -> None:
    var = body["relation"]
    create_relation(walk, var)
    if makes_temporary(walk, var) and ("inhRelations" in body or "partspec" in body):
        raise NotAnalysableError(
            "temporary.create",
            f"the temporary table `{var['relname']}` cannot be made: it would share rows with other relations",
            cure="Use LIKE to copy columns.",
            location=var.get("location", 0),
        )
    for parent in body.get("inhRelations", ()):
        existing(walk, Action.ALTER, parent["RangeVar"])
    walk.children("CreateStmt", body, ("relation", "inhRelations"))


def _constraint(walk: Analyser, body: Node) -> None:
    if "pktable" in body:  # a foreign key tells whether a value exists there
        walk.refer(body["pktable"], Role.STRUCTURE, Action.SELECT)
    walk.children("Constraint", body, ("pktable",))


def _like(walk: Analyser, body: Node) -> None:
    walk.refer(body["relation"], Role.STRUCTURE, Action.SELECT)
    walk.children("TableLikeClause", body, ("relation",))


def _index(walk: Analyser, body: Node) -> None:
    relation = existing(walk, Action.ALTER, body["relation"])
    if "idxname" in body and relation is not None:
        create(walk, ObjectKind.RELATION, relation.schema, body["idxname"])
    walk.children("IndexStmt", body, ("relation",))


def _schema(walk: Analyser, body: Node) -> None:
    if "schemaElts" in body:
        raise NotAnalysableError(
            "statement.refused",
            "CREATE SCHEMA with objects in it is always refused: each is decided on its own",
            cure="Create the schema first, then what goes in it.",
        )
    changes(walk)
    walk.effects["search_path"] = True
    name = body.get("schemaname") or body.get("authrole", {}).get("rolename", "")
    walk.demand(Action.CREATE, ObjectName(ObjectKind.SCHEMA, None, name))
    walk.children("CreateSchemaStmt", body)


def _sequence(walk: Analyser, body: Node) -> None:
    create_relation(walk, body["sequence"])
    walk.children("CreateSeqStmt", body, ("sequence",))


def _composite(walk: Analyser, body: Node) -> None:
    var = body["typevar"]
    create(walk, ObjectKind.TYPE, var.get("schemaname"), var["relname"])
    walk.children("CompositeTypeStmt", body, ("typevar",))


def _create_named(tag: str, field: str, kind: ObjectKind) -> Handler:
    def note(walk: Analyser, body: Node) -> None:
        words = parts(body[field])
        create(walk, kind, words[-2] if len(words) > 1 else None, words[-1])
        walk.children(tag, body)

    return note


def _range(walk: Analyser, body: Node) -> None:
    for element in (item["DefElem"] for item in body["params"]):
        if element["defname"] in ("canonical", "subtype_diff", "subtype_opclass"):
            raise NotAnalysableError(
                "statement.refused",
                f"a range type with `{element['defname']}` is always refused: its values call functions unseen",
            )
    words = parts(body["typeName"])
    create(walk, ObjectKind.TYPE, words[-2] if len(words) > 1 else None, words[-1])
    walk.children("CreateRangeStmt", body)


def _function(walk: Analyser, body: Node) -> None:
    check_function_options(body.get("options", ()))
    words = parts(body["funcname"])
    create(walk, ObjectKind.FUNCTION, words[-2] if len(words) > 1 else None, words[-1])
    walk.stores = "the function would read it past the policy"
    walk.children("CreateFunctionStmt", body)


def _trigger(walk: Analyser, body: Node) -> None:
    existing(walk, Action.ALTER, body["relation"])
    walk.calls.call(parts(body["funcname"]), body["relation"].get("location", 0))
    walk.children("CreateTrigStmt", body, ("relation", "constrrel"))


def _on_table(tag: str, field: str) -> Handler:
    def note(walk: Analyser, body: Node) -> None:
        existing(walk, Action.ALTER, body[field])
        walk.children(tag, body, (field,))

    return note


def _statistics(walk: Analyser, body: Node) -> None:
    for item in body["relations"]:
        if "RangeVar" not in item:
            raise NotAnalysableError("statement.refused", "CREATE STATISTICS works on tables only")
        existing(walk, Action.ALTER, item["RangeVar"])
    walk.children("CreateStatsStmt", body, ("relations",))


def _element(walk: Analyser, body: Node) -> None:
    """An option: names in its argument are data, unless it is a node that is analysed like any other."""
    argument: Any = body.get("arg", {})
    if body["defname"] == "owned_by":
        return  # OWNED BY table.column: PostgreSQL requires the same owner
    if argument:
        walk.nodes(argument)
    walk.children("DefElem", body, ("arg",))


HANDLERS: Final[dict[str, Handler]] = {
    "CreateTableAsStmt": _create_as,
    "ViewStmt": _view,
    "CreateStmt": _table,
    "Constraint": _constraint,
    "TableLikeClause": _like,
    "IndexStmt": _index,
    "CreateSchemaStmt": _schema,
    "CreateSeqStmt": _sequence,
    "CompositeTypeStmt": _composite,
    "CreateEnumStmt": _create_named("CreateEnumStmt", "typeName", ObjectKind.TYPE),
    "CreateDomainStmt": _create_named("CreateDomainStmt", "domainname", ObjectKind.TYPE),
    "CreateRangeStmt": _range,
    "CreateFunctionStmt": _function,
    "CreateTrigStmt": _trigger,
    "CreatePolicyStmt": _on_table("CreatePolicyStmt", "table"),
    "AlterPolicyStmt": _on_table("AlterPolicyStmt", "table"),
    "CreateStatsStmt": _statistics,
    "DefElem": _element,
}
