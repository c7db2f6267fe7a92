"""One line of the table, and where its clients connect."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `ratio` is ours to direct; `higher` says that more is better."""

    name: str
    unit: str
    direct: float | None
    ours: float
    higher: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times the direct figure ours is; None where there is no direct one."""
        return self.ours / self.direct if self.direct else None


@dataclass(frozen=True, slots=True)
class Target:
    """Where pgbench connects."""

    host: str
    port: int
    user: str
    password: str
    database: str

    @property
    def environment(self) -> dict[str, str]:
        """libpq's variables for it."""
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": self.database,
            "PATH": os.environ["PATH"],
        }
