"""Reviews: whoever broke the glass is looked at afterwards, by a person who had no part in it.

A review lies in the queue beside the approvals, as a request that the one who broke the glass makes of the rule's
approvers: `requested` is open, `approved` is done. It never expires; as long as it is open it is announced again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from audit import approvals as book
from audit.approvals import ApprovalRecord, CastVote, Request, State, Transition, Vote
from audit.entry import Draft, Kind
from audit.errors import AuditUnavailable
from audit.search import Query, search, stamp
from audit.writer import Item
from gateway import voting
from gateway.errors import ApprovalRejectedError, AuditUnavailableError
from gateway.model import Session, principal_body
from gateway.recorder import Recorder

log = logging.getLogger(__name__)

# How often it is looked whether somebody must be reminded.
_LOOK_SECONDS = 600.0
_NEVER = datetime(9999, 1, 1, tzinfo=UTC)
_PREFIX = "rev-"


def is_review(record: ApprovalRecord) -> bool:
    """Whether a record of the queue is a review, and no approval."""
    return record.id.startswith(_PREFIX)


def opening(record: ApprovalRecord, session: Session, comment: str, now: datetime) -> Item:
    """The entry and the record that open a review, to be appended with the vote that broke the glass."""
    who = session.principal
    review = replace(
        record,
        id=_id_of(record),
        state=State.REQUESTED,
        requester_issuer=who.issuer,
        requester_subject=who.subject,
        principal=principal_body(who),
        session=session.id,
        door=session.door.value,
        reasons=[f"`{who.subject}` broke the glass of {record.id}: {comment}"],
        created=now,
        expires=_NEVER,
        votes=(),
        evidence={"review_of": record.id},
    )
    body = {"reasons": review.reasons, "terms": review.terms, "digest": record.digest, "comment": comment}
    return Item(_draft(Kind.APPROVAL_REVIEW_OPENED, record, session, **body), Request(review))


class Reviews:
    """The reviews on one audit file. `clock` tells the time in UTC."""

    def __init__(self, recorder: Recorder, store: book.Reader, clock: Callable[[], datetime]) -> None:
        self._recorder = recorder
        self._store = store
        self._clock = clock

    def open_ones(self) -> Sequence[ApprovalRecord]:
        """The approvals whose broken glass nobody has reviewed, the oldest first."""
        found = (self._store.get(str((r.evidence or {})["review_of"])) for r in self._open())
        return [record for record in found if record is not None]

    def said(self, record: ApprovalRecord) -> str | None:
        """What came of an approval's review: None where the glass was not broken, `open`, or who said what."""
        if (review := self._store.get(_id_of(record))) is None:
            return None
        return "; ".join(f"{vote.subject}: {vote.comment}" for vote in review.votes) or "open"

    async def close(self, record: ApprovalRecord, session: Session, comment: str) -> None:
        """Say that one has looked at it. Raises ApprovalRejectedError where this word may not count."""
        review, who = self._store.get(_id_of(record)), session.principal
        if review is None:
            raise ApprovalRejectedError(f"nobody broke the glass of `{record.id}`", cure="There is nothing to review.")
        if review.state is not State.REQUESTED:
            raise ApprovalRejectedError(f"the broken glass of `{record.id}` is reviewed: {self.said(record)}")
        if not comment:
            raise ApprovalRejectedError("a review needs a comment", cure="Say what you found.")
        if voting.may_be_requester(review, who):
            raise ApprovalRejectedError(
                "nobody reviews the glass that they broke themselves", cure="Ask another approver."
            )
        if any((vote.issuer, vote.subject) == (who.issuer, who.subject) for vote in record.votes):
            raise ApprovalRejectedError(
                "nobody reviews an approval that they have voted on", cure="Ask another approver."
            )
        voting.check_voter(record, who, "approve")
        vote = Vote(who.issuer, who.subject, "review", sorted(who.groups), comment, self._clock())
        body = {"choice": "review", "voter": principal_body(who), "comment": comment, "digest": record.digest}
        done = Transition(review.id, State.REQUESTED, State.APPROVED)
        try:
            await self._recorder.record(
                Item(_draft(Kind.APPROVAL_VOTED, record, session, **body), CastVote(review.id, vote)),
                Item(_draft(Kind.APPROVAL_REVIEWED, record, session, **body), done),
            )
        except book.Conflict as conflict:
            raise ApprovalRejectedError(f"the review was not counted: {conflict}") from None

    async def remind(self, every: timedelta) -> int:
        """Announce what is open and was not announced for so long, by any process; how many that are."""
        now = self._clock()
        waiting = [review for review in self._open() if now - review.created >= every]
        if not waiting:
            return 0
        query = Query(kind=Kind.APPROVAL_REVIEW_DUE, since=stamp(now - every), limit=10_000)
        found = await asyncio.to_thread(search, self._recorder.store, query)
        told = {json.loads(entry.body).get("approval") for entry in found}
        due = [review for review in waiting if (review.evidence or {})["review_of"] not in told]
        for review in due:
            body = {"approval": (review.evidence or {})["review_of"], "reasons": list(review.reasons)}
            body |= {"terms": list(review.terms), "since": review.created.isoformat()}
            await self._recorder.record(Draft(Kind.APPROVAL_REVIEW_DUE, None, None, review.connection, body))
        return len(due)

    def _open(self) -> Sequence[ApprovalRecord]:
        return [record for record in self._store.list(State.REQUESTED) if is_review(record)]


@asynccontextmanager
async def reminding(reviews: Reviews, every: timedelta) -> AsyncIterator[None]:
    """Remind of open reviews for as long as the block runs."""
    task = asyncio.create_task(_remind(reviews, every), name="reviews' reminders")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _remind(reviews: Reviews, every: timedelta) -> None:
    while True:
        try:
            await reviews.remind(every)
        except (AuditUnavailable, AuditUnavailableError, ValueError) as error:
            log.error("nobody could be reminded of open reviews: %s", error)
        except Exception:  # a bug of ours must end neither this task nor, later, the shutdown that awaits it
            log.exception("nobody could be reminded of open reviews")
        await asyncio.sleep(_LOOK_SECONDS)


def _id_of(record: ApprovalRecord) -> str:
    return _PREFIX + record.id


def _draft(kind: Kind, record: ApprovalRecord, session: Session, **body: object) -> Draft:
    """An entry about the approval whose glass was broken."""
    return Draft(kind, session.id, session.principal.subject, record.connection, {"approval": record.id, **body})
