"""Masks as SQL: from a column to an expression of exactly its type that no longer holds its value.

Only built-ins that are not volatile, every name and operator qualified with `pg_catalog`, so that no search
path changes what is called; operators that SQL syntax would look up by itself (CASE x WHEN, IN, BETWEEN) are
not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Final

from policy.buckets import MOMENTS, NUMBERS, Unit, day_bucket, number_bucket, truncated
from policy.catalog import Column
from policy.json_masks import at_path, of_scalar
from policy.model import NOBODY, Users
from policy.names import quote
from policy.patterns import Pattern
from policy.pseudonyms import Subkey, digest, token

REDACTED: Final = "[redacted]"

# The key of each pool of pseudonyms; None where no key is configured.
Keys = Callable[[str], Subkey] | None

# pg_type OIDs (catalog/pg_type.dat): they never change.
_JSON: Final = 114
_JSONB: Final = 3802
_JSON_TYPES: Final = frozenset((_JSON, _JSONB))
_TEXT: Final = 25
_BOUNDED_TEXTS: Final = frozenset((1043, 1042))  # varchar, bpchar
_TEXT_TYPES: Final = frozenset((_TEXT, 19, *_BOUNDED_TEXTS))  # 19: name
_UUID: Final = 2950
_BYTEA: Final = 17
_BIGINT: Final = 20

# 22 characters of 6 bits: equal pseudonyms of different values are out of reach. 10 still make them rare
# (one chance in 10^18 for a pair); with fewer, joins would begin to lie.
_TOKEN_LENGTH: Final = 22
_SHORTEST_TOKEN: Final = 10


class MaskKind(Enum):
    """How a value is hidden; `clear` says that a computed column holds nothing to hide."""

    NULL = "null"
    REDACT = "redact"
    RANGE = "range"
    TRUNCATE = "truncate"
    HASH = "hash"
    PARTIAL = "partial"
    CLEAR = "clear"


_RANKS: Final = {kind: len(MaskKind) - place for place, kind in enumerate(MaskKind)}


@dataclass(frozen=True, slots=True)
class Mask:
    """One column pattern of the policy and what happens to its values.

    `path` leads to a value inside a jsonb column. `pool` names the columns whose pseudonyms are equal for
    equal values. `size` is a bucket's width for numbers, `days` for dates and moments.
    """

    columns: Pattern
    kind: MaskKind
    path: tuple[str, ...] = ()
    keep_first: int = 0
    keep_last: int = 0
    pool: str = ""
    size: Decimal | None = None
    days: int | None = None
    unit: Unit | None = None
    exempt_groups: frozenset[str] = frozenset()
    exempt_users: Users = NOBODY
    label: str = "mask"
    place: tuple[int, int] = (1, 1)
    spares: str = ""  # SQL: the rows whose value is left, for columns of PostgreSQL's own catalogs

    @property
    def strictness(self) -> tuple[int, Decimal, int, str, str]:
        """Orders masks by what they leave readable: of several on one column the largest applies.

        Among equals what the mask says decides; its label, which tells its line in the file, only where no value
        depends on it.
        """
        unit = self.unit.rank if self.unit else 0
        hides = (self.size or Decimal(0)) + (self.days or 0) + unit - self.keep_first - self.keep_last
        return (_RANKS[self.kind], hides, -self.keep_first, self.pool, self.label)


class UnmaskableError(Exception):
    """This kind of mask cannot produce the column's type; the text says which could."""


