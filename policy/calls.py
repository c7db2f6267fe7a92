"""What a statement calls: functions in every notation, and user-defined operators, as demands.

No types are inferred: every overload that a name could mean counts, and the strictest decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from policy.catalog import Function, Volatility
from policy.functions import NEEDS_A_RULE, is_harmless_volatile, refusal_of_function
from policy.model import Action, ObjectKind, ObjectName
from policy.names import FIRST_USER_OID, SYSTEM_SCHEMAS, Names
from policy.parse import Node, NotAnalysableError
from policy.settings import refusal_of_setting

_ROW_TYPES = ("record", "anyelement", "anynonarray", "anycompatible", "anycompatiblenonarray", "any")


class _Demand(Protocol):
    """`Analyser.demand`."""

    def __call__(
        self, action: Action, name: ObjectName, *, oid: int | None = None, location: int = 0, builtin: bool = False
    ) -> None: ...


class Calls:
    """The calls of one statement. `effects` is the analysis' own: a call may write, or SET."""

    def __init__(self, names: Names, demand: _Demand, effects: dict[str, Any]) -> None:
        self._names = names
        self._demand = demand
        self._effects = effects
        self._attributes: dict[tuple[str, int, bool], None] = {}
        self._scalar_rows = False
        self.any_operators = bool(names.catalog.operators)

    def note_attribute(self, name: str, location: int, *, of_row: bool) -> None:
        """`x.name` (of_row) or `(x).name` was seen: `settle` decides whether it may be a call."""
        self._attributes[(name, location, of_row)] = None

    def note_function_in_from(self) -> None:
        """FROM holds a function, so that `x` may be a bare value where it looks like a row."""
        self._scalar_rows = True

    def notified(self, words: list[str], arguments: Sequence[Node]) -> str | None:
        """The channel of a pg_notify whose channel can be read off."""
        if words[-1] != "pg_notify" or len(arguments) != 2 or not all(map(_is_builtin, self._names.overloads(words))):
            return None
        return _constant(arguments[0])

    def sets_harmlessly(self, words: list[str], arguments: Sequence[Node]) -> bool:
        """Whether this is a `set_config` that SET may say too: drivers write it that way.

        A search path is left to SET: functions that the same statement calls later would already be under it.
        """
        if words[-1] != "set_config" or len(arguments) != 3 or not all(map(_is_builtin, self._names.overloads(words))):
            return False
        setting = _constant(arguments[0])
        if setting is None or setting.lower() == "search_path" or refusal_of_setting(setting) is not None:
            return False
        self._effects["session"] = True
        return True

    def call(self, words: list[str] | tuple[str, ...], location: int, arguments: int | None = None) -> None:
        """Note the demands of calling a function of this name: every overload it could mean counts.

        Raises NotAnalysableError for built-ins that are never called, and for unknown functions.
        """
        if len(words) > 2:
            raise NotAnalysableError(
                "name.database", f"a name may not say its database: `{'.'.join(words)}`", location=location
            )
        found = self._names.overloads(words)
        if not found and arguments != 1:
            # With one argument it may be a column of a row, or a cast, in functional notation.
            raise NotAnalysableError(
                "function.unknown", f"function {'.'.join(words)}() does not exist", location=location
            )
        seen: set[str] = set()
        for function in found:
            if function.schema not in seen:
                seen.add(function.schema)
                self._call_one([f for f in found if f.schema == function.schema], location)

    def _call_one(self, overloads: list[Function], location: int) -> None:
        first = overloads[0]
        name = ObjectName(ObjectKind.FUNCTION, first.schema, first.name)
        builtin = all(map(_is_builtin, overloads))
        risky = any(_is_risky(f) for f in overloads)
        if builtin:
            reason = refusal_of_function(first.name)
            if reason is None and risky and first.name not in NEEDS_A_RULE:
                reason = "is volatile, and nobody has found it harmless"
            if reason:
                raise NotAnalysableError(
                    "function.refused", f"`{name}` is never called here: it {reason}", location=location
                )
        elif risky:
            self._effects["search_path"] = True  # its body may SET
        if risky:
            self._effects["writes"] = True
        harmless = builtin and first.name not in NEEDS_A_RULE
        self._demand(
            Action.CALL,
            name,
            oid=first.oid if len(overloads) == 1 else None,
            location=location,
            builtin=harmless,
        )

    def operator(self, words: list[str] | tuple[str, ...], location: int) -> None:
        """A user-defined operator is a call of what stands behind it."""
        if self.any_operators:
            for schema in self._names.user_operators(words):
                name = ObjectName(ObjectKind.FUNCTION, schema, words[-1])
                self._demand(Action.CALL, name, location=location)

    def settle(self) -> None:
        """`x.name` calls a function `name(x)` where x has no such column (PostgreSQL: ParseFuncOrColumn).

        In a plain column reference x is a row, except that it is the bare value where x stands for a
        function in FROM that returns scalars (PostgreSQL: makeWholeRowVar); `(x).name` takes any value.
        """
        for name, location, of_row in self._attributes:
            for function in self._names.overloads((name,)):
                if _is_builtin(function):
                    if refusal_of_function(name) or name in NEEDS_A_RULE or _is_risky(function):
                        self.call((name,), location)
                elif not of_row or self._scalar_rows or self._takes_row(function):
                    self.call((function.schema, name), location)

    def _takes_row(self, function: Function) -> bool:
        """Whether the first argument could be a row; the others may have defaults."""
        first = function.arguments.partition(",")[0]
        type_name = first.rpartition(" ")[2].replace('"', "").rpartition(".")[2]
        return type_name in _ROW_TYPES or any(
            self._names.catalog.relation(schema, type_name) for schema in self._names.catalog.schemas
        )


def _is_builtin(function: Function) -> bool:
    return function.schema in SYSTEM_SCHEMAS and function.oid < FIRST_USER_OID


def _is_risky(function: Function) -> bool:
    if function.volatility is not Volatility.VOLATILE:
        return False
    return not (_is_builtin(function) and is_harmless_volatile(function.name))


def _constant(node: Node) -> str | None:
    text = node.get("A_Const", {}).get("sval", {}).get("sval")
    return text if isinstance(text, str) else None
