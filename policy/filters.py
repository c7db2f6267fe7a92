"""Row filters as SQL: a condition over a relation's columns, with attributes of the principal as literals.

A filter runs inside the client's session, under the client's search path. INVARIANT: what its names mean does
not depend on that path: relations and types are qualified or PostgreSQL's own, and unqualified functions and
operators are only used while nothing but PostgreSQL's own could be meant (`RowFilter.check_names`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from policy.functions import FIRST_USER_OID, SYSTEM_SCHEMAS
from policy.model import Principal
from policy.names import TEMPORARY, Names, parts
from policy.parse import Node, NotAnalysableError, base_text, statements, tokens
from policy.patterns import Pattern
from policy.settings import refusal_of_setting

_PREFIX: Final = b"SELECT FROM relation WHERE "
_PRINCIPAL: Final = "principal"
_ATTRIBUTES: Final = ("subject", "email", "groups", "on_behalf_of")

# What would make a filter more than a condition.
_REFUSED: Final[Mapping[str, str]] = {
    "ParamRef": "a filter has no parameters",
    "withClause": "a filter has no WITH",
    "intoClause": "a filter stores nothing",
    "lockingClause": "a filter locks nothing",
    "CurrentOfExpr": "a filter has no cursor",
}
# One-word types of pg_catalog that SQL has no keyword for; others are written with their schema.
_TYPES: Final = frozenset(
    ("text", "bytea", "uuid", "date", "timestamptz", "timetz", "json", "jsonb", "inet", "cidr", "name", "money")
)
# What stands behind syntax that names no operator.
_BEHIND: Final[Mapping[str, tuple[str, ...]]] = {
    "BETWEEN": (">=", "<="),
    "NOT BETWEEN": ("<", ">"),
    "BETWEEN SYMMETRIC": (">=", "<="),
    "NOT BETWEEN SYMMETRIC": ("<", ">"),
}


# A date of which `DateStyle`, the client's own setting, says which number is the month.
_UNSURE_DATE: Final = re.compile(r"\s*\d{1,2}([-/.])\d{1,2}\1\d{2,4}(?!\S*\1)")
# An interval of which `IntervalStyle` says whether its first sign is that of all its numbers.
_UNSURE_INTERVAL: Final = re.compile(r"\s*-\s*[\d.:]+[^-+]*[A-Za-z\s][^-+]*\d[^-+]*\Z")
# With one argument they work by `default_text_search_config`.
_SEARCHES: Final = frozenset(
    ("to_tsvector", "to_tsquery", "plainto_tsquery", "phraseto_tsquery", "websearch_to_tsquery")
)


class FilterError(ValueError):
    """The text is no filter; the message says why, and after a semicolon the cure."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter's SQL, taken apart. `pieces` are bytes of SQL and, between them, names of attributes.

    `columns` are the unqualified columns outside of subqueries, `functions` and `operators` the unqualified
    names of either, `relations` the (schema, name) of what subqueries read.
    """

    pieces: tuple[bytes, ...]
    attributes: tuple[str, ...]
    columns: frozenset[str]
    functions: frozenset[str]
    operators: frozenset[str]
    relations: frozenset[tuple[str, str]]

    def sql(self, principal: Principal) -> str:
        """The condition for this principal."""
        filled = [self.pieces[0].decode()]
        for name, piece in zip(self.attributes, self.pieces[1:], strict=True):
            filled += [_value(principal, name), piece.decode()]
        return "".join(filled)

    def check_names(self, names: Names) -> None:
        """Raise NotAnalysableError `rows.path` where the session's search path could change what is meant."""
        # A temporary schema holds no functions, and no types that hide those of the server.
        if next((schema for schema in names.path if schema != TEMPORARY), None) != "pg_catalog":
            raise _ambiguous("the search path of the session puts another schema before `pg_catalog`")
        for function in sorted(self.functions):
            if any(f.schema not in SYSTEM_SCHEMAS or f.oid >= FIRST_USER_OID for f in names.overloads((function,))):
                raise _ambiguous(f"a function `{function}` of a user lies in the search path of the session")
        for operator in sorted(self.operators):
            if names.user_operators((operator,)):
                raise _ambiguous(f"an operator `{operator}` of a user lies in the search path of the session")


