"""The key that signs checkpoints: in a file only its owner may read, an environment variable, or from a command."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path

from audit.errors import AuditUnavailable, unavailable
from audit.note import NoteError, PublicKey, Signer, check_name

_OTHERS = 0o077  # the rights of group and others
_COMMAND_SECONDS = 10.0
_SHOWN = 500  # characters of a failed command's stderr


def generate(name: str | None = None) -> Signer:
    """A new key from the system's randomness. Its name is the audit's own ("origin"): without one, a random one."""
    return Signer(check_name(name or f"countersign.local/{secrets.token_hex(8)}"), secrets.token_bytes(32))


def from_environment(variable: str) -> Signer:
    """The secret key in an environment variable. Raises AuditUnavailable."""
    text = os.environ.get(variable)
    if text is None:
        raise AuditUnavailable(f"the environment variable `{variable}` with the audit's secret key is not set; set it")
    try:
        return Signer.parse(text)
    except NoteError as error:
        raise AuditUnavailable(f"the audit's key in `{variable}`: {error}") from None


def from_command(command: Sequence[str]) -> Signer:
    """The secret key that a command prints, such as a vault's client. Raises AuditUnavailable, which shows its stderr.

    It runs without a shell and without input, and for a bounded time.
    """
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own command
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise _command_failed(command, f"it took longer than {_COMMAND_SECONDS:g} s") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise _command_failed(command, str(error)) from None
    if done.returncode:
        said = done.stderr.strip()[:_SHOWN] or "nothing"
        raise _command_failed(command, f"its exit status was {done.returncode}, and it said: {said}")
    try:
        return Signer.parse(done.stdout)
    except NoteError as error:  # never with what it printed
        raise _command_failed(command, str(error)) from None


def _command_failed(command: Sequence[str], why: str) -> AuditUnavailable:
    return AuditUnavailable(
        f"the audit's key command `{command[0]}`: {why}; run it by hand: it must print the secret key"
    )


def load(path: Path) -> Signer:
    """The secret key in a file. Raises AuditUnavailable, also where others may read the file."""
    try:
        mode = path.stat().st_mode
        if mode & _OTHERS:
            raise AuditUnavailable(
                f"the audit's key `{path}` may be read by others (mode {mode & 0o777:o});"
                " run `chmod 600` on it, and `countersign audit key --rotate` if anybody could have"
            )
        return Signer.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unavailable(path, error) from None
    except (NoteError, UnicodeDecodeError) as error:
        raise AuditUnavailable(f"the audit's key `{path}`: {error}") from None


def load_or_make(path: Path, name: str | None = None) -> Signer:
    """The key of this file, made with mode 600 where there is none. Raises AuditUnavailable."""
    if not path.exists():
        store(path, generate(name))
    return load(path)


def store(path: Path, signer: Signer) -> None:
    """Write a key into a new file, whole or not at all; a file that is there stays. Raises AuditUnavailable."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(signer.secret() + "\n")
                file.flush()
                os.fsync(descriptor)
            os.link(draft, path)
        except FileExistsError:
            return  # another process was first: its key is the key
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(path)
    except OSError as error:
        raise unavailable(path, error) from None


def next_of(path: Path) -> Path:
    """Where the new key waits while a rotation is written into the audit."""
    return path.with_name(f"{path.name}.next")


def adopt_next(path: Path) -> None:
    """Put the new key in the old one's place, which is then gone. Raises AuditUnavailable."""
    try:
        next_of(path).replace(path)
        sync_folder(path)
    except OSError as error:
        raise unavailable(path, error) from None


def settle(path: Path, known: Sequence[PublicKey]) -> None:
    """End a rotation that was cut off: the audit names the waiting key already. Raises AuditUnavailable."""
    waiting = next_of(path)
    if known and waiting.exists() and load(waiting).public == known[-1]:
        adopt_next(path)


def sync_folder(path: Path) -> None:
    """Make a new name in the file's folder survive a power cut. Raises OSError."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
