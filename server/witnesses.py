"""The witnesses of a configuration: what may be written in the file, and the witnesses that it means."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from audit.cosignature import WitnessKey
from audit.note import NoteError
from audit.object_witness import Bucket, ObjectWitness
from audit.sigv4 import Credentials
from audit.webhook_witness import WebhookWitness
from audit.witness import FileWitness, Witness
from gateway.errors import ConfigurationError
from server.timestamp_roots import library, read_roots

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_IN_THE_CLEAR = "must be an https address, or http on this machine"

Seconds = Annotated[float, Field(ge=0, le=7 * 86_400)]


def is_private(url: str) -> bool:
    """Whether nobody on the way can read or change what is sent there: https, or http on this machine."""
    return url.startswith("https://") or (url.startswith("http://") and urlsplit(url).hostname in LOOPBACK)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    required: bool = False


class FileWitnessFile(_Model):
    """An append-only file elsewhere. Nothing runs while a required witness does not take checkpoints."""

    path: Path


class WebhookWitnessFile(_Model):
    """An address that takes checkpoints, and must cosign them where a `key` is given."""

    webhook: str
    key: str | None = None
    token_file: Path | None = None
    token_env: str | None = None

    @model_validator(mode="after")
    def _checked(self) -> WebhookWitnessFile:
        if not is_private(self.webhook):
            raise ValueError(f"`webhook` {_IN_THE_CLEAR}")
        if self.token_file is not None and self.token_env is not None:
            raise ValueError("give at most one of `token_file` and `token_env`")
        if self.key is not None:
            try:
                WitnessKey.parse(self.key)
            except NoteError as error:
                raise ValueError(str(error)) from None
        return self


class TimestampWitnessFile(_Model):
    """A time-stamp authority (RFC 3161); `roots` is a PEM file of whom its certificate must lead to."""

    timestamp: str
    roots: Path
    every: Seconds = 3600

    @model_validator(mode="after")
    def _http(self) -> TimestampWitnessFile:
        # Plain http is usual among authorities: only a digest is sent, and what comes back is signed.
        if not self.timestamp.startswith(("http://", "https://")):
            raise ValueError("`timestamp` must be an http or https address")
        return self


class ObjectWitnessFile(_Model):
    """A bucket with versions and object lock. The secret comes from a file or an environment variable."""

    bucket: str
    endpoint: str
    region: str = "us-east-1"
    prefix: str = ""
    key_id: str
    secret_file: Path | None = None
    secret_env: str | None = None
    session_token_env: str | None = None
    days: Annotated[int, Field(ge=1, le=36_500)] = 3650
    every: Seconds = 0

    @model_validator(mode="after")
    def _checked(self) -> ObjectWitnessFile:
        if (self.secret_file is None) == (self.secret_env is None):
            raise ValueError("give exactly one of `secret_file` and `secret_env`")
        if not is_private(self.endpoint):
            raise ValueError(f"`endpoint` {_IN_THE_CLEAR}")
        return self


def _form(written: object) -> str:
    """Which of the forms is meant, so that an error speaks of that one."""
    names = written if isinstance(written, dict) else ()
    return next((name for name in ("webhook", "timestamp", "bucket") if name in names), "path" if names else "plain")


WitnessFile = Annotated[
    Annotated[Path, Tag("plain")]
    | Annotated[FileWitnessFile, Tag("path")]
    | Annotated[WebhookWitnessFile, Tag("webhook")]
    | Annotated[TimestampWitnessFile, Tag("timestamp")]
    | Annotated[ObjectWitnessFile, Tag("bucket")],
    Discriminator(_form),
]


def witness_of(file: WitnessFile, base: Path) -> Witness:
    """The witness that a part of the file means; paths are relative to `base`. Raises ConfigurationError."""
    match file:
        case Path():
            return FileWitness(base / file)
        case FileWitnessFile():
            return FileWitness(base / file.path, required=file.required)
        case WebhookWitnessFile():
            token = _secret("the token", file.webhook, file.token_file, file.token_env, base)
            key = WitnessKey.parse(file.key) if file.key is not None else None
            return WebhookWitness(file.webhook, key=key, token=token, required=file.required)
        case TimestampWitnessFile():
            roots = read_roots([base / file.roots])
            witness: Witness = library().TimestampWitness(
                file.timestamp, roots, every=file.every, required=file.required
            )
            return witness
        case ObjectWitnessFile():
            return _object_witness(file, base)


def _object_witness(file: ObjectWitnessFile, base: Path) -> Witness:
    secret = _secret("the secret", file.bucket, file.secret_file, file.secret_env, base) or ""
    session = _secret("the session token", file.bucket, None, file.session_token_env, base)
    credentials = Credentials(file.key_id, secret, session)
    bucket = Bucket(file.endpoint, file.region, file.bucket, file.prefix, credentials)
    return ObjectWitness(bucket, timedelta(days=file.days), every=file.every, required=file.required)


def _secret(what: str, whose: str, path: Path | None, variable: str | None, base: Path) -> str | None:
    """The text of a file or variable, without white space at its ends; None where neither is named."""
    if path is not None:
        try:
            return (base / path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{what} of the witness `{whose}` cannot be read from `{path}`: {error}", cure="Write it there."
            ) from None
    if variable is not None:
        if not (text := os.environ.get(variable, "").strip()):
            raise ConfigurationError(
                f"the environment variable `{variable}` with {what} of the witness `{whose}` is not set",
                cure=f"Set `{variable}`, or name a file.",
            )
        return text
    return None
