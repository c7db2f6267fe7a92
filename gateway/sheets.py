"""The answers to catalog queries: each travels as one JSON value, which is read many times faster than its rows.

Every name in a query is qualified: they also run inside clients' sessions, under their search path.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from gateway.upstream import Upstream
from policy.memory import without_collector

Row = tuple[Any, ...]

_CASTS: Final = {"n": "int8", "t": "text", "b": "bool"}


class Sheet(NamedTuple):
    """A query with a name; `kinds` has a letter for each column: a number, text, or a boolean. Any may be NULL."""

    name: str
    kinds: str
    query: str

    @property
    def text(self) -> str:
        """The statement that answers with one JSON array, which has an array for each column."""
        names = [f"c{number}" for number in range(len(self.kinds))]
        columns = ", ".join(
            f"pg_catalog.json_agg(s.{name}::pg_catalog.{_CASTS[kind]})"
            for name, kind in zip(names, self.kinds, strict=True)
        )
        return f"SELECT pg_catalog.json_build_array({columns}) FROM ({self.query}) AS s({', '.join(names)})"  # noqa: S608 - our own queries


class Rows:
    """What a sheet holds."""

    def __init__(self, columns: Iterable[list[Any] | None]) -> None:
        self._columns = [column or [] for column in columns]

    def __iter__(self) -> Iterator[Row]:
        return zip(*self._columns, strict=True)

    def only(self, *numbers: int) -> Iterator[Row]:
        """The rows with these columns alone, counted from 0."""
        return zip(*(self._columns[number] for number in numbers), strict=True)


class Sheets(Mapping[str, Rows]):
    """The sheets that one upstream has filled in, by name."""

    def __init__(self, upstream: Upstream, salt: str = "") -> None:
        self._upstream = upstream
        self._digest = hashlib.sha256(salt.encode())
        self._rows: dict[str, Rows] = {}

    async def read(self, sheets: Iterable[Sheet]) -> None:
        """Have these filled in, in their order; a query may be made from what was read two sheets before it.

        Raises UpstreamError or UpstreamLostError.
        """
        asked: deque[str] = deque()

        def texts() -> Iterator[str]:
            for sheet in sheets:
                asked.append(sheet.name)
                yield sheet.text

        def heard(rows: list[tuple[str | None, ...]]) -> None:
            [(text,)] = rows
            name = asked.popleft()
            self._digest.update(f"{name} {len(text or '')} {text}".encode())
            with without_collector():
                self._rows[name] = Rows(json.loads(text or "[]"))

        await self._upstream.probe_each(texts(), heard)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that was read."""
        return self._digest.hexdigest()

    def __getitem__(self, name: str) -> Rows:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
