"""What a gateway issues for a verified login and remembers of it: in the memory of this process, for an hour at most.

A restart forgets everything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from gateway.identity import VerifiedToken
from policy.model import Principal

LIFE = timedelta(hours=1)
_EACH = 20  # of one principal at the same time; the oldest gives way

Name = TypeVar("Name", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Held(Generic[Value]):
    """One that was issued: for which login, until when, and what is kept of it."""

    login: VerifiedToken
    expires: datetime
    value: Value


class ShortLived(Generic[Name, Value]):
    """Those of this process, by the name that finds each."""

    def __init__(self) -> None:
        self._held: OrderedDict[Name, Held[Value]] = OrderedDict()  # the oldest first

    def keep(self, name: Name, login: VerifiedToken, value: Value, now: datetime) -> datetime:
        """Until when it is kept: no longer than the login. What is over is forgotten, and the principal's oldest."""
        for old in [old for old, held in self._held.items() if held.expires <= now]:
            del self._held[old]
        own = self._of(login.principal)
        for old in own[: max(0, len(own) - _EACH + 1)]:
            del self._held[old]
        expires = min(login.expires, now + LIFE)
        self._held[name] = Held(login, expires, value)
        return expires

    def live(self, name: Name, now: datetime) -> Held[Value] | None:
        """The one of this name; None where there is none, or it is over."""
        held = self._held.get(name)
        return held if held is not None and held.expires > now else None

    def revoke(self, principal: Principal) -> None:
        """Forget those of this principal."""
        for name in self._of(principal):
            del self._held[name]

    def _of(self, principal: Principal) -> list[Name]:
        whose = (principal.issuer, principal.subject)
        return [
            name
            for name, held in self._held.items()
            if (held.login.principal.issuer, held.login.principal.subject) == whose
        ]
