"""The wire door: accepts connections, knows the conversations and their cancel keys, and shuts in order."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import ssl
from collections import Counter

from gateway.admission import Gateway
from gateway.errors import CountersignError
from gateway.identity import TokenVerifier
from gateway.model import Door, Session
from gateway.upstream import UpstreamError, UpstreamLostError
from wire import backend, frontend, reports, sqlstate
from wire.client import ClientConnection, ClientGoneError
from wire.conversation import Conversation
from wire.entrance import Arrival, TurnedAwayError, arrive, authenticate, turned_away
from wire.fields import ProtocolError
from wire.reports import Report
from wire.session import EndedError, Event, WireSession
from wire.upstream import UpstreamSession, connect

log = logging.getLogger(__name__)

_START_SECONDS = 30.0
# Every failed start takes at least this long: guessing is slow, and says nothing by its speed.
_REFUSAL_SECONDS = 0.2
_CONNECTIONS = 1000
# Connections of one principal: each has an upstream session of its own, and PostgreSQL has 100 by default.
_CONNECTIONS_PER_PRINCIPAL = 50
# NAMEDATALEN - 1.
_NAME_BYTES = 63

# Classes of SQLSTATE that speak of the gateway's own user and database, not of what the client gave.
_OURS = ("28", "3D")

_SHUTDOWN = "terminating connection due to administrator command"


class WireDoor:
    """The PostgreSQL door of one process."""

    def __init__(
        self,
        gateway: Gateway,
        verifier: TokenVerifier,
        *,
        host: str,
        port: int,
        ssl_context: ssl.SSLContext | None,
        connections: int = _CONNECTIONS,
    ) -> None:
        self._gateway = gateway
        self._verifier = verifier
        self._host = host
        self._port = port
        self._context = ssl_context
        self._most = connections
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._conversations: dict[int, tuple[bytes, Conversation]] = {}  # by our own pid, with its key
        self._by_principal: Counter[tuple[str, str]] = Counter()  # sessions with an upstream, by issuer and subject

    async def start(self) -> None:
        """Listen. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ClientConnection(self._accepted), self._host, self._port)

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, grace: float) -> None:
        """Accept no more; idle conversations end now, busy ones after `grace` seconds at the latest."""
        if self._server is not None:
            self._server.close()
        end = asyncio.get_running_loop().time() + grace
        for _, conversation in list(self._conversations.values()):
            if conversation.quiet:
                conversation.end(reports.fatal(sqlstate.ADMIN_SHUTDOWN, _SHUTDOWN))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while any(not c.quiet for _, c in self._conversations.values()):
                    await asyncio.wait(self._tasks, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
        for _, conversation in list(self._conversations.values()):
            conversation.end(reports.fatal(sqlstate.ADMIN_SHUTDOWN, _SHUTDOWN))
        starting = [task for task in self._tasks if task.get_name() == "wire start"]
        for task in starting:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace + 10)

    # -- one connection -------------------------------------------------------------------------------

    def _accepted(self, client: ClientConnection) -> None:
        if len(self._tasks) >= 2 * self._most:
            client.close()  # not even those who say nothing may be kept without bound
            return
        task = asyncio.get_running_loop().create_task(self._serve(client), name="wire start")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: ClientConnection) -> None:
        report: Report | None = None
        try:
            await self._talk(client)
        except TurnedAwayError as error:
            report = error.report
        except EndedError as error:
            report = error.report
        except ProtocolError as error:
            report = reports.fatal(error.sqlstate, str(error))
        except ClientGoneError:
            pass
        except TimeoutError:
            report = reports.fatal(sqlstate.INVALID_AUTHORIZATION, "start-up took too long")
        except Exception:
            log.exception("a conversation failed")
            report = reports.fatal(sqlstate.INTERNAL_ERROR, "internal error of the gateway")
        finally:
            if report is not None:
                client.send(backend.ErrorResponse(report).encode())
            client.close()

    async def _talk(self, client: ClientConnection) -> None:
        wire = WireSession()
        async with asyncio.timeout(_START_SECONDS):
            arrival = await arrive(client, wire, self._context, self._cancel)
            session = await self._admitted(client, wire, arrival)
            await self._check_room(session)
            try:
                upstream = await self._upstream(session, arrival)
            except BaseException:
                self._leave(session)
                with contextlib.suppress(CountersignError):
                    await self._gateway.close_session(session, "the upstream could not be reached")
                raise
        task = asyncio.current_task()
        assert task is not None
        task.set_name("wire conversation")
        conversation = Conversation(client, wire, upstream, session, self._gateway)
        pid = secrets.randbelow(2**31 - 1) + 1
        key = secrets.token_bytes(4)
        self._conversations[pid] = (key, conversation)
        reason = "the client disconnected"
        try:
            self._greet(client, wire, upstream, arrival, pid, key)
            await conversation.run()
        except EndedError as ended:
            reason = ended.report["M"] if ended.report else reason
            if conversation.mid_row:
                raise EndedError(None) from None
            raise
        finally:
            del self._conversations[pid]
            self._leave(session)
            await conversation.close()
            with contextlib.suppress(CountersignError):
                await self._gateway.close_session(session, reason)

    async def _admitted(self, client: ClientConnection, wire: WireSession, arrival: Arrival) -> Session:
        """The session of a client with a good token; a failure is recorded, and answered after a fixed delay."""
        if len(self._tasks) > self._most:
            raise TurnedAwayError(reports.fatal(sqlstate.TOO_MANY_CONNECTIONS, "sorry, too many clients already"))
        loop = asyncio.get_running_loop()
        try:
            return await authenticate(client, wire, arrival, self._gateway, self._verifier)
        except CountersignError as error:
            earliest = loop.time() + _REFUSAL_SECONDS
            with contextlib.suppress(CountersignError):
                await self._gateway.refuse_login(error, Door.WIRE, arrival.client, arrival.database)
            await asyncio.sleep(max(0.0, earliest - loop.time()))
            raise TurnedAwayError(turned_away(error)) from None

    async def _check_room(self, session: Session) -> None:
        """Count the session in; raises TurnedAwayError where its principal has too many here."""
        principal = session.principal.issuer, session.principal.subject
        if self._by_principal[principal] >= _CONNECTIONS_PER_PRINCIPAL:
            text = f"too many connections for `{session.principal.subject}`: {_CONNECTIONS_PER_PRINCIPAL} are open"
            with contextlib.suppress(CountersignError):
                await self._gateway.close_session(session, text)
            raise TurnedAwayError(reports.fatal(sqlstate.TOO_MANY_CONNECTIONS, text))
        self._by_principal[principal] += 1

    def _leave(self, session: Session) -> None:
        principal = session.principal.issuer, session.principal.subject
        self._by_principal[principal] -= 1
        if not self._by_principal[principal]:
            del self._by_principal[principal]

    async def _upstream(self, session: Session, arrival: Arrival) -> UpstreamSession:
        """This session's own connection to PostgreSQL, its search path and catalog known."""
        told = f"countersign/{session.id}/{arrival.client.name or ''}"
        name = told.encode()[:_NAME_BYTES].decode(errors="ignore")
        settings = {k: v for k, v in arrival.settings.items() if k != "application_name"}
        try:
            upstream = await connect(session.connection, name, settings)
            try:
                await self._gateway.refresh(session, upstream)
            except BaseException:
                await upstream.disconnect()
                raise
        except (UpstreamError, UpstreamLostError) as error:
            text = f"the database behind `{session.connection.name}` cannot be used: {error}"
            code = error.sqlstate if isinstance(error, UpstreamError) else sqlstate.CONNECTION_FAILURE
            if code.startswith(_OURS):
                code = sqlstate.CONNECTION_FAILURE
            raise TurnedAwayError(reports.fatal(code, text)) from None
        except CountersignError as error:
            raise TurnedAwayError(turned_away(error)) from None
        return upstream

    def _greet(
        self,
        client: ClientConnection,
        wire: WireSession,
        upstream: UpstreamSession,
        arrival: Arrival,
        pid: int,
        key: bytes,
    ) -> None:
        wire.happened(Event.AUTHENTICATED)
        told = dict(upstream.parameters) | {"application_name": arrival.settings.get("application_name", "")}
        messages = [backend.Authentication(backend.Authentication.OK).encode()]
        messages += [backend.ParameterStatus(name, value).encode() for name, value in told.items()]
        messages += [backend.BackendKeyData(pid, key).encode(), backend.ReadyForQuery("I").encode()]
        client.send(b"".join(messages))

    async def _cancel(self, request: frontend.CancelRequest) -> None:
        """Cancel what runs under this key. A wrong key is answered like a right one: not at all."""
        key, conversation = self._conversations.get(request.pid, (b"", None))
        if conversation is not None and hmac.compare_digest(key, request.key):
            conversation.cancel()
