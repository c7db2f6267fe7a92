"""The configuration file: YAML in, values out; every error names file, line, column and the cure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from audit import keys, rolling
from audit.notary import Rhythm
from audit.note import NoteError, PublicKey, Signer, check_name
from audit.retention import Limits
from audit.witness import Witness
from gateway.errors import ConfigurationError
from gateway.identity import Issuer
from gateway.model import Connection
from gateway.transcript import RecordingBounds
from policy.document import DocumentError, parse_document, validate
from policy.pseudonyms import MaskKey
from server.config_model import STRICT, Port
from server.connection_config import ConnectionFile, LoginFile, as_connection, password_of
from server.mail import Mail, Security
from server.saml_config import SamlFile, identity_provider
from server.webhooks import Webhook
from server.wire_config import WireFile, issuers_named, with_absolute_paths
from server.witnesses import LOOPBACK, WitnessFile, is_private, witness_of

if TYPE_CHECKING:
    from gateway.saml import IdentityProvider

_MAKE_KEY = "`openssl rand -hex 32`"
_SECRET_BYTES = 24  # the least that the Standard Webhooks specification lets a secret have
_ADDRESS = r"^[^\s,<>]+@[^\s,<>]+$"


class _Model(BaseModel):
    model_config = STRICT


class CheckpointsFile(_Model):
    """When the audit signs what was written: after so many seconds or entries, whichever is first, and at the end."""

    seconds: Annotated[float, Field(ge=1, le=86_400)] = 60
    entries: Annotated[int, Field(ge=1, le=1_000_000)] = 1000


class RecordingsFile(_Model):
    """How much of what clients are sent is recorded, where a connection records, and for how long it is kept."""

    statement_bytes: Annotated[int, Field(ge=0, le=64 * 1024 * 1024)] = 256 * 1024
    session_bytes: Annotated[int, Field(ge=0)] = 16 * 1024 * 1024
    days: Annotated[float, Field(gt=0, le=36_500)] | None = None
    megabytes: Annotated[int, Field(ge=1)] | None = None


class SegmentsFile(_Model):
    """When the audit is rolled into a segment: at so many megabytes, or when its oldest entry is so many days old."""

    megabytes: Annotated[int, Field(ge=1)] | None = 1024
    days: Annotated[float, Field(gt=0, le=36_500)] | None = 30


class AuditFile(_Model):
    """Where the audit lies, with which key it is signed, and who sees the signatures elsewhere.

    The key is in a file (made where there is none; without a name, beside the store), in an environment variable, or
    printed by a command.
    """

    path: Path
    key_file: Path | None = None
    key_env: str | None = None
    key_command: Annotated[list[str], Field(min_length=1)] | None = None
    origin: str | None = None
    checkpoints: CheckpointsFile = CheckpointsFile()
    witnesses: list[WitnessFile] = []
    recordings: RecordingsFile = RecordingsFile()
    segments: SegmentsFile | None = None

    @model_validator(mode="after")
    def _one_key(self) -> AuditFile:
        if sum(given is not None for given in (self.key_file, self.key_env, self.key_command)) > 1:
            raise ValueError("give at most one of `key_file`, `key_env` and `key_command`")
        return self


class IssuerFile(_Model):
    """A trusted token issuer; see gateway.identity.Issuer."""

    issuer: str
    audience: str
    algorithms: list[Literal["RS256", "PS256", "ES256", "ES384", "EdDSA"]] = ["RS256", "ES256"]
    jwks_url: str | None = None
    groups_claim: str = "groups"
    kind_claim: str = "principal_kind"
    on_behalf_of_claim: str = "on_behalf_of"


class McpFile(_Model):
    """The MCP door over HTTP. `public_url` is what clients call it, when that is not host and port."""

    host: str = "127.0.0.1"
    port: Port = 8765
    public_url: str | None = None
    allowed_hosts: list[str] = []
    allowed_origins: list[str] = []
    required_scopes: list[str] = []
    row_limit: Annotated[int, Field(ge=1, le=100_000)] = 200
    cursor: Annotated[float, Field(ge=1, le=3_600)] = 60


Event = Literal[
    "requested", "voted", "broken_glass", "owner_approved", "review_opened", "review_due", "reviewed", "approved",
    "denied", "expired", "withdrawn", "consumed", "void",
]  # fmt: skip
_LOUD: list[Event] = ["requested", "broken_glass", "owner_approved", "review_due", "approved", "denied", "expired"]


class WebhookFile(_Model):
    """Who is told what happens to approvals. The secret comes from a file or an environment variable."""

    url: str
    secret_file: Path | None = None
    secret_env: str | None = None
    events: list[Event] = _LOUD
    statement: bool = False
    link: str | None = None

    @model_validator(mode="after")
    def _one_secret(self) -> WebhookFile:
        if (self.secret_file is None) == (self.secret_env is None):
            raise ValueError("give exactly one of `secret_file` and `secret_env`")
        if not is_private(self.url):
            raise ValueError("`url` must be an https address, or http on this machine")
        return self


class MailFile(LoginFile):
    """Who is told by e-mail, through which server."""

    host: str
    port: Annotated[int, Field(ge=1, le=65535)] = 587
    security: Security = "starttls"
    ca: Path | None = None
    sender: Annotated[str, Field(pattern=_ADDRESS)]
    to: Annotated[list[Annotated[str, Field(pattern=_ADDRESS)]], Field(min_length=1)]
    events: list[Event] = _LOUD
    statement: bool = False
    link: str | None = None

    @model_validator(mode="after")
    def _is_safe(self) -> MailFile:
        if self.security == "none" and self.host not in LOOPBACK:
            raise ValueError("`security: none` is for a server on this machine only; use starttls or tls")
        return self


class ConfigFile(_Model):
    """The whole file."""

    audit: AuditFile
    policy: Path
    issuers: Annotated[list[IssuerFile], Field(min_length=1)]
    connections: Annotated[dict[str, ConnectionFile], Field(min_length=1)]
    saml: SamlFile | None = None
    wire: WireFile | None = None
    mcp: McpFile | None = None
    longest_session: Annotated[int, Field(ge=60, le=7 * 86_400)] = 8 * 3600  # seconds
    drain: Annotated[int, Field(ge=0, le=3600)] = 5  # seconds
    # The secret of `hash` masks comes from a file or an environment variable, never from this file.
    mask_key_file: Path | None = None
    mask_key_env: str | None = None
    webhooks: list[WebhookFile] = []
    mail: list[MailFile] = []
    # How long the review of a broken glass may wait before it is announced again, and again.
    review_reminder_hours: Annotated[float, Field(gt=0, le=8760)] = 24

    @model_validator(mode="after")
    def _one_mask_key(self) -> ConfigFile:
        if self.mask_key_file is not None and self.mask_key_env is not None:
            raise ValueError("give only one of `mask_key_file` and `mask_key_env`")
        return self

    @model_validator(mode="after")
    def _saml_has_a_door(self) -> ConfigFile:
        if self.saml is not None and self.mcp is None:
            raise ValueError("`saml` needs `mcp:`, whose address browsers come back to")
        if self.saml is not None and self.saml.idp in [issuer.issuer for issuer in self.issuers]:
            raise ValueError("`saml.idp` is the name of one of the `issuers`: two subjects would be one person")
        return self

    @model_validator(mode="after")
    def _issuers_named(self) -> ConfigFile:
        """What the wire door says of an issuer is said of one that is trusted, and of which one it is."""
        trusted = [issuer.issuer for issuer in self.issuers]
        for key, issuer in issuers_named(self.wire):
            if issuer is None and len(trusted) > 1:
                raise ValueError(f"`{key}` must say which of the `issuers` is meant")
            if issuer is not None and issuer not in trusted:
                raise ValueError(f"`{key}` `{issuer}` is none of the `issuers`")
        return self


_key_printed_by = cache(keys.from_command)  # a vault is not asked for every checkpoint, on the writer's thread


@dataclass(frozen=True, slots=True)
class Signing:
    """How the audit is signed: see AuditFile. Without `key_env` and `key_command`, the key is in `key_file`."""

    key_file: Path
    key_env: str | None = None
    key_command: tuple[str, ...] | None = None
    origin: str | None = None
    rhythm: Rhythm = field(default_factory=Rhythm)
    witnesses: tuple[Witness, ...] = ()

    def key(self) -> Signer:
        """The key as it is now; a command is asked once in a process's life. Raises audit.errors.AuditUnavailable."""
        if self.key_command is not None:
            return _key_printed_by(self.key_command)
        return keys.load(self.key_file) if self.key_env is None else keys.from_environment(self.key_env)

    @property
    def elsewhere(self) -> str | None:
        """Where the key is, if it is in no file of ours."""
        if self.key_command is not None:
            return f"printed by the command `{self.key_command[0]}`"
        return None if self.key_env is None else f"in the environment variable `{self.key_env}`"

    def prepare(self, known: Sequence[PublicKey]) -> None:
        """See to it that there is a key: made for an audit that names none yet, never for one that does.

        Also ends a rotation that was cut off. Raises audit.errors.AuditUnavailable.
        """
        if self.elsewhere is None:
            if not known:
                keys.load_or_make(self.key_file, self.origin)
            keys.settle(self.key_file, known)


