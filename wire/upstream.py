"""One session with PostgreSQL over protocol 3: the port that both doors run on, and the raw relay of the wire door.

Two ways of use, one at a time. By its own methods (`probe`, `open` …) it sends messages and collects the
answers. With a `Relay` attached, bytes pass through it untouched; its own methods stay usable whenever the
relay is owed no answer, even between the messages of an extended batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from secrets import token_urlsafe
from typing import Protocol, cast

from gateway.model import Connection
from gateway.upstream import Page, ResultColumn, Upstream, UpstreamError, UpstreamLostError
from wire import backend, copy, frontend, sqlstate
from wire.codec import BackendDecoder
from wire.dialing import dial, lost
from wire.fields import ProtocolError
from wire.login import Login, LoginError
from wire.messages import BackendMessage
from wire.session import RESERVED_NAME

log = logging.getLogger(__name__)

_START_SECONDS = 15.0
_CANCEL_SECONDS = 5.0
_NONCE_BYTES = 24
# Collected answers above this stop the reading until they are taken.
_INBOX_MESSAGES = 10_000

# One step of a client's result that is collected here, all rows together. The relay has no such bound.
_MOST_COLLECTED_BYTES = 32 << 20

# The analysis is true only under these; a server that reports another value ends the session.
PINNED: Mapping[str, str] = {"client_encoding": "UTF8", "standard_conforming_strings": "on"}

_LOOPBACK = ("127.", "::1", "/", "localhost")


class Relay(Protocol):
    """What takes an upstream's bytes while it is attached."""

    def upstream_received(self, chunk: bytes) -> None:
        """Bytes came."""
        ...

    def upstream_said(self, message: BackendMessage) -> None:
        """A notice, setting or notification came in between answers to our own statements."""
        ...

    def upstream_lost(self, reason: str) -> None:
        """The connection is over."""
        ...

    def upstream_writable(self) -> None:
        """What was sent has left; writing may go on."""
        ...


