"""What the newest grammar reads as SQL's own words, and older servers as names: refused there, for they mean others.

The gate is one grammar for every server. To PostgreSQL 15 `json_value(a, b)` is a call of whatever function has that
name, and `system_user` a column; the tree says neither, so neither would be demanded. A qualified or quoted name is
read alike by all. Sources: the release notes of PostgreSQL 16 and 17, "SQL/JSON".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from policy.parse import Node, NotAnalysableError

if TYPE_CHECKING:
    from policy.analyse import Analyser

# By node: the first server version (server_version_num) that reads it so, and the word that begins it.
_SINCE: Final[dict[str, tuple[int, str]]] = {
    "JsonObjectConstructor": (160000, "json_object"),
    "JsonArrayConstructor": (160000, "json_array"),
    "JsonArrayQueryConstructor": (160000, "json_array"),
    "JsonObjectAgg": (160000, "json_objectagg"),
    "JsonArrayAgg": (160000, "json_arrayagg"),
    "JsonParseExpr": (170000, "json"),
    "JsonScalarExpr": (170000, "json_scalar"),
    "JsonSerializeExpr": (170000, "json_serialize"),
    "JsonFuncExpr": (170000, ""),  # its operation is the word: JSON_VALUE_OP
    "MergeSupportFunc": (170000, "merge_action"),
}
_SYSTEM_USER_SINCE: Final = 160000
_JSON_OBJECT_SINCE: Final = 160000


def as_called(walk: Analyser, body: Node, words: list[str]) -> list[str]:
    """The name of a function call as the server will read it. Raises NotAnalysableError `text.version`."""
    if words == ["pg_catalog", "json_object"] and walk.facts.catalog.server_version < _JSON_OBJECT_SINCE:
        return words[1:]  # the newer grammar itself puts the schema there
    if words[-1] == "system_user" and body.get("funcformat") == "COERCE_SQL_SYNTAX":
        _check(walk, "system_user", _SYSTEM_USER_SINCE, body)
    return words


def _construct(tag: str, since: int, word: str) -> Callable[[Analyser, Node], None]:
    def visit(walk: Analyser, body: Node) -> None:
        _check(walk, word or body["op"].removesuffix("_OP").lower(), since, body)
        walk.children(tag, body)

    return visit


def _check(walk: Analyser, word: str, since: int, body: Node) -> None:
    version = walk.facts.catalog.server_version
    if version < since:
        raise NotAnalysableError(
            "text.version",
            f"`{word}` is a word of SQL since PostgreSQL {since // 10000}, and this server, {version // 10000}, "
            "reads it as somebody's name",
            cure=f'Qualify the function (`schema.{word}`), or quote the column (`"{word}"`), that you mean.',
            location=body.get("location"),
        )


HANDLERS: Final[dict[str, Callable[[Analyser, Node], None]]] = {
    tag: _construct(tag, since, word) for tag, (since, word) in _SINCE.items()
}