@dataclass(frozen=True, slots=True)
class RowFilter:
    """One entry of the policy: of these relations, only rows that meet the condition are there."""

    relations: Pattern
    condition: Condition
    label: str = "rows"
    place: tuple[int, int] = (1, 1)


def read_condition(text: str) -> Condition:
    """Read the SQL of a filter. Raises FilterError."""
    try:
        base = base_text(text.encode()).strip()
        tree = _where(base)
        # In parentheses it must mean the same: `a) OR (b` would otherwise end them.
        if _without_places(tree) != _without_places(_where(b"(" + base + b")")):
            raise FilterError("the filter is no single condition; write one expression")
    except NotAnalysableError as error:
        raise FilterError(f"the filter cannot be read: {error.reason.text}; write one SQL condition") from None
    except RecursionError:
        raise FilterError("the filter nests too deep; flatten it") from None
    found = _Names()
    found.visit(tree, inner=False)
    pieces, at = [], 0
    for start, end in _places(base, found.attributes):
        pieces.append(base[at:start])
        at = end
    return Condition(
        pieces=(*pieces, base[at:]),
        attributes=tuple(name for _, name in sorted(found.attributes)),
        columns=frozenset(found.columns),
        functions=frozenset(found.functions),
        operators=frozenset(found.operators),
        relations=frozenset(found.relations),
    )


def _where(condition: bytes) -> Node:
    found = statements(_PREFIX + condition)
    body = found[0][2].get("SelectStmt", {}) if len(found) == 1 else {}
    if body.keys() - {"fromClause", "whereClause", "limitOption", "op"} or "whereClause" not in body:
        raise FilterError("the filter is more than a condition; write what would stand after WHERE, and nothing else")
    where: Node = body["whereClause"]
    return where