class UpstreamSession(asyncio.Protocol):
    """An authenticated upstream session; made by `Factory.connect`. Implements `gateway.upstream.Upstream`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self._decoder = BackendDecoder()
        self._inbox: deque[BackendMessage] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._over: UpstreamLostError | None = None
        self._parameters: dict[str, str] = {}
        self._key: backend.BackendKeyData | None = None
        self._relay: Relay | None = None
        self._own = True  # bytes are answers to our own messages
        self._reading = True
        self._portal: tuple[ResultColumn, ...] | None = None  # of the suspended portal
        self._busy = False
        self._room: int | None = None  # bytes that an answer to a client's statement may still have
        self.transaction_status = "I"
        self.batch_open = False  # extended messages were sent on since the last Sync
        self.plain = True  # started without settings of a client's, which no reset would take back
        self.cancelled = False  # a request to cancel was sent, which may still arrive
        self.congested = False  # more is written than the server takes: wait for `upstream_writable`

    # -- asyncio's side -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports do not derive from asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Relay, or collect."""
        if not self._own and self._relay is not None:
            self._relay.upstream_received(data)
            return
        if self._room is not None:
            self._room -= len(data)
            if self._room < 0:
                self._break(
                    f"an answer of more than {_MOST_COLLECTED_BYTES >> 20} MiB at once was given up: "
                    "select fewer or shorter values"
                )
                return
        try:
            for message in self._decoder.feed(data):
                self._collect(message)
        except ProtocolError as error:
            self._break(f"protocol error: {error}")
        if len(self._inbox) > _INBOX_MESSAGES:
            self.pause_reading()
        self._wake()

    def pause_writing(self) -> None:
        """The server takes less than we send."""
        self.congested = True

    def resume_writing(self) -> None:
        """What was sent has left."""
        self.congested = False
        if self._relay is not None:
            self._relay.upstream_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        self._break(f"the connection was lost ({exc})" if exc else "the server closed the connection")

    # -- the relay's side -----------------------------------------------------------------------------

    def attach(self, relay: Relay) -> None:
        """From now on bytes that are no answers to our own messages go to this relay."""
        self._relay = relay
        self._own = False

    def detach(self) -> None:
        """Nothing is owed any more: bytes are answers to our own messages again."""
        self._relay = None
        self._own = True
        self.resume_reading()

    def write(self, data: bytes) -> None:
        """Send bytes. The caller watches `congested`."""
        if self._transport is not None and self._over is None:
            self._transport.write(data)

    def pause_reading(self) -> None:
        """Let the server wait: whoever gets its bytes is slow."""
        if self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes again."""
        if not self._reading and self._transport is not None and self._over is None:
            self._reading = True
            self._transport.resume_reading()

    def note_parameter(self, name: str, value: str) -> None:
        """A setting was reported. Raises ProtocolError where it may not have this value."""
        self._parameters[name] = value
        if (pinned := PINNED.get(name)) is not None and value != pinned:
            raise ProtocolError(f"`{name}` was changed to `{value}`, but must stay `{pinned}`")

    # -- the port's side ------------------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        """What it was made for."""
        return self._connection

    @property
    def parameters(self) -> Mapping[str, str]:
        """The server's ParameterStatus values."""
        return self._parameters

    @property
    def connected(self) -> bool:
        """False once the server or we have ended the connection."""
        return self._over is None

    async def probe(self, *texts: str) -> list[tuple[str | None, ...]]:
        """Run statements of the gateway's own: by simple queries, or without ending the open batch; see the port."""
        async with self._owning():
            if self.batch_open:
                pages = [await self._probe_in_batch(text) for text in texts]
            else:
                self._send(*[frontend.Query(text.encode()) for text in texts])
                pages = await self._each_answer(len(texts))
        return _texts(pages[-1])

    async def probe_each(self, texts: Iterable[str], heard: Callable[[list[tuple[str | None, ...]]], None]) -> None:
        """Run statements of the gateway's own, the next one while `heard` has one's rows; see the port."""
        left, owed = iter(texts), 0
        failed: UpstreamError | None = None
        async with self._owning():
            if self.batch_open:
                for text in left:
                    heard(_texts(await self._probe_in_batch(text)))
                return
            while True:
                for text in islice(left, 0 if failed else 2 - owed):
                    self._send(frontend.Query(text.encode()))
                    owed += 1
                if not owed:
                    break
                owed -= 1
                try:
                    page = await self._page(frozenset((backend.ReadyForQuery,)))
                except UpstreamError as error:
                    failed = failed or error
                else:
                    if failed is None:
                        heard(_texts(page))
            if failed is not None:
                raise failed

    async def describe(self, texts: Sequence[str]) -> list[tuple[ResultColumn, ...] | UpstreamError]:
        """The result columns of each statement, by Parse and Describe, without running any; see the port."""
        # Each has a Sync of its own, so that its error is its own; but a client's batch must not be ended.
        end = frontend.Flush() if self.batch_open else frontend.Sync()
        last = frozenset((backend.CloseComplete if self.batch_open else backend.ReadyForQuery,))
        found: list[tuple[ResultColumn, ...] | UpstreamError] = []
        async with self._owning():
            for text in texts:
                self._send(
                    frontend.Parse(RESERVED_NAME, text.encode()),
                    frontend.Describe(b"S", RESERVED_NAME),
                    frontend.Close(b"S", RESERVED_NAME),
                    end,
                )
            for _ in texts:
                try:
                    found.append((await self._page(last)).columns)
                except UpstreamError as error:
                    if self.batch_open:
                        raise  # the server skips all that follows, up to the client's Sync
                    found.append(error)
            for columns in found:
                if isinstance(columns, UpstreamError) and self.transaction_status == "E":
                    raise columns
        return found

    async def open(self, sql: bytes, parameters: Sequence[bytes | None], max_rows: int) -> Page:
        """Run a granted statement through the unnamed portal; see the port."""
        async with self._owning(_MOST_COLLECTED_BYTES):
            self._send(
                frontend.Parse("", sql),
                frontend.Bind("", "", values=tuple(parameters)),
                frontend.Describe(b"P", ""),
                frontend.Execute("", max_rows),
                frontend.Flush() if max_rows else frontend.Sync(),
            )
            if not max_rows:
                return await self._page(frozenset((backend.ReadyForQuery,)))
            return await self._suspendable(await self._page(_EXECUTED))

    async def fetch(self, max_rows: int) -> Page:
        """The next rows of the suspended portal."""
        if self._portal is None:
            raise RuntimeError("no portal is suspended")
        async with self._owning(_MOST_COLLECTED_BYTES):
            columns, self._portal = self._portal, None
            self._send(frontend.Execute("", max_rows), frontend.Flush())
            page = await self._page(_EXECUTED)
            page.columns = columns
            return await self._suspendable(page)

    async def close(self) -> None:
        """End the portal and its implicit transaction."""
        if self._portal is None or self._over is not None:
            return
        self._portal = None
        async with self._owning():
            self._send(frontend.Close(b"P", ""), frontend.Sync())
            await self._page(frozenset((backend.ReadyForQuery,)))

    @property
    def pid(self) -> int | None:
        """The process that serves this session; None where the server has not said."""
        return self._key.pid if self._key is not None else None

    async def cancel(self) -> None:
        """Send a CancelRequest on a connection of its own. A server that is gone needs none."""
        if self._key is None or self._over is not None:
            return
        self.cancelled = True
        request = frontend.CancelRequest(self._key.pid, self._key.key)
        try:
            async with asyncio.timeout(_CANCEL_SECONDS):
                transport, closing = await dial(self._connection, _Closing)
                transport.write(request.encode())
                # The server answers by closing: then the signal has been sent.
                await closing.closed
        except (UpstreamLostError, TimeoutError) as error:
            log.warning("a cancel request did not get through: %s", error)

    async def disconnect(self) -> None:
        """Terminate; safe to call twice."""
        if self._transport is None:
            return
        if self._over is None:
            self._over = lost(self._connection, "the session was closed")
            self._transport.write(frontend.Terminate().encode())
        self._relay = None
        if self.congested:
            self._transport.abort()  # it would wait for a server that waits for us
        else:
            self._transport.close()
        self._wake()

    # -- start-up -------------------------------------------------------------------------------------

    async def start(self, application_name: str, settings: Mapping[str, str]) -> None:
        """Start-up and authentication, to the first ReadyForQuery."""
        connection = self._connection
        self.plain = not settings
        parameters = {
            "user": connection.user,
            "database": connection.database,
            **settings,
            **({"default_transaction_read_only": "on"} if connection.read_only else {}),
            "application_name": application_name,
            **PINNED,
        }
        self._send(frontend.StartupRequest(frontend.PROTOCOL_MAJOR, 0, parameters))
        login = self._login()
        while True:
            match await self._next():
                case backend.Authentication() as request:
                    if (answer := login.answer(request)) is not None:
                        self._send(answer)
                case backend.BackendKeyData() as key:
                    self._key = key
                case backend.ReadyForQuery() if login.done:
                    break
                case backend.ErrorResponse() as error:
                    raise UpstreamError(error.fields)
                case backend.NegotiateProtocolVersion():
                    pass
                case unexpected:
                    raise ProtocolError(f"unexpected {type(unexpected).__name__} message during start-up")
        for name, value in PINNED.items():
            if self._parameters.get(name) != value:
                raise LoginError(f"it does not set `{name}` to `{value}`")

    def _login(self) -> Login:
        assert self._transport is not None
        tls = self._transport.get_extra_info("ssl_object")
        private = tls is not None or self._connection.host.startswith(_LOOPBACK)
        return Login(
            self._connection.user,
            self._connection.password,
            token_urlsafe(_NONCE_BYTES),
            private=private,
            tls=tls,
            channel_binding=self._connection.channel_binding,
        )

    async def check_target(self) -> None:
        """Raises UpstreamLostError where the connection wants a server that writes, and this one does not."""
        if self._connection.target == "any":
            return
        standby = self._parameters.get("in_hot_standby")
        if standby is None:  # not reported before PostgreSQL 14
            standby = "on" if await self.probe("SELECT pg_catalog.pg_is_in_recovery()") == [("t",)] else "off"
        # Where we asked for it ourselves, it says nothing of the server.
        read_only = self._parameters.get("default_transaction_read_only") == "on" and not self._connection.read_only
        if standby == "on" or read_only:
            raise lost(self._connection, "it does not take writes, but target_session_attrs is `read-write`")

    # -- inside ---------------------------------------------------------------------------------------

    def _send(self, *messages: frontend.Packet | _Sendable) -> None:
        self.write(b"".join(message.encode() for message in messages))

    def _collect(self, message: BackendMessage) -> None:
        """Keep an answer; what comes at any time is dealt with at once."""
        match message:
            case backend.ParameterStatus(name, value):
                self.note_parameter(name, value)
                self._tell(message)
            case backend.NotificationResponse():
                self._tell(message)
            case backend.NoticeResponse() if self._relay is not None:
                pass  # about our own statement: none of the client's business
            case _:
                self._inbox.append(message)

    def _tell(self, message: BackendMessage) -> None:
        if self._relay is not None:
            self._relay.upstream_said(message)

    def _break(self, reason: str) -> None:
        if self._over is None:
            self._over = lost(self._connection, reason)
            if self._transport is not None:
                self._transport.abort()
            if self._relay is not None:
                self._relay.upstream_lost(str(self._over))
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _next(self) -> BackendMessage:
        """The next collected message. Raises UpstreamLostError."""
        while not self._inbox:
            if self._over is not None:
                raise self._over
            self.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._inbox.popleft()

    @asynccontextmanager
    async def _owning(self, room: int | None = None) -> AsyncIterator[None]:
        """Bytes are answers to our own messages inside the block, at most `room` of them.

        A block that is left before its last answer leaves the connection out of step: it is ended.
        """
        if self._over is not None:
            raise self._over
        if self._busy:
            raise RuntimeError("an upstream session runs one statement at a time")
        self._busy, self._own, self._room = True, True, room
        try:
            yield
        except UpstreamError:
            raise
        except BaseException:
            self._break("a statement of the gateway's own was abandoned")
            raise
        finally:
            self._busy, self._own, self._room = False, self._relay is None, None

    async def _page(self, until: frozenset[type[object]]) -> Page:
        """Collect answers up to and including one of these; an error is raised after resynchronising."""
        page = Page(columns=(), rows=[], tag=None, suspended=False)
        failed: UpstreamError | None = None
        while True:
            message = await self._next()
            match message:
                case backend.DataRow(values):
                    page.rows.append(values)
                    page.size += sum(len(v) for v in values if v is not None)
                case backend.RowDescription(columns):
                    page.columns = tuple(
                        [ResultColumn(c.name, c.table, c.attribute, c.type, c.modifier) for c in columns]
                    )
                case backend.CommandComplete(tag):
                    page.tag = tag
                case backend.PortalSuspended():
                    page.suspended = True
                case backend.NoticeResponse(fields):
                    page.notices.append(fields)
                case backend.ReadyForQuery(status):
                    self.transaction_status = status
                case copy.CopyInResponse():
                    self._send(copy.CopyFail("COPY needs the wire door"))
                case backend.ErrorResponse(fields):
                    failed = failed or UpstreamError(fields)
                    if backend.ReadyForQuery not in until:
                        await self._resynchronise()
                        raise failed
            if type(message) in until:
                if failed is not None:
                    raise failed
                return page

    async def _each_answer(self, count: int) -> list[Page]:
        """The answers to so many simple queries; the first error is raised when all have come."""
        pages: list[Page] = []
        failed: UpstreamError | None = None
        for _ in range(count):
            try:
                pages.append(await self._page(frozenset((backend.ReadyForQuery,))))
            except UpstreamError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return pages

    async def _resynchronise(self) -> None:
        """After an error in a batch that has no Sync yet. A relay's batch is ended by its client's Sync."""
        if self.batch_open:
            return
        self._send(frontend.Sync())
        while not isinstance(message := await self._next(), backend.ReadyForQuery):
            pass
        self.transaction_status = message.status

    async def _suspendable(self, page: Page) -> Page:
        """Keep the portal of a page that has more rows; end the implicit transaction of one that has not."""
        if page.suspended:
            self._portal = page.columns
            return page
        self._send(frontend.Sync())
        await self._page(frozenset((backend.ReadyForQuery,)))
        return page

    async def _probe_in_batch(self, sql: str) -> Page:
        """Parse to Execute under our reserved names and Flush: a simple query would commit the client's batch."""
        self._send(
            frontend.Parse(RESERVED_NAME, sql.encode()),
            frontend.Bind(RESERVED_NAME, RESERVED_NAME),
            frontend.Execute(RESERVED_NAME),
            frontend.Close(b"P", RESERVED_NAME),
            frontend.Close(b"S", RESERVED_NAME),
            frontend.Flush(),
        )
        page = await self._page(frozenset((backend.CloseComplete,)))
        await self._page(frozenset((backend.CloseComplete,)))
        return page


