"""A client's statements admitted, and parked while people decide: the client hears of it, and can withdraw."""

from __future__ import annotations

import asyncio

from gateway.admission import Gateway, Grant
from gateway.approvals import Pending
from gateway.errors import CountersignError, RefusedError, SessionEndedError, UpstreamUnavailableError
from gateway.model import Session, Statement
from gateway.upstream import UpstreamError, UpstreamLostError
from policy.model import Decision, Effect
from wire import backend, reports, sqlstate
from wire.client import ClientConnection
from wire.reports import RefusalError
from wire.upstream import UpstreamSession

# Locked relations that a notice names.
_LOCKS_NAMED = 10


class Parking:
    """Where one conversation's statements wait for their approval; one message's at a time."""

    def __init__(self, client: ClientConnection, gateway: Gateway, upstream: UpstreamSession) -> None:
        self._client = client
        self._gateway = gateway
        self._upstream = upstream
        self._waiting: asyncio.Task[list[Grant]] | None = None
        self._withdrawn = False

    @property
    def occupied(self) -> bool:
        """Whether statements wait here."""
        return self._waiting is not None

    async def begin(
        self,
        text: bytes,
        statements: list[Statement],
        decisions: list[Decision],
        starts: list[int],
        *,
        in_transaction: bool,
    ) -> list[Grant]:
        """Grants of one message's statements, which begin at the bytes `starts` of its `text`.

        Returns when people have approved what needs it. Raises RefusalError for what is denied, expired or
        withdrawn; SessionEndedError; asyncio.CancelledError when the conversation was ended meanwhile.
        """
        try:
            if all(d.verdict.effect is not Effect.APPROVE for d in decisions):
                return await self._gateway.begin(statements, decisions) if statements else []
            await self._tell_locks(statements[0].session, in_transaction=in_transaction)
            return await self._park(statements, decisions)
        except RefusedError as error:
            index = next((i for i, d in enumerate(decisions) if d is error.decision), 0)
            raise RefusalError(reports.of_refusal(error, text, starts[index])) from None
        except SessionEndedError:
            raise
        except CountersignError as error:
            raise RefusalError(reports.of_error(error)) from None

    def withdraw(self) -> bool:
        """The client cancels: withdraw what waits. False where nothing does."""
        if self._waiting is None:
            return False
        self._withdrawn = True
        self._waiting.cancel()
        return True

    def abandon(self) -> None:
        """Nobody will take the answer any more: withdraw what waits."""
        if self._waiting is not None:
            self._waiting.cancel()

    async def _park(self, statements: list[Statement], decisions: list[Decision]) -> list[Grant]:
        self._withdrawn = False
        self._waiting = asyncio.create_task(self._gateway.begin(statements, decisions, on_pending=self._pending))
        try:
            return await self._waiting
        except asyncio.CancelledError:
            if not self._withdrawn:
                raise
            raise RefusalError(
                reports.report(
                    sqlstate.QUERY_CANCELED,
                    "canceling statement due to user request",
                    detail="The request for approval was withdrawn.",
                )
            ) from None
        finally:
            self._waiting = None

    async def _tell_locks(self, session: Session, *, in_transaction: bool) -> None:
        """Say what a transaction that waits keeps from others. Waiting adds nothing to it: nothing is sent on.

        It is asked beside the session, whose transaction would otherwise have its snapshot from then on.
        """
        try:
            locks = await self._gateway.connections.locks(session, self._upstream.pid or 0)
        except (UpstreamError, UpstreamLostError, UpstreamUnavailableError):
            holds = "with the locks it holds"
        else:
            if not locks and not in_transaction:
                return
            more = f" and {len(locks) - _LOCKS_NAMED} more" if len(locks) > _LOCKS_NAMED else ""
            named = f": {', '.join(locks[:_LOCKS_NAMED])}{more}" if locks else ""
            holds = f"and holds locks on {len(locks)} relation{'s' * (len(locks) != 1)}{named}"
        self._notice(f"the transaction stays open while this statement waits for approval, {holds}")

    async def _pending(self, pending: Pending) -> None:
        self._notice(
            f"this statement waits for approval {pending.id}",
            detail=pending.why,
            hint=f"{pending.who} can approve it until {pending.expires:%Y-%m-%d %H:%M:%S} UTC; cancel withdraws it.",
        )

    def _notice(self, text: str, *, detail: str | None = None, hint: str | None = None) -> None:
        fields = reports.report("00000", text, severity="NOTICE", detail=detail, hint=hint)
        self._client.send(backend.NoticeResponse(fields).encode())
