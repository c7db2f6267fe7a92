"""Approvals under everything at once: several processes on one file, votes that cross, time, changes and crashes.

Whatever the order, a statement is executed at most once, never after a difference, and never with too few
humans or against one who said no. The gateways and stores are real; only PostgreSQL is a counter here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from audit.approvals import Reader
from audit.instances import Instance, close_dangling
from audit.store import Store
from audit.verify import verify
from audit.writer import Writer
from gateway.admission import Gateway
from gateway.approvals import Approvals
from gateway.connections import Connections
from gateway.errors import ApprovalPendingError, ApprovalRejectedError, AuditUnavailableError
from gateway.model import ClientInfo, Connection, Door, Outcome, Session, Statement, Status
from gateway.policies import PolicyBook
from gateway.recorder import Recorder
from gateway.sessions import Sessions
from policy.catalog import Catalog, Column
from policy.model import Principal, PrincipalKind
from tests.policy.sample import CATALOG
from wire.upstream import Factory

ISSUER = "https://issuer.example"
SHOP = Connection("shop", "127.0.0.1", 1, "shop", "gateway", "secret")


def _person(subject: str, *groups: str, agent_of: str | None = None) -> Principal:
    kind = PrincipalKind.AGENT if agent_of else PrincipalKind.HUMAN
    return Principal(subject, ISSUER, kind, frozenset(groups), on_behalf_of=agent_of)


PEOPLE = {
    one.subject: one
    for one in (
        _person("devin", "ai-agents", agent_of="ada"),
        _person("ada", "dba"),  # the human whom the agent works for
        _person("grace", "dba"),
        _person("hans", "dba", "security"),
        _person("ivy", "security"),
        _person("bot", "dba", agent_of="grace"),
        _person("olga", "developers"),
    )
}
MAY_VOTE = {"grace", "hans", "ivy"}
QUORUMS = {"DELETE FROM tickets": 2, "UPDATE tickets SET status = 'closed'": 1}
POLICY = """\
rules:
  - {{name: two, effect: approve, who: {{groups: [ai-agents]}}, actions: [delete], relations: [public.tickets],
     approvers: {{groups: [dba, security]}}, quorum: 2, expires: 30m}}
  - {{name: one, effect: approve, who: {{groups: [ai-agents]}}, actions: [update], relations: [public.tickets],
     approvers: {{groups: [dba, security]}}, quorum: 1, expires: 30m}}
  - {{name: "other-{number}", effect: allow, who: {{groups: [nobody]}}, actions: [select], relations: [public.orders]}}
