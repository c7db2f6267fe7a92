"""From an accepted connection to an open session: TLS, start-up parameters, the token, the upstream.

Sources: PostgreSQL documentation, "Start-up", "SSL Session Encryption", "Canceling Requests in Progress".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from secrets import token_bytes, token_urlsafe

from gateway.certificates import CertificatePrincipals
from gateway.errors import AuthenticationError, CountersignError
from gateway.identity import TokenVerifier, VerifiedToken
from gateway.model import ClientInfo
from gateway.session_secrets import PREFIX, SessionSecrets
from policy.settings import refusal_of_setting
from wire import backend, frontend, oauthbearer, reports, sqlstate
from wire.client import ClientConnection
from wire.oauthbearer import OauthOffer
from wire.reports import Report
from wire.scram import ScramServer
from wire.server_tls import ServerTls
from wire.session import WireSession
from wire.upstream import PINNED

# Parameters of the start-up packet that are not settings.
_NOT_SETTINGS = ("user", "database", "options", "replication", "client_encoding")
_NONCE_BYTES = 24
_UTF8 = ("utf8", "utf-8", "unicode")


class TurnedAwayError(Exception):
    """The connection ends before it began; `report` is the FATAL to send, None to say nothing."""

    def __init__(self, report: Report | None) -> None:
        super().__init__(report["M"] if report else "closed")
        self.report = report


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a client asked for at start-up."""

    minor: int  # of the protocol that is spoken: 3.0 to 3.2
    user: str
    database: str
    settings: Mapping[str, str]
    client: ClientInfo


async def arrive(
    client: ClientConnection,
    wire: WireSession,
    tls: ServerTls | None,
    cancel: Callable[[frontend.CancelRequest], Awaitable[None]],
) -> Arrival:
    """Read packets up to the start-up request. Raises TurnedAwayError, ClientGoneError, ProtocolError."""
    if tls is not None and await client.begins_with_tls() and not await client.start_tls(tls.present(), direct=True):
        raise TurnedAwayError(None)
    while True:
        packet = await client.next_packet()
        wire.receive(packet)
        match packet:
            case frontend.SslRequest():
                if tls is None or client.encrypted:
                    client.send(b"N")
                elif not await client.start_tls(tls.present()):
                    raise TurnedAwayError(None)
            case frontend.GssEncRequest():
                client.send(b"N")
            case frontend.CancelRequest():
                await cancel(packet)
                raise TurnedAwayError(None)
            case frontend.StartupRequest():
                return _checked(packet, client)


def _checked(packet: frontend.StartupRequest, client: ClientConnection) -> Arrival:
    """Narrow the start-up parameters. What we do not know is refused, never ignored."""
    if packet.major != frontend.PROTOCOL_MAJOR:
        text = f"unsupported frontend protocol {packet.major}.{packet.minor}: server supports 3.0 to 3.2"
        raise TurnedAwayError(reports.fatal(sqlstate.FEATURE_NOT_SUPPORTED, text))
    given = dict(packet.parameters)
    extensions = tuple(name for name in given if name.startswith("_pq_."))
    minor = min(packet.minor, frontend.PROTOCOL_MINOR)
    if packet.minor > minor or extensions:
        client.send(backend.NegotiateProtocolVersion(minor, extensions).encode())
    user = given.get("user", "")
    if not user:
        raise TurnedAwayError(
            reports.fatal(sqlstate.INVALID_AUTHORIZATION, "no PostgreSQL user name specified in startup packet")
        )
    if given.get("replication", "false").lower() not in ("false", "off", "no", "0"):
        raise TurnedAwayError(
            reports.fatal(sqlstate.FEATURE_NOT_SUPPORTED, "replication connections are always refused here")
        )
    if given.get("options", "").strip():
        raise TurnedAwayError(
            reports.fatal(
                sqlstate.FEATURE_NOT_SUPPORTED,
                "the start-up parameter `options` is refused",
                hint="Set what you need with SET after connecting.",
            )
        )
    encoding = given.get("client_encoding", "UTF8").strip("'\"").lower()
    if encoding not in _UTF8:
        raise TurnedAwayError(
            reports.fatal(
                sqlstate.INVALID_PARAMETER_VALUE,
                f"the client encoding `{encoding}` is not supported",
                hint="Use UTF8.",
            )
        )
    settings = {
        name: value
        for name, value in given.items()
        if name not in _NOT_SETTINGS and name not in extensions and PINNED.get(name) != value
    }
    for name in settings:
        if (why := refusal_of_setting(name)) is not None:
            raise TurnedAwayError(
                reports.fatal(
                    sqlstate.INSUFFICIENT_PRIVILEGE,
                    f"the start-up parameter `{name}` is refused: {why}",
                    hint="Connect without it.",
                )
            )
    return Arrival(
        minor=minor,
        user=user,
        database=given.get("database") or user,
        settings=settings,
        client=ClientInfo(name=settings.get("application_name"), address=client.address),
    )


