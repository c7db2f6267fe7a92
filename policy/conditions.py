"""The conditions of a rule: on the demand, on the rows that a write changes, on time and session.

What is not known when a condition is asked (no row count yet, no clock) is answered by what is stricter: it
holds for a rule that denies or wants approval, and does not for one that allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, time, timedelta, tzinfo
from ipaddress import IPv4Network, IPv6Network, ip_address

from policy.model import Circumstances, Demand
from policy.patterns import Pattern


@dataclass(frozen=True, slots=True)
class Window:
    """Times of the week: from `start` (included) to `end` (excluded) on `days` (Monday is 0), by this zone's clocks.

    An end not after the start is on the day after; the days are those on which a window starts.
    """

    start: time
    end: time
    days: frozenset[int]
    zone: tzinfo

    def holds(self, now: datetime) -> bool:
        """Whether the moment, which knows its zone, lies in the window."""
        local = now.astimezone(self.zone)
        clock, day = local.time(), local.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= clock < self.end
        return (day in self.days and clock >= self.start) or ((day - 1) % 7 in self.days and clock < self.end)


Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class When:
    """Conditions that must all hold; of those in `any_of` one must. Those that are None are not asked."""

    bounded: bool | None = None
    rows_at_most: int | None = None
    rows_over: int | None = None
    window: Window | None = None
    doors: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()  # of the client's address
    clients: tuple[Pattern, ...] = ()  # what the client calls itself
    age_at_most: timedelta | None = None  # of the session
    age_over: timedelta | None = None
    any_of: tuple[When, ...] = ()

    def holds(self, demand: Demand, circumstances: Circumstances, unknown: bool) -> bool:
        """Whether the conditions hold; each one that cannot be told counts as `unknown`."""
        rows = circumstances.rows
        return (
            (self.bounded is None or self.bounded is demand.bounded)
            and (self.rows_at_most is None or (unknown if rows is None else rows <= self.rows_at_most))
            and (self.rows_over is None or (unknown if rows is None else rows > self.rows_over))
            and all(unknown if answer is None else answer for answer in self.standing(circumstances))
            and (not self.any_of or any(one.holds(demand, circumstances, unknown) for one in self.any_of))
        )

    def standing(self, circumstances: Circumstances) -> tuple[bool | None, ...]:
        """The answers to what is asked about time and session, in order; None where one is not known."""
        now, door, age = circumstances.now, circumstances.door, circumstances.age
        answers: list[bool | None] = []
        if self.window is not None:
            answers.append(None if now is None else self.window.holds(now))
        if self.doors:
            answers.append(None if door is None else door in self.doors)
        if self.networks:
            answers.append(_is_in(self.networks, circumstances.address))
        if self.clients:
            client = circumstances.client
            answers.append(None if client is None else any(p.matches((client,)) for p in self.clients))
        if self.age_at_most is not None:
            answers.append(None if age is None else age <= self.age_at_most)
        if self.age_over is not None:
            answers.append(None if age is None else age > self.age_over)
        return tuple(answers)

    @property
    def counts_rows(self) -> bool:
        """Whether a count of rows is asked about anywhere."""
        return any(one.rows_at_most is not None or one.rows_over is not None for one in self.parts())

    def parts(self) -> Iterator[When]:
        """These conditions and those inside them."""
        yield self
        for one in self.any_of:
            yield from one.parts()

    def __str__(self) -> str:
        words = [] if self.bounded is None else ["bounded" if self.bounded else "unbounded"]
        words += [f"at most {self.rows_at_most} rows"] if self.rows_at_most is not None else []
        words += [f"more than {self.rows_over} rows"] if self.rows_over is not None else []
        if self.window is not None:
            words.append(f"{self.window.start:%H:%M}-{self.window.end:%H:%M} {self.window.zone}")
        words += [f"at the door {' or '.join(sorted(self.doors))}"] if self.doors else []
        words += [f"from {' or '.join(map(str, self.networks))}"] if self.networks else []
        words += [f"with the client {' or '.join(p.text for p in self.clients)}"] if self.clients else []
        words += [f"in sessions of at most {self.age_at_most}"] if self.age_at_most is not None else []
        words += [f"in sessions of more than {self.age_over}"] if self.age_over is not None else []
        words += [f"({' or '.join(map(str, self.any_of))})"] if self.any_of else []
        return ", ".join(words)


ALWAYS = When()


def _is_in(networks: tuple[Network, ...], address: str | None) -> bool | None:
    """Whether an address lies in one of the networks; None where there is none, or it cannot be read."""
    try:
        host = ip_address((address or "").partition("%")[0])
    except ValueError:
        return None
    if host.version == 6 and host.ipv4_mapped is not None:
        host = host.ipv4_mapped  # a socket that takes both tells the one by the other
    return any(host in network for network in networks)


def implies(narrow: When, wide: When) -> bool:
    """Whether `wide` surely holds wherever `narrow` does; a no may be a not-sure."""
    if wide in (ALWAYS, narrow):
        return True
    if wide.any_of and any(implies(narrow, one) for one in wide.any_of):
        # One alternative suffices, if nothing is asked beside the alternatives.
        return wide == When(any_of=wide.any_of)
    if wide.any_of:
        return False
    if narrow.any_of and all(implies(one, wide) for one in narrow.any_of):
        return True
    return (
        (wide.bounded is None or wide.bounded is narrow.bounded)
        and (
            wide.rows_at_most is None or (narrow.rows_at_most is not None and narrow.rows_at_most <= wide.rows_at_most)
        )
        and (wide.rows_over is None or (narrow.rows_over is not None and narrow.rows_over >= wide.rows_over))
        and (wide.window is None or wide.window == narrow.window)
        and (not wide.doors or (bool(narrow.doors) and narrow.doors <= wide.doors))
        and wide.networks in ((), narrow.networks)
        and wide.clients in ((), narrow.clients)
        and (wide.age_at_most is None or (narrow.age_at_most is not None and narrow.age_at_most <= wide.age_at_most))
        and (wide.age_over is None or (narrow.age_over is not None and narrow.age_over >= wide.age_over))
    )
