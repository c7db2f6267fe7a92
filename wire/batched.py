"""Statements that run in an extended batch where the client sent a simple query.

Writes whose rows are counted: their completion is withheld from the client until the count is known to be allowed.
Before the Sync nothing is committed, and a message that is made to fail rolls it back as any error would. And COPY
whose data must be searched: its columns have to be asked for in between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from gateway.admission import Gateway, Grant
from wire import frontend, reports
from wire.client import ClientConnection
from wire.replies import Delivery, Owed, Owes, Replies
from wire.searching import describing
from wire.session import RESERVED_NAME, Description
from wire.texts import Forwarded
from wire.upstream import UpstreamSession

# Made to fail by the server itself, so that its transaction fails as it would for a refusal of its own.
POISON = frontend.Parse(RESERVED_NAME, b"refused by the gateway").encode()


class BatchedRuns:
    """How one conversation runs such statements.

    `forward` sends bytes, behind what is held back of the batch; `until_idle` waits until all is answered.
    """

    def __init__(
        self,
        client: ClientConnection,
        upstream: UpstreamSession,
        replies: Replies,
        gateway: Gateway,
        forward: Callable[[bytes], None],
        until_idle: Callable[[], Awaitable[None]],
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._replies = replies
        self._gateway = gateway
        self._forward = forward
        self._until_idle = until_idle

    async def counted(self, grant: Grant, text: Forwarded) -> None:
        """Run a simple query's one statement, a counted write; the client is answered as for a simple query."""
        origins, described = grant.rewrite.origins, Description()
        delivery = Delivery(grant, description=described)
        describe = Owed(
            Owes.DESCRIBE, text=text, origins=origins, description=described, rows_only=True, describes=delivery
        )
        await self._run(text, [(describe, frontend.Describe(b"P", "").encode())], delivery, withhold=True)

    async def searched(self, delivery: Delivery, text: Forwarded) -> None:
        """Run a simple query's one statement, a COPY whose data must be searched."""
        await self._run(text, describing(delivery, "", text), delivery, withhold=False)

    async def _run(
        self, text: Forwarded, between: Sequence[tuple[Owed, bytes]], delivery: Delivery, *, withhold: bool
    ) -> None:
        """Parse, Bind, what lies `between`, Execute and Sync. Of all but the Execute the client hears what it asked."""
        grant = delivery.grant
        execute = Owed(
            Owes.EXECUTE, text=text, deliveries=(delivery,), origins=grant.rewrite.origins, withhold=withhold
        )
        for owed in (
            Owed(Owes.PARSE, text=text, hidden=True),
            Owed(Owes.BIND, text=text, hidden=True),
            *(owed for owed, _ in between),
            execute,
        ):
            self._replies.expect(owed)
        self._upstream.batch_open = True
        opening = frontend.Parse("", text.sql).encode() + frontend.Bind("", "").encode()
        self._forward(opening + b"".join(raw for _, raw in between) + frontend.Execute("").encode())
        if withhold:
            await self.settle(grant)
        self._replies.expect(Owed(Owes.SYNC))
        self._forward(frontend.Sync().encode())
        self._upstream.batch_open = False
        await self._until_idle()

    async def settle(self, grant: Grant) -> None:
        """Wait for the count of the Execute that was sent on, and let it pass or roll it back."""
        self._forward(frontend.Flush().encode())
        await self._until_idle()
        withheld = self._replies.take_withheld()
        if withheld is None:
            return  # it failed, and the client has heard why
        error = await self._gateway.too_many(grant, withheld.rows)
        if error is None:
            withheld.delivery.say(withheld.completion)
            self._client.send(withheld.completion)
            return
        owed = Owed(Owes.POISON, deliveries=(withheld.delivery,), substitute=reports.of_error(error))
        self._replies.expect(owed)
        self._forward(POISON + frontend.Flush().encode())
        await self._until_idle()
