"""Who may say yes, what a yes is bound to, and that it is used once: on a real store, no database needed."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from audit.approvals import ApprovalRecord, Conflict, Reader, State
from audit.entry import Draft, Kind
from audit.instances import Instance, close_dangling
from audit.store import Store
from audit.verify import verify
from audit.writer import Writer
from gateway.approvals import Approvals, Pending
from gateway.asking import Asking
from gateway.certificates import CertificateRule
from gateway.errors import ApprovalRejectedError
from gateway.model import ClientInfo, Connection, Door, Session, Statement
from gateway.recorder import Recorder
from gateway.voting import BREAK_GLASS, UNKNOWN, Login
from policy.catalog import Catalog, Column, Function, Relation, RelationKind, Volatility
from policy.model import (
    Action,
    Analysis,
    ApprovalTerms,
    Approver,
    Decision,
    Demand,
    Effect,
    ObjectKind,
    ObjectName,
    Principal,
    PrincipalKind,
    Reason,
    Rewrite,
    Verdict,
)

ISSUER = "https://issuer.example"
TICKETS = Relation(7, "public", "tickets", RelationKind.TABLE, (Column(1, "id", "integer", 23),), frozenset({7}))
CATALOG = Catalog("epoch-1", 180000, {7: TICKETS}, {}, frozenset({"public"}))
TERMS = ApprovalTerms(frozenset({"dba"}), 1, timedelta(minutes=30), "large-changes (policy.yaml:9)")
SQL = b"DELETE FROM tickets"


def person(subject: str, *groups: str, kind: PrincipalKind = PrincipalKind.HUMAN, of: str | None = None) -> Principal:
    return Principal(subject, ISSUER, kind, frozenset(groups), on_behalf_of=of)


DEVIN = person("devin", "ai-agents", kind=PrincipalKind.AGENT, of="ada")
ADA = person("ada", "dba", "developers")
GRACE = person("grace", "dba")
HANS = person("hans", "dba", "security")


def session_of(principal: Principal) -> Session:
    now = datetime.now(UTC)
    shop = Connection("shop", "127.0.0.1", 1, "shop", "gateway", "secret")
    return Session(
        f"se-{principal.subject}", principal, shop, Door.MCP, ClientInfo(), now, now + timedelta(hours=1),
        search_path=("pg_catalog", "public"), stale=False,
    )  # fmt: skip


def decision_of(*terms: ApprovalTerms, policy: str = "policy-1") -> Decision:
    demand = Demand(Action.DELETE, ObjectName(ObjectKind.RELATION, "public", "tickets"), 7, bounded=False)
    reason = Reason(Effect.APPROVE, "rule.matched", "`delete public.tickets` needs approval", rule=terms[0].rule)
    analysis = Analysis(SQL, "DeleteStmt", (demand,), relations=frozenset({7}))
    return Decision(Verdict(Effect.APPROVE, (reason,), Rewrite(SQL), terms), analysis, policy, "epoch-1")


@dataclass
class Desk:
    """The queue on a real store, and the means to put a request into it."""

    approvals: Approvals
    recorder: Recorder
    path: Path

    async def ask(self, *terms: ApprovalTerms, who: Principal = DEVIN) -> Pending:
        statement = Statement(session_of(who), SQL)
        item, pending = self.approvals.request_item(
            statement, decision_of(*(terms or (TERMS,))), CATALOG, "st-1", {"parameters": []}
        )
        await self.recorder.record(item)
        return pending

    async def vote(
        self, pending: Pending, who: Principal, choice: str = "approve", login: Login = UNKNOWN, comment: str = ""
    ) -> ApprovalRecord:
        return await self.approvals.vote(pending.id, session_of(who), choice, pending.digest, comment or None, login)

    def entries(self, kind: str) -> list[tuple[str | None, str]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as db:
            return db.execute("SELECT subject, body FROM entries WHERE kind = ? ORDER BY seq", (kind,)).fetchall()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store, contextlib.closing(Reader.open(path)) as reader:
        writer = Writer(store)
        recorder = Recorder(writer)
        yield Desk(Approvals(recorder, reader), recorder, path)
        writer.close()


async def test_one_human_of_the_right_group_approves(desk: Desk) -> None:
    pending = await desk.ask()
    assert (await desk.vote(pending, GRACE)).state is State.APPROVED
    assert pending.who == "one of `dba`"


REFUSED = [
    (DEVIN, "agents cannot vote"),
    (person("claude", "dba", kind=PrincipalKind.AGENT, of="grace"), "agents cannot vote"),
    (ADA, "on behalf of `ada`"),
    (person("olga", "developers"), "not among the approvers"),
    (Principal("grace", "https://other.example", PrincipalKind.HUMAN, frozenset()), "not among the approvers"),
]


@pytest.mark.parametrize(("voter", "sentence"), REFUSED, ids=lambda v: getattr(v, "subject", None))
async def test_a_vote_that_may_not_count_is_refused_with_its_own_sentence(
    desk: Desk, voter: Principal, sentence: str
) -> None:
    pending = await desk.ask()
    with pytest.raises(ApprovalRejectedError) as refused:
        await desk.vote(pending, voter)
    assert sentence in refused.value.text
    assert (await desk.approvals.get(pending.id)).state is State.REQUESTED


async def test_nobody_approves_their_own_request(desk: Desk) -> None:
    pending = await desk.ask(who=ADA)
    with pytest.raises(ApprovalRejectedError, match="own request"):
        await desk.vote(pending, ADA)


async def test_nor_by_an_account_of_another_issuer_with_their_address(desk: Desk) -> None:
    pending = await desk.ask(who=replace(ADA, email="ada@example.com"))
    for address in ("ada@example.com", "Ada@Example.com"):
        with pytest.raises(ApprovalRejectedError, match="own request"):
            await desk.vote(pending, replace(GRACE, issuer="https://other.example", email=address))
    assert (await desk.vote(pending, GRACE)).state is State.APPROVED


async def test_the_human_of_a_client_certificate_is_the_same_person_as_by_a_token(desk: Desk) -> None:
    """The certificate's authority is another issuer than the human's: the configuration joins the two."""
    etl = CertificateRule("dns", "*", "etl", on_behalf_of="ada", human_issuer=ISSUER).principal("Example CA")
    pending = await desk.ask(who=etl)
    for voter, sentence in ((ADA, "on behalf of `ada`"), (etl, "agents cannot vote")):
        with pytest.raises(ApprovalRejectedError, match=sentence):
            await desk.vote(pending, voter)
    assert (await desk.vote(pending, GRACE)).state is State.APPROVED


async def test_a_quorum_counts_humans_not_groups_nor_repeated_votes(desk: Desk) -> None:
    pending = await desk.ask(replace(TERMS, groups=frozenset({"dba", "security"}), quorum=2))
    assert (await desk.vote(pending, HANS)).state is State.REQUESTED  # in both groups, yet one human
    with pytest.raises(ApprovalRejectedError, match="already voted"):
        await desk.vote(pending, HANS)
    assert (await desk.vote(pending, GRACE)).state is State.APPROVED


async def test_all_terms_of_a_statement_must_be_met(desk: Desk) -> None:
    pending = await desk.ask(TERMS, replace(TERMS, groups=frozenset({"security"}), rule="second"))
    assert (await desk.vote(pending, GRACE)).state is State.REQUESTED
    assert (await desk.vote(pending, HANS)).state is State.APPROVED


async def test_a_team_of_one_may_approve_its_agent_where_the_rule_says_so(desk: Desk) -> None:
    pending = await desk.ask(replace(TERMS, owner_may_approve=True))
    assert (await desk.vote(pending, ADA)).state is State.APPROVED
    [(subject, _)] = desk.entries("approval.owner_approved")  # as loud as a broken glass
    assert subject == "ada"


async def test_one_rejection_ends_it(desk: Desk) -> None:
    pending = await desk.ask(replace(TERMS, quorum=2))
    assert (await desk.vote(pending, GRACE, "reject")).state is State.DENIED
    with pytest.raises(ApprovalRejectedError, match="already denied"):
        await desk.vote(pending, HANS)


async def test_an_approval_needs_the_digest_that_was_shown(desk: Desk) -> None:
    pending = await desk.ask()
    with pytest.raises(ApprovalRejectedError, match="digest"):
        await desk.approvals.vote(pending.id, session_of(GRACE), "approve", "0" * 32, None)
    with pytest.raises(ApprovalRejectedError, match="digest"):
        await desk.approvals.vote(pending.id, session_of(GRACE), "approve", None, None)


async def test_an_expired_request_cannot_be_approved(desk: Desk) -> None:
    pending = await desk.ask(replace(TERMS, expires=timedelta(0)))
    with pytest.raises(ApprovalRejectedError, match="already expired"):
        await desk.vote(pending, GRACE)


async def test_the_requester_or_its_human_withdraws_and_nobody_else(desk: Desk) -> None:
    pending = await desk.ask()
    with pytest.raises(ApprovalRejectedError, match="only the requester"):
        await desk.approvals.withdraw(pending.id, session_of(GRACE))
    with pytest.raises(ApprovalRejectedError, match="only the requester"):
        await desk.approvals.withdraw(pending.id, session_of(replace(DEVIN, on_behalf_of="hans")))
    assert (await desk.approvals.withdraw(pending.id, session_of(ADA))).state is State.CANCELLED


async def test_agents_see_their_own_requests_only(desk: Desk) -> None:
    await desk.ask()
    other = session_of(person("cursor", "ai-agents", kind=PrincipalKind.AGENT))
    assert await desk.approvals.list(other) == []
    assert await desk.approvals.list(session_of(replace(DEVIN, on_behalf_of="hans"))) == []
    assert len(await desk.approvals.list(session_of(DEVIN))) == 1
    assert len(await desk.approvals.list(session_of(GRACE))) == 1


async def test_waiting_ends_with_the_vote(desk: Desk) -> None:
    pending = await desk.ask()
    waiting = asyncio.create_task(desk.approvals.wait(pending.id, 20))
    await desk.vote(pending, GRACE)
    assert (await waiting).state is State.APPROVED


GLASS = replace(TERMS, quorum=2, break_glass=frozenset({"on-call"}))
SAM = person("sam", "on-call")


async def test_in_an_emergency_one_person_of_the_rules_choice_decides_alone_and_loudly(desk: Desk) -> None:
    pending = await desk.ask(GLASS)
    vote = desk.approvals.vote
    with pytest.raises(ApprovalRejectedError, match="needs a comment"):
        await vote(pending.id, session_of(SAM), "break_glass", pending.digest, None)
    with pytest.raises(ApprovalRejectedError, match="digest"):
        await vote(pending.id, session_of(SAM), "break_glass", "0" * 32, "the shop is down")
    record = await vote(pending.id, session_of(SAM), "break_glass", pending.digest, "the shop is down")
    assert record.state is State.APPROVED
    [(subject, body)] = desk.entries("approval.broken_glass")
    assert subject == "sam"
    assert "the shop is down" in body
    report = verify(desk.path)
    assert report.ok, report.problem


async def broken(desk: Desk) -> Pending:
    pending = await desk.ask(GLASS)
    await desk.vote(pending, SAM, BREAK_GLASS, comment="the shop is down")
    return pending


async def test_a_broken_glass_waits_for_a_review_by_an_approver_who_had_no_part_in_it(desk: Desk) -> None:
    pending, reviews = await broken(desk), desk.approvals.reviews
    assert [record.id for record in reviews.open_ones()] == [pending.id]
    assert await desk.approvals.list() != []
    assert await desk.approvals.open_requests(SAM) == 0
    record = await desk.approvals.get(pending.id)
    refused = [
        (person("sam", "on-call", "dba"), "looked at it", "broke themselves"),
        (ADA, "looked at it", "on behalf of `ada`"),
        (person("olga", "developers"), "looked at it", "not among the approvers"),
        (person("bot", "dba", kind=PrincipalKind.AGENT), "looked at it", "agents cannot vote"),
        (GRACE, "", "needs a comment"),
    ]
    for who, comment, sentence in refused:
        with pytest.raises(ApprovalRejectedError, match=sentence):
            await reviews.close(record, session_of(who), comment)
    assert reviews.said(record) == "open"
    await reviews.close(record, session_of(GRACE), "it was down indeed")
    assert reviews.said(record) == "grace: it was down indeed"
    assert list(reviews.open_ones()) == []
    with pytest.raises(ApprovalRejectedError, match="is reviewed: grace"):
        await reviews.close(record, session_of(HANS), "again")
    [(subject, body)] = desk.entries("approval.reviewed")
    assert subject == "grace"
    assert "it was down indeed" in body
    report = verify(desk.path)
    assert report.ok, report.problem


async def test_who_had_said_yes_before_the_glass_was_broken_does_not_review_it(desk: Desk) -> None:
    pending = await desk.ask(replace(GLASS, quorum=2))
    await desk.vote(pending, GRACE)
    record = await desk.vote(pending, SAM, BREAK_GLASS, comment="the shop is down")
    with pytest.raises(ApprovalRejectedError, match="have voted on"):
        await desk.approvals.reviews.close(record, session_of(GRACE), "fine")
    await desk.approvals.reviews.close(record, session_of(HANS), "it was down")


async def test_nobody_gets_rid_of_a_review_by_the_ways_of_an_approval(desk: Desk) -> None:
    pending = await broken(desk)
    for way in (desk.approvals.withdraw(f"rev-{pending.id}", session_of(SAM)), desk.approvals.get(f"rev-{pending.id}")):
        with pytest.raises(ApprovalRejectedError, match="there is no approval"):
            await way
    assert len(desk.approvals.reviews.open_ones()) == 1


async def test_an_open_review_is_announced_again_once_by_all_processes_together(desk: Desk) -> None:
    now = datetime.now(UTC)
    with contextlib.closing(Reader.open(desk.path)) as reader:
        earlier = Approvals(desk.recorder, reader, clock=lambda: now - timedelta(hours=2))
        pending = await replace(desk, approvals=earlier).ask(GLASS)
        await earlier.vote(pending.id, session_of(SAM), BREAK_GLASS, pending.digest, "the shop is down")
        reviews, others = desk.approvals.reviews, Approvals(desk.recorder, reader).reviews
        assert await reviews.remind(timedelta(hours=3)) == 0  # it is not so old
        assert await reviews.remind(timedelta(hours=1)) == 1
        assert await others.remind(timedelta(hours=1)) == 0
    [(_, body)] = desk.entries("approval.review_due")
    assert "the shop is down" in body


FRESH = replace(TERMS, fresh=timedelta(minutes=5), acr=frozenset({"mfa"}))


@pytest.mark.parametrize(
    ("minutes", "acr", "sentence"),
    [
        (None, "mfa", "does not say when you logged in"),
        (6, "mfa", "a login of the last 5 min, and yours is 6 min old"),
        (4, "pwd", "stronger login than yours .its class is `pwd`"),
        (4, None, "its class is `not said`"),
    ],
)
async def test_a_yes_needs_a_login_as_fresh_and_strong_as_the_rule_says(
    desk: Desk, minutes: int | None, acr: str | None, sentence: str
) -> None:
    pending = await desk.ask(FRESH)
    then = None if minutes is None else datetime.now(UTC) - timedelta(minutes=minutes)
    with pytest.raises(ApprovalRejectedError, match=sentence) as refused:
        await desk.vote(pending, GRACE, login=Login(then, acr))
    assert "Log in at `https://issuer.example` again (max_age=300, acr_values=mfa)" in str(refused.value)
    assert (await desk.approvals.get(pending.id)).state is State.REQUESTED


async def test_a_fresh_login_counts_and_the_audit_has_it_and_a_no_needs_none(desk: Desk) -> None:
    now = datetime.now(UTC)
    assert (await desk.vote(await desk.ask(FRESH), GRACE, login=Login(now, "mfa"))).state is State.APPROVED
    [(_, body)] = desk.entries("approval.voted")
    assert now.isoformat() in body
    assert (await desk.vote(await desk.ask(FRESH), GRACE, "reject")).state is State.DENIED
    glass = replace(GLASS, fresh=timedelta(minutes=5))
    with pytest.raises(ApprovalRejectedError, match="login of the last 5 min"):
        await desk.vote(await desk.ask(glass), SAM, BREAK_GLASS, comment="the shop is down")


ELSEWHERE = Principal("grace", "https://other.example", PrincipalKind.HUMAN)


async def test_a_named_approver_is_a_subject_of_one_issuer(desk: Desk) -> None:
    plain = replace(TERMS, groups=frozenset(), users=frozenset({Approver("grace")}))
    there = replace(plain, users=frozenset({Approver("grace", "https://other.example")}))
    for terms, who, other in ((plain, person("grace"), ELSEWHERE), (there, ELSEWHERE, person("grace"))):
        pending = await desk.ask(terms)
        with pytest.raises(ApprovalRejectedError, match="not among the approvers"):
            await desk.vote(pending, other)
        assert (await desk.vote(pending, who)).state is State.APPROVED
    glass = replace(GLASS, break_glass=frozenset(), break_glass_users=frozenset({Approver("sam")}))
    stranger = replace(SAM, issuer="https://other.example")
    pending = await desk.ask(glass)
    with pytest.raises(ApprovalRejectedError, match="no rule lets `sam`"):
        await desk.vote(pending, stranger, BREAK_GLASS, comment="x")
    assert (await desk.vote(pending, SAM, BREAK_GLASS, comment="x")).state is State.APPROVED


@pytest.mark.parametrize(
    ("terms", "who", "sentence"),
    [
        ((TERMS,), SAM, "no rule lets `sam` break the glass"),
        ((GLASS, TERMS), SAM, "no rule lets `sam` break the glass"),  # every rule must
        ((GLASS,), GRACE, "no rule lets `grace` break the glass"),
        ((GLASS,), person("bot", "on-call", kind=PrincipalKind.AGENT, of="sam"), "agents cannot vote"),
    ],
)
async def test_the_glass_is_not_broken_without_a_permission_of_every_rule_nor_by_an_agent(
    desk: Desk, terms: tuple[ApprovalTerms, ...], who: Principal, sentence: str
) -> None:
    pending = await desk.ask(*terms)
    with pytest.raises(ApprovalRejectedError, match=sentence):
        await desk.approvals.vote(pending.id, session_of(who), "break_glass", pending.digest, "now")
    assert (await desk.approvals.get(pending.id)).state is State.REQUESTED


async def test_a_rejection_stands_against_a_broken_glass(desk: Desk) -> None:
    pending = await desk.ask(GLASS)
    await desk.vote(pending, GRACE, "reject")
    with pytest.raises(ApprovalRejectedError, match="already denied"):
        await desk.approvals.vote(pending.id, session_of(SAM), "break_glass", pending.digest, "now")


DIFFERENCES = [
    ({"text": b"DELETE FROM tickets -- all"}, "text"),
    ({"parameters": (b"1",)}, "parameters"),
    ({"session": session_of(replace(DEVIN, subject="claude"))}, "another principal"),
]


@pytest.mark.parametrize(("change", "sentence"), DIFFERENCES, ids=lambda v: v if isinstance(v, str) else None)
async def test_a_different_statement_voids_the_approval(desk: Desk, change: dict[str, object], sentence: str) -> None:
    pending = await desk.ask()
    record = await desk.vote(pending, GRACE)
    statement = replace(Statement(session_of(DEVIN), SQL), **change)  # type: ignore[arg-type]  # a table of fields
    with pytest.raises(ApprovalRejectedError, match=sentence):
        await desk.approvals.check_binding(record, statement, decision_of(TERMS), CATALOG)
    assert (await desk.approvals.get(pending.id)).state is State.VOID


async def test_no_entry_lets_anybody_try_out_what_the_parameters_were(desk: Desk) -> None:
    records = [await desk.approvals.get((await desk.ask()).id) for _ in range(2)]
    assert len({record.digest for record in records}) == 2
    nonces = {record.binding["nonce"] for record in records}
    assert len(nonces) == 2
    told = repr(desk.entries("approval.requested"))
    assert all(record.digest in told for record in records)
    assert not any(nonce in told for nonce in nonces)


async def test_a_changed_search_path_schema_or_policy_voids_the_approval(desk: Desk) -> None:
    moved = session_of(DEVIN)
    moved.search_path = ("pg_catalog", "evil", "public")
    wider = replace(TICKETS, columns=(*TICKETS.columns, Column(2, "body", "text", 25)))
    altered = Catalog("epoch-2", 180000, {7: wider}, {}, frozenset({"public"}))
    cases = [
        (moved, decision_of(TERMS), CATALOG, "search path"),
        (session_of(DEVIN), decision_of(TERMS), altered, "definition of a touched relation"),
        (session_of(DEVIN), decision_of(TERMS, policy="policy-2"), CATALOG, "policy has changed"),
    ]
    calling = decision_of(TERMS)
    assert calling.analysis is not None
    called = Demand(Action.CALL, ObjectName(ObjectKind.FUNCTION, "public", "f"), 90)
    other = calling._replace(analysis=calling.analysis._replace(demands=(*calling.analysis.demands, called)))
    function = Function(90, "public", "f", "f", Volatility.VOLATILE, "sql")
    made = replace(CATALOG, functions={("public", "f"): (function,)})
    cases.append((session_of(DEVIN), other, made, "another object"))
    for session, decision, catalog, sentence in cases:
        record = await desk.vote(await desk.ask(), GRACE)
        with pytest.raises(ApprovalRejectedError, match=sentence):
            await desk.approvals.check_binding(record, Statement(session, SQL), decision, catalog)


async def test_a_rule_that_wants_others_by_now_voids_the_approval(desk: Desk) -> None:
    # By the hour, the client's address or the number of rows: the policy is the same.
    security = replace(TERMS, groups=frozenset({"security"}), rule="at-night (policy.yaml:20)")
    for asked, now in (((TERMS,), (TERMS, security)), ((TERMS,), (security,))):
        record = await desk.vote(await desk.ask(*asked), GRACE)
        with pytest.raises(ApprovalRejectedError, match=r"`at-night .* wants people now who were not asked"):
            await desk.approvals.check_binding(record, Statement(session_of(DEVIN), SQL), decision_of(*now), CATALOG)
        assert (await desk.approvals.get(record.id)).state is State.VOID
    # Fewer than were asked are enough.
    pending = await desk.ask(TERMS, security)
    await desk.vote(pending, GRACE)
    record = await desk.vote(pending, HANS)
    await desk.approvals.check_binding(record, Statement(session_of(DEVIN), SQL), decision_of(TERMS), CATALOG)


async def test_an_approval_is_used_once_though_many_try_and_the_chain_says_so(desk: Desk) -> None:
    pending = await desk.ask()
    record = await desk.vote(pending, GRACE)

    async def use(number: int) -> bool:
        intent = Draft(Kind.INTENT, None, "devin", "shop", {}, f"st-use-{number}")
        try:
            await desk.recorder.record(
                desk.approvals.consume_item(record, session_of(DEVIN), f"st-use-{number}"), intent
            )
        except Conflict:
            return False
        return True

    assert sorted(await asyncio.gather(*(use(n) for n in range(10)))) == [False] * 9 + [True]
    report = verify(desk.path)
    assert report.ok, report.problem
    assert report.open_statements == 1


@pytest.mark.parametrize("voted", [False, True], ids=["requested", "approved"])
async def test_what_waited_on_a_connection_of_a_process_that_died_is_over_at_the_next_start(
    desk: Desk, voted: bool
) -> None:
    instance = Instance.start(desk.path)
    session = replace(session_of(DEVIN), door=Door.WIRE)
    opened = {"session": session.id, "instance": instance.id}
    await desk.recorder.record(Draft(Kind.SESSION_OPENED, session.id, "devin", "shop", opened))
    waits, stays = [], await desk.ask(who=person("cursor", kind=PrincipalKind.AGENT))  # at the MCP door
    for _ in range(2):
        item, pending = desk.approvals.request_item(Statement(session, SQL), decision_of(TERMS), CATALOG, "st-1", {})
        await desk.recorder.record(item)
        waits.append(pending)
    if voted:
        await desk.vote(waits[0], GRACE)
    for alive in (True, False):
        if not alive:
            instance.stop()  # its lock is gone, and it has not closed its session
        with contextlib.closing(Store.open(desk.path)) as beside:
            close_dangling(beside)
        states = [(await desk.approvals.get(pending.id)).state for pending in (*waits, stays)]
        first = State.APPROVED if voted else State.REQUESTED
        ended = State.VOID if voted else State.CANCELLED
        expected = [first, State.REQUESTED] if alive else [ended, State.CANCELLED]
        assert states == [*expected, State.REQUESTED]
    report = verify(desk.path)
    assert report.ok, report.problem


OTHERS = [
    person("devin", "ai-agents", kind=PrincipalKind.AGENT, of="grace"),
    person("devin", "ai-agents", "on-call", kind=PrincipalKind.AGENT, of="ada"),
    person("devin", "ai-agents"),
]


@pytest.mark.parametrize("other", OTHERS, ids=["for another human", "in another group", "as a human"])
async def test_a_yes_to_one_principal_is_none_to_the_same_name_in_another_role(desk: Desk, other: Principal) -> None:
    pending = await desk.ask()
    record = await desk.vote(pending, GRACE)
    with pytest.raises(ApprovalRejectedError, match="another principal"):
        await desk.approvals.check_binding(record, Statement(session_of(other), SQL), decision_of(TERMS), CATALOG)
    assert (await desk.approvals.get(pending.id)).state is State.VOID


async def test_an_agent_of_nobody_withdraws_no_request_of_another(desk: Desk) -> None:
    pending = await desk.ask(who=person("devin", kind=PrincipalKind.AGENT))
    with pytest.raises(ApprovalRejectedError, match="only the requester"):
        await desk.approvals.withdraw(pending.id, session_of(person("claude", kind=PrincipalKind.AGENT)))


async def test_requests_that_wait_are_counted_for_each_principal(desk: Desk) -> None:
    pending = await desk.ask()
    await desk.ask()
    await desk.ask(who=GRACE)
    await desk.vote(pending, GRACE, "reject")
    assert await desk.approvals.open_requests(DEVIN) == 1


async def test_who_has_asked_too_much_asks_nobody_further(desk: Desk) -> None:
    asking, statement = Asking(desk.approvals), Statement(session_of(DEVIN), SQL)
    for _ in range(20):
        await desk.ask()
    asking.begun(DEVIN)
    refused = await asking.unfit(statement, decision_of(TERMS))
    assert refused is not None
    assert refused.verdict.reasons[0].text == "you have 20 requests for approval open"
    asking.over(DEVIN)
    assert await asking.unfit(statement, decision_of(TERMS)) is None
