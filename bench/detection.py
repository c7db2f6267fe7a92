"""How often content detection is wrong, and how fast it is: `.venv/bin/python -m bench.detection`. No server.

The sample shop's rows are made by a program, so it is known of every value what it holds. The look-alikes are
random values of the kinds that are most easily taken for numbers of cards and people.
"""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.table import Table

from policy.detectors import Kind, find, likely
from server.sample.rows import tables

_EVERYTHING = frozenset(Kind)
_LOOK_ALIKES = 200_000
# What columns hold, and what tickets of these subjects do (`server.sample.rows`).
_COLUMNS = {"ssn": [Kind.SSN], "card": [Kind.CARD], "email": [Kind.EMAIL]}
_SUBJECTS = {
    "Verify my account": [Kind.SSN, Kind.EMAIL],
    "Card declined": [Kind.CARD],
    "Update my contact": [Kind.EMAIL],
}


def main() -> None:
    """Measure and print."""
    console = Console()
    for table in (_on_the_sample(), _on_look_alikes(), _speed()):
        console.print(table)


def _sample() -> Iterator[tuple[str, Counter[Kind]]]:
    """Every value as text, and what is in it."""
    for _, columns, rows in tables():
        for row in rows:
            named: Mapping[str, object] = dict(zip(columns, row, strict=True))
            for column, value in named.items():
                if value is not None:
                    held = (
                        _SUBJECTS.get(str(named.get("subject")), []) if column == "body" else _COLUMNS.get(column, [])
                    )
                    yield str(value), Counter(held)


def _on_the_sample() -> Table:
    values, there, missed, wrong = 0, Counter[Kind](), Counter[Kind](), Counter[Kind]()
    for text, held in _sample():
        found = Counter(span.kind for span in find(text.encode(), _EVERYTHING))
        values += 1
        there += held
        missed += held - found
        wrong += found - held
    result = _table(f"sample shop, {values:,} values", "kind", "there", "missed", "found wrongly", "of 1,000 values")
    for kind in Kind:
        rate = f"{wrong[kind] * 1000 / values:.3f}"
        result.add_row(kind, str(there[kind]), str(missed[kind]), str(wrong[kind]), rate)
    return result


def _on_look_alikes() -> Table:
    chance = random.Random(2026)  # the same each time

    def digits(count: int) -> str:
        return f"{chance.randrange(10**count):0{count}d}"

    alike: Mapping[str, Callable[[], str]] = {
        "numbers of 16 digits": lambda: str(chance.randrange(10**15, 10**16)),
        "bigints of 19 digits": lambda: str(chance.randrange(10**18, 2**63)),
        "EAN-13 bar codes": lambda: _ean13(digits(12)),
        "123-45-6789": lambda: f"{digits(3)}-{digits(2)}-{digits(4)}",
        "milliseconds of Unix": lambda: str(chance.randrange(10**12, 2 * 10**12)),
        "uuids": lambda: str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        "SHA-256 as text": lambda: f"{chance.getrandbits(256):064x}",
        "telephone numbers": lambda: f"+{chance.randrange(1, 99)} {digits(3)} {digits(7)}",
        "moments": lambda: (
            f"2026-{chance.randrange(1, 13):02d}-{chance.randrange(1, 29):02d} 12:{digits(2)}:{digits(2)}"
        ),
        "prices": lambda: f"{chance.randrange(10**9)}.{digits(2)}",
    }
    result = _table(f"{_LOOK_ALIKES:,} look-alikes each", "what", *Kind, "of 1,000 values")
    for name, make in alike.items():
        found = Counter(span.kind for _ in range(_LOOK_ALIKES) for span in find(make().encode(), _EVERYTHING))
        rate = f"{found.total() * 1000 / _LOOK_ALIKES:.3f}"
        result.add_row(name, *(str(found[kind]) for kind in Kind), rate)
    return result


def _ean13(digits: str) -> str:
    total = sum(int(digit) * (3 if at % 2 else 1) for at, digit in enumerate(digits))
    return f"{digits}{-total % 10}"


def _speed() -> Table:
    texts = [text.encode() for text, _ in _sample()]
    joined, plain = b"\0".join(texts), b"the quick brown fox, 42 times;\0" * 100_000
    looks: Mapping[str, tuple[bytes, Callable[[], object]]] = {
        "quick look, nothing there": (plain, lambda: likely(plain, _EVERYTHING)),
        "every value of the sample": (joined, lambda: [find(text, _EVERYTHING) for text in texts]),
    }
    result = _table("speed, all kinds", "what", "MB", "MB/s")
    for name, (data, look) in looks.items():
        started = time.process_time()
        look()
        megabytes = len(data) / 1e6
        result.add_row(name, f"{megabytes:.1f}", f"{megabytes / (time.process_time() - started):,.1f}")
    return result


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("kind", "what") else "right")
    return table


if __name__ == "__main__":
    main()