def expression(masks: Sequence[Mask], column: Column, keys: Keys = None) -> str:
    """SQL for the masked value, cast to the column's type and collation. Raises UnmaskableError.

    `masks` is one mask of the column as a whole, or several of paths inside it. NULL stays NULL, but that
    `redact` puts its constant there too. Elements of arrays are masked one by one. `keys` are for `hash`.
    """
    first = masks[0]
    if first.spares:
        return f"CASE WHEN {first.spares} THEN {quote(column.name)} END"  # its type may be one that nothing casts to
    if first.path:
        value = _inside(first, column, quote(column.name), keys)
        for mask in masks[1:]:
            # A value of its own each time: written out, the expression would grow with a power of their number.
            document = _inside(mask, column, '"document"."value"', keys)
            value = f'(SELECT {document} FROM (SELECT {value} AS "value" OFFSET 0) AS "document")'  # noqa: S608 - ours
    else:
        value = _whole(first, column, keys)
    collate = f" COLLATE {column.collation}" if column.collation else ""
    return f"CAST({value} AS {column.type}){collate}"


def _key(mask: Mask, column: Column, keys: Keys) -> Subkey:
    if keys is None:
        raise UnmaskableError(
            f"a `hash` mask on `{column.name}` needs a key, and none is configured; "
            "set `mask_key_file` or `mask_key_env` in the configuration"
        )
    return keys(mask.pool)


def needs_key(masks: Sequence[Mask]) -> bool:
    """Whether the expression for these masks holds a key."""
    return any(mask.kind is MaskKind.HASH for mask in masks)


def _whole(mask: Mask, column: Column, keys: Keys) -> str:
    if mask.kind is MaskKind.NULL:
        if column.domain is not None and column.domain.not_null:
            raise _unmaskable(mask, column, f"`{column.type}` is a domain that refuses NULL; change the domain")
        return "NULL"
    if column.domain is not None and column.domain.checked:
        raise _unmaskable(
            mask, column, f"`{column.type}` is a domain whose constraints a masked value may break; use `null`"
        )
    raw = quote(column.name)
    if column.element:
        element = _scalar(mask, column, column.element, f'{_ELEMENT}."value"', keys)
        elements = f'pg_catalog.unnest({raw}) WITH ORDINALITY AS {_ELEMENT} ("value", "place")'
        array = f'ARRAY(SELECT {element} FROM {elements} ORDER BY {_ELEMENT}."place")'  # noqa: S608 - names are quoted
        return f"CASE WHEN {raw} IS NOT NULL THEN {array} END"
    return _scalar(mask, column, column.base_oid, raw, keys)


_ELEMENT: Final = '"element"'


def _scalar(mask: Mask, column: Column, type_oid: int, raw: str, keys: Keys) -> str:
    """SQL of a value that casts to a type: of the column itself, or of an array's element."""
    # The text form of a bytea depends on a setting; its digits do not.
    text = f"pg_catalog.encode({raw}, 'hex')" if type_oid == _BYTEA else f"CAST({raw} AS pg_catalog.text)"
    match mask.kind:
        case MaskKind.REDACT if type_oid in _TEXT_TYPES:
            return f"CAST('{REDACTED}' AS pg_catalog.text)"
        case MaskKind.REDACT if type_oid in _JSON_TYPES:
            return f"CAST('\"{REDACTED}\"' AS pg_catalog.jsonb)"
        case MaskKind.PARTIAL if type_oid in _TEXT_TYPES:
            return _partial(text, mask.keep_first, mask.keep_last)
        case MaskKind.HASH:
            if (made := _pseudonym(mask, column, type_oid, text, keys)) is not None:
                return made
        case MaskKind.RANGE if mask.size is not None and type_oid in NUMBERS:
            if (bucket := number_bucket(raw, type_oid, mask.size)) is not None:
                return bucket
            raise _unmaskable(mask, column, f"`{column.type}` has no buckets of {mask.size:f}; use a whole number")
        case MaskKind.RANGE if mask.days is not None and type_oid in MOMENTS:
            return day_bucket(raw, type_oid, mask.days)
        case MaskKind.TRUNCATE if mask.unit is not None and type_oid in MOMENTS:
            return truncated(raw, type_oid, mask.unit)
        case _:
            pass
    raise _unmaskable(mask, column, f"it is `{column.type}`; use {_possible(type_oid)}")


