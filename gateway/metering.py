"""What principals have used of their limits, in this process: statements of the last minute, rows of the day."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime

from policy.limits import Limits
from policy.model import Principal

_MINUTE = 60.0
_CURE = "Wait, or ask whoever keeps the policy."


@dataclass(slots=True)
class _Use:
    statements: deque[float] = field(default_factory=deque)  # time.monotonic of each
    day: date = date.min
    rows: int = 0


class Meter:
    """The counts, by the verified identity and not by session. Days are UTC's."""

    def __init__(self) -> None:
        self._uses: dict[tuple[str, str], _Use] = {}

    def refusal(self, principal: Principal, limits: Limits, statements: int, now: float) -> tuple[str, str, str] | None:
        """Count statements that were asked for; (code, sentence, cure) where they are too many. `now` is monotonic."""
        use = self._use(principal)
        if (most := limits.statements_per_minute) is not None:
            while use.statements and use.statements[0] <= now - _MINUTE:
                use.statements.popleft()
            if len(use.statements) + statements > most:
                return (
                    "limit.rate",
                    f"the policy lets `{principal.subject}` run {most} statements per minute",
                    _CURE,
                )
            use.statements.extend([now] * statements)
        if limits.rows_per_day is not None and use.rows >= limits.rows_per_day:
            return (
                "limit.day",
                f"`{principal.subject}` has had the {limits.rows_per_day} rows that the policy grants for a day",
                "The count starts again at midnight UTC.",
            )
        return None

    def left(self, principal: Principal, limits: Limits) -> Limits:
        """The limits of the next statement: its result may not have more rows than are left of the day."""
        if limits.rows_per_day is None:
            return limits
        left = max(0, limits.rows_per_day - self._use(principal).rows)
        return replace(limits, rows=left if limits.rows is None else min(left, limits.rows))

    def add_rows(self, principal: Principal, rows: int) -> None:
        """Count rows that were delivered or changed."""
        self._use(principal).rows += rows

    def _use(self, principal: Principal) -> _Use:
        use = self._uses.setdefault((principal.issuer, principal.subject), _Use())
        today = datetime.now(UTC).date()
        if use.day != today:
            use.day, use.rows = today, 0
        return use
