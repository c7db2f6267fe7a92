"""A client's statements admitted, and parked while people decide: the client hears of it, and can withdraw."""

from __future__ import annotations

import asyncio

from gateway.admission import Gateway, Grant
from gateway.approvals import Pending
from gateway.errors import CountersignError, RefusedError, SessionEndedError
from gateway.model import Statement
from policy.model import Decision, Effect
from wire import backend, reports, sqlstate
from wire.client import ClientConnection
from wire.reports import RefusalError


class Parking:
    """Where one conversation's statements wait for their approval; one message's at a time."""

    def __init__(self, client: ClientConnection, gateway: Gateway) -> None:
        self._client = client
        self._gateway = gateway
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
            if in_transaction:
                self._notice(
                    "the transaction stays open, with the locks it holds, while this statement waits for approval"
                )
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

    async def _pending(self, pending: Pending) -> None:
        self._notice(
            f"this statement waits for approval {pending.id}",
            detail=pending.why,
            hint=f"{pending.who} can approve it until {pending.expires:%Y-%m-%d %H:%M:%S} UTC; cancel withdraws it.",
        )

    def _notice(self, text: str, *, detail: str | None = None, hint: str | None = None) -> None:
        fields = reports.report("00000", text, severity="NOTICE", detail=detail, hint=hint)
        self._client.send(backend.NoticeResponse(fields).encode())
