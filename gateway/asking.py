"""How much one principal may ask of people: what nobody could read, or too much at a time, is refused."""

from __future__ import annotations

from collections import Counter

from gateway.approvals import Approvals
from gateway.drafts import denial
from gateway.model import Statement
from gateway.parameters import RECORDED_BYTES, size_of
from policy.model import Decision, Principal

# Requests that one principal may have open: more would be a way to tire the approvers.
_OPEN_REQUESTS = 20


class Asking:
    """The requests that are being made in this process."""

    def __init__(self, approvals: Approvals) -> None:
        self._approvals = approvals
        self._unwritten: Counter[tuple[str, str]] = Counter()  # requests that are not in the audit yet

    def begun(self, principal: Principal) -> None:
        """A request is being made: it counts from now on."""
        self._unwritten[principal.issuer, principal.subject] += 1

    def over(self, principal: Principal) -> None:
        """It is in the audit, and counted there, or it came to nothing."""
        self._unwritten[principal.issuer, principal.subject] -= 1

    async def unfit(self, statement: Statement, decision: Decision) -> Decision | None:
        """A deny where people cannot be asked: they could not read it, or are asked too much already."""
        if size_of(statement.parameters) > RECORDED_BYTES:
            text = f"its parameters are larger than {RECORDED_BYTES >> 10} KiB, and nobody could review them"
            return denial(decision, "approval.large", text, "Send it in smaller parts.")
        principal = statement.session.principal
        asking = self._unwritten[principal.issuer, principal.subject]  # this one too
        if await self._approvals.open_requests(principal) + asking > _OPEN_REQUESTS:
            text = f"you have {_OPEN_REQUESTS} requests for approval open"
            return denial(decision, "approval.many", text, "Wait for people to decide, or withdraw some.")
        return None