class _Names:
    """One walk over a filter: what it names. Raises FilterError for what a filter may not hold."""

    def __init__(self) -> None:
        self.attributes: list[tuple[int, str]] = []  # byte offset in the filter, attribute
        self.columns: set[str] = set()
        self.functions: set[str] = set()
        self.operators: set[str] = set()
        self.relations: set[tuple[str, str]] = set()

    def visit(self, value: Any, *, inner: bool) -> None:
        """Visit a node, a list of them or data; `inner` within a subquery."""
        if isinstance(value, list):
            for item in value:
                self.visit(item, inner=inner)
        elif isinstance(value, dict):
            for key, body in value.items():
                if reason := _REFUSED.get(key):
                    raise FilterError(f"{reason}; write it without")
                self._note(key, body, inner)
                self.visit(body, inner=inner or key == "subselect")

    def _note(self, key: str, body: Any, inner: bool) -> None:
        match key:
            case "ColumnRef":
                self._column(body, inner)
            case "sval" if isinstance(body, dict) and _UNSURE_DATE.match(text := body.get("sval", "")):
                raise FilterError(f"`{text}` means what the client's DateStyle says; write dates as 2026-01-31")
            case "sval" if isinstance(body, dict) and _UNSURE_INTERVAL.match(text := body.get("sval", "")):
                raise FilterError(f"`{text}` means what the client's IntervalStyle says; give each number its sign")
            case "RangeVar":
                if "schemaname" not in body or "catalogname" in body:
                    raise FilterError(f"`{body['relname']}` has no schema; write it as `schema.{body['relname']}`")
                self.relations.add((body["schemaname"], body["relname"]))
            case "A_Indirection" if any("String" in step for step in body["indirection"]):
                raise FilterError("a filter takes no fields of rows; name the column plainly")
            case "FuncCall":
                words = parts(body["funcname"])
                self._settings(words[-1], body.get("args", []))
                if len(words) == 1:
                    self.functions.add(words[0])
            case "A_Expr":
                self._operator(parts(body["name"]))
            case "SubLink":
                if "testexpr" in body:
                    self._operator(parts(body.get("operName", ())) or ["="])
            case "SortBy" if "useOp" in body:
                self._operator(parts(body["useOp"]))
            case "CaseExpr" if "arg" in body:
                self.operators.add("=")
            case "JoinExpr" if "usingClause" in body or body.get("isNatural"):
                self.operators.add("=")
            case "typeName" | "TypeName":
                self._type(parts(body.get("names", ())))
            case _:
                pass

    def _operator(self, words: list[str]) -> None:
        if len(words) == 1:
            self.operators.update(_BEHIND.get(words[0], (words[0],)))

    def _settings(self, function: str, arguments: list[Node]) -> None:
        """Refuse functions whose result a client chooses by a setting of theirs."""
        if function in _SEARCHES and len(arguments) == 1:
            raise FilterError(f"`{function}` searches as the client's settings say; name the configuration first")
        if function == "current_setting":
            name = arguments[0].get("A_Const", {}).get("sval", {}).get("sval") if arguments else None
            if name is None or refusal_of_setting(name) is None:
                raise FilterError("`current_setting` is what the client says; use an attribute of the principal")

    def _type(self, words: list[str]) -> None:
        if len(words) == 1 and words[0] not in _TYPES:
            raise FilterError(f"the type `{words[0]}` has no schema; write it as `schema.{words[0]}`")

    def _column(self, body: Node, inner: bool) -> None:
        words = [field["String"]["sval"] for field in body["fields"] if "String" in field]
        if words and words[0] == _PRINCIPAL:
            if len(body["fields"]) != 2 or len(words) != 2 or words[1] not in _ATTRIBUTES:
                known = ", ".join(f"`principal.{name}`" for name in _ATTRIBUTES)
                raise FilterError(f"`{'.'.join(words)}` is no attribute of a principal; known are {known}")
            self.attributes.append((body.get("location", 0) - len(_PREFIX), words[1]))
        elif len(words) == len(body["fields"]) == 1 and not inner:
            self.columns.add(words[0])


def _places(base: bytes, attributes: list[tuple[int, str]]) -> Iterator[tuple[int, int]]:
    """The bytes of each `principal.attribute`: a word, a dot and a word."""
    scanned = tokens(base)
    by_start = {token.start: index for index, token in enumerate(scanned)}
    for start, _ in sorted(attributes):
        index = by_start.get(start)
        if index is None or index + 2 >= len(scanned) or base[scanned[index + 1].start] != ord("."):
            raise FilterError("an attribute of the principal is written unusually; write it as `principal.email`")
        yield start, scanned[index + 2].end


def _value(principal: Principal, attribute: str) -> str:
    """An attribute as a literal of type text or text[]; NULL where the principal has none."""
    match attribute:
        case "groups":
            listed = ", ".join(_literal(group) for group in sorted(principal.groups))
            return f"(CAST(ARRAY[{listed}] AS pg_catalog.text[]))"
        case "subject":
            value: str | None = principal.subject
        case "email":
            value = principal.email
        case _:
            value = principal.on_behalf_of
    return f"(CAST({'NULL' if value is None else _literal(value)} AS pg_catalog.text))"


def _literal(text: str) -> str:
    """A string constant; standard_conforming_strings is pinned to `on`."""
    if "\0" in text:
        raise NotAnalysableError("rows.principal", "an attribute of the principal contains a NUL character")
    return "'" + text.replace("'", "''") + "'"


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_places(v) for k, v in value.items() if "location" not in k and "list_" not in k}
    return [_without_places(item) for item in value] if isinstance(value, list) else value


def _ambiguous(why: str) -> NotAnalysableError:
    return NotAnalysableError(
        "rows.path",
        f"what the filter on its rows means cannot be told for sure: {why}",
        cure="SET search_path to the schemas that you need, and name others where you use them.",
    )
