"""Which processes write the file: each holds an OS lock while it lives, so that a dead one's intents can be closed.

The lock files lie beside the store and are named after it. The kernel drops a lock when its process dies,
however it dies. All processes of one store must run on one machine (as SQLite's WAL demands anyway).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audit.approvals import ApprovalRecord, Reader, State, Transition
from audit.entry import Draft, Kind
from audit.errors import AuditUnavailable, unavailable
from audit.store import Item, Open, Store

# How long a start waits for another start to finish its turn.
_TURN_SECONDS = 30.0
_BATCH = 1000
# The door where a statement that wants approval waits on its connection, as records name it.
_WAITING_DOOR = "wire"
_ENDS = {
    State.REQUESTED: (Kind.APPROVAL_WITHDRAWN, State.CANCELLED),
    State.APPROVED: (Kind.APPROVAL_VOID, State.VOID),
}


@dataclass(frozen=True, slots=True)
class Instance:
    """This process's place on the file."""

    id: str
    _path: Path
    _descriptor: int

    @classmethod
    def start(cls, audit_path: Path) -> Instance:
        """Take a new name and its lock; raises AuditUnavailable."""
        audit_path = Path(audit_path).resolve()
        name = f"in-{secrets.token_hex(6)}"
        path = _lock_path(audit_path, name)
        # In turn with other starts: nobody may take the file for a dead one's before it is locked.
        with _turn(audit_path):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return cls(name, path, descriptor)

    def stop(self) -> None:
        """Let go, after everything was written."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def close_dangling(store: Store) -> list[str]:
    """End what dead processes left open: intents get the outcome `unknown`, sessions are closed, and what waited for
    approval on one of their connections is withdrawn, since nobody waits any more.

    Returns the statements. Two processes that start at once take turns, so each is closed once; a second
    call finds nothing. A living process's intents are left alone: its statements may still be running.
    Raises AuditUnavailable.
    """
    with _turn(store.path):
        # Whoever is dead now stays dead and writes no more, so what is read *after* this is final.
        begun = [*store.open_statements(), *store.open_sessions()]
        dead = {instance for instance in {one.instance for one in begun} if _is_dead(store.path, instance)}
        statements = [one for one in store.open_statements() if one.instance in dead]
        sessions = [one for one in store.open_sessions() if one.instance in dead]
        drafts = [*map(_unknown, statements), *map(_closed, sessions)]
        for start in range(0, len(drafts), _BATCH):
            store.append([[Item(draft)] for draft in drafts[start : start + _BATCH]])
        store.append(_forsaken(store, {one.session for one in sessions}))
        _sweep(store.path)
    return [one.statement for one in statements if one.statement is not None]


def _forsaken(store: Store, sessions: set[str | None]) -> list[list[Item]]:
    """The ends of the approvals whose statements waited in these sessions. At other doors a requester comes again."""
    with contextlib.closing(Reader.open(store.path)) as reader:
        waiting = [*reader.list(State.REQUESTED), *reader.list(State.APPROVED)]
    return [[_forsake(record)] for record in waiting if record.door == _WAITING_DOOR and record.session in sessions]


def _forsake(record: ApprovalRecord) -> Item:
    kind, become = _ENDS[record.state]
    why = ["the gateway process died, and nobody waits for it any more"]
    body = {"approval": record.id, "digest": record.digest, "because": why}
    draft = Draft(kind, record.session, record.requester_subject, record.connection, body)
    return Item(draft, Transition(record.id, record.state, become))


def _unknown(one: Open) -> Draft:
    body = {
        "status": "unknown",
        "message": "the gateway process died before it could record an outcome",
        "instance": one.instance,
    }
    return Draft(Kind.OUTCOME, one.session, one.subject, one.connection, body, one.statement)


def _closed(one: Open) -> Draft:
    body = {"session": one.session, "reason": "the gateway process died", "instance": one.instance}
    return Draft(Kind.SESSION_CLOSED, one.session, one.subject, one.connection, body)


def _lock_path(audit_path: Path, instance: str) -> Path:
    return audit_path.with_name(f"{audit_path.name}.{instance}.lock")


@contextlib.contextmanager
def _turn(audit_path: Path) -> Iterator[None]:
    path = audit_path.with_name(f"{audit_path.name}.start.lock")
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _wait_for(descriptor, path)
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unavailable(path, error) from None


def _wait_for(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + _TURN_SECONDS
    while not _try_lock(descriptor):
        if time.monotonic() >= deadline:
            raise AuditUnavailable(f"another process has been starting on `{path}` for {_TURN_SECONDS:g} s; stop it")
        time.sleep(0.02)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_dead(audit_path: Path, instance: str) -> bool:
    try:
        descriptor = os.open(_lock_path(audit_path, instance), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # it stopped and yet left something open, or the store was copied without its locks
    try:
        return _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _sweep(audit_path: Path) -> None:
    """Remove the lock files of the dead, within our turn: nobody else starts or sweeps now."""
    before, after = f"{audit_path.name}.", ".lock"
    for path in audit_path.parent.iterdir():
        if path.name.startswith(f"{before}in-") and path.name.endswith(after):
            instance = path.name[len(before) : -len(after)]
            if _is_dead(audit_path, instance):
                path.unlink(missing_ok=True)
