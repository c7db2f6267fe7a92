"""What functions in the language SQL do: their bodies, read as statements under the names that they will meet.

A body cannot be rewritten, so nothing in it may be hidden from whoever calls it. INVARIANT: whatever PostgreSQL
could run for a call is in the demands that `Bodies.open` returns for it, or the call is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from policy import held, tied
from policy.analyse import Analyser
from policy.catalog import Body, Function
from policy.filtering import Filtering
from policy.masking import Masking
from policy.model import Demand, Facts
from policy.names import TEMPORARY, Names, is_temporary
from policy.parse import Node, NotAnalysableError, base_text, statements
from policy.reading import Reading
from policy.settings import refusal_of_setting

MAX_BODIES: Final = 100

# Statements that call functions as the session's user, under its search path, at once.
_OPENS: Final = frozenset(
    ("SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "CopyStmt", "CallStmt", "ExecuteStmt")
)
_WRAPS: Final = frozenset(("ExplainStmt", "PrepareStmt"))
_DEFERRED: Final = "the index"  # of an EXCLUDE constraint that is deferred
_HOLDS: Final = frozenset(("SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "ReturnStmt"))
_IDENTIFIER: Final = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^\s",]+))\s*(?:,|$)')
_CURE: Final = "A rule without `bodies` would let it be called, trusting all that it does."

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """What one function demands when it is called, and the search path under which it calls others."""

    function: Function
    path: Path
    demands: tuple[Demand, ...]


class Bodies:
    """The bodies that one statement opens, each once for each search path that it is called under."""

    def __init__(self, facts: Facts, outer: Reading) -> None:
        self._facts = facts
        self._outer = outer
        self._seen: set[tuple[int, Path]] = set()
        self.readings: list[tuple[Function, Reading]] = []
        self.late: Function | None = None  # one whose body PostgreSQL parses when it is called

    def open(self, demand: Demand, path: Path) -> Iterator[Opened]:
        """What every function that a call could mean does. Raises NotAnalysableError `body.…`."""
        for oid in demand.functions:
            if (oid, path) in self._seen:
                continue
            self._seen.add((oid, path))
            function = self._facts.catalog.function(oid)
            if function is None:
                raise _refused(str(demand.object), "it cannot be found")
            if len(self._seen) > MAX_BODIES:
                raise _refused(_name(function), f"the statement reaches more than {MAX_BODIES} functions")
            yield self._open(function, path, demand.via or "")

    def check_names(self, *, moved: bool) -> None:
        """Refuse a body that is parsed when it is called where names could by then mean something else (`moved`)."""
        if self.late is not None and moved:
            raise moved_names(f"`{_name(self.late)}`")

    def check_shown(self, masking: Masking, filtering: Filtering) -> None:
        """Refuse a body that mentions what is hidden from the principal, or whose writes are held against it.

        Raises NotAnalysableError `mask.…`, `rows.…`.
        """
        for function, reading in self.readings:
            held.check(reading, masking)
            tied.check(reading, masking)
            filtering.check_unnamed(reading)
            for reference in reading.references:
                relation = reference.relation
                if held.shown(masking, reading, reference):
                    raise NotAnalysableError(
                        "mask.function",
                        f"`{_name(function)}` uses `{relation.qualified}`, which has columns masked for you, and inside"
                        " a function nothing masks them",
                        cure=f"Use `{relation.qualified}` in the statement itself.",
                    )
                if (hidden := filtering.hides(relation)) is not None:
                    raise NotAnalysableError(
                        "rows.function",
                        f"`{_name(function)}` uses `{hidden.qualified}`, of which you see only some rows, and inside a"
                        " function nothing filters them",
                        cure=f"Use `{hidden.qualified}` in the statement itself.",
                    )

    def _open(self, function: Function, path: Path, via: str) -> Opened:
        body = function.body
        if body is None:
            raise _refused(_name(function), f"it is written in `{function.language}`, and only SQL can be analysed")
        if body.definer:
            raise _refused(_name(function), "it runs with its owner's rights (SECURITY DEFINER)")
        tag = _statement(self._outer.tree)
        if tag not in _OPENS or self._outer.stores is not None:
            raise _refused(_name(function), "this statement could run it later, or as another user")
        own = _own_path(function, body, path)
        if not body.atomic and body.text.strip():
            if via.startswith(_DEFERRED):
                raise _refused(_name(function), f"{via} could run it when the transaction ends")
            self.late = function
        readings = [*self._text(function, body, own or path), *self._defaults(function, body)]
        self.readings += [(function, reading) for reading in readings]
        demands = [d for reading in readings for d in reading.analysis.demands]
        return Opened(function, own or path, tuple(_behind(function, d) for d in dict.fromkeys(demands)))

    def _text(self, function: Function, body: Body, path: Path) -> Iterator[Reading]:
        facts = replace(self._facts, search_path=self._facts.catalog.printed_under if body.atomic else path)
        text = f"CREATE FUNCTION f() RETURNS void LANGUAGE sql {body.text}" if body.atomic else body.text
        try:
            base = base_text(text.encode())
            trees = [tree for _, _, tree in statements(base)]
            for tree in _unwrapped(trees[0]) if body.atomic else trees:
                reading = _read(facts, base, tree, (*body.types, *function.results))
                if not body.atomic:
                    _check_one_meaning(facts, reading)
                yield reading
        except NotAnalysableError as error:
            raise _refused(_name(function), error.reason.text) from None

    def _defaults(self, function: Function, body: Body) -> Iterator[Reading]:
        """The defaults of its parameters: the caller evaluates them."""
        if not body.defaults:
            return
        facts = replace(self._facts, search_path=self._facts.catalog.printed_under)
        try:
            base = base_text(f"SELECT {body.defaults}".encode())
            [(_, _, tree)] = statements(base)
            yield _read(facts, base, tree, ())
        except NotAnalysableError as error:
            raise _refused(_name(function), error.reason.text) from None


def moved_names(what: str) -> NotAnalysableError:
    """The error for a body that is parsed when it is called, in a statement that may change the search path."""
    return NotAnalysableError(
        "body.refused",
        f"{what} cannot be run by what it does: something else in the statement may change what names mean before then",
        cure="Call it in a statement of its own, or write its body with RETURN or BEGIN ATOMIC.",
    )


def _read(facts: Facts, base: bytes, tree: Node, types: Sequence[int]) -> Reading:
    [tag] = tree
    if tag not in _HOLDS:
        raise NotAnalysableError("body.refused", f"its body holds `{tag}`, which is neither a query nor a write")
    analyser = Analyser(facts)
    # A parameter may have any type, and `parameter.name` may call a function (PostgreSQL: sql_fn_post_column_ref).
    analyser.calls.note_function_in_from()
    analyser.implied.note_parameter()
    for oid in types:
        if made := facts.catalog.type(oid):
            analyser.calls.behind(made.code, "the type of a parameter or of the result")
    reading = analyser.read(base, tree)
    if reading.stores is not None:
        raise NotAnalysableError("body.refused", "its body makes a table")
    return reading


def _unwrapped(tree: Node) -> Iterator[Node]:
    """The statements of RETURN …, or of BEGIN ATOMIC … END."""
    todo = [tree["CreateFunctionStmt"]["sql_body"]]
    while todo:
        one = todo.pop(0)
        if "List" in one:
            todo += one["List"].get("items", ())
        elif one:
            yield one


def _statement(tree: Node) -> str:
    """The tag of what is run, EXPLAIN and PREPARE opened up."""
    [(tag, body)] = tree.items()
    while tag in _WRAPS:
        [(tag, body)] = body["query"].items()
    return str(tag)


def _own_path(function: Function, body: Body, path: Path) -> Path | None:
    """The search path that the function sets for itself, as PostgreSQL completes it; None where it sets none.

    Raises NotAnalysableError for settings that clients may not change either.
    """
    found: Path | None = None
    for setting in body.settings:
        name, _, value = setting.partition("=")
        if reason := refusal_of_setting(name):
            raise _refused(_name(function), f"it sets `{name}`, which may not be changed here: {reason}")
        if name == "search_path":
            found = _completed(function, value, path)
    return found


def _completed(function: Function, value: str, path: Path) -> Path:
    words: list[str] = []
    at = 0
    while at < len(value):
        match = _IDENTIFIER.match(value, at)
        if match is None or match[0] == "":
            raise _refused(_name(function), f"the search path that it sets cannot be read: `{value}`")
        words.append(match[1].replace('""', '"') if match[1] is not None else match[2].lower())
        at = match.end()
    if unsure := [word for word in words if word == "$user" or (is_temporary(word) and word != TEMPORARY)]:
        raise _refused(_name(function), f"the search path that it sets names `{unsure[0]}`")
    # As recomputeNamespacePath (catalog/namespace.c): what is not named is searched first.
    temporary = [schema for schema in path if is_temporary(schema)]
    named = [schema for word in words for schema in (temporary if word == TEMPORARY else [word])]
    first = [schema for schema in (*temporary, "pg_catalog") if schema not in named]
    return tuple(dict.fromkeys((*first, *named)))


def _check_one_meaning(facts: Facts, reading: Reading) -> None:
    """Refuse a name that could mean two relations.

    PostgreSQL passes over schemas without USAGE on a path that the function sets, which no server has confirmed; and
    from version 18 on it may keep what a text meant before a relation was made that hides another.
    """
    for reference in reading.references:
        name = reference.var["relname"]
        if "schemaname" not in reference.var:
            found = [
                schema
                for schema in Names(facts.catalog, facts.search_path).path
                if facts.catalog.relation(schema, name)
            ]
            if len(found) > 1:
                raise NotAnalysableError("body.refused", f"`{name}` could mean more than one relation: {found}")


def _behind(function: Function, demand: Demand) -> Demand:
    via = f"the body of `{_name(function)}`"
    return demand._replace(location=0, via=f"{demand.via}, in {via}," if demand.via else via)


def _name(function: Function) -> str:
    return f"{function.schema}.{function.name}"


def _refused(name: str, why: str) -> NotAnalysableError:
    return NotAnalysableError("body.refused", f"`{name}` cannot be called by what it does: {why}", cure=_CURE)
