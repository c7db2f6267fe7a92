"""The wire door: accepts connections, knows the conversations and their cancel keys, and shuts in order."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
from collections.abc import Mapping
from functools import lru_cache

from gateway.admission import Gateway
from gateway.certificates import CertificatePrincipals
from gateway.errors import AuthenticationError, CountersignError, IssuerUnavailableError, TooManyConnectionsError
from gateway.identity import TokenVerifier
from gateway.model import Door, Session
from gateway.pool import NAME as POOL_NAME
from gateway.pool import OUR_NAMES
from gateway.session_secrets import SessionSecrets
from gateway.upstream import UpstreamError, UpstreamLostError
from wire import backend, frontend, reports, sqlstate
from wire.client import ClientConnection, ClientGoneError
from wire.conversation import Conversation
from wire.dialing import keep_alive
from wire.entrance import Arrival, Logins, TurnedAwayError, arrive, cancel_key, turned_away
from wire.fields import ProtocolError
from wire.oauthbearer import OauthOffer
from wire.occupancy import DoorLimits, Occupancy
from wire.reports import Report
from wire.server_tls import ServerTls
from wire.session import EndedError, Event, WireSession
from wire.throttle import FailureLimit
from wire.upstream import UpstreamSession, connect

log = logging.getLogger(__name__)

_LIMITS = DoorLimits()
# Every failed start takes at least this long: guessing is slow, and says nothing by its speed.
_REFUSAL_SECONDS = 0.2
# NAMEDATALEN - 1.
_NAME_BYTES = 63

# Classes of SQLSTATE that speak of the gateway's own user and database, not of what the client gave.
_OURS = ("28", "3D")

_TOO_MANY_FAILURES = "too many failed logins from this address; try again in a minute"
_SHUTDOWN = "terminating connection due to administrator command"


class WireDoor:
    """The PostgreSQL door of one process."""

    def __init__(
        self,
        gateway: Gateway,
        verifier: TokenVerifier,
        secrets: SessionSecrets,
        *,
        host: str,
        port: int,
        tls: ServerTls | None,
        limits: DoorLimits = _LIMITS,
        oauth: OauthOffer | None = None,
        certificates: CertificatePrincipals | None = None,
    ) -> None:
        self._gateway = gateway
        everywhere = tls is not None and tls.requires_certificate
        self._logins = Logins(verifier, secrets, oauth, certificates, everywhere)
        self._failures = FailureLimit(limits.failures)
        self._host = host
        self._port = port
        self._tls = tls
        self._limits = limits
        self._occupancy = Occupancy(limits)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._conversations: dict[int, tuple[bytes, Conversation]] = {}  # by our own pid, with its key

    async def start(self) -> None:
        """Listen. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ClientConnection(self._accepted), self._host, self._port)
        for listening in self._server.sockets:
            keep_alive(listening)

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, grace: float) -> None:
        """Accept no more. Idle conversations end now, busy ones when done, after `grace` seconds at the latest."""
        if self._server is not None:
            self._server.close()
        report = reports.fatal(sqlstate.ADMIN_SHUTDOWN, _SHUTDOWN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self._busy(report):
                    await asyncio.wait(self._tasks, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
        for _, conversation in list(self._conversations.values()):
            conversation.end(report)
        starting = [task for task in self._tasks if task.get_name() == "wire start"]
        for task in starting:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace + 10)

    def _busy(self, report: Report) -> bool:
        """Whether some still do something; each ends with this report when it has done."""
        conversations = [conversation for _, conversation in self._conversations.values()]
        for conversation in conversations:
            conversation.drain(report)
        return not all(conversation.quiet for conversation in conversations)

    # -- one connection -------------------------------------------------------------------------------

    def _accepted(self, client: ClientConnection) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(client), name="wire start")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: ClientConnection) -> None:
        try:
            with self._occupancy.place(client.host):
                report = await self._served(client)
                await client.leave(backend.ErrorResponse(report).encode() if report is not None else b"")
        except TooManyConnectionsError as error:
            client.send(backend.ErrorResponse(turned_away(error)).encode())
        finally:
            client.close()

    async def _served(self, client: ClientConnection) -> Report | None:
        """Talk to the end; returns the client's last message, None where there is none."""
        report: Report | None = None
        try:
            with contextlib.ExitStack() as held:
                await self._talk(client, held)
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
        return report

    async def _talk(self, client: ClientConnection, held: contextlib.ExitStack) -> None:
        wire = WireSession()
        async with asyncio.timeout(self._limits.start_seconds):
            arrival = await arrive(client, wire, self._tls, self._cancel)
            session = await self._admitted(client, wire, arrival, held)
            try:
                upstream = await self._upstream(session, arrival)
            except BaseException:
                self._gateway.close_session(session, "the upstream could not be reached")
                raise
        task = asyncio.current_task()
        assert task is not None
        task.set_name("wire conversation")
        conversation = Conversation(client, wire, upstream, session, self._gateway, self._limits)
        pid = self._pid(upstream)
        key = cancel_key(arrival)
        self._conversations[pid] = (key, conversation)
        reason = "the client disconnected"
        try:
            self._greet(client, wire, upstream, arrival, pid, key)
            await conversation.run()
        except EndedError as ended:
            reason = str(ended)
            if conversation.mid_row:
                raise EndedError(None) from None
            raise
        finally:
            del self._conversations[pid]
            await conversation.close()
            self._gateway.close_session(session, reason)

    async def _admitted(
        self, client: ClientConnection, wire: WireSession, arrival: Arrival, held: contextlib.ExitStack
    ) -> Session:
        """The session of a client with a good token; a failure is recorded, and answered after a fixed delay."""
        loop = asyncio.get_running_loop()
        if self._failures.blocked(client.host, loop.time()):
            # Not recorded one by one: whoever fails often enough must not fill the audit.
            raise TurnedAwayError(reports.fatal(sqlstate.INVALID_AUTHORIZATION, _TOO_MANY_FAILURES))
        try:
            token = await self._logins.authenticate(client, wire, arrival.user)
            held.enter_context(self._occupancy.seat(token.principal))
            return await self._gateway.open_session(token, arrival.database, Door.WIRE, arrival.client)
        except CountersignError as error:
            earliest = loop.time() + _REFUSAL_SECONDS
            if isinstance(error, AuthenticationError) and not isinstance(error, IssuerUnavailableError):
                self._failures.failed(client.host, loop.time())
            with contextlib.suppress(CountersignError):
                await self._gateway.refuse_login(error, Door.WIRE, arrival.client, arrival.database)
            await asyncio.sleep(max(0.0, earliest - loop.time()))
            raise TurnedAwayError(turned_away(error)) from None

    async def _upstream(self, session: Session, arrival: Arrival) -> UpstreamSession:
        """This session's own connection to PostgreSQL, its search path and catalog known."""
        told = f"{OUR_NAMES}{session.id}/{arrival.client.name or ''}"
        name = told.encode()[:_NAME_BYTES].decode(errors="ignore")
        settings = {k: v for k, v in arrival.settings.items() if k != "application_name"}
        try:
            return await self._named(session, name, settings)
        except (UpstreamError, UpstreamLostError) as error:
            text = f"the database behind `{session.connection.name}` cannot be used: {error}"
            code = error.sqlstate if isinstance(error, UpstreamError) else sqlstate.CONNECTION_FAILURE
            if code.startswith(_OURS):
                code = sqlstate.CONNECTION_FAILURE
            raise TurnedAwayError(reports.fatal(code, text)) from None
        except CountersignError as error:
            raise TurnedAwayError(turned_away(error)) from None

    async def _named(self, session: Session, name: str, settings: Mapping[str, str]) -> UpstreamSession:
        """A connection that DBAs see under this name. One with settings of the client's is its own to the end:
        what came with the start-up packet no reset takes back.
        """
        if settings:
            return await self._known(session, await connect(session.connection, name, settings))
        naming = "SET application_name = '" + name.replace("'", "''") + "'"
        while (idle := self._gateway.connections.idle(session)) is not None:
            assert isinstance(idle, UpstreamSession), "the composition root gives both doors one factory"
            with contextlib.suppress(UpstreamError, UpstreamLostError):  # the server may have been restarted meanwhile
                return await self._known(session, idle, naming)
        return await self._known(session, await connect(session.connection, POOL_NAME, {}), naming)

    async def _known(self, session: Session, upstream: UpstreamSession, *first: str) -> UpstreamSession:
        """The upstream, once its search path and catalog are known; statements of ours go `first`."""
        try:
            await self._gateway.refresh(session, upstream, *first)
        except BaseException:
            await upstream.disconnect()
            raise
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
        told = dict(upstream.parameters) | {"application_name": arrival.client.name or ""}
        messages = [backend.Authentication(backend.Authentication.OK).encode(), _settings(tuple(told.items()))]
        messages += [backend.BackendKeyData(pid, key).encode(), backend.ReadyForQuery("I").encode()]
        client.send(b"".join(messages))

    def _pid(self, upstream: UpstreamSession) -> int:
        """The server's own process id, which notifications and pg_backend_pid() tell; another where it is taken.

        Servers do not agree on theirs. It is no secret: what a CancelRequest proves is the key.
        """
        pid = upstream.pid
        while pid is None or pid in self._conversations:
            pid = secrets.randbelow(2**31 - 1) + 1
        return pid

    async def _cancel(self, request: frontend.CancelRequest) -> None:
        """Cancel what runs under this key. A wrong key is answered like a right one: not at all."""
        key, conversation = self._conversations.get(request.pid, (b"", None))
        if conversation is not None and hmac.compare_digest(key, request.key):
            conversation.cancel()


@lru_cache(maxsize=64)
def _settings(told: tuple[tuple[str, str], ...]) -> bytes:
    """What a server's settings are told by; they are the same for many clients."""
    return b"".join(backend.ParameterStatus(name, value).encode() for name, value in told)