def _texts(page: Page) -> list[tuple[str | None, ...]]:
    return [tuple(None if value is None else value.decode() for value in row) for row in page.rows]


_EXECUTED = frozenset((backend.CommandComplete, backend.PortalSuspended, backend.EmptyQueryResponse))


class _Sendable(Protocol):
    def encode(self) -> bytes: ...


class _Closing(asyncio.Protocol):
    """Waits for the other side to close."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


class Factory:
    """Makes upstream sessions with the gateway's own credential: `gateway.upstream.UpstreamFactory`."""

    async def connect(
        self, connection: Connection, *, application_name: str, settings: Mapping[str, str] | None = None
    ) -> Upstream:
        """Connect and authenticate. Raises `UpstreamLostError`, or `UpstreamError` for a refusal."""
        return await connect(connection, application_name, settings or {})


async def connect(connection: Connection, application_name: str, settings: Mapping[str, str]) -> UpstreamSession:
    """As `Factory.connect`, with the relay's side in its type. The first host that answers and will do is it.

    As with libpq, a host that refuses us by name or password is an answer; one that is starting or stopping is none.
    """
    failures: list[UpstreamLostError | UpstreamError] = []
    for candidate in connection.candidates():
        try:
            session = await _connect_to(candidate, application_name, settings)
        except UpstreamLostError as error:
            failures.append(error)
        except UpstreamError as error:
            if error.sqlstate != sqlstate.CANNOT_CONNECT_NOW:
                raise
            failures.append(error)
        else:
            connection.answered(candidate)
            return session
    if len(failures) == 1:
        raise failures[0]
    raise UpstreamLostError("; ".join(str(failure) for failure in failures))


async def _connect_to(connection: Connection, application_name: str, settings: Mapping[str, str]) -> UpstreamSession:
    _, session = await dial(connection, lambda: UpstreamSession(connection))
    try:
        async with asyncio.timeout(_START_SECONDS):
            await session.start(application_name, settings)
            await session.check_target()
    except (LoginError, ProtocolError) as error:
        await session.disconnect()
        raise lost(connection, str(error)) from None
    except TimeoutError:
        await session.disconnect()
        raise lost(connection, f"start-up did not finish within {_START_SECONDS:.0f} seconds") from None
    except BaseException:
        await session.disconnect()
        raise
    return session
