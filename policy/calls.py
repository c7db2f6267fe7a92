"""What a statement calls: functions in every notation, and user-defined operators, as demands.

No types are inferred: every overload that takes as many arguments counts, and the strictest decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policy.catalog import Function, Volatility
from policy.demands import Demands
from policy.extensions import is_pure, refusal_of_extension
from policy.functions import (
    NAMES_A_TYPE,
    NEEDS_A_RULE,
    TELLS_BOUNDS,
    is_builtin,
    is_harmless,
    is_risky,
    refusal_of_function,
)
from policy.model import Action, ObjectKind, ObjectName
from policy.names import Names
from policy.parse import Node, NotAnalysableError

_ROW_TYPES = ("record", "anyelement", "anynonarray", "anycompatible", "anycompatiblenonarray", "any")


class Calls:
    """The calls of one statement. `effects` is the analysis' own: a call may write, or SET."""

    __slots__ = (
        "_attributes",
        "_behind",
        "_demand",
        "_effects",
        "_names",
        "_scalar_rows",
        "any_operators",
        "results",
    )

    def __init__(self, names: Names, demands: Demands, effects: dict[str, Any]) -> None:
        self._names = names
        self._demand = demands.note
        self._effects = effects
        self._attributes: dict[tuple[str, int, bool], None] = {}
        self._scalar_rows = False
        self._behind: set[int] = set()
        self.any_operators = bool(names.catalog.operators)
        self.results: set[int] = set()  # the types that user functions return

    def note_attribute(self, name: str, location: int, *, of_row: bool) -> None:
        """`x.name` (of_row) or `(x).name` was seen: `settle` decides whether it may be a call."""
        self._attributes[(name, location, of_row)] = None

    def note_function_in_from(self) -> None:
        """FROM holds a function, so that `x` may be a bare value where it looks like a row."""
        self._scalar_rows = True

    def notified(self, words: list[str], arguments: Sequence[Node]) -> str | None:
        """The channel of a pg_notify whose channel can be read off."""
        if words[-1] != "pg_notify" or len(arguments) != 2 or not all(map(is_builtin, self._names.overloads(words))):
            return None
        return _constant(arguments[0])

    def call(self, words: list[str] | tuple[str, ...], location: int, arguments: int | None = None) -> None:
        """Note the demands of calling a function of this name with this many arguments (None: not known).

        Raises NotAnalysableError for built-ins that are never called, and for unknown functions.
        """
        found = self._names.overloads(words)
        if not found and arguments != 1:
            # With one argument it may be a column of a row, or a cast, in functional notation.
            raise NotAnalysableError(
                "function.unknown", f"function {'.'.join(words)}() does not exist", location=location
            )
        found = [f for f in found if f.takes(arguments)] or found
        if len(words) == 1 and any(map(is_builtin, found)):
            found = [f for f in found if not _is_overload_of_extension(f)]
        if words[-1] in NAMES_A_TYPE:
            for made in self._names.catalog.types.values():
                self.behind(made.code, f"`{words[-1]}`", location)
        seen: set[str] = set()
        for function in found:
            if function.schema not in seen:
                seen.add(function.schema)
                self._call_one([f for f in found if f.schema == function.schema], location, None)

    def behind(self, oids: Sequence[int], via: str, location: int = 0) -> None:
        """Note the calls of functions that the text does not name; `via` says what calls them.

        Raises NotAnalysableError for one that is never called, and for one that the snapshot does not hold.
        """
        for oid in oids:
            if oid in self._behind:
                continue
            self._behind.add(oid)
            function = self._names.catalog.function(oid)
            if function is None:
                raise NotAnalysableError(
                    "function.unknown", f"{via} calls a function that cannot be found", location=location
                )
            if not is_harmless(function):
                self._call_one([function], location, via)

    def _call_one(self, overloads: list[Function], location: int, via: str | None) -> None:
        first = overloads[0]
        name = ObjectName(ObjectKind.FUNCTION, first.schema, first.name)
        builtin = all(is_builtin(f) or is_pure(f) for f in overloads)
        risky = any(map(is_risky, overloads))
        if builtin:
            reason = refusal_of_function(first.name) if is_builtin(first) else None
            if reason is None and risky and first.name not in NEEDS_A_RULE:
                reason = "is volatile, and nobody has found it harmless"
        else:
            reason = next(filter(None, map(refusal_of_extension, overloads)), None)
        if reason:
            calls = f"{via} calls `{name}`, which is never called here" if via else f"`{name}` is never called here"
            raise NotAnalysableError("function.refused", f"{calls}: it {reason}", location=location)
        self.results.update(oid for function in overloads for oid in function.results)
        if not builtin:
            self._effects["search_path"] = True  # its body may SET, whatever volatility it claims
        if risky:
            self._effects["writes"] = True
        self._demand(
            Action.CALL,
            name,
            oid=first.oid if len(overloads) == 1 else None,
            location=location,
            builtin=builtin and first.name not in NEEDS_A_RULE,
            via=via,
            functions=() if builtin else tuple(function.oid for function in overloads if not is_harmless(function)),
        )
        for function in overloads:
            self.behind(function.support, f"the aggregate `{name}`", location)

    def operator(self, words: list[str] | tuple[str, ...], location: int) -> None:
        """A user-defined operator is a call of what stands behind it."""
        if self.any_operators:
            self.behind(self._names.user_operators(words), f"the operator `{'.'.join(words)}`", location)

    def settle(self) -> None:
        """`x.name` calls a function `name(x)` where x has no such column (PostgreSQL: ParseFuncOrColumn).

        In a plain column reference x is a row, except that it is the bare value where x stands for a
        function in FROM that returns scalars (PostgreSQL: makeWholeRowVar); `(x).name` takes any value.
        """
        for name, location, of_row in self._attributes:
            for function in self._names.overloads((name,)):
                if not function.takes(1):
                    continue
                if is_builtin(function):
                    if not is_harmless(function) or name == TELLS_BOUNDS:
                        self.call((name,), location, 1)
                elif not of_row or self._scalar_rows or self._takes_row(function):
                    self.call((function.schema, name), location, 1)

    def _takes_row(self, function: Function) -> bool:
        """Whether the first argument could be a row; the others may have defaults."""
        first = function.arguments.partition(",")[0]
        type_name = first.rpartition(" ")[2].replace('"', "").rpartition(".")[2]
        return type_name in _ROW_TYPES or any(
            self._names.catalog.relation(schema, type_name) for schema in self._names.catalog.schemas
        )


def _is_overload_of_extension(function: Function) -> bool:
    """An extension's overload of a built-in, such as `sum(vector)`: what it adds is the type, not the deed."""
    return bool(function.extension) and function.volatility is not Volatility.VOLATILE


def _constant(node: Node) -> str | None:
    text = node.get("A_Const", {}).get("sval", {}).get("sval")
    return text if isinstance(text, str) else None
