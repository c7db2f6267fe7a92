"""The entries around a statement, as the audit keeps them: who, what, by which rules, and what came of it.

Here too: what an error says of the statement that it interrupted, and a decision turned into a deny.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from audit.entry import Draft, Kind
from audit.writer import Item
from gateway import explain
from gateway.approvals import Pending
from gateway.errors import CountersignError, RefusedError, UpstreamUnavailableError
from gateway.model import Outcome, Session, Statement, Status, principal_body
from gateway.parameters import concealed, concealed_digest, recorded_parameters, without_data, without_values
from gateway.upstream import UpstreamError, UpstreamLostError
from policy.model import Decision, Effect, Reason, Verdict

if TYPE_CHECKING:
    from gateway.admission import Grant


@dataclass(frozen=True, slots=True)
class Author:
    """The process that writes the entries, and the key of the digests in them."""

    instance: str
    key: bytes = field(repr=False)

    def parameters(self, statement: Statement, decision: Decision) -> dict[str, object]:
        """A statement's parameters as they are recorded."""
        if decision.conceals:
            principal = statement.session.principal
            whose = json.dumps([principal.issuer, principal.subject])
            return {"parameters": [concealed(value, self.key, whose) for value in statement.parameters]}
        return recorded_parameters(statement.parameters)


def intent_of(
    author: Author,
    statement_id: str,
    statement: Statement,
    decision: Decision,
    *,
    approval: str | None = None,
    rehearsal: bool = False,
) -> Draft:
    """What is durable before anything runs. `rehearsal`: it will be rolled back, whatever it does."""
    session, analysis, rewrite = statement.session, decision.analysis, decision.verdict.rewrite
    body: dict[str, object] = {
        "door": session.door.value,
        "text": statement.text.decode("utf-8", "replace"),
        "sha256": hashlib.sha256(statement.text).hexdigest(),
        **author.parameters(statement, decision),
        "principal": principal_body(session.principal),
        "client": {
            "name": session.client.name,
            "version": session.client.version,
            "address": session.client.address,
        },
        "request": dict(statement.request),
        "verdict": {
            "effect": str(decision.verdict.effect),
            "rules": explain.rules(decision),
            "reasons": [r.text for r in explain.deciding_reasons(decision)],
        },
        "demands": [str(d) for d in analysis.demands] if analysis else [],
        "policy": decision.policy,
        "catalog": decision.catalog,
        "search_path": list(session.search_path),
        "instance": author.instance,
    }
    if rewrite is not None and rewrite.splices:
        body["rewritten"] = rewrite.shown
    if approval is not None:
        body["approval"] = approval
    if rehearsal:
        body["rehearsal"] = True
    return draft(Kind.INTENT, session, statement_id, **body)


def outcome_entry(author: Author, grant: Grant, outcome: Outcome) -> Item:
    """What came of a granted statement, with the recording of what its client was sent."""
    message = outcome.message
    if message is not None and outcome.sqlstate is not None:
        # Who reads the audit is not who may read the rows.
        hidden = grant.decision.conceals
        said = [grant.statement.text, *(() if hidden else filter(None, grant.parameters))]
        message = without_values(message, grant.parameters) if hidden else message
        message = without_data(message, outcome.sqlstate, [one.decode("utf-8", "replace") for one in said])
    entry = draft(
        Kind.OUTCOME,
        grant.statement.session,
        grant.id,
        status=outcome.status.value,
        tag=outcome.tag,
        rows=outcome.rows,
        size=outcome.size,
        duration_ms=grant.duration_ms,
        sqlstate=outcome.sqlstate,
        message=message,
        masked=[str(m) for m in grant.rewrite.masked],
        filtered=list(grant.rewrite.filtered),
        detected=[{"column": one.column, "kind": one.kind.value, "count": one.count} for one in outcome.detected],
        digest=concealed_digest(outcome.digest, author.key, grant.id) if outcome.digest is not None else None,
        instance=author.instance,
    )
    return Item(entry, grant.transcript.finish())


def pending_entry(author: Author, statement_id: str, session: Session, pending: Pending) -> Draft:
    """A statement waits for people; its run will be a statement of its own."""
    return draft(
        Kind.OUTCOME,
        session,
        statement_id,
        status=Status.PENDING.value,
        message=f"waits for {pending.id}: {pending.why}",
        instance=author.instance,
    )


def refusal_entries(
    author: Author, statements: Sequence[Statement], decisions: Sequence[Decision]
) -> tuple[list[Draft], RefusedError]:
    """Intents and refusals of a batch of which at least one is denied, and the error of the first that is."""
    drafts: list[Draft] = []
    first: tuple[Decision, str] | None = None
    for statement, decision in zip(statements, decisions, strict=True):
        statement_id = new_statement_id()
        denied = decision.verdict.effect is Effect.DENY
        if denied and first is None:
            first = (decision, statement_id)
        body = {
            "status": (Status.REFUSED if denied else Status.SKIPPED).value,
            "message": "; ".join(r.text for r in explain.deciding_reasons(decision)) if denied else None,
            "sqlstate": RefusedError.sqlstate if denied else None,
            "instance": author.instance,
        }
        drafts.append(intent_of(author, statement_id, statement, decision))
        drafts.append(draft(Kind.OUTCOME, statement.session, statement_id, **body))
    assert first is not None, "a batch is refused for a statement that is denied"
    return drafts, RefusedError(*first)


def draft(kind: Kind, session: Session, statement: str, /, **body: object) -> Draft:
    """An entry about one of a session's statements."""
    return Draft(
        kind=kind,
        session=session.id,
        subject=session.principal.subject,
        connection=session.connection.name,
        body=body,
        statement=statement,
    )


def denial(decision: Decision, code: str, text: str, cure: str) -> Decision:
    """The same decision turned into a deny by a door or by the path itself."""
    reason = Reason(Effect.DENY, code, text, cure=cure)
    return decision._replace(verdict=Verdict(Effect.DENY, (reason,)), counts=False)


def outcome_of(error: BaseException) -> Outcome:
    """What an error says came of the statement that it interrupted."""
    match error:
        case UpstreamError():
            status = Status.CANCELLED if error.sqlstate == "57014" else Status.FAILED
            return Outcome(status, sqlstate=error.sqlstate, message=error.fields.get("M"))
        case UpstreamLostError() | UpstreamUnavailableError():
            return Outcome(Status.UNKNOWN, sqlstate="08006", message=str(error))
        case asyncio.CancelledError() | GeneratorExit():
            return Outcome(Status.CANCELLED, sqlstate="57014", message="the client went away or cancelled")
        case CountersignError():
            return Outcome(Status.FAILED, sqlstate=error.sqlstate, message=error.text)
    return Outcome(Status.UNKNOWN, sqlstate="XX000", message=f"internal error: {type(error).__name__}")


def new_statement_id() -> str:
    """A name for one statement in the audit: the 4 ms that it is made in, and 80 random bits.

    What is made later sorts later, so that the audit's index grows at its end.
    """
    return f"st-{time.time_ns() >> 22:010x}{secrets.token_hex(10)}"
