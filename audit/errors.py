"""The one way the store fails: it cannot be used, and the text says where, what, and what cures it."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path


class AuditUnavailable(Exception):  # noqa: N818 - a state of the world, named as DESIGN.md names it
    """The store cannot be opened, read or written. Nothing of the failed call is in it."""


_CURES: Mapping[str, str] = {
    "SQLITE_FULL": "the disk is full or a file size limit was reached; make room and it goes on by itself",
    "SQLITE_BUSY": "another process holds its lock; find it (`fuser` on the file) and let it finish or stop it",
    "SQLITE_LOCKED": "another connection holds its lock; find and stop what does",
    "SQLITE_READONLY": "it is read-only here; give the gateway write permission for the file and its folder",
    "SQLITE_IOERR": "the disk failed or a file size limit was reached; check both, then verify the audit",
    "SQLITE_CORRUPT": "it is damaged; keep it as evidence, verify it, and start a new file",
    "SQLITE_NOTADB": "it is not an SQLite file; name another one",
    "SQLITE_CANTOPEN": "it cannot be opened; check that its folder exists and may be written",
    "SQLITE_PERM": "permission is refused; check who owns the file",
    "FileNotFoundError": "there is no such file; check the path",
    "PermissionError": "permission is refused; check who owns the file and its folder",
    "FileExistsError": "a part of the path is no folder; check the path",
    "NotADirectoryError": "a part of the path is no folder; check the path",
    "IsADirectoryError": "it is a folder; name a file",
}


def unavailable(path: Path, error: sqlite3.Error | OSError) -> AuditUnavailable:
    """The error to raise for what SQLite or the system said of the file at `path`."""
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    what = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    cure = next((cure for prefix, cure in _CURES.items() if name.startswith(prefix)), None)
    return AuditUnavailable(f"audit store `{path}`: {what} ({name})" + (f"; {cure}" if cure else ""))
