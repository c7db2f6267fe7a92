"""Which processes write the file: each holds an OS lock while it lives, so that a dead one's intents can be closed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audit.entry import Draft, Kind
from audit.store import Item, Store


@dataclass(frozen=True, slots=True)
class Instance:
    """This process's place on the file. The kernel lets go of the lock when the process dies, however it dies."""

    id: str
    _path: Path
    _descriptor: int

    @classmethod
    def start(cls, audit_path: Path) -> Instance:
        """Take a new name and its lock."""
        name = f"in-{secrets.token_hex(6)}"
        path = _lock_path(audit_path, name)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return cls(name, path, descriptor)

    def stop(self) -> None:
        """Let go, after everything was written."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def close_dangling(store: Store) -> list[str]:
    """Give every intent of a dead process the outcome `unknown`; returns their statements.

    Two processes that start at once take turns (one lock file), so each intent is closed once. A living
    process's intents are left alone: its statements may still be running.
    """
    with _turn(store.path):
        by_instance: dict[str, list[Draft]] = {}
        for statement, session, subject, connection, instance in store.dangling():
            body = {
                "statement": statement,
                "status": "unknown",
                "message": "the gateway process died before it could record an outcome",
                "instance": instance,
            }
            by_instance.setdefault(instance or "", []).append(
                Draft(Kind.OUTCOME, session, subject, connection, body)
            )
        closed: list[str] = []
        for instance, drafts in by_instance.items():
            if _is_dead(store.path, instance):
                store.append([[Item(draft) for draft in drafts]])
                closed += [str(draft.body["statement"]) for draft in drafts]
                _lock_path(store.path, instance).unlink(missing_ok=True)
        return closed


def _lock_path(audit_path: Path, instance: str) -> Path:
    return audit_path.with_name(f"{audit_path.name}.{instance}.lock")


@contextlib.contextmanager
def _turn(audit_path: Path) -> Iterator[None]:
    descriptor = os.open(audit_path.with_name(f"{audit_path.name}.start.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_dead(audit_path: Path, instance: str) -> bool:
    try:
        descriptor = os.open(_lock_path(audit_path, instance), os.O_RDWR)
    except FileNotFoundError:
        return True  # it stopped cleanly and yet left an intent, or the lock files were not copied along
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
