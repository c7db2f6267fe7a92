"""Values made coarser, as SQL: numbers and days to the start of their bucket, moments to the start of their unit.

No expression can fail on any value: an error would tell that the value is there. What the arithmetic cannot
reach (the years before 4000 BC and from 290000 on, infinities, floats from 10^15 on) becomes NULL. Moments are
cut in UTC, so that a client cannot move the cuts by its TimeZone and learn more than one of them tells.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Final

# pg_type OIDs.
_INTEGERS: Final = {20: "bigint", 21: "bigint", 23: "bigint"}  # computed in bigint: no size overflows it
_FLOATS: Final = frozenset((700, 701))
_NUMERIC: Final = 1700
DATE: Final = 1082
TIMESTAMP: Final = 1114
TIMESTAMPTZ: Final = 1184
NUMBERS: Final = frozenset((*_INTEGERS, *_FLOATS, _NUMERIC))
MOMENTS: Final = frozenset((DATE, TIMESTAMP, TIMESTAMPTZ))

_LARGEST_BIGINT: Final = 2**63 - 1
_YEARS: Final = (-4000, 290_000)


class Unit(StrEnum):
    """What `truncate` cuts to; later ones show less."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"
    DECADE = "decade"

    @property
    def rank(self) -> int:
        """Its place in the order of what it hides."""
        return list(Unit).index(self)


def number_bucket(raw: str, type_oid: int, size: Decimal) -> str | None:
    """The multiple of `size` next to the value towards zero; None where integers cannot have this size.

    Towards zero the magnitude never grows, so that no type and no precision overflows.
    """
    if type_oid in _INTEGERS:
        if size != size.to_integral_value() or size > _LARGEST_BIGINT:
            return None
        whole = f"CAST({int(size)} AS pg_catalog.int8)"
        return f"({raw} OPERATOR(pg_catalog./) {whole}) OPERATOR(pg_catalog.*) {whole}"
    literal = f"CAST({size:f} AS pg_catalog.numeric)"
    bucket = f"pg_catalog.div(CAST({raw} AS pg_catalog.numeric), {literal}) OPERATOR(pg_catalog.*) {literal}"
    if type_oid in _FLOATS:
        wide = f"CAST({raw} AS pg_catalog.float8)"
        bounds = (
            f"{wide} OPERATOR(pg_catalog.>) CAST(-1e15 AS pg_catalog.float8) AND "
            f"{wide} OPERATOR(pg_catalog.<) CAST(1e15 AS pg_catalog.float8)"
        )
        return f"CASE WHEN {bounds} THEN {bucket} END"
    return bucket


def day_bucket(raw: str, type_oid: int, days: int) -> str:
    """The first day of the value's run of `days` days; runs are counted from Monday, 3 January 2000."""
    width = f"CAST('{days} days' AS pg_catalog.interval)"
    return _in_utc(raw, type_oid, f"pg_catalog.date_bin({width}, %s, pg_catalog.make_timestamp(2000, 1, 3, 0, 0, 0))")


def truncated(raw: str, type_oid: int, unit: Unit) -> str:
    """The start of the value's minute, hour, day … in UTC."""
    return _in_utc(raw, type_oid, f"pg_catalog.date_trunc('{unit.value}', %s)")


def _in_utc(raw: str, type_oid: int, cut: str) -> str:
    """`cut` on the value as a timestamp, where it is in reach; the result casts to the value's type."""
    if type_oid == DATE:
        low, high = (f"pg_catalog.make_date({year}, 1, 1)" for year in _YEARS)
        value = cut % f"CAST({raw} AS pg_catalog.timestamp)"
    else:
        low, high = (f"pg_catalog.make_timestamp({year}, 1, 1, 0, 0, 0)" for year in _YEARS)
        value = cut % raw
    if type_oid == TIMESTAMPTZ:
        low, high = (f"pg_catalog.timezone('UTC', {bound})" for bound in (low, high))
        plain = f"pg_catalog.timezone('UTC', {raw})"
        value = f"pg_catalog.timezone('UTC', {cut % plain})"
    within = f"{raw} OPERATOR(pg_catalog.>=) {low} AND {raw} OPERATOR(pg_catalog.<) {high}"
    return f"CASE WHEN {within} THEN {value} END"
