"""Masks as SQL: from a column to an expression of exactly its type that no longer holds its value.

Only immutable built-ins, every name and operator qualified with `pg_catalog`, so that no search path
changes what is called; operators that SQL syntax would look up by itself (CASE x WHEN, IN, BETWEEN) are
not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from policy.catalog import Column
from policy.names import quote
from policy.patterns import Pattern

REDACTED: Final = "[redacted]"

# pg_type OIDs (catalog/pg_type.dat): they never change.
_JSON_TYPES: Final = frozenset((114, 3802))
_TEXT_TYPES: Final = frozenset((25, 1043, 1042, 19))  # text, varchar, bpchar, name


class MaskKind(Enum):
    """How a value is hidden; `clear` says that a derived column of a view holds nothing to hide."""

    NULL = "null"
    REDACT = "redact"
    PARTIAL = "partial"
    CLEAR = "clear"


@dataclass(frozen=True, slots=True)
class Mask:
    """One column pattern of the policy and what happens to its values."""

    columns: Pattern
    kind: MaskKind
    keep_first: int = 0
    keep_last: int = 0
    exempt_groups: frozenset[str] = frozenset()
    exempt_users: frozenset[str] = frozenset()
    label: str = "mask"
    place: tuple[int, int] = (1, 1)

    @property
    def strictness(self) -> tuple[int, int, int, str]:
        """Orders masks by what they leave readable: of several on one column the largest applies."""
        rank = {MaskKind.NULL: 3, MaskKind.REDACT: 2, MaskKind.PARTIAL: 1, MaskKind.CLEAR: 0}[self.kind]
        return (rank, -(self.keep_first + self.keep_last), -self.keep_first, self.label)


class UnmaskableError(Exception):
    """This kind of mask cannot produce the column's type; the text says which could."""


def expression(mask: Mask, column: Column) -> str:
    """SQL for the masked value, cast to the column's type and collation. Raises UnmaskableError.

    `null` works for every type. `redact` puts the constant `[redacted]` (also in place of NULL) and works
    for texts and JSON. `partial` works for texts: all but the kept characters become `*`, the length
    stays, a value no longer than what is kept is hidden whole, NULL stays NULL.
    """
    match mask.kind:
        case MaskKind.NULL:
            value = "NULL"
        case MaskKind.REDACT if column.type_oid in _TEXT_TYPES:
            value = f"'{REDACTED}'"
        case MaskKind.REDACT if column.type_oid in _JSON_TYPES:
            value = f"'\"{REDACTED}\"'"
        case MaskKind.PARTIAL if column.type_oid in _TEXT_TYPES:
            value = _partial(f"CAST({quote(column.name)} AS pg_catalog.text)", mask.keep_first, mask.keep_last)
        case _:
            possible = "`redact` or `null`" if column.type_oid in _JSON_TYPES else "`null`"
            raise UnmaskableError(
                f"a `{mask.kind.value}` mask cannot produce `{column.type}`, the type of `{column.name}`;"
                f" use {possible}"
            )
    collate = f" COLLATE {column.collation}" if column.collation else ""
    return f"CAST({value} AS {column.type}){collate}"


def _partial(text: str, first: int, last: int) -> str:
    length = f"pg_catalog.length({text})"
    if not first and not last:
        return f"pg_catalog.repeat('*', {length})"
    hidden = f"pg_catalog.repeat('*', {length} OPERATOR(pg_catalog.-) {first + last})"
    shown = [f'pg_catalog."left"({text}, {first})'] if first else []
    shown.append(hidden)
    if last:
        shown.append(f'pg_catalog."right"({text}, {last})')
    kept = " OPERATOR(pg_catalog.||) ".join(shown)
    return (
        f"CASE WHEN {length} OPERATOR(pg_catalog.>) {first + last} THEN {kept} "
        f"ELSE pg_catalog.repeat('*', {length}) END"
    )