def cancel_key(arrival: Arrival) -> bytes:
    """A new key that cancels what a session runs: 32 bytes since protocol 3.2, where clients take any length."""
    return token_bytes(32 if arrival.minor >= 2 else 4)


@dataclass(frozen=True, slots=True)
class Logins:
    """By what a client may say who it is. Which of them it is asked for follows from the user name: one that its
    certificate stands for, that of a session secret, one of OAUTHBEARER's, any other.

    `everywhere` is whether TLS is demanded on this machine too; else its loopback is as good as TLS.
    """

    verifier: TokenVerifier
    secrets: SessionSecrets
    oauth: OauthOffer | None = None
    certificates: CertificatePrincipals | None = None
    everywhere: bool = False

    async def authenticate(self, client: ClientConnection, wire: WireSession, user: str) -> VerifiedToken:
        """Whose token opens the session.

        Raises CountersignError, TurnedAwayError, ClientGoneError, ProtocolError.
        """
        if not client.private or (self.everywhere and not client.encrypted):
            raise AuthenticationError(
                "this connection is not encrypted",
                cure="Connect with TLS (sslmode=require)."
                if self.everywhere
                else "Connect with TLS, or from this machine.",
            )
        if (login := self._by_certificate(client, user)) is not None:
            return login
        if user.startswith(PREFIX):
            scram = ScramServer(user, self.secrets.verifier(user), token_urlsafe(_NONCE_BYTES), client.binding)
            await _prove(client, wire, scram)
            return self.secrets.token(user)
        if self.oauth is not None and self.oauth.asks(user):
            return await _bear(client, wire, self.oauth, self.verifier)
        client.send(backend.Authentication(backend.Authentication.CLEARTEXT).encode())
        response = await _response(client, wire)
        return await self.verifier.verify(response.as_password())

    def _by_certificate(self, client: ClientConnection, user: str) -> VerifiedToken | None:
        if self.certificates is None or (certificate := client.certificate) is None:
            return None
        return self.certificates.login(certificate, user)


async def _prove(client: ClientConnection, wire: WireSession, scram: ScramServer) -> None:
    kind = backend.Authentication
    client.send(kind.sasl(scram.mechanisms).encode())
    client.send(kind(kind.SASL_CONTINUE, scram.first(await _response(client, wire))).encode())
    # As PostgreSQL does: it goes with what comes of the login.
    client.send_with_next(kind(kind.SASL_FINAL, scram.final(await _response(client, wire))).encode())


async def _bear(
    client: ClientConnection, wire: WireSession, oauth: OauthOffer, verifier: TokenVerifier
) -> VerifiedToken:
    """By OAUTHBEARER. A client that has no token yet is told where to get one, and comes again: nobody failed."""
    kind = backend.Authentication
    client.send(kind.sasl((oauthbearer.MECHANISM,)).encode())
    try:
        if token := oauthbearer.token_of(await _response(client, wire)):
            return await verifier.verify(token)
        failure = None
    except AuthenticationError as error:
        failure = error
    client.send(kind(kind.SASL_CONTINUE, oauth.failure()).encode())
    oauthbearer.check_acknowledged(await _response(client, wire))
    raise failure or TurnedAwayError(
        reports.fatal(sqlstate.INVALID_AUTHORIZATION, "no token was sent", hint=f"Get one by {oauth.discovery_url}.")
    )


async def _response(client: ClientConnection, wire: WireSession) -> frontend.AuthenticationResponse:
    received = await client.next()
    wire.receive(received.message)
    assert isinstance(received.message, frontend.AuthenticationResponse)
    return received.message


def turned_away(error: CountersignError) -> Report:
    """The FATAL for an error of the gateway's during start-up."""
    return reports.of_error(error, severity="FATAL")
