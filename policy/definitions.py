"""Statements that make, change and drop objects, as demands; expressions inside them are walked like any other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from policy.catalog import Relation, RelationKind
from policy.model import Action, ObjectKind, ObjectName
from policy.names import is_system, parts
from policy.parse import Node, NotAnalysableError
from policy.reading import Role

if TYPE_CHECKING:
    from policy.analyse import Analyser

Handler = Callable[["Analyser", Node], None]

# pg_class entries that a statement can name; the ones in the snapshot are resolved.
_RELATION_TYPES = frozenset(
    ("OBJECT_TABLE", "OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_SEQUENCE", "OBJECT_FOREIGN_TABLE", "OBJECT_COLUMN")
)
_KINDS: Final = {
    "OBJECT_INDEX": ObjectKind.RELATION,
    "OBJECT_FUNCTION": ObjectKind.FUNCTION,
    "OBJECT_PROCEDURE": ObjectKind.FUNCTION,
    "OBJECT_ROUTINE": ObjectKind.FUNCTION,
    "OBJECT_AGGREGATE": ObjectKind.FUNCTION,
    "OBJECT_TYPE": ObjectKind.TYPE,
    "OBJECT_DOMAIN": ObjectKind.TYPE,
    "OBJECT_SCHEMA": ObjectKind.SCHEMA,
    "OBJECT_STATISTIC_EXT": ObjectKind.OTHER,
}
# Objects that hang on a relation: the last word is their own name.
_PARTS_OF_RELATIONS = frozenset(("OBJECT_TRIGGER", "OBJECT_POLICY", "OBJECT_TABCONSTRAINT", "OBJECT_RULE"))
_DATABASE = ObjectName(ObjectKind.OTHER, None, "database")


def _changes(walk: Analyser) -> None:
    walk.effects["writes"] = True
    walk.effects["catalog"] = True


def _create(walk: Analyser, kind: ObjectKind, schema: str | None, name: str, location: int = 0) -> ObjectName:
    made = ObjectName(kind, walk.names.creation_schema(schema, location), name)
    _changes(walk)
    walk.demand(Action.CREATE, made, location=location)
    return made


def _create_relation(walk: Analyser, var: Node) -> None:
    location = var.get("location", 0)
    if var.get("relpersistence") == "t":
        raise NotAnalysableError(
            "temporary.create",
            f"the temporary relation `{var['relname']}` cannot be made: names private to a session cannot be checked",
            cure="Use a common table expression.",
            location=location,
        )
    if "catalogname" in var:
        walk.names.find(var)
    _create(walk, ObjectKind.RELATION, var.get("schemaname"), var["relname"], location)


def _existing(walk: Analyser, action: Action, var: Node, *, missing_ok: bool = False) -> Relation | None:
    """Demand `action` on a relation; one that may be missing and is, counts by the name it would have."""
    _changes(walk)
    found = walk.names.find(var)
    if found is None:
        if not missing_ok:
            raise walk.names.unknown(var)
        for schema in walk.names.lookup_schemas(var.get("schemaname")):
            walk.demand(action, ObjectName(ObjectKind.RELATION, schema, var["relname"]))
        return None
    if is_system(found):
        raise NotAnalysableError(
            "catalog.write",
            f"`{found.qualified}` belongs to the server and is never changed",
            location=var.get("location", 0),
        )
    return walk.refer(var, Role.STRUCTURE, action)


def _outside_snapshot(walk: Analyser, action: Action, kind: ObjectKind, words: list[str]) -> None:
    """Demand `action` on an object that the snapshot does not hold: in every schema where it could lie."""
    _changes(walk)
    if kind is ObjectKind.SCHEMA:
        walk.demand(action, ObjectName(kind, None, words[-1]))
        return
    for schema in walk.names.lookup_schemas(words[-2] if len(words) > 1 else None):
        walk.demand(action, ObjectName(kind, schema, words[-1]))


def _as_var(words: list[str]) -> Node:
    names = ("relname", "schemaname", "catalogname")
    return dict(zip(names, reversed(words), strict=False))


def _words(item: Node) -> list[str]:
    """The name in any of the forms that DropStmt.objects and CommentStmt.object take."""
    [(tag, body)] = item.items()
    match tag:
        case "String":
            return [body["sval"]]
        case "List":
            words: list[str] = []
            for part in body["items"]:
                words += _words(part)
            return words
        case "TypeName":
            return parts(body["names"])
        case "ObjectWithArgs":
            return parts(body["objname"])
        case "RangeVar":
            return [body[k] for k in ("catalogname", "schemaname", "relname") if k in body]
    raise NotAnalysableError(
        "node.unknown", f"the statement names an object by `{tag}`, which the analysis does not know"
    )


def _by_type(
    walk: Analyser, action: Action, object_type: str, item: Node, *, missing_ok: bool = False
) -> list[Relation]:
    """Demand `action` on an object of this ObjectType; the relations among them are returned."""
    words = _words(item)
    if object_type == "OBJECT_COLUMN" or object_type in _PARTS_OF_RELATIONS:
        words, action = words[:-1], Action.ALTER
    elif object_type not in _RELATION_TYPES:
        kind = _KINDS.get(object_type)
        if kind is None:
            spoken = object_type.removeprefix("OBJECT_").replace("_", " ")
            raise NotAnalysableError("statement.refused", f"{action.value} of {spoken} is always refused here")
        _outside_snapshot(walk, action, kind, words)
        return []
    found = _existing(walk, action, _as_var(words), missing_ok=missing_ok)
    return [found] if found else []


def _cascade(walk: Analyser, action: Action, relations: Iterable[Relation]) -> None:
    """CASCADE reaches the views and children of what is dropped: they are demands too."""
    dropped = {r.oid for r in relations}
    for relation in walk.facts.catalog.relations.values():
        if relation.oid not in dropped and (relation.reads & dropped) and not is_system(relation):
            walk.demand_on(action, relation, 0)


# -- CREATE -----------------------------------------------------------------------------------------------


def select_into(walk: Analyser, into: Node) -> None:
    """SELECT INTO and CREATE TABLE AS: what they make, and that they store."""
    walk.stores = "it would store the result as data"
    _create_relation(walk, into["rel"])
    walk.children("IntoClause", into, ("rel",))


def _create_as(walk: Analyser, body: Node) -> None:
    select_into(walk, body["into"])
    walk.children("CreateTableAsStmt", body, ("into",))


def _view(walk: Analyser, body: Node) -> None:
    var = body["view"]
    _create_relation(walk, var)
    if body.get("replace") and (found := walk.names.find(var)):
        walk.demand_on(Action.ALTER, found, var.get("location", 0))
    walk.stores = "the view would read it with its owner's rights"
    walk.children("ViewStmt", body, ("view",))


def _table(walk: Analyser, body: Node) -> None:
    _create_relation(walk, body["relation"])
    for parent in body.get("inhRelations", ()):
        _existing(walk, Action.ALTER, parent["RangeVar"])
    walk.children("CreateStmt", body, ("relation", "inhRelations"))


def _constraint(walk: Analyser, body: Node) -> None:
    if "pktable" in body:  # a foreign key tells whether a value exists there
        walk.refer(body["pktable"], Role.STRUCTURE, Action.SELECT)
    walk.children("Constraint", body, ("pktable",))


def _like(walk: Analyser, body: Node) -> None:
    walk.refer(body["relation"], Role.STRUCTURE, Action.SELECT)
    walk.children("TableLikeClause", body, ("relation",))


def _index(walk: Analyser, body: Node) -> None:
    relation = _existing(walk, Action.ALTER, body["relation"])
    if "idxname" in body and relation is not None:
        _create(walk, ObjectKind.RELATION, relation.schema, body["idxname"])
    walk.children("IndexStmt", body, ("relation",))


def _schema(walk: Analyser, body: Node) -> None:
    _changes(walk)
    walk.effects["search_path"] = True
    name = body.get("schemaname") or body.get("authrole", {}).get("rolename", "")
    walk.demand(Action.CREATE, ObjectName(ObjectKind.SCHEMA, None, name))
    walk.children("CreateSchemaStmt", body)


def _sequence(walk: Analyser, body: Node) -> None:
    _create_relation(walk, body["sequence"])
    walk.children("CreateSeqStmt", body, ("sequence",))


def _composite(walk: Analyser, body: Node) -> None:
    var = body["typevar"]
    _create(walk, ObjectKind.TYPE, var.get("schemaname"), var["relname"])
    walk.children("CompositeTypeStmt", body, ("typevar",))


def _create_named(tag: str, field: str, kind: ObjectKind) -> Handler:
    def note(walk: Analyser, body: Node) -> None:
        words = parts(body[field])
        _create(walk, kind, words[-2] if len(words) > 1 else None, words[-1])
        walk.children(tag, body)

    return note


def _function(walk: Analyser, body: Node) -> None:
    for option in body.get("options", ()):
        element = option["DefElem"]
        if element["defname"] == "language":
            language = element["arg"]["String"]["sval"].lower()
            if language not in ("sql", "plpgsql"):
                raise NotAnalysableError(
                    "statement.refused",
                    f"a function in the language `{language}` is always refused: it could do anything",
                )
        elif element["defname"] in ("security", "set"):
            raise NotAnalysableError(
                "statement.refused",
                "SECURITY DEFINER and SET of a function are always refused: they change who or what it runs as",
            )
    words = parts(body["funcname"])
    _create(walk, ObjectKind.FUNCTION, words[-2] if len(words) > 1 else None, words[-1])
    walk.stores = "the function would read it past the policy"
    walk.children("CreateFunctionStmt", body)


def _trigger(walk: Analyser, body: Node) -> None:
    _existing(walk, Action.ALTER, body["relation"])
    walk.call(parts(body["funcname"]), body["relation"].get("location", 0))
    walk.children("CreateTrigStmt", body, ("relation", "constrrel"))


def _on_table(tag: str, field: str) -> Handler:
    def note(walk: Analyser, body: Node) -> None:
        _existing(walk, Action.ALTER, body[field])
        walk.children(tag, body, (field,))

    return note


def _statistics(walk: Analyser, body: Node) -> None:
    for item in body["relations"]:
        _existing(walk, Action.ALTER, item["RangeVar"])
    walk.children("CreateStatsStmt", body, ("relations",))


# -- ALTER, DROP ------------------------------------------------------------------------------------------


def _alter_table(walk: Analyser, body: Node) -> None:
    var = body["relation"]
    if body.get("objtype") == "OBJECT_INDEX":
        _outside_snapshot(walk, Action.ALTER, ObjectKind.RELATION, _words({"RangeVar": var}))
    elif body.get("objtype") == "OBJECT_TYPE":
        _outside_snapshot(walk, Action.ALTER, ObjectKind.TYPE, _words({"RangeVar": var}))
    else:
        _existing(walk, Action.ALTER, var, missing_ok=bool(body.get("missing_ok")))
    walk.children("AlterTableStmt", body, ("relation",))


def _alter_command(walk: Analyser, body: Node) -> None:
    # INHERIT, NO INHERIT and the like name another relation, bare.
    definition = body.get("def")
    if isinstance(definition, dict) and "RangeVar" in definition:
        _existing(walk, Action.ALTER, definition["RangeVar"])
        walk.children("AlterTableCmd", body, ("def",))
        return
    walk.children("AlterTableCmd", body)


def _partition(walk: Analyser, body: Node) -> None:
    _existing(walk, Action.ALTER, body["name"])
    walk.children("PartitionCmd", body, ("name",))


def _alter_sequence(walk: Analyser, body: Node) -> None:
    _existing(walk, Action.ALTER, body["sequence"], missing_ok=bool(body.get("missing_ok")))
    walk.children("AlterSeqStmt", body, ("sequence",))


def _alter_named(tag: str, field: str, kind: ObjectKind) -> Handler:
    def note(walk: Analyser, body: Node) -> None:
        value = body[field]
        words = parts(value) if isinstance(value, list) else parts(value["objname"])
        _outside_snapshot(walk, Action.ALTER, kind, words)
        walk.children(tag, body)

    return note


def _rename(tag: str) -> Handler:
    """RENAME, SET SCHEMA and OWNER TO: the object is altered, and a new name is made."""

    def note(walk: Analyser, body: Node) -> None:
        object_type = body.get("renameType") or body["objectType"]
        found: list[Relation] = []
        if "relation" in body:
            if object_type == "OBJECT_INDEX":
                _outside_snapshot(walk, Action.ALTER, ObjectKind.RELATION, _words({"RangeVar": body["relation"]}))
            else:
                one = _existing(walk, Action.ALTER, body["relation"], missing_ok=bool(body.get("missing_ok")))
                found = [one] if one else []
        else:
            found = _by_type(walk, Action.ALTER, object_type, body["object"])
        if object_type in _RELATION_TYPES and object_type != "OBJECT_COLUMN":
            for relation in found:
                if new := body.get("newname"):
                    _create(walk, ObjectKind.RELATION, relation.schema, new)
                elif new := body.get("newschema"):
                    _create(walk, ObjectKind.RELATION, new, relation.name)
        if object_type == "OBJECT_SCHEMA":
            walk.effects["search_path"] = True
        walk.children(tag, body, ("relation", "object"))

    return note


def _drop(walk: Analyser, body: Node) -> None:
    dropped: list[Relation] = []
    for item in body["objects"]:
        dropped += _by_type(walk, Action.DROP, body["removeType"], item, missing_ok=bool(body.get("missing_ok")))
    if body.get("behavior") == "DROP_CASCADE":
        _cascade(walk, Action.DROP, dropped)
        if body["removeType"] == "OBJECT_SCHEMA":
            _cascade_schemas(walk, {_words(item)[-1] for item in body["objects"]})
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
        # Foreign keys are not in the snapshot: any table of the same schemas could be emptied with them.
        schemas = {relation.schema for relation in found}
        for relation in walk.facts.catalog.relations.values():
            if relation.schema in schemas and relation.kind in (RelationKind.TABLE, RelationKind.PARTITIONED):
                walk.demand_on(Action.TRUNCATE, relation, 0, bounded=False)


def _comment(walk: Analyser, body: Node) -> None:
    _by_type(walk, Action.ALTER, body["objtype"], body["object"])


def _grant(walk: Analyser, body: Node) -> None:
    if body["targtype"] != "ACL_TARGET_OBJECT":
        for item in body.get("objects", ()):
            walk.demand(Action.GRANT, ObjectName(ObjectKind.SCHEMA, None, item["String"]["sval"]))
    else:
        for item in body["objects"]:
            if "RangeVar" in item:
                _existing(walk, Action.GRANT, item["RangeVar"])
            else:
                _by_type(walk, Action.GRANT, body["objtype"], item)
    _changes(walk)
    walk.children("GrantStmt", body, ("objects",))


# -- maintenance ------------------------------------------------------------------------------------------


def _maintain(walk: Analyser, var: Node | None, tag: str, body: Node, without: tuple[str, ...]) -> None:
    walk.effects["writes"] = True
    if var is None:
        walk.demand(Action.MAINTAIN, _DATABASE)
    else:
        walk.refer(var, Role.STRUCTURE, Action.MAINTAIN)
    walk.children(tag, body, without)


def _vacuum(walk: Analyser, body: Node) -> None:
    for item in body.get("rels", ()):
        _maintain(walk, item["VacuumRelation"].get("relation"), "VacuumRelation", item["VacuumRelation"], ("relation",))
    if not body.get("rels"):
        walk.demand(Action.MAINTAIN, _DATABASE)
    walk.effects["writes"] = True
    walk.children("VacuumStmt", body, ("rels",))


def _reindex(walk: Analyser, body: Node) -> None:
    if body["kind"] == "REINDEX_OBJECT_INDEX":
        _outside_snapshot(walk, Action.MAINTAIN, ObjectKind.RELATION, _words({"RangeVar": body["relation"]}))
        walk.children("ReindexStmt", body, ("relation",))
        return
    _maintain(walk, body.get("relation"), "ReindexStmt", body, ("relation",))


def _on_relation(tag: str) -> Handler:
    return lambda walk, body: _maintain(walk, body.get("relation"), tag, body, ("relation",))


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
    "CreateFunctionStmt": _function,
    "CreateTrigStmt": _trigger,
    "CreatePolicyStmt": _on_table("CreatePolicyStmt", "table"),
    "AlterPolicyStmt": _on_table("AlterPolicyStmt", "table"),
    "CreateStatsStmt": _statistics,
    "AlterTableStmt": _alter_table,
    "AlterTableCmd": _alter_command,
    "PartitionCmd": _partition,
    "AlterSeqStmt": _alter_sequence,
    "AlterEnumStmt": _alter_named("AlterEnumStmt", "typeName", ObjectKind.TYPE),
    "AlterDomainStmt": _alter_named("AlterDomainStmt", "typeName", ObjectKind.TYPE),
    "AlterFunctionStmt": _alter_named("AlterFunctionStmt", "func", ObjectKind.FUNCTION),
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
    "DefElem": _element,
}
