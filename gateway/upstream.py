"""The port to PostgreSQL: what the gateway and the MCP door ask of an upstream connection.

`wire/upstream.py` implements it on the frontend/backend protocol; both doors therefore run on one
protocol implementation and deliver the same bytes. Values travel in PostgreSQL's text format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gateway.model import Connection


@dataclass(frozen=True, slots=True)
class ResultColumn:
    """A field of a RowDescription: `table` and `attribute` are its origin, 0 where it is derived."""

    name: str
    table: int
    attribute: int
    type: int  # type OID
    modifier: int = -1


@dataclass(slots=True)
class Page:
    """Some rows of one statement's result.

    `rows` hold text-format values, None for NULL. `suspended` says that the portal has more rows
    (PortalSuspended); otherwise `tag` is the command tag. `size` is the bytes of all values.
    """

    columns: tuple[ResultColumn, ...]
    rows: list[tuple[bytes | None, ...]]
    tag: str | None
    suspended: bool
    size: int = 0
    notices: list[Mapping[str, str]] = field(default_factory=list)

    @property
    def counted(self) -> int:
        """The rows that the command tag tells."""
        return rows_of(self.tag)


def rows_of(tag: str | None) -> int:
    """The row count of a command tag, 0 where it has none."""
    last = (tag or "").rpartition(" ")[2]
    return int(last) if last.isdecimal() else 0


class UpstreamError(Exception):
    """An ErrorResponse. `fields` are keyed by the protocol's one-letter codes (S, V, C, M, D, H, P …)."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(fields.get("M", "upstream error"))
        self.fields = dict(fields)

    @property
    def sqlstate(self) -> str:
        """The five-character SQLSTATE."""
        return self.fields.get("C", "XX000")


class UpstreamLostError(Exception):
    """The connection broke, or could not be made. The text is a sentence that names the server."""


class Upstream(Protocol):
    """One upstream session. Not for concurrent use: one statement at a time.

    Every method raises `UpstreamError` for an ErrorResponse and `UpstreamLostError` for a lost connection.
    """

    @property
    def connection(self) -> Connection:
        """What it was made for: its user, and whether it reads only, for as long as it lives."""
        ...

    @property
    def parameters(self) -> Mapping[str, str]:
        """The server's ParameterStatus values."""
        ...

    @property
    def transaction_status(self) -> str:
        """`I`, `T` or `E`, as in the last ReadyForQuery."""
        ...

    async def probe(self, *texts: str) -> list[tuple[str | None, ...]]:
        """Run statements of the gateway's own (catalog, settings, BEGIN …), never a client's text: the last one's rows.

        Several go in one round trip. Each runs by itself, also behind one that fails; the first error is raised.
        """
        ...

    async def probe_each(self, texts: Iterable[str], heard: Callable[[list[tuple[str | None, ...]]], None]) -> None:
        """Run statements of the gateway's own, and tell `heard` each one's rows, in their order.

        While it hears of one, the server is at the next: a text may be made from the answers before that one. The
        first error is raised, when no answer is owed any more; nothing is heard or sent after it.
        """
        ...

    async def describe(self, texts: Sequence[str]) -> list[tuple[ResultColumn, ...] | UpstreamError]:
        """The result columns of each statement, or its error, by Parse and Describe, without running any.

        All in one round trip. Inside a transaction, where the first error spoils the rest, it is raised.
        """
        ...

    async def open(self, sql: bytes, parameters: Sequence[bytes | None], max_rows: int) -> Page:
        """Run a granted statement through the unnamed portal; at most `max_rows` rows (0: all).

        Parameters are text format, their types left to the server. A suspended portal stays open:
        `fetch` goes on with it and `close` ends it. Outside an explicit transaction the implicit one
        stays open with the portal, until `close`.
        """
        ...

    async def fetch(self, max_rows: int) -> Page:
        """The next rows of the suspended portal."""
        ...

    async def close(self) -> None:
        """End the portal and its implicit transaction (Close, Sync)."""
        ...

    async def cancel(self) -> None:
        """Send a CancelRequest for what runs now, on a connection of its own."""
        ...

    async def disconnect(self) -> None:
        """Terminate; safe to call twice."""
        ...

    @property
    def connected(self) -> bool:
        """False once the server or we have ended the connection."""
        ...


class UpstreamFactory(Protocol):
    """Makes upstream sessions with the gateway's own credential."""

    async def connect(
        self, connection: Connection, *, application_name: str, settings: Mapping[str, str] | None = None
    ) -> Upstream:
        """Connect and authenticate. Raises `UpstreamLostError`, or `UpstreamError` for a refusal."""
        ...