"""
PROCESSES = range(3)


def _altered(catalog: Catalog) -> Catalog:
    [tickets] = [r for r in catalog.relations.values() if (r.schema, r.name) == ("public", "tickets")]
    wider = replace(tickets, columns=(*tickets.columns, Column(99, "added", "text", 25)))
    return replace(catalog, epoch="altered", relations={**catalog.relations, tickets.oid: wider})


ALTERED = _altered(CATALOG)
DIFFERENCES = ("none", "none", "search path", "schema")


def session_of(subject: str, difference: str = "none") -> Session:
    now = datetime.now(UTC)
    path = ("pg_catalog", "elsewhere", "public") if difference == "search path" else ("pg_catalog", "public")
    return Session(
        f"se-{subject}", PEOPLE[subject], SHOP, Door.MCP, ClientInfo(), now, now + timedelta(hours=8),
        search_path=path, stale=False, catalog=ALTERED if difference == "schema" else CATALOG,
    )  # fmt: skip


class Killed(Exception):  # noqa: N818 - not an error: the end of a process
    """The process is gone in the middle of a statement."""


@dataclass
class Process:
    """One gateway process on the file."""

    store: Store
    instance: Instance
    writer: Writer
    reader: Reader
    gateway: Gateway

    @classmethod
    def start(cls, audit: Path, policy: Path, machine: ApprovalsMachine) -> Process:
        store = Store.open(audit)
        instance = Instance.start(audit)
        close_dangling(store)
        writer = Writer(store)
        recorder, reader = Recorder(writer), Reader.open(audit)
        gateway = Gateway(
            recorder=recorder,
            approvals=Approvals(recorder, reader, clock=lambda: machine.now),
            policies=PolicyBook(policy, recorder),
            connections=Connections([SHOP], Factory()),
            sessions=Sessions(recorder, longest=timedelta(hours=1), instance=instance.id),
            instance=instance.id,
        )
        return cls(store, instance, writer, reader, gateway)

    def die(self) -> None:
        """As kill -9: nothing more is written, and the kernel drops the lock."""
        self.store.close()
        self.writer.close()
        self.reader.close()
        os.close(self.instance._descriptor)

    def stop(self) -> None:
        self.writer.close()
        self.reader.close()
        self.instance.stop()
        self.store.close()


@dataclass
class Asked:
    """What the test knows of one approval."""

    id: str
    digest: str
    quorum: int
    expires: datetime
    policy: int
    yes: set[str] = field(default_factory=set)
    no: set[str] = field(default_factory=set)
    over: bool = False  # withdrawn, void or seen expired
    executions: int = 0

    def permits(self, now: datetime, policy: int) -> bool:
        enough = len(self.yes) >= self.quorum and not self.no
        return enough and not self.over and self.executions == 0 and now < self.expires and policy == self.policy


ANYWHERE = st.sampled_from(PROCESSES)
CHOICES = st.sampled_from(["approve"] * 3 + ["reject"])
VOTERS = st.sampled_from([*sorted(MAY_VOTE) * 4, *sorted(PEOPLE)])
VOTES = st.lists(st.tuples(ANYWHERE, VOTERS, CHOICES), max_size=4)
USERS = st.sampled_from(["devin"] * 4 + ["grace"])
USES = st.lists(st.tuples(ANYWHERE, USERS, st.sampled_from(DIFFERENCES)), max_size=3)
WITHDRAWALS = st.lists(st.tuples(ANYWHERE, st.sampled_from(["devin", "grace"])), max_size=1)


class ApprovalsMachine(RuleBasedStateMachine):
    """Three processes, seven people, one agent's requests."""

    approvals = Bundle("approvals")

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 11, 24, 9, tzinfo=UTC)
        self.policy = 0
        self.asked: list[Asked] = []
        self.violations: list[str] = []
        self._cleanup = contextlib.ExitStack()
        self._runner = self._cleanup.enter_context(asyncio.Runner())
        folder = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory()))
        self.audit, self.policy_path = folder / "audit.db", folder / "policy.yaml"

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(coroutine)

    @initialize()
    def start(self) -> None:
        self.policy_path.write_text(POLICY.format(number=0))

        async def all_of_them() -> list[Process]:
            return [Process.start(self.audit, self.policy_path, self) for _ in PROCESSES]

        self.processes: list[Process] = self.run(all_of_them())

    @precondition(lambda self: len(self.asked) < 3)  # few, so that much happens to each
    @rule(target=approvals, where=ANYWHERE, sql=st.sampled_from(sorted(QUORUMS)))
    def ask(self, where: int, sql: str) -> Asked:
        async def begin() -> Asked:
            gateway, statement = self.processes[where].gateway, Statement(session_of("devin"), sql.encode())
            decision = await gateway.decide(statement.session, statement.text)
            try:
                await gateway.begin([statement], [decision])
            except ApprovalPendingError as error:
                pending = error.pending
                return Asked(pending.id, pending.digest, QUORUMS[sql], pending.expires, self.policy)
            raise AssertionError("it needs approval")

        asked: Asked = self.run(begin())
        self.asked.append(asked)
        return asked

    @rule(asked=approvals, votes=VOTES, uses=USES, withdrawals=WITHDRAWALS, order=st.randoms(use_true_random=False))
    def at_once(
        self,
        asked: Asked,
        votes: list[tuple[int, str, str]],
        uses: list[tuple[int, str, str]],
        withdrawals: list[tuple[int, str]],
        order: Any,
    ) -> None:
        work = [partial(self._vote, asked, *one) for one in votes]
        work += [partial(self._use, asked, *one) for one in uses]
        work += [partial(self._withdraw, asked, *one) for one in withdrawals]
        order.shuffle(work)  # before there is a coroutine: the shuffle may end the example

        async def together() -> None:
            await asyncio.gather(*(begin() for begin in work))

        self.run(together())

    @rule(asked=approvals, where=ANYWHERE)
    def it_is_used(self, asked: Asked, where: int) -> None:
        self.use_what_is_permitted(asked, where)

    def use_what_is_permitted(self, asked: Asked, where: int) -> None:
        expected = asked.executions + asked.permits(self.now, self.policy)
        self.run(self._use(asked, where, "devin", "none"))
        assert asked.executions == expected

    @rule(asked=approvals, who=st.sampled_from(sorted(PEOPLE.keys() - MAY_VOTE)))
    def others_try_to_vote(self, asked: Asked, who: str) -> None:
        self.run(self._vote(asked, 0, who, "approve"))

    @rule(asked=approvals, where=ANYWHERE)
    def die_while_it_runs(self, asked: Asked, where: int) -> None:
        async def die_and_return() -> None:
            await self._use(asked, where, "devin", "none", dies=True)
            if self.processes[where] is None:
                self.processes[where] = Process.start(self.audit, self.policy_path, self)

        self.run(die_and_return())

    @rule(asked=approvals, voter=st.sampled_from(sorted(MAY_VOTE)), digest=st.just("0" * 32))
    def approve_something_else(self, asked: Asked, voter: str, digest: str) -> None:
        self.run(self._vote(asked, 0, voter, "approve", digest))
        assert voter not in asked.yes or asked.yes  # a vote that stood before stands

    @rule(minutes=st.sampled_from([1, 10, 31]))
    def time_passes(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @rule(asked=approvals, where=ANYWHERE, minutes=st.sampled_from([0, 0, 29, 31]), said_no=st.booleans())
    def people_agree_and_it_is_used_later(self, asked: Asked, where: int, minutes: int, said_no: bool) -> None:
        async def agree() -> None:
            no = [self._vote(asked, where, "ivy", "reject")] if said_no else []
            await asyncio.gather(
                *(self._vote(asked, n, who, "approve") for n, who in enumerate(("grace", "hans"))), *no
            )

        self.run(agree())
        self.now += timedelta(minutes=minutes)
        self.use_what_is_permitted(asked, where)

    @precondition(lambda self: self.policy < 3)
    @rule()
    def the_policy_changes(self) -> None:
        self.policy += 1
        self.policy_path.write_text(POLICY.format(number=self.policy))

        async def reload() -> None:
            for process in self.processes:
                await process.gateway.policies.reload()

        self.run(reload())

    @invariant()
    def nothing_ran_that_should_not(self) -> None:
        assert not self.violations
        for asked in self.asked:
            assert asked.executions <= 1
            if asked.executions:
                assert len(asked.yes) >= asked.quorum
                assert not asked.no

    def teardown(self) -> None:
        with self._cleanup:
            if not hasattr(self, "processes"):
                return
            for process in self.processes:
                process.stop()
            with contextlib.closing(Store.open(self.audit)) as store:
                close_dangling(store)
            report = verify(self.audit)
            assert report.ok, report.problem
            assert report.open_statements == 0

    # -- what people and processes do -----------------------------------------------------------------

    async def _vote(self, asked: Asked, where: int, who: str, choice: str, digest: str | None = None) -> None:
        approvals = self.processes[where].gateway.approvals
        with contextlib.suppress(ApprovalRejectedError):
            await approvals.vote(asked.id, session_of(who), choice, digest or asked.digest, None)
            if who not in MAY_VOTE or (digest is not None and choice == "approve"):
                self.violations.append(f"the vote of {who} was taken")
            (asked.yes if choice == "approve" else asked.no).add(who)

    async def _withdraw(self, asked: Asked, where: int, who: str) -> None:
        with contextlib.suppress(ApprovalRejectedError):
            record = await self.processes[where].gateway.approvals.withdraw(asked.id, session_of(who))
            if who != "devin":
                self.violations.append(f"{who} withdrew what the agent asked for")
            asked.over = asked.over or record.state.value == "cancelled"

    async def _use(self, asked: Asked, where: int, who: str, difference: str, *, dies: bool = False) -> None:
        process = self.processes[where]
        try:
            async with process.gateway.admit_approved(asked.id, session_of(who, difference)) as grant:
                asked.executions += 1
                if difference != "none" or who != "devin" or self.policy != asked.policy or self.now >= asked.expires:
                    self.violations.append(f"{who} ran {asked.id} with {difference}, {self.policy}, {self.now}")
                if dies:
                    process.die()
                    self.processes[where] = None  # type: ignore[call-overload]  # until it is started again
                    raise Killed
                grant.finish(Outcome(Status.COMPLETED))
        except (Killed, AuditUnavailableError):
            assert dies
        except ApprovalRejectedError as error:
            asked.over = asked.over or "is void" in error.text


TestApprovals = ApprovalsMachine.TestCase
TestApprovals.settings = settings(
    max_examples=50, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
