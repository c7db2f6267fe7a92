"""Ways of cutting a byte stream: whatever a decoder makes of it must not depend on the cuts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The whole, byte by byte, and in two at every place."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]


def cut_at(data: bytes, places: Sequence[int]) -> list[bytes]:
    """In pieces, at these places."""
    edges = [0, *sorted({p % (len(data) + 1) for p in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]
