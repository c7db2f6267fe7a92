"""What the MCP door is told at start: one frozen value. No I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class McpSettings:
    """Settings of the MCP door. Sizes are bytes, times are seconds.

    `public_url` is the MCP endpoint as clients write it; it is the RFC 8707 resource identifier too.
    `allowed_hosts` and `allowed_origins` are matched against the Host and Origin headers (`name:*` means
    any port): the defence against DNS rebinding. `default_connection` serves calls that name none.
    """

    public_url: str
    issuer_urls: tuple[str, ...]
    allowed_hosts: tuple[str, ...] = ("127.0.0.1:*", "localhost:*", "[::1]:*")
    allowed_origins: tuple[str, ...] = ("http://127.0.0.1:*", "http://localhost:*", "http://[::1]:*")
    required_scopes: tuple[str, ...] = ()
    default_connection: str | None = None
    row_limit: int = 200  # rows of a page, unless the call asks for another number
    row_limit_max: int = 1000
    page_bytes: int = 256 * 1024  # values of a page; one row is always delivered
    cursor_seconds: float = 60.0  # how long a truncated result can be continued
    cursors_per_session: int = 4
    session_idle_seconds: float = 900.0
    await_seconds: float = 25.0  # hosts cut silent calls after 30 s
    poll_seconds: int = 5
    # Legacy (handshake) clients keep a session in memory: it tells the audit the client's name, and is
    # bound to its principal. Stateless serves them from several processes.
    stateless_http: bool = False
