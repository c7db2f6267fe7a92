"""`connections` of the configuration file: the upstreams, their servers and users, as values with the secrets read."""

from __future__ import annotations

import os
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Protocol, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from audit.recording import Mode
from gateway.errors import ConfigurationError
from gateway.model import ChannelBinding, Connection, HostOrder, Rehearse, SslMode, TargetSession, UpstreamRole
from server.config_model import STRICT, Port


class HasPassword(Protocol):
    """A part of the file that says where a password is."""

    @property
    def password_file(self) -> Path | None:
        """In this file."""
        ...

    @property
    def password_env(self) -> str | None:
        """In this environment variable."""
        ...


def _off(value: object) -> object:
    """YAML 1.1 reads a bare `off` as false."""
    return "off" if value is False else value


class _Model(BaseModel):
    model_config = STRICT


class ShadowFile(_Model):
    """Where shadow databases are made: a server and a role with CREATEDB. What is left out is the connection's own."""

    database: str = "postgres"
    host: str | None = None
    port: Port | None = None
    user: str | None = None
    password_file: Path | None = None
    password_env: str | None = None

    @model_validator(mode="after")
    def _password_of_user(self) -> ShadowFile:
        if self.password_file is not None and self.password_env is not None:
            raise ValueError("give at most one of `password_file` and `password_env`")
        if (self.user is not None) != (self.password_file is not None or self.password_env is not None):
            raise ValueError("a `user` and its password go together; give both, or neither")
        return self


class _Credential(_Model):
    """An upstream user. The password comes from a file or an environment variable, never from this file."""

    user: str
    password_file: Path | None = None
    password_env: str | None = None

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if (self.password_file is None) == (self.password_env is None):
            raise ValueError("give exactly one of `password_file` and `password_env`")
        return self


class RoleFile(_Credential):
    """The upstream user of principals in one of these groups; see gateway.model.UpstreamRole."""

    groups: Annotated[list[str], Field(min_length=1)]


class HostFile(_Model):
    """One server of several that hold the same database."""

    host: str
    port: Port = 5432


class ConnectionFile(_Credential):
    """An upstream."""

    host: str | None = None
    port: Port = 5432
    hosts: list[HostFile] = []
    target_session_attrs: TargetSession = "any"
    database: str
    sslmode: SslMode = "prefer"
    sslrootcert: Path | None = None
    channel_binding: ChannelBinding = "prefer"
    connect_timeout: Annotated[float, Field(gt=0, le=600)] = 10
    warm: Annotated[int, Field(ge=0, le=50)] = 0
    roles: list[RoleFile] = []
    description: str = ""
    recording: Annotated[Mode, BeforeValidator(_off)] = Mode.METADATA
    rehearse: Annotated[Rehearse, BeforeValidator(_off)] = "live"
    shadow: ShadowFile | None = None

    @property
    def servers(self) -> list[HostFile]:
        """All hosts, the first to be asked first."""
        return self.hosts or [HostFile(host=self.host or "", port=self.port)]

    @model_validator(mode="after")
    def _reachable(self) -> ConnectionFile:
        if (self.host is None) == (not self.hosts):
            raise ValueError("give exactly one of `host` and `hosts`")
        if self.channel_binding == "require" and self.sslmode in ("disable", "prefer"):
            raise ValueError("`channel_binding: require` needs TLS: set `sslmode` to `require` or better")
        if (self.rehearse == "shadow") != (self.shadow is not None):
            raise ValueError("`rehearse: shadow` and `shadow` go together; give both, or neither")
        return self


def as_connection(name: str, file: ConnectionFile, base: Path) -> Connection:
    """The value, with its passwords. Raises ConfigurationError."""
    first, *others = file.servers
    of = f"connection `{name}`"
    connection = Connection(
        name=name,
        host=first.host,
        port=first.port,
        database=file.database,
        user=file.user,
        password=password_of(of, file, base),
        sslmode=file.sslmode,
        sslrootcert=_root_certificate(name, base / file.sslrootcert) if file.sslrootcert else None,
        description=file.description,
        recording=file.recording,
        rehearse=file.rehearse,
        channel_binding=file.channel_binding,
        fallbacks=tuple((other.host, other.port) for other in others),
        target=file.target_session_attrs,
        connect_timeout=file.connect_timeout,
        roles=tuple(UpstreamRole(frozenset(r.groups), r.user, password_of(of, r, base)) for r in file.roles),
        warm=file.warm,
    )
    return connection if file.shadow is None else replace(connection, shadow=_shadow(connection, file.shadow, base))


def _shadow(connection: Connection, file: ShadowFile, base: Path) -> Connection:
    own = replace(connection, roles=(), warm=0, order=HostOrder())
    if file.user is not None:
        password = password_of(f"the shadow of connection `{connection.name}`", file, base)
        own = replace(own, user=file.user, password=password)
    if file.host is not None:
        own = replace(own, host=file.host, fallbacks=())
    return replace(own, name=f"{own.name}/shadow", port=file.port or own.port, database=file.database)


def password_of(of: str, file: HasPassword, base: Path) -> str:
    """The password of what `of` says, from its file or variable. Raises ConfigurationError."""
    if file.password_file is not None:
        try:
            return (base / file.password_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigurationError(
                f"the password file `{file.password_file}` of {of} cannot be read: {error.strerror}",
                cure="Write the password into it, mode 600.",
            ) from None
        except UnicodeDecodeError:
            raise ConfigurationError(
                f"the password file `{file.password_file}` of {of} is not UTF-8",
                cure="Write the password into it as plain text.",
            ) from None
    variable = file.password_env or ""
    if variable not in os.environ:
        raise ConfigurationError(
            f"the environment variable `{variable}` with the password of {of} is not set",
            cure=f"Set `{variable}`, or use `password_file`.",
        )
    return os.environ[variable]


def _root_certificate(name: str, path: Path) -> str:
    """The path of a file that TLS can trust: a wrong one is found at start, not at the first statement."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        why = "it holds no PEM certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigurationError(
            f"the root certificate `{path}` of connection `{name}` cannot be used: {why}",
            cure="Name a PEM file with the certificate that signed the server's.",
        ) from None
    return str(path)
