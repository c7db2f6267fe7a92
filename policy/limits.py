"""Limits of the policy: how much one principal may have of what is allowed. Values only; the gateway counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Limits:
    """None is no limit. `rows` and `size` (bytes of values) are of one statement's result, `timeout` of its run."""

    rows: int | None = None
    size: int | None = None
    timeout: timedelta | None = None
    statements_per_minute: int | None = None
    rows_per_day: int | None = None

    def exceeded_by(self, rows: int, size: int) -> str | None:
        """Why a result of so many rows and bytes is too large, or None."""
        if self.rows is not None and rows > self.rows:
            return f"the result has more than the {self.rows} rows that the policy lets a statement return"
        if self.size is not None and size > self.size:
            return f"the result has more than the {self.size} bytes that the policy lets a statement return"
        return None


UNLIMITED = Limits()


def strictest(many: Iterable[Limits]) -> Limits:
    """Of each limit the lowest."""
    found = list(many)
    if len(found) <= 1:
        return found[0] if found else UNLIMITED
    return Limits(
        rows=min((one.rows for one in found if one.rows is not None), default=None),
        size=min((one.size for one in found if one.size is not None), default=None),
        timeout=min((one.timeout for one in found if one.timeout is not None), default=None),
        statements_per_minute=min(
            (one.statements_per_minute for one in found if one.statements_per_minute is not None), default=None
        ),
        rows_per_day=min((one.rows_per_day for one in found if one.rows_per_day is not None), default=None),
    )
