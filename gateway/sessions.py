"""Sessions: opened for a verified token, ended at once by expiry, revocation, or an audit that fails."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from datetime import UTC, datetime, timedelta

from audit.entry import Draft, Kind
from gateway.errors import AuthenticationError, CountersignError, SessionEndedError
from gateway.identity import VerifiedToken
from gateway.model import ClientInfo, Connection, Door, Session, principal_body
from gateway.recorder import Recorder

log = logging.getLogger(__name__)

_RECORDED_REFUSALS_PER_MINUTE = 300
# A stranger's words about itself, in characters.
_WORDS = 200
_REASON = 1000


class Sessions:
    """The open sessions of this process."""

    def __init__(self, recorder: Recorder, *, longest: timedelta, instance: str) -> None:
        self._recorder = recorder
        self._longest = longest
        self._instance = instance
        self._open: dict[str, Session] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._refused: deque[float] = deque()  # when refusals of the last minute were recorded, time.monotonic

    def list(self) -> list[Session]:
        """The open sessions, the oldest first."""
        return sorted(self._open.values(), key=lambda session: session.opened)

    async def open(self, token: VerifiedToken, connection: Connection, door: Door, client: ClientInfo) -> Session:
        """A session that lives no longer than its token; recorded before it is of any use."""
        now = datetime.now(UTC)
        if token.expires <= now:
            raise AuthenticationError("the token has expired", cure="Get a fresh token from the issuer.")
        session = Session(
            id="se-" + secrets.token_hex(8),
            principal=token.principal,
            connection=connection,
            door=door,
            client=client,
            opened=now,
            expires=min(token.expires, now + self._longest),
        )
        await self._recorder.record(
            Draft(
                kind=Kind.SESSION_OPENED,
                session=session.id,
                subject=token.principal.subject,
                connection=connection.name,
                body={
                    "session": session.id,
                    "principal": principal_body(token.principal),
                    "door": door.value,
                    "client": {"name": client.name, "version": client.version, "address": client.address},
                    "connection": connection.name,
                    "upstream_user": connection.user,
                    "read_only": connection.read_only,
                    "token": token.token_id,
                    "issuer": token.principal.issuer,
                    "expires": session.expires.isoformat(),
                    "instance": self._instance,
                },
            )
        )
        self._open[session.id] = session
        loop = asyncio.get_running_loop()
        left = (session.expires - now).total_seconds()
        self._timers[session.id] = loop.call_later(left, self.end, session, "the session's time or its token's is over")
        return session

    def end(self, session: Session, reason: str) -> None:
        """End it now: its door hears of it at once and cancels what runs. A second call does nothing."""
        if session.ended is not None:
            return
        self.close(session, reason)
        for listener in session.on_end:
            listener(reason)

    def close(self, session: Session, reason: str) -> None:
        """The door is done with it. Recorded in order, as outcomes are: nobody waits for the disk to say goodbye."""
        if session.ended is not None:
            return
        session.ended = reason
        self._open.pop(session.id, None)
        if timer := self._timers.pop(session.id, None):
            timer.cancel()
        self._recorder.post(_closed(session, reason), failed=lambda _: None)

    def revoke(self, session_id: str) -> None:
        """End a session by its name. Raises SessionEndedError where there is none."""
        if (session := self._open.get(session_id)) is None:
            raise SessionEndedError(f"there is no open session `{session_id}` in this process")
        self.end(session, "the session was revoked")

    async def record_refusal(
        self, error: CountersignError, door: Door, client: ClientInfo, connection: str | None
    ) -> None:
        """Write down that somebody was turned away. Nobody was verified, so no subject is named.

        Whoever sends garbage must not fill the audit: beyond so many a minute only the log hears of it.
        """
        now = time.monotonic()
        while self._refused and now - self._refused[0] > 60:
            self._refused.popleft()
        if len(self._refused) >= _RECORDED_REFUSALS_PER_MINUTE:
            log.warning("logins are refused too fast to be recorded one by one")
            return
        self._refused.append(now)
        await self._recorder.record(
            Draft(
                kind=Kind.SESSION_REFUSED,
                session=None,
                subject=None,
                connection=connection[:_WORDS] if connection else connection,
                body={
                    "reason": error.text[:_REASON],
                    "sqlstate": error.sqlstate,
                    "door": door.value,
                    "client": {
                        "name": client.name[:_WORDS] if client.name else client.name,
                        "version": client.version,
                        "address": client.address,
                    },
                    "instance": self._instance,
                },
            )
        )


def _closed(session: Session, reason: str) -> Draft:
    return Draft(
        kind=Kind.SESSION_CLOSED,
        session=session.id,
        subject=session.principal.subject,
        connection=session.connection.name,
        body={"session": session.id, "reason": reason},
    )
