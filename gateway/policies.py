"""The policy in force: loaded from its file, reloaded when the file changes, never replaced by a bad one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from audit.entry import Draft, Kind
from gateway.errors import AuditUnavailableError, ConfigurationError
from gateway.recorder import Recorder
from policy.catalog import Catalog
from policy.check import Severity, check
from policy.document import DocumentError
from policy.load import load_policy
from policy.masks import MaskKind
from policy.pseudonyms import MaskKey
from policy.rules import Policy

log = logging.getLogger(__name__)

_WATCH_SECONDS = 1.0


def read_policy(path: Path) -> tuple[Policy, str]:
    """The policy of a file and the SHA-256 of its bytes. Raises ConfigurationError with file:line:column."""
    try:
        data = path.read_bytes()
        return load_policy(data.decode("utf-8"), str(path)), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise ConfigurationError(
            f"the policy file `{path}` cannot be read: {error.strerror}",
            cure="Name it in `policy:` of the configuration.",
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"the policy file `{path}` is not UTF-8", cure="Save it as UTF-8.") from None
    except DocumentError as error:
        raise ConfigurationError(str(error)) from None


class PolicyBook:
    """The current policy. Loads and rejections are entries of the audit."""

    def __init__(self, path: Path, recorder: Recorder, mask_key: MaskKey | None = None) -> None:
        self._path = path
        self._recorder = recorder
        self.mask_key = mask_key  # the secret of `hash` masks
        # Of parameters that must not be recorded in clear; without a secret they can be compared within this process.
        self.digest_key = mask_key.digest_key if mask_key is not None else secrets.token_bytes(32)
        self.catalogs: Callable[[], Sequence[Catalog]] = tuple  # the connections' snapshots, as far as they are known
        self._policy, self._digest = self._read()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def current(self) -> Policy:
        """The policy in force."""
        return self._policy

    async def start(self) -> None:
        """Record what is in force, and watch the file."""
        await self._recorder.record(self._loaded())
        self._watcher = asyncio.create_task(self._watch(), name="policy-watch")

    async def stop(self) -> None:
        """Stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    async def reload(self) -> Policy:
        """Read the file again. A bad one keeps the old policy, says so in the audit, and raises ConfigurationError."""
        digest = self._digest_now()
        try:
            policy, digest = self._read()
        except ConfigurationError as error:
            await self._rejected(str(error), digest)
            log.warning("the policy in force stays: %s", error)
            raise
        if policy.hash != self._policy.hash:
            # The entry first: no statement names a policy that the audit has not heard of.
            before, self_policy = self._policy, policy
            await self._recorder.record(
                _draft(
                    Kind.POLICY_LOADED,
                    source=str(self._path),
                    policy=self_policy.hash,
                    sha256=digest,
                    replaces=before.hash,
                )
            )
            self._policy = policy
        self._digest = digest  # of what is in force or was rejected, once the audit has heard of it
        return self._policy

    async def _rejected(self, error: str, digest: str) -> None:
        await self._recorder.record(
            _draft(Kind.POLICY_REJECTED, source=str(self._path), error=error, policy=self._policy.hash)
        )
        self._digest = digest  # said once per version of the file

    def _read(self) -> tuple[Policy, str]:
        policy, digest = read_policy(self._path)
        keyed = next((mask for mask in policy.masks if mask.kind is MaskKind.HASH), None)
        if keyed is not None and self.mask_key is None:
            line, column = keyed.place
            raise ConfigurationError(
                f"{policy.source}:{line}:{column}: a `hash` mask needs a key, and none is configured",
                cure="Set `mask_key_file` or `mask_key_env` in the configuration.",
            )
        for catalog in self.catalogs():
            for problem in check(policy, catalog, self.mask_key):
                if problem.severity is Severity.ERROR:
                    raise ConfigurationError(str(problem))
        return policy, digest

    def _digest_now(self) -> str:
        try:
            return hashlib.sha256(self._path.read_bytes()).hexdigest()
        except OSError:
            return ""

    def _loaded(self) -> Draft:
        return _draft(
            Kind.POLICY_LOADED,
            source=str(self._path),
            policy=self._policy.hash,
            sha256=self._digest,
            replaces=None,
        )

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            digest = self._digest_now()
            if digest == self._digest:
                continue
            try:
                await self.reload()
            except ConfigurationError:
                continue  # recorded and logged by reload; the old policy stays in force
            except AuditUnavailableError as error:
                log.warning("the policy in force stays until the audit can be written: %s", error)
            except Exception as error:
                # Whatever we got wrong: said like a bad file, and the watch goes on.
                log.exception("the policy in force stays: the changed file could not be loaded")
                with contextlib.suppress(AuditUnavailableError):
                    await self._rejected(f"the file could not be loaded ({type(error).__name__}: {error})", digest)


def _draft(kind: Kind, **body: object) -> Draft:
    return Draft(kind=kind, session=None, subject=None, connection=None, body=body)
