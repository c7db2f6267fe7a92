"""Addresses that failed to log in too often: turned away for a while, before anything is checked. Sans-IO."""

from __future__ import annotations

from collections import OrderedDict, deque

_WINDOW_SECONDS = 60.0
_MOST_ADDRESSES = 10_000  # what is remembered is bounded; the address that failed longest ago is forgotten


class FailureLimit:
    """At most so many failures of one address in a minute. `now` is a monotonic clock's, in seconds."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def failed(self, address: str, now: float) -> None:
        """Remember a failure."""
        self._failures.setdefault(address, deque(maxlen=self._most)).append(now)
        self._failures.move_to_end(address)
        while len(self._failures) > _MOST_ADDRESSES:
            self._failures.popitem(last=False)

    def blocked(self, address: str, now: float) -> bool:
        """Whether this address has to wait."""
        failures = self._failures.get(address)
        return failures is not None and len(failures) == self._most and now - failures[0] < _WINDOW_SECONDS
