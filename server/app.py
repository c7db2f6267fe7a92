"""The composition root: builds the one gateway of this process, opens the doors, and shuts them in order."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.routing import Route

from audit.approvals import Reader
from audit.entry import Draft, Kind
from audit.instances import Instance, close_dangling
from audit.notary import Notary
from audit.store import AuditUnavailable, Store
from audit.writer import Writer
from gateway.admission import Gateway
from gateway.approvals import Approvals
from gateway.certificates import CertificatePrincipals, CertificateRule
from gateway.connections import Connections
from gateway.errors import AuditUnavailableError, ConfigurationError
from gateway.identity import TokenVerifier
from gateway.policies import PolicyBook
from gateway.recorder import Recorder
from gateway.retention import keeping
from gateway.reviews import reminding
from gateway.rolling import rolling
from gateway.session_secrets import SessionSecrets
from gateway.sessions import Sessions
from server.announcements import announcing
from server.asgi import serving
from server.config import Config, McpFile, Signing
from server.http import build_app
from server.mcp_settings import McpSettings
from server.saml_config import origin_of
from server.webhooks import channels
from server.wire_config import OauthFile, TlsFile, WireFile, WireLimitsFile
from wire.listener import WireDoor
from wire.oauthbearer import OauthOffer
from wire.occupancy import DoorLimits
from wire.server_tls import ClientCertificates, ServerTls
from wire.upstream import Factory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hall:
    """The gateway with what the doors need beside it."""

    gateway: Gateway
    verifier: TokenVerifier
    config: Config
    secrets: SessionSecrets


@dataclass(frozen=True, slots=True)
class App:
    """The running doors; a door that is not configured is None."""

    hall: Hall
    mcp_url: str | None
    wire_host: str | None
    wire_port: int | None


@asynccontextmanager
async def gateway_of(config: Config) -> AsyncIterator[Hall]:
    """The gateway without doors. Raises ConfigurationError or AuditUnavailableError.

    Order matters: the audit first (an intent without outcome from a dead process becomes `unknown`
    before anything new is written), the policy second, the upstreams last.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            store = Store.open(config.audit_path)
            stack.callback(store.close)
            instance = Instance.start(config.audit_path)
            stack.callback(instance.stop)
            notary = notary_of(store, config.signing)
            notary.start()
            closed = close_dangling(store)
        except AuditUnavailable as error:
            raise AuditUnavailableError(f"the audit cannot be opened: {error}") from None
        if closed:
            log.warning("%d statements of a process that died are now recorded as `unknown`", len(closed))
        writer = Writer(store, notary)
        stack.callback(writer.close)
        recorder = Recorder(writer)
        reader = stack.enter_context(contextlib.closing(Reader.open(config.audit_path)))
        await recorder.record(_process(Kind.PROCESS_STARTED, instance.id))
        policies = PolicyBook(config.policy_path, recorder, config.mask_key)
        await policies.start()
        stack.push_async_callback(policies.stop)
        connections = Connections(config.connections, Factory())
        connections.start()
        policies.catalogs = connections.snapshots
        stack.push_async_callback(connections.stop)
        secrets = SessionSecrets()
        verifier = TokenVerifier(config.issuers, secrets.bearers.verify if config.saml else None)
        stack.push_async_callback(verifier.close)
        gateway = Gateway(
            recorder=recorder,
            approvals=Approvals(recorder, reader),
            policies=policies,
            connections=connections,
            sessions=Sessions(recorder, longest=config.longest_session, instance=instance.id),
            instance=instance.id,
            bounds=config.recordings,
        )
        await stack.enter_async_context(keeping(recorder, config.audit_path, config.retention))
        await stack.enter_async_context(rolling(config.audit_path, config.signing.key, config.segments))
        hooks = await stack.enter_async_context(channels(config.webhooks))
        await stack.enter_async_context(announcing([*hooks, *config.mail], recorder))
        await stack.enter_async_context(reminding(gateway.approvals.reviews, config.remind))
        yield Hall(gateway, verifier, config, secrets)
        for session in gateway.sessions.list():
            gateway.close_session(session, "the gateway was stopped")
        with contextlib.suppress(AuditUnavailableError):
            await recorder.record(_process(Kind.PROCESS_STOPPED, instance.id))


def notary_of(store: Store, signing: Signing) -> Notary:
    """Who signs this store. Raises AuditUnavailable."""
    signing.prepare(store.public_keys())
    return Notary(store, signing.key, rhythm=signing.rhythm, witnesses=signing.witnesses)


@asynccontextmanager
async def serve(config: Config) -> AsyncIterator[App]:
    """All configured doors, open until the block ends. Raises ConfigurationError: no door, or a taken port."""
    if config.wire is None and config.mcp is None:
        raise ConfigurationError(
            "the configuration opens no door", cure="Add `wire:` or `mcp:` to it; `{}` takes every default."
        )
    async with gateway_of(config) as hall, contextlib.AsyncExitStack() as stack:
        wire = await stack.enter_async_context(_wire_door(hall, config.wire)) if config.wire else None
        mcp_url = await stack.enter_async_context(_mcp_door(hall, config.mcp)) if config.mcp else None
        yield App(
            hall=hall,
            mcp_url=mcp_url,
            wire_host=config.wire.host if config.wire else None,
            wire_port=wire.port if wire else None,
        )


