"""The messages of an extended query that wait for their Sync or Flush, to leave in one piece. Sans-IO.

A server answers none of them before that (PostgreSQL documentation, "Extended Query"), so nobody waits
longer. What it gains: Bind, which may already compute constants, never arrives before the intent of its
Execute is durable, and a batch is one packet.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from wire.replies import Owed, Replies

_MOST_BYTES = 65_536


@dataclass(slots=True)
class Batch:
    """What is held back, in order."""

    _owed: list[Owed] = field(default_factory=list)
    _raw: list[bytes] = field(default_factory=list)
    _size: int = 0

    def hold(self, owed: Owed, raw: bytes) -> bool:
        """Keep one message, for which an answer is owed; True where there is enough to be sent now."""
        self._owed.append(owed)
        self._raw.append(raw)
        self._size += len(raw)
        return self._size > _MOST_BYTES

    @property
    def held(self) -> bool:
        """Whether anything is."""
        return bool(self._owed)

    def take(self) -> bytes:
        """Everything, to be sent now."""
        held = b"".join(self._raw)
        self._forget()
        return held

    def clear(self, replies: Replies) -> None:
        """The client left: what was not sent is never sent, and nothing is owed for it."""
        for owed in reversed(self._owed):
            replies.withdraw(owed)
        self._forget()

    def _forget(self) -> None:
        self._owed.clear()
        self._raw.clear()
        self._size = 0
