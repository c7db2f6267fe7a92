"""How many clients the wire door takes: in all, per address and per principal. Counts only; sans-IO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from gateway.errors import TooManyConnectionsError
from policy.model import Principal

# Connections beyond the sessions: those that are still starting, and requests to cancel, which must get through
# when the door is full.
_SPARE = 256

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """What one wire door gives to its clients. None: no limit, as PostgreSQL has by default."""

    connections: int = 1000  # sessions at the same time
    per_principal: int = 50  # each has an upstream session; PostgreSQL has 100 by default
    per_address: int = 500  # open connections of one address, logged in or not
    failures: int = 60  # failed logins of one address in a minute
    start_seconds: float = 30.0  # from the accepted connection to the session
    idle_seconds: float | None = None  # outside of a transaction, with nothing to do
    idle_in_transaction_seconds: float | None = None  # the same inside of one, or in the middle of a batch or COPY


class Occupancy:
    """Who is in. Both context managers raise TooManyConnectionsError on entry."""

    def __init__(self, limits: DoorLimits) -> None:
        self._limits = limits
        self._places: Counter[str] = Counter()
        self._seats: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def place(self, address: str) -> Iterator[None]:
        """An open connection of this address, whoever it is."""
        if self._places.total() >= self._limits.connections + _SPARE:
            raise TooManyConnectionsError("sorry, too many clients already")
        if self._places[address] >= self._limits.per_address:
            raise TooManyConnectionsError(f"too many connections from {address}")
        with _one_more(self._places, address):
            yield

    @contextmanager
    def seat(self, principal: Principal) -> Iterator[None]:
        """A session of this principal."""
        if self._seats.total() >= self._limits.connections:
            raise TooManyConnectionsError("sorry, too many clients already")
        name = (principal.issuer, principal.subject)
        if self._seats[name] >= self._limits.per_principal:
            raise TooManyConnectionsError(
                f"too many connections of `{principal.subject}`",
                cure=f"Close some: the wire door gives {self._limits.per_principal} to each principal.",
            )
        with _one_more(self._seats, name):
            yield


@contextmanager
def _one_more(counts: Counter[K], key: K) -> Iterator[None]:
    counts[key] += 1
    try:
        yield
    finally:
        counts[key] -= 1
        if not counts[key]:
            del counts[key]  # addresses come and go
