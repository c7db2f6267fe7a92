"""Statements that change, drop, grant and maintain objects, as demands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from policy.catalog import Relation, RelationKind
from policy.model import Action, ObjectKind, ObjectName
from policy.names import is_system, parts
from policy.objects import (
    RELATION_TYPES,
    Handler,
    by_type,
    changes,
    check_function_options,
    create,
    existing,
    outside_snapshot,
    words_of,
)
from policy.parse import Node, NotAnalysableError
from policy.reading import Role

if TYPE_CHECKING:
    from policy.analyse import Analyser

_NEVER_RENAMED: Final = {
    "OBJECT_SCHEMA": "policies and masks know what lies in it by its name",
    "OBJECT_ROLE": "roles are managed outside of the gateway",
    "OBJECT_DATABASE": "it administers the whole server",
    "OBJECT_TABLESPACE": "it administers the whole server",
}
_DATABASE = ObjectName(ObjectKind.OTHER, None, "database")


def _cascade(walk: Analyser, action: Action, relations: Iterable[Relation]) -> None:
    """CASCADE reaches the views of what is dropped, and the views of those: they are demands too."""
    reached = {relation.oid for relation in relations}
    known = walk.facts.catalog.relations.values()
    while found := [r for r in known if r.oid not in reached and r.reads & reached and not is_system(r)]:
        for relation in found:
            reached.add(relation.oid)
            walk.demand_on(action, relation, 0)


# -- ALTER, DROP ------------------------------------------------------------------------------------------


def _alter_table(walk: Analyser, body: Node) -> None:
    var = body["relation"]
    if body.get("objtype") == "OBJECT_INDEX":
        outside_snapshot(walk, Action.ALTER, ObjectKind.RELATION, words_of({"RangeVar": var}))
    elif body.get("objtype") == "OBJECT_TYPE":
        outside_snapshot(walk, Action.ALTER, ObjectKind.TYPE, words_of({"RangeVar": var}))
    else:
        existing(walk, Action.ALTER, var, missing_ok=bool(body.get("missing_ok")))
    walk.children("AlterTableStmt", body, ("relation",))


def _alter_command(walk: Analyser, body: Node) -> None:
    # INHERIT, NO INHERIT and the like name another relation, bare.
    definition = body.get("def")
    if isinstance(definition, dict) and "RangeVar" in definition:
        existing(walk, Action.ALTER, definition["RangeVar"])
        walk.children("AlterTableCmd", body, ("def",))
        return
    walk.children("AlterTableCmd", body)


def _partition(walk: Analyser, body: Node) -> None:
    existing(walk, Action.ALTER, body["name"])
    walk.children("PartitionCmd", body, ("name",))


def _alter_sequence(walk: Analyser, body: Node) -> None:
    existing(walk, Action.ALTER, body["sequence"], missing_ok=bool(body.get("missing_ok")))
    walk.children("AlterSeqStmt", body, ("sequence",))


def _alter_named(tag: str, field: str, kind: ObjectKind) -> Handler:
    def note(walk: Analyser, body: Node) -> None:
        outside_snapshot(walk, Action.ALTER, kind, parts(body[field]))
        walk.children(tag, body)

    return note


def _alter_function(walk: Analyser, body: Node) -> None:
    check_function_options(body["actions"])
    outside_snapshot(walk, Action.ALTER, ObjectKind.FUNCTION, parts(body["func"]["objname"]))
    walk.children("AlterFunctionStmt", body)


def _rename(tag: str) -> Handler:
    """RENAME, SET SCHEMA and OWNER TO: the object is altered, and a new name is made."""

    def note(walk: Analyser, body: Node) -> None:
        object_type = body.get("renameType") or body["objectType"]
        if tag == "RenameStmt" and (why := _NEVER_RENAMED.get(object_type)):
            spoken = object_type.removeprefix("OBJECT_")
            raise NotAnalysableError("statement.refused", f"ALTER {spoken} … RENAME is always refused: {why}")
        found: list[Relation] = []
        if "relation" in body:
            if object_type == "OBJECT_INDEX":
                outside_snapshot(walk, Action.ALTER, ObjectKind.RELATION, words_of({"RangeVar": body["relation"]}))
            else:
                one = existing(walk, Action.ALTER, body["relation"], missing_ok=bool(body.get("missing_ok")))
                found = [one] if one else []
        else:
            found = by_type(walk, Action.ALTER, object_type, body["object"])
        if object_type in RELATION_TYPES and object_type != "OBJECT_COLUMN":
            for relation in found:
                if new := body.get("newname"):
                    create(walk, ObjectKind.RELATION, relation.schema, new)
                elif new := body.get("newschema"):
                    create(walk, ObjectKind.RELATION, new, relation.name)
        walk.children(tag, body, ("relation", "object"))

    return note


def _drop(walk: Analyser, body: Node) -> None:
    dropped: list[Relation] = []
    for item in body["objects"]:
        dropped += by_type(walk, Action.DROP, body["removeType"], item, missing_ok=bool(body.get("missing_ok")))
    if body.get("behavior") == "DROP_CASCADE":
        _cascade(walk, Action.DROP, dropped)
        if body["removeType"] == "OBJECT_SCHEMA":
            _cascade_schemas(walk, {words_of(item)[-1] for item in body["objects"]})
    if body["removeType"] == "OBJECT_SCHEMA":
        walk.effects["search_path"] = True


def _cascade_schemas(walk: Analyser, schemas: set[str]) -> None:
    for relation in walk.facts.catalog.relations.values():
        if relation.schema in schemas:
            walk.demand_on(Action.DROP, relation, 0)


def _truncate(walk: Analyser, body: Node) -> None:
    found = []
    for item in body["relations"]:
        var = item["RangeVar"]
        found.append(walk.target(var, Action.TRUNCATE, bounded=False, role=Role.STRUCTURE))
    if body.get("behavior") == "DROP_CASCADE":
        for relation in walk.implied.truncated(found):
            walk.demand_on(Action.TRUNCATE, relation, 0, bounded=False, via="a foreign key")


def _comment(walk: Analyser, body: Node) -> None:
    by_type(walk, Action.ALTER, body["objtype"], body["object"])


def _grant(walk: Analyser, body: Node) -> None:
    if body["targtype"] != "ACL_TARGET_OBJECT":
        for item in body.get("objects", ()):
            walk.demand(Action.GRANT, ObjectName(ObjectKind.SCHEMA, None, item["String"]["sval"]))
    else:
        for item in body["objects"]:
            if "RangeVar" in item:
                existing(walk, Action.GRANT, item["RangeVar"])
            else:
                by_type(walk, Action.GRANT, body["objtype"], item)
    changes(walk)
    walk.children("GrantStmt", body, ("objects",))


# -- maintenance ------------------------------------------------------------------------------------------


def _maintain(walk: Analyser, var: Node | None, tag: str, body: Node, without: tuple[str, ...]) -> None:
    walk.effects["writes"] = True
    if var is None:
        _maintain_database(walk)
    else:
        walk.refer(var, Role.STRUCTURE, Action.MAINTAIN)
    walk.children(tag, body, without)


def _maintain_database(walk: Analyser) -> None:
    walk.demand(Action.MAINTAIN, _DATABASE)
    for relation in walk.facts.catalog.relations.values():
        if relation.code and relation.kind not in (RelationKind.VIEW, RelationKind.MATERIALIZED_VIEW):
            walk.implied.on(Action.MAINTAIN, relation, 0)


def _vacuum(walk: Analyser, body: Node) -> None:
    for item in body.get("rels", ()):
        _maintain(walk, item["VacuumRelation"].get("relation"), "VacuumRelation", item["VacuumRelation"], ("relation",))
    if not body.get("rels"):
        _maintain_database(walk)
    walk.effects["writes"] = True
    walk.children("VacuumStmt", body, ("rels",))


def _reindex(walk: Analyser, body: Node) -> None:
    if body["kind"] == "REINDEX_OBJECT_INDEX":
        outside_snapshot(walk, Action.MAINTAIN, ObjectKind.RELATION, words_of({"RangeVar": body["relation"]}))
        walk.children("ReindexStmt", body, ("relation",))
        return
    _maintain(walk, body.get("relation"), "ReindexStmt", body, ("relation",))


def _on_relation(tag: str) -> Handler:
    return lambda walk, body: _maintain(walk, body.get("relation"), tag, body, ("relation",))


HANDLERS: Final[dict[str, Handler]] = {
    "AlterTableStmt": _alter_table,
    "AlterTableCmd": _alter_command,
    "PartitionCmd": _partition,
    "AlterSeqStmt": _alter_sequence,
    "AlterEnumStmt": _alter_named("AlterEnumStmt", "typeName", ObjectKind.TYPE),
    "AlterDomainStmt": _alter_named("AlterDomainStmt", "typeName", ObjectKind.TYPE),
    "AlterStatsStmt": _alter_named("AlterStatsStmt", "defnames", ObjectKind.OTHER),
    "AlterFunctionStmt": _alter_function,
    "RenameStmt": _rename("RenameStmt"),
    "AlterObjectSchemaStmt": _rename("AlterObjectSchemaStmt"),
    "AlterOwnerStmt": _rename("AlterOwnerStmt"),
    "DropStmt": _drop,
    "TruncateStmt": _truncate,
    "CommentStmt": _comment,
    "GrantStmt": _grant,
    "VacuumStmt": _vacuum,
    "ReindexStmt": _reindex,
    "ClusterStmt": _on_relation("ClusterStmt"),
    "RefreshMatViewStmt": _on_relation("RefreshMatViewStmt"),
}
