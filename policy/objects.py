"""How statements of definition name their objects, and what they demand of them: shared by making and changing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from policy.catalog import Relation
from policy.model import Action, ObjectKind, ObjectName
from policy.names import TEMPORARY, is_system, parts
from policy.parse import Node, NotAnalysableError
from policy.reading import Role

if TYPE_CHECKING:
    from policy.analyse import Analyser

Handler = Callable[["Analyser", Node], None]

# pg_class entries that a statement can name; the ones in the snapshot are resolved.
RELATION_TYPES = frozenset(
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


def changes(walk: Analyser) -> None:
    """Note that the statement changes the schema."""
    walk.effects["writes"] = True
    walk.effects["catalog"] = True


def create(walk: Analyser, kind: ObjectKind, schema: str | None, name: str, location: int = 0) -> ObjectName:
    """Demand the making of an object in this schema, or in the one where unqualified names are made."""
    made = ObjectName(kind, walk.names.creation_schema(schema, location), name)
    if made.schema == TEMPORARY:
        _check_temporary(walk, made, location)
    changes(walk)
    walk.demand(Action.CREATE, made, location=location)
    return made


def create_relation(walk: Analyser, var: Node) -> None:
    """Demand the making of a relation, a temporary one in `pg_temp`."""
    location = var.get("location", 0)
    if "catalogname" in var:
        walk.names.find(var)
    schema = TEMPORARY if makes_temporary(walk, var) else var.get("schemaname")
    create(walk, ObjectKind.RELATION, schema, var["relname"], location)


def makes_temporary(walk: Analyser, var: Node) -> bool:
    """Whether a statement that makes this relation says that it is temporary, by TEMP or by its schema."""
    return var.get("relpersistence") == "t" or walk.names.own(var.get("schemaname", ""), var["relname"]) == TEMPORARY


def _check_temporary(walk: Analyser, made: ObjectName, location: int) -> None:
    """Refuse what could not be analysed once it is there. Raises NotAnalysableError `temporary.create`."""
    why = None
    if made.kind is not ObjectKind.RELATION:
        why = f"temporary objects of the kind {made.kind.value} cannot be analysed"
    elif made.name in walk.names.catalog.server_types:
        why = "it would hide the type of that name"
    if why is not None:
        raise NotAnalysableError(
            "temporary.create",
            f"`{made}` cannot be made: {why}",
            cure="Choose another name." if made.kind is ObjectKind.RELATION else "Make it in a schema that lasts.",
            location=location,
        )


def existing(walk: Analyser, action: Action, var: Node, *, missing_ok: bool = False) -> Relation | None:
    """Demand `action` on a relation; one that may be missing and is, counts by the name it would have."""
    changes(walk)
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


def outside_snapshot(walk: Analyser, action: Action, kind: ObjectKind, words: list[str]) -> None:
    """Demand `action` on an object that the snapshot does not hold: in every schema where it could lie."""
    changes(walk)
    if kind is ObjectKind.SCHEMA:
        walk.demand(action, ObjectName(kind, None, words[-1]))
        return
    for schema in walk.names.lookup_schemas(words[-2] if len(words) > 1 else None):
        walk.demand(action, ObjectName(kind, schema, words[-1]))


def as_var(words: list[str]) -> Node:
    """A RangeVar of a dotted name."""
    names = ("relname", "schemaname", "catalogname")
    return dict(zip(names, reversed(words), strict=False))


def words_of(item: Node) -> list[str]:
    """The name in any of the forms that DropStmt.objects and CommentStmt.object take."""
    [(tag, body)] = item.items()
    match tag:
        case "Float" | "Integer":
            raise NotAnalysableError("statement.refused", "large objects are always refused: no rule describes them")
        case "String":
            return [body["sval"]]
        case "List":
            words: list[str] = []
            for part in body["items"]:
                words += words_of(part)
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


def by_type(
    walk: Analyser, action: Action, object_type: str, item: Node, *, missing_ok: bool = False
) -> list[Relation]:
    """Demand `action` on an object of this ObjectType; the relations among them are returned."""
    words = words_of(item)
    if object_type == "OBJECT_COLUMN" or object_type in _PARTS_OF_RELATIONS:
        words, action = words[:-1], Action.ALTER
    elif object_type not in RELATION_TYPES:
        kind = _KINDS.get(object_type)
        if kind is None:
            spoken = object_type.removeprefix("OBJECT_").replace("_", " ")
            raise NotAnalysableError("statement.refused", f"{action.value} of {spoken} is always refused here")
        outside_snapshot(walk, action, kind, words)
        return []
    found = existing(walk, action, as_var(words), missing_ok=missing_ok)
    return [found] if found else []


def check_function_options(elements: Iterable[Node]) -> None:
    """Refuse languages that could do anything, and what changes the rights that a function runs with."""
    for element in (item["DefElem"] for item in elements):
        if element["defname"] == "language" and element["arg"]["String"]["sval"].lower() not in ("sql", "plpgsql"):
            language = element["arg"]["String"]["sval"]
            raise NotAnalysableError(
                "statement.refused", f"a function in the language `{language}` is always refused: it could do anything"
            )
        if element["defname"] in ("security", "set", "support"):
            raise NotAnalysableError(
                "statement.refused",
                "SECURITY, SET and SUPPORT of a function are always refused: they change who or what it runs as",
            )
