"""Approvals: who may say yes to what, and the single use of a yes. The states lie in the audit's own file.

    requested -> approved | denied | expired | cancelled        approved -> consumed | expired | void

Every transition is one compare-and-swap in the same transaction as its chain entry, so several
processes on one audit file share one queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from audit import approvals as book
from audit.approvals import ApprovalRecord, CastVote, Request, State, Transition, Vote
from audit.entry import Draft, Kind
from audit.writer import Item
from gateway import explain, reviews, voting
from gateway.errors import ApprovalRejectedError
from gateway.model import Session, Statement, principal_body
from gateway.recorder import Recorder
from gateway.reviews import Reviews
from gateway.voting import Login
from policy.catalog import Catalog
from policy.model import Action, ApprovalTerms, Approver, Decision, Principal

# Other processes vote on the same file; their votes are seen at the latest after this long.
_POLL_SECONDS = 0.5

# Without look-alikes (0/o, 1/l/i): people type these.
_ID_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


@dataclass(frozen=True, slots=True)
class Pending:
    """What a requester is told about the approval that a statement waits for."""

    id: str
    why: str
    who: str
    expires: datetime
    digest: str


def new_id() -> str:
    """A name that is short enough to type and too long to guess (49 bits)."""
    return "apr-" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(10))


def binding_of(statement: Statement, decision: Decision, catalog: Catalog, nonce: str) -> dict[str, str]:
    """Everything a yes is bound to, by name, so that each difference can be told apart at use.

    Entries hold digests of it, and may hold the parameters as keyed digests: with the `nonce`, which is in no entry,
    nobody can try out from them what the parameters were.
    """
    session, analysis = statement.session, decision.analysis
    relations = sorted(analysis.relations) if analysis else []
    # What it calls, seen and unseen; a function that a migration makes itself is not there yet.
    calls = [d for d in analysis.demands if d.action is Action.CALL] if analysis else []
    called = sorted({oid for d in calls for oid in (d.functions or (d.oid,)) if oid})
    functions = [f for oid in called if (f := catalog.function(oid)) is not None]
    schema = repr([*(catalog.relations.get(oid) for oid in relations), *functions])
    return {
        "text": hashlib.sha256(statement.text).hexdigest(),
        "nonce": nonce,
        "parameters": _digest([nonce, *(None if p is None else p.hex() for p in statement.parameters)]),
        "principal": _digest(
            [
                session.principal.issuer,
                session.principal.subject,
                session.principal.kind.value,
                session.principal.on_behalf_of,
                sorted(session.principal.groups),
            ]
        ),
        "connection": session.connection.name,
        "search_path": _digest(list(session.search_path)),
        "objects": _digest([relations, [f.oid for f in functions]]),
        "schema": hashlib.sha256(schema.encode()).hexdigest(),
        "policy": decision.policy,
    }


_DIFFERENCES: Mapping[str, str] = {
    "text": "the statement's text is not the one that was approved",
    "parameters": "the parameters are not the ones that were approved",
    "principal": "another principal asked for the approval, or one in other groups or for another human",
    "connection": "the approval was given for another connection",
    "search_path": "the search path has changed since",
    "objects": "a name now means another object than when it was approved",
    "schema": "the definition of a touched relation or of a called function has changed since",
    "policy": "the policy has changed since",
}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


def binding_digest(binding: Mapping[str, str]) -> str:
    """The digest that an approver gives back, so that nobody approves what they did not read."""
    return hashlib.sha256(json.dumps(binding, sort_keys=True).encode()).hexdigest()[:32]


def _utc() -> datetime:
    return datetime.now(UTC)


class Approvals:
    """The queue of one gateway process. `clock` tells the time in UTC."""

    def __init__(self, recorder: Recorder, store: book.Reader, clock: Callable[[], datetime] = _utc) -> None:
        self._recorder = recorder
        self._store = store
        self._clock = clock
        self.reviews = Reviews(recorder, store, clock)
        self._changed: dict[str, asyncio.Event] = {}

    # -- asking ---------------------------------------------------------------------------------------

    def request_item(
        self,
        statement: Statement,
        decision: Decision,
        catalog: Catalog,
        statement_id: str,
        recorded: Mapping[str, object],
        evidence: Mapping[str, object] | None = None,
    ) -> tuple[Item, Pending]:
        """The entry and the record that ask for approval, to be appended with the statement's own entries.

        `recorded` are the parameters as entries hold them; those of the record are what will run. `evidence` is what
        was measured; the digest covers it too.
        """
        session, terms, now = statement.session, decision.verdict.terms, self._clock()
        binding = binding_of(statement, decision, catalog, secrets.token_hex(16)) | {"evidence": _digest(evidence)}
        expires = now + min((t.expires for t in terms), default=timedelta(minutes=30))
        pending = Pending(
            id=new_id(),
            why="; ".join([explain.why_approval(decision), *_size(decision)]),
            who=explain.who_approves(decision),
            expires=expires,
            digest=binding_digest(binding),
        )
        record = ApprovalRecord(
            id=pending.id,
            state=State.REQUESTED,
            digest=pending.digest,
            requester_issuer=session.principal.issuer,
            requester_subject=session.principal.subject,
            principal=principal_body(session.principal),
            connection=session.connection.name,
            session=session.id,
            door=session.door.value,
            statement_id=statement_id,
            statement=statement.text.decode("utf-8"),
            parameters=[None if p is None else p.decode("utf-8", "replace") for p in statement.parameters],
            terms=[_terms_body(t) for t in terms],
            reasons=[*(r.text for r in decision.verdict.reasons), *_size(decision)],
            binding=binding,
            created=now,
            expires=expires,
            evidence=evidence,
        )
        draft = _draft(
            Kind.APPROVAL_REQUESTED,
            record,
            session,
            statement=record.statement,
            **recorded,
            digest=record.digest,
            statement_id=statement_id,
            terms=record.terms,
            reasons=record.reasons,
            expires=expires.isoformat(),
            request=dict(statement.request),
        )
        return Item(draft, Request(record)), pending

    # -- reading --------------------------------------------------------------------------------------

    async def get(self, approval_id: str) -> ApprovalRecord:
        """The record, with what time and votes have made of it. Raises ApprovalRejectedError for an unknown id."""
        record = self._store.get(approval_id)
        if record is None or reviews.is_review(record):
            raise ApprovalRejectedError(
                f"there is no approval `{approval_id}`", cure="See `list_approvals` for the open ones."
            )
        return await self._settled(record)

    async def list(self, session: Session | None = None) -> Sequence[ApprovalRecord]:
        """Open approvals, the oldest first; for a session those that its principal may see."""
        records = [
            await self._settled(r)
            for state in (State.REQUESTED, State.APPROVED)
            for r in self._store.list(state)
            if not reviews.is_review(r)
        ]
        open_ones = [r for r in records if r.state in (State.REQUESTED, State.APPROVED)]
        if session is not None:
            open_ones = [r for r in open_ones if voting.may_see(r, session.principal)]
        return sorted(open_ones, key=lambda r: r.created)

    async def open_requests(self, principal: Principal) -> int:
        """How many requests of this principal wait for people now."""
        found = self._store.list(State.REQUESTED)
        waiting = [r for r in found if voting.is_requester(r, principal) and not reviews.is_review(r)]
        current = [await self._settled(record) for record in waiting]
        return sum(record.state is State.REQUESTED for record in current)

    async def wait(self, approval_id: str, seconds: float | None) -> ApprovalRecord:
        """The record once it is no longer `requested`, or as it is after `seconds` (None: no limit)."""
        loop = asyncio.get_running_loop()
        end = None if seconds is None else loop.time() + seconds
        while True:
            event = self._changed.setdefault(approval_id, asyncio.Event())
            event.clear()
            record = await self.get(approval_id)
            left = _POLL_SECONDS if end is None else min(_POLL_SECONDS, end - loop.time())
            if record.state is not State.REQUESTED or left <= 0:
                self._changed.pop(approval_id, None)
                return record
            try:
                await asyncio.wait_for(event.wait(), left)
            except TimeoutError:
                continue

    # -- deciding -------------------------------------------------------------------------------------

    async def vote(
        self,
        approval_id: str,
        session: Session,
        choice: str,
        digest: str | None,
        comment: str | None,
        login: Login = voting.UNKNOWN,
    ) -> ApprovalRecord:
        """Cast one human's vote: `approve`, `reject`, or `break_glass`, which needs a comment and opens a review.

        `login` is the voter's: a rule may want it fresh before a yes. Raises ApprovalRejectedError where the vote may
        not count.
        """
        record = await self.get(approval_id)
        voting.check_voter(record, session.principal, choice)
        if record.state is not State.REQUESTED:
            raise ApprovalRejectedError(f"approval `{approval_id}` is already {record.state.value}")
        if choice == voting.BREAK_GLASS and not comment:
            raise ApprovalRejectedError(
                "breaking the glass needs a comment: it is reviewed afterwards", cure="Say what the emergency is."
            )
        if choice != "reject" and digest != record.digest:
            raise ApprovalRejectedError(
                f"the digest does not belong to approval `{approval_id}`",
                cure="Read the statement with `approval_status` and give back the digest shown there.",
            )
        voter, now = session.principal, self._clock()
        if choice != "reject":
            voting.check_login(record, voter, choice, login, now)
        vote = Vote(
            issuer=voter.issuer,
            subject=voter.subject,
            choice=choice,
            groups=sorted(voter.groups),
            comment=comment,
            time=now,
        )
        body = {"choice": choice, "voter": principal_body(voter), "comment": comment, "digest": record.digest}
        body |= {"auth_time": login.time.isoformat()} if login.time else {}
        body |= {"acr": login.acr} if login.acr else {}
        items = [Item(_draft(_kind_of(record, voter, choice), record, session, **body), CastVote(approval_id, vote))]
        if choice == voting.BREAK_GLASS:
            items.append(reviews.opening(record, session, comment or "", now))
        try:
            await self._recorder.record(*items)
        except book.Conflict as conflict:
            raise ApprovalRejectedError(f"the vote was not counted: {conflict}") from None
        return await self._settled(self._store.get(approval_id) or record, session)

    async def withdraw(self, approval_id: str, session: Session) -> ApprovalRecord:
        """The requester, or the human behind it, takes the request back."""
        record = await self.get(approval_id)
        own, human = voting.asked(record, session.principal), session.principal.human
        if not own and (human is None or human != voting.human_of(record)):
            raise ApprovalRejectedError(f"only the requester can withdraw approval `{approval_id}`")
        await self._move(record, State.REQUESTED, State.CANCELLED, Kind.APPROVAL_WITHDRAWN, session)
        return await self.get(approval_id)

    def consume_item(self, record: ApprovalRecord, session: Session, statement_id: str) -> Item:
        """The single use of a yes, to be appended in one unit with the intent that it permits."""
        return Item(
            _draft(Kind.APPROVAL_CONSUMED, record, session, statement_id=statement_id, digest=record.digest),
            Transition(record.id, State.APPROVED, State.CONSUMED),
        )

    async def check_binding(
        self, record: ApprovalRecord, statement: Statement, decision: Decision, catalog: Catalog
    ) -> None:
        """Void the approval if anything it is bound to has changed. Raises ApprovalRejectedError."""
        now = binding_of(statement, decision, catalog, record.binding.get("nonce", ""))
        changed = [text for part, text in _DIFFERENCES.items() if record.binding.get(part) != now[part]]
        # Another time, place or number of rows may bring in other rules, whose approvers were not asked.
        unasked = [terms.rule for terms in decision.verdict.terms if _terms_body(terms) not in record.terms]
        changed += [f"the rule `{rule}` wants people now who were not asked" for rule in unasked]
        if changed:
            await self._move(record, State.APPROVED, State.VOID, Kind.APPROVAL_VOID, statement.session, because=changed)
            raise ApprovalRejectedError(
                f"approval `{record.id}` is void: {'; '.join(changed)}", cure="Ask for approval again."
            )

    # -- inside ---------------------------------------------------------------------------------------

    async def _settled(self, record: ApprovalRecord, session: Session | None = None) -> ApprovalRecord:
        """The record after the transition that is due, if one is.

        Whoever looks carries it out, so a process that dies between a vote and its count loses nothing. A vote
        that comes in meanwhile is counted before the transition: the swap compares the number of votes too.
        """
        while (due := self._due(record)) is not None:
            become, kind = due
            await self._move(record, record.state, become, kind, session, votes=len(record.votes))
            record = self._store.get(record.id) or record
        return record

    def _due(self, record: ApprovalRecord) -> tuple[State, Kind] | None:
        """What time and votes make of a record. One rejection ends it, whatever the others say."""
        if record.state in (State.REQUESTED, State.APPROVED) and self._clock() >= record.expires:
            return State.EXPIRED, Kind.APPROVAL_EXPIRED
        if record.state is not State.REQUESTED:
            return None
        if (become := voting.due(record)) is None:
            return None
        return become, Kind.APPROVAL_DENIED if become is State.DENIED else Kind.APPROVAL_APPROVED

    async def _move(
        self,
        record: ApprovalRecord,
        expect: State,
        become: State,
        kind: Kind,
        session: Session | None,
        *,
        votes: int | None = None,
        **body: object,
    ) -> None:
        """One transition; losing the race to another process is fine, its entry says what happened."""
        draft = _draft(kind, record, session, digest=record.digest, **body)
        with contextlib.suppress(book.Conflict):
            await self._recorder.record(Item(draft, Transition(record.id, expect, become, votes)))
        if event := self._changed.get(record.id):
            event.set()


def _size(decision: Decision) -> list[str]:
    """How large a read is, where its verdict depends on that."""
    return [f"it is expected to return {decision.expects} rows"] if decision.expects is not None else []


def _kind_of(record: ApprovalRecord, voter: Principal, choice: str) -> Kind:
    """What a vote is called in the audit: what one person decides alone, or for themselves, has a name of its own."""
    if choice == voting.BREAK_GLASS:
        return Kind.APPROVAL_BROKEN_GLASS
    if choice == "approve" and voting.is_owner(record, voter):
        return Kind.APPROVAL_OWNER_APPROVED
    return Kind.APPROVAL_VOTED


def rejection(record: ApprovalRecord) -> ApprovalRejectedError:
    """Why a record that is not `approved` permits nothing."""
    said = [f"{v.subject}: {v.comment}" for v in record.votes if v.choice == "reject" and v.comment]
    sentences = {
        State.DENIED: "was rejected" + (f" ({'; '.join(said)})" if said else ""),
        State.EXPIRED: f"expired at {record.expires:%Y-%m-%d %H:%M:%S} UTC",
        State.CANCELLED: "was withdrawn",
        State.CONSUMED: "has already been used",
        State.VOID: "is void",
        State.REQUESTED: "is still waiting",
    }
    return ApprovalRejectedError(f"approval `{record.id}` {sentences.get(record.state, record.state.value)}")


def _draft(kind: Kind, record: ApprovalRecord, session: Session | None, **body: object) -> Draft:
    return Draft(
        kind=kind,
        session=session.id if session else None,
        subject=session.principal.subject if session else None,
        connection=record.connection,
        body={"approval": record.id, **body},
    )


def _terms_body(terms: ApprovalTerms) -> dict[str, object]:
    return {
        "rule": terms.rule,
        "groups": sorted(terms.groups),
        "users": _users_body(terms.users),
        "quorum": terms.quorum,
        "owner_may_approve": terms.owner_may_approve,
        "break_glass": sorted(terms.break_glass),
        "break_glass_users": _users_body(terms.break_glass_users),
        "fresh": terms.fresh.total_seconds() if terms.fresh is not None else None,
        "acr": sorted(terms.acr),
    }


def _users_body(users: Iterable[Approver]) -> list[dict[str, str | None]]:
    return [{"subject": user.subject, "issuer": user.issuer} for user in sorted(users, key=str)]
