"""The gateway's values: connections, sessions, statements and what came of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Literal

from audit.recording import Mode
from gateway.temporary import Temporary
from policy.catalog import Catalog
from policy.detection import Found
from policy.model import Decision, Principal

__all__ = [
    "ClientInfo",
    "Connection",
    "Door",
    "Outcome",
    "Principal",
    "Session",
    "SslMode",
    "Statement",
    "Status",
    "principal_body",
]

# Whether what needs approval is tried first: on the database itself (and rolled back), migrations on a shadow of it.
Rehearse = Literal["live", "shadow", "off"]
# As libpq names them.
SslMode = Literal["disable", "prefer", "require", "verify-ca", "verify-full"]
ChannelBinding = Literal["disable", "prefer", "require"]
TargetSession = Literal["any", "read-write"]


class Door(StrEnum):
    """The way in."""

    MCP = "mcp"
    WIRE = "wire"


@dataclass(frozen=True, slots=True)
class UpstreamRole:
    """The upstream user of principals in one of these groups."""

    groups: frozenset[str]
    user: str
    password: str = field(repr=False)


@dataclass(slots=True)
class HostOrder:
    """Which of a connection's hosts answered last and is asked first: the one thing of a connection that changes."""

    first: int = 0


@dataclass(frozen=True, slots=True)
class Connection:
    """A named PostgreSQL upstream with the gateway's own credential, which no client ever sees.

    `user` is the role of principals that no entry of `roles` means. `fallbacks` are the hosts that are asked where
    `host` does not answer, or is not what `target` wants. `read_only` makes a session's transactions so unless it says
    otherwise. Times are seconds.
    """

    name: str
    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)
    sslmode: SslMode = "prefer"
    sslrootcert: str | None = None
    description: str = ""
    recording: Mode = Mode.METADATA
    rehearse: Rehearse = "live"
    channel_binding: ChannelBinding = "prefer"
    fallbacks: tuple[tuple[str, int], ...] = ()
    target: TargetSession = "any"
    connect_timeout: float = 10.0
    roles: tuple[UpstreamRole, ...] = ()
    warm: int = 0  # sessions that are kept ready
    read_only: bool = False
    shadow: Connection | None = None  # where shadows are made: its database is the one to connect to for that
    order: HostOrder = field(default_factory=HostOrder, compare=False, repr=False)

    def for_principal(self, principal: Principal, *, writes: bool) -> Connection:
        """As this principal uses it: the first role that means one of its groups, and read only unless it `writes`."""
        role = next((role for role in self.roles if role.groups & principal.groups), None)
        user, password = (role.user, role.password) if role else (self.user, self.password)
        as_it_is = (user, password, writes) == (self.user, self.password, not self.read_only)
        return self if as_it_is else replace(self, user=user, password=password, read_only=not writes)

    def candidates(self) -> list[Connection]:
        """With one host each, in the order in which they are to be asked."""
        hosts = [(self.host, self.port), *self.fallbacks]
        hosts = hosts[self.order.first :] + hosts[: self.order.first]
        return [replace(self, host=host, port=port, fallbacks=()) for host, port in hosts]

    def answered(self, candidate: Connection) -> None:
        """This candidate is the one to be asked first from now on."""
        self.order.first = [(self.host, self.port), *self.fallbacks].index((candidate.host, candidate.port))


def principal_body(principal: Principal) -> dict[str, object]:
    """A principal as the audit writes it down."""
    body: dict[str, object] = {
        "subject": principal.subject,
        "issuer": principal.issuer,
        "kind": principal.kind.value,
        "email": principal.email,
        "groups": sorted(principal.groups),
        "on_behalf_of": principal.on_behalf_of,
    }
    return body | {"human_issuer": principal.human_issuer} if principal.human_issuer else body


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """What the client says of itself: told in the audit, never trusted."""

    name: str | None = None  # MCP clientInfo.name, or application_name
    version: str | None = None
    address: str | None = None  # host:port of the peer

    @property
    def host(self) -> str | None:
        """The peer's address without its port."""
        return self.address.rpartition(":")[0].strip("[]") if self.address else None


@dataclass(slots=True, eq=False)
class Session:
    """One authenticated stay at one door on one connection.

    `search_path` is the upstream's own `current_schemas(true)`. While `stale` is set it, or the catalog,
    may no longer be true: `Gateway.refresh` asks the upstream again before the next decision. `catalog`
    is a snapshot of this session's own, taken inside a transaction that has changed the schema; None means
    the connection's shared one. `temporary` are its own temporary relations, which come on top of either.
    `prepared` holds the SQL-level prepared statements by name,
    `measured` the rows that statements (text, parameters) had changed when they were rolled back.
    """

    id: str
    principal: Principal
    connection: Connection
    door: Door
    client: ClientInfo
    opened: datetime
    expires: datetime
    search_path: tuple[str, ...] = ()
    stale: bool = True
    schema_changed: bool = False
    catalog: Catalog | None = None
    temporary: Temporary | None = None
    prepared: dict[str, Decision] = field(default_factory=dict)
    measured: dict[tuple[bytes, tuple[bytes | None, ...]], int] = field(default_factory=dict)
    recorded: int = 0  # bytes of recordings so far
    ended: str | None = None  # the reason, once it is over
    on_end: list[Callable[[str], None]] = field(default_factory=list)  # called at once on revocation or expiry


@dataclass(frozen=True, slots=True)
class Statement:
    """Exactly one SQL statement with its parameters, as the client sent it.

    `text` is the client's bytes (UTF-8). `parameters` are text-format values, None for NULL; where a
    client sent a binary one whose type is not known here it is rendered as `\\x…`.
    """

    session: Session
    text: bytes
    parameters: tuple[bytes | None, ...] = ()
    request: dict[str, str] = field(default_factory=dict)  # request id, traceparent, stated reason …


class Status(StrEnum):
    """How a statement ended."""

    COMPLETED = "completed"
    FAILED = "failed"  # PostgreSQL said no
    CANCELLED = "cancelled"
    REFUSED = "refused"  # we said no; the upstream never saw it
    PENDING = "pending"  # waits for approval; the run is a statement of its own
    REHEARSED = "rehearsed"  # ran in a transaction that was rolled back, to show people what it does
    SKIPPED = "skipped"  # an earlier error of the same batch kept it from running
    UNKNOWN = "unknown"  # the gateway or the upstream vanished in between


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a statement."""

    status: Status
    tag: str | None = None
    rows: int = 0
    size: int = 0  # bytes of delivered values
    sqlstate: str | None = None
    message: str | None = None
    digest: str | None = None  # SHA-256 of what was delivered, hex
    detected: tuple[Found, ...] = ()  # what was found in it, and hidden