@asynccontextmanager
async def _wire_door(hall: Hall, file: WireFile) -> AsyncIterator[WireDoor]:
    door = WireDoor(
        hall.gateway,
        hall.verifier,
        hall.secrets,
        host=file.host,
        port=file.port,
        tls=server_tls(file),
        limits=door_limits(file.limits),
        oauth=oauth_offer(hall.config, file.oauth),
        certificates=certificate_principals(hall.config, file.tls),
    )
    try:
        await door.start()
    except OSError as error:
        raise _cannot_listen("wire", file.host, file.port, error) from None
    try:
        yield door
    finally:
        await door.stop(hall.config.drain)


@asynccontextmanager
async def _mcp_door(hall: Hall, file: McpFile) -> AsyncIterator[str]:
    listening = _listen("mcp", file.host, file.port)
    port = listening.getsockname()[1]
    secrets = hall.secrets if hall.config.wire or hall.config.saml else None
    settings = mcp_settings(hall.config, file, port)
    app = build_app(hall.gateway, hall.verifier, settings, secrets, saml_routes(hall, settings))
    async with serving(app, listening, grace=hall.config.drain):
        yield f"http://{_shown(file.host)}:{port}/mcp"


def mcp_settings(config: Config, file: McpFile, port: int) -> McpSettings:
    """The MCP door's settings, with what follows from the address where the file is silent."""
    public = file.public_url or f"http://{_shown(file.host)}:{port}/mcp"
    hosts = file.allowed_hosts or [f"{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]")]
    origins = file.allowed_origins or [f"http://{host}" for host in hosts]
    return McpSettings(
        public_url=public,
        allowed_hosts=tuple(hosts),
        allowed_origins=tuple(origins),
        issuer_urls=tuple(issuer.url for issuer in config.issuers),
        required_scopes=tuple(file.required_scopes),
        default_connection=config.connections[0].name,
        row_limit=file.row_limit,
        cursor_seconds=file.cursor,
    )


def saml_routes(hall: Hall, settings: McpSettings) -> list[Route]:
    """The routes of SAML; none where it is not configured. Raises ConfigurationError."""
    if hall.config.saml is None:
        return []
    from gateway.saml import ServiceProvider  # an extra
    from server.saml_login import SamlLogin

    provider = ServiceProvider(hall.config.saml, origin_of(settings.public_url))
    return SamlLogin(provider, hall.secrets.bearers, hall.gateway, settings.required_scopes).routes()


def door_limits(file: WireLimitsFile) -> DoorLimits:
    """The wire door's limits."""
    return DoorLimits(
        connections=file.connections,
        per_principal=file.per_principal,
        per_address=file.per_address,
        failures=file.failures,
        start_seconds=file.start,
        idle_seconds=file.idle,
        idle_in_transaction_seconds=file.idle_in_transaction,
    )


def oauth_offer(config: Config, file: OauthFile | None) -> OauthOffer | None:
    """Whom the wire door asks for OAUTHBEARER; None for nobody."""
    if file is None:
        return None
    issuer = next(issuer for issuer in config.issuers if file.issuer in (None, issuer.url))
    return OauthOffer(tuple(file.users), issuer.discovery_url, file.scope)


def certificate_principals(config: Config, file: TlsFile | None) -> CertificatePrincipals | None:
    """Whom client certificates stand for; None where they stand for nobody."""
    if file is None or not file.client_principals:
        return None
    return CertificatePrincipals(
        [
            CertificateRule(
                kind=kind,
                pattern=pattern,
                subject=entry.subject,
                groups=frozenset(entry.groups),
                on_behalf_of=entry.on_behalf_of,
                human_issuer=entry.on_behalf_of_issuer or config.issuers[0].url,
            )
            for entry in file.client_principals
            for kind, pattern in entry.names.items()
        ]
    )


def server_tls(file: WireFile) -> ServerTls | None:
    """The wire door's TLS; None without a certificate. Raises ConfigurationError."""
    if file.tls is None:
        return None
    try:
        return ServerTls(file.tls.certificate, file.tls.key, client_certificates(file.tls))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = f"certificate `{file.tls.certificate}` with key `{file.tls.key}`"
        files += "".join(
            f" and {name} `{path}`"
            for name, path in (("client_ca", file.tls.client_ca), ("client_crl", file.tls.client_crl))
            if path is not None
        )
        raise ConfigurationError(
            f"the wire door's {files} cannot be used: {error}", cure="Give PEM files that belong together."
        ) from None


def client_certificates(file: TlsFile) -> ClientCertificates | None:
    """What is asked of clients' certificates; None where nothing is."""
    if file.client_ca is None:
        return None
    return ClientCertificates(file.client_ca, file.client_certificates != "optional", file.client_crl)


def _listen(door: str, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(256)
    except OSError as error:
        listening.close()
        raise _cannot_listen(door, host, port, error) from None
    return listening


def _cannot_listen(door: str, host: str, port: int, error: OSError) -> ConfigurationError:
    text = f"the {door} door cannot listen on {host}:{port}"
    if error.errno == errno.EADDRINUSE:
        cure = f"Stop what uses it, or set another `{door}.port` in the configuration (0 takes a free one)."
        return ConfigurationError(f"{text}: the port is taken", cure=cure)
    # asyncio puts the address into its own text; a name that does not resolve has a number of its own.
    system = error.errno is not None and error.errno > 0
    why = os.strerror(error.errno or 0) if system else (error.strerror or str(error))
    cure = f"Set `{door}.host` to an address of this machine, and `{door}.port` to one that it may use."
    return ConfigurationError(f"{text}: {why.lower()}", cure=cure)


def _shown(host: str) -> str:
    """A host that a client on this machine can use."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - read, not bound


def _process(kind: Kind, instance: str) -> Draft:
    return Draft(kind=kind, session=None, subject=None, connection=None, body={"instance": instance})
