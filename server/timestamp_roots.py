"""Whose time-stamps are believed, from PEM files; the library that checks them comes with the extra `timestamps`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from cryptography.x509 import Certificate, load_pem_x509_certificates

from audit.errors import AuditUnavailable
from gateway.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Stamped:
    """What the time-stamps of a store say: over how many entries the newest is, and its time; or what is wrong."""

    count: int = 0
    size: int = 0
    time: str | None = None
    problem: str | None = None

    @property
    def sentence(self) -> str:
        """For people, a line as those of `verify`."""
        if self.problem is not None:
            return f"NOT STAMPED {self.problem}"
        return f"stamped     {self.size} entries, at {self.time}; {self.count} time-stamps hold"


def library() -> ModuleType:
    """`audit.timestamps`. Raises ConfigurationError where the extra is not installed."""
    try:
        from audit import timestamps
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"time-stamps need the package `{error.name}`", cure="Install countersign with the extra `timestamps`."
        ) from None
    return timestamps


def read_roots(paths: Sequence[Path]) -> list[Certificate]:
    """The certificates of these PEM files. Raises ConfigurationError."""
    roots: list[Certificate] = []
    for path in paths:
        try:
            roots += load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the roots of time-stamp authorities `{path}` cannot be read: {error}", cure="Name a PEM file."
            ) from None
    return roots


def time_stamps(store: Path, root_files: Sequence[Path]) -> Stamped:
    """Hold every time-stamp of the store to these roots. Raises ConfigurationError."""
    timestamps = library()
    try:
        found = timestamps.check_all(store, read_roots(root_files))
    except AuditUnavailable as error:
        return Stamped(problem=str(error))
    if not found.count:
        return Stamped(problem="no checkpoint has a time-stamp")
    return Stamped(found.count, found.size, found.time.isoformat())