def _pseudonym(mask: Mask, column: Column, type_oid: int, text: str, keys: Keys) -> str | None:
    if type_oid in _BOUNDED_TEXTS and 0 <= column.width < _SHORTEST_TOKEN:
        raise _unmaskable(
            mask,
            column,
            f"`{column.type}` has room for fewer than {_SHORTEST_TOKEN} characters, in which different values "
            "would meet; use `redact` or `null`",
        )
    known = type_oid in _TEXT_TYPES or type_oid in (_JSONB, _UUID, _BYTEA, _BIGINT)
    if not known:
        return None
    key = _key(mask, column, keys)
    hexadecimal = f"pg_catalog.encode({digest(key, text)}, 'hex')"
    if type_oid == _JSONB:
        return f"pg_catalog.to_jsonb({token(key, text, _TOKEN_LENGTH)})"
    if type_oid == _UUID:
        return f'CAST(pg_catalog."left"({hexadecimal}, 32) AS pg_catalog.uuid)'
    if type_oid == _BYTEA:
        return digest(key, text)
    if type_oid == _BIGINT:
        # 60 bits, so that none is negative.
        bits = f"'x0' OPERATOR(pg_catalog.||) pg_catalog.\"left\"({hexadecimal}, 15)"
        return f"CAST(CAST({bits} AS pg_catalog.bit(64)) AS pg_catalog.int8)"
    length = min(_TOKEN_LENGTH, column.width) if column.width >= 0 else _TOKEN_LENGTH
    return token(key, text, length)


def _inside(mask: Mask, column: Column, document: str, keys: Keys) -> str:
    """SQL for the document with one path masked."""
    if column.base_oid != _JSONB or column.element:
        possible = "mask the column as a whole" if column.base_oid != _JSON else "make it jsonb, or use `null`"
        raise _unmaskable(mask, column, f"only `jsonb` has paths, and it is `{column.type}`; {possible}")
    if column.domain is not None and column.domain.checked:
        raise _unmaskable(mask, column, f"`{column.type}` is a domain whose constraints a masked value may break")
    hidden = f"CAST('\"{REDACTED}\"' AS pg_catalog.jsonb)"
    match mask.kind:
        case MaskKind.NULL:
            return at_path(document, mask.path, lambda _: "CAST('null' AS pg_catalog.jsonb)")
        case MaskKind.REDACT:
            return at_path(document, mask.path, lambda _: hidden)
        case MaskKind.PARTIAL:
            first, last = mask.keep_first, mask.keep_last
            return at_path(
                document, mask.path, lambda v: of_scalar(v, lambda text: _partial(text, first, last), hidden)
            )
        case MaskKind.HASH:
            key = _key(mask, column, keys)
            return at_path(
                document, mask.path, lambda v: of_scalar(v, lambda text: token(key, text, _TOKEN_LENGTH), hidden)
            )
        case _:
            pass
    raise _unmaskable(mask, column, "inside jsonb only `null`, `redact`, `partial` and `hash` are possible; use one")


def _possible(type_oid: int) -> str:
    kinds = ["`null`"]
    if type_oid in _TEXT_TYPES or type_oid in _JSON_TYPES:
        kinds.append("`redact`")
    if type_oid in _TEXT_TYPES:
        kinds.append("`partial`")
    if type_oid in _TEXT_TYPES or type_oid in (_JSONB, _UUID, _BYTEA, _BIGINT):
        kinds.append("`hash`")
    if type_oid in NUMBERS:
        kinds.append("`range` with `size`")
    if type_oid in MOMENTS:
        kinds += ["`range` with `days`", "`truncate`"]
    return " or ".join([", ".join(kinds[:-1]), kinds[-1]] if kinds[1:] else kinds)


def _unmaskable(mask: Mask, column: Column, why: str) -> UnmaskableError:
    path = "".join(f".{step}" for step in mask.path)
    return UnmaskableError(f"a `{mask.kind.value}` mask cannot produce `{column.name}{path}`: {why}")


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
