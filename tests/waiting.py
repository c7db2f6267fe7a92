"""Bounded waiting for something that another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], otherwise: str, seconds: float = 15.0) -> None:
    """Return as soon as the condition holds; fail with this sentence if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(otherwise)
        time.sleep(0.02)