@dataclass(frozen=True, slots=True)
class Config:
    """What the composition root is built from. Paths are absolute, secrets are read."""

    audit_path: Path
    signing: Signing
    policy_path: Path
    issuers: tuple[Issuer, ...]
    connections: tuple[Connection, ...]
    wire: WireFile | None
    mcp: McpFile | None
    longest_session: timedelta
    drain: int = 5  # seconds that running statements get at shutdown before they are cancelled
    mask_key: MaskKey | None = None
    recordings: RecordingBounds = field(default_factory=RecordingBounds)
    retention: Limits = field(default_factory=Limits)
    segments: rolling.Limits = field(default_factory=rolling.Limits)
    webhooks: tuple[Webhook, ...] = ()
    mail: tuple[Mail, ...] = ()
    remind: timedelta = timedelta(hours=24)
    saml: IdentityProvider | None = None


def load_config(path: Path) -> Config:
    """Read, check and resolve a configuration file. Raises ConfigurationError.

    Relative paths are relative to the file. Secrets are read here, so that a missing one is found at
    start and not at the first statement.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"the configuration `{path}` cannot be read: {error.strerror}",
            cure="Name it with `--config`, or run `countersign demo` to see one.",
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"the configuration `{path}` is not UTF-8", cure="Save it as UTF-8.") from None
    try:
        file = validate(ConfigFile, parse_document(text, str(path)))
    except DocumentError as error:
        raise ConfigurationError(str(error)) from None
    base = path.resolve().parent
    return Config(
        audit_path=base / file.audit.path,
        signing=_signing(file.audit, base),
        policy_path=base / file.policy,
        issuers=tuple(_issuer(issuer) for issuer in file.issuers),
        connections=tuple(as_connection(name, c, base) for name, c in file.connections.items()),
        wire=with_absolute_paths(file.wire, base),
        mcp=file.mcp,
        longest_session=timedelta(seconds=file.longest_session),
        drain=file.drain,
        mask_key=_mask_key(file, base),
        recordings=RecordingBounds(file.audit.recordings.statement_bytes, file.audit.recordings.session_bytes),
        retention=_retention(file.audit.recordings),
        segments=_segments(file.audit.segments),
        webhooks=tuple(_webhook(hook, base) for hook in file.webhooks),
        mail=tuple(_mail(mail, base) for mail in file.mail),
        remind=timedelta(hours=file.review_reminder_hours),
        saml=identity_provider(file.saml, base),
    )


def key_beside(store: Path) -> Path:
    """Where the key of a store lies that names none."""
    return store.with_name(f"{store.name}.key")


def _signing(file: AuditFile, base: Path) -> Signing:
    if file.origin is not None:
        try:
            check_name(file.origin)
        except NoteError as error:
            raise ConfigurationError(f"`audit.origin`: {error}", cure="Name it like a host and a path.") from None
    return Signing(
        key_file=base / file.key_file if file.key_file is not None else key_beside(base / file.path),
        key_env=file.key_env,
        key_command=None if file.key_command is None else tuple(file.key_command),
        origin=file.origin,
        rhythm=Rhythm(file.checkpoints.seconds, file.checkpoints.entries),
        witnesses=tuple(witness_of(witness, base) for witness in file.witnesses),
    )


def _retention(file: RecordingsFile) -> Limits:
    return Limits(
        age=None if file.days is None else timedelta(days=file.days),
        size=None if file.megabytes is None else file.megabytes * 1_000_000,
    )


def _segments(file: SegmentsFile | None) -> rolling.Limits:
    if file is None:
        return rolling.Limits()
    return rolling.Limits(
        size=None if file.megabytes is None else file.megabytes * 1_000_000,
        age=None if file.days is None else timedelta(days=file.days),
    )


def _issuer(file: IssuerFile) -> Issuer:
    return Issuer(
        url=file.issuer,
        audience=file.audience,
        algorithms=tuple(file.algorithms),
        jwks_url=file.jwks_url,
        groups_claim=file.groups_claim,
        kind_claim=file.kind_claim,
        on_behalf_of_claim=file.on_behalf_of_claim,
    )


def _mask_key(file: ConfigFile, base: Path) -> MaskKey | None:
    """The secret behind the pseudonyms of `hash` masks: the bytes of the text, without white space at its ends."""
    if file.mask_key_file is not None:
        what = f"the key file `{file.mask_key_file}` of `hash` masks"
        try:
            text = (base / file.mask_key_file).read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"{what} cannot be read: {error.strerror}", cure=f"Make one: {_MAKE_KEY}."
            ) from None
    elif file.mask_key_env is not None:
        what = f"the environment variable `{file.mask_key_env}` with the key of `hash` masks"
        if file.mask_key_env not in os.environ:
            raise ConfigurationError(f"{what} is not set", cure=f"Set it to the output of {_MAKE_KEY}.")
        text = os.environ[file.mask_key_env].encode()
    else:
        return None
    try:
        return MaskKey(text.strip())
    except ValueError as error:
        raise ConfigurationError(f"{what}: {error}", cure=f"Make one: {_MAKE_KEY}.") from None


def _webhook(file: WebhookFile, base: Path) -> Webhook:
    """A webhook with its secret: the bytes of the text, without white space at its ends; 24 or more."""
    what = f"the secret of the webhook `{file.url}`"
    if file.secret_file is not None:
        try:
            secret = (base / file.secret_file).read_bytes().strip()
        except OSError as error:
            raise ConfigurationError(
                f"{what} cannot be read: {error.strerror}", cure=f"Make one: {_MAKE_KEY}."
            ) from None
    else:
        secret = os.environ.get(file.secret_env or "", "").strip().encode()
    if len(secret) < _SECRET_BYTES:
        raise ConfigurationError(f"{what} has fewer than {_SECRET_BYTES} bytes", cure=f"Make one: {_MAKE_KEY}.")
    return Webhook(file.url, secret, frozenset(file.events), file.statement, file.link)


def _mail(file: MailFile, base: Path) -> Mail:
    return Mail(
        host=file.host,
        port=file.port,
        sender=file.sender,
        to=tuple(file.to),
        security=file.security,
        ca=base / file.ca if file.ca is not None else None,
        user=file.user,
        password=password_of(f"mail server `{file.host}`", file, base) if file.user is not None else None,
        events=frozenset(file.events),
        statement=file.statement,
        link=file.link,
    )
