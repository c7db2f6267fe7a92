"""Pure: whose word counts for which approval, and what the words together make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from audit.approvals import ApprovalRecord, State
from gateway.errors import ApprovalRejectedError
from policy.model import Principal, PrincipalKind

# One person's yes in an emergency, alone and on their own request too, where every rule allows it: loud in the audit.
BREAK_GLASS = "break_glass"


def is_requester(record: ApprovalRecord, principal: Principal) -> bool:
    """Whether this principal asked."""
    return (record.requester_issuer, record.requester_subject) == (principal.issuer, principal.subject)


def human_of(record: ApprovalRecord) -> tuple[str, str] | None:
    """The (issuer, subject) of the human who asked, or for whom the agent asked."""
    if record.principal.get("kind") == PrincipalKind.HUMAN.value:
        return (record.requester_issuer, record.requester_subject)
    human = record.principal.get("on_behalf_of")
    return (str(record.principal.get("human_issuer") or record.requester_issuer), str(human)) if human else None


def _qualifies(terms: Mapping[str, object], groups: Sequence[str], subject: str) -> bool:
    named_groups, named_users = terms.get("groups"), terms.get("users")
    in_group = isinstance(named_groups, list) and bool(set(groups) & set(named_groups))
    return in_group or (isinstance(named_users, list) and subject in named_users)


def humans_for(record: ApprovalRecord, terms: Mapping[str, object]) -> int:
    """Distinct verified humans whose yes counts for these terms. Never groups, never tokens."""
    yes = {
        (v.issuer, v.subject) for v in record.votes if v.choice == "approve" and _qualifies(terms, v.groups, v.subject)
    }
    if not terms.get("owner_may_approve"):
        yes.discard(human_of(record) or ("", ""))
    return len(yes)


def check_voter(record: ApprovalRecord, voter: Principal, choice: str) -> None:
    """Raise ApprovalRejectedError where this principal's word of this `choice` may not count."""
    if voter.kind is not PrincipalKind.HUMAN:
        raise ApprovalRejectedError(
            f"`{voter.subject}` is an agent, and agents cannot vote", cure="A person must vote with their own login."
        )
    if choice == BREAK_GLASS:
        if not _breaks_glass(record, sorted(voter.groups)):
            raise ApprovalRejectedError(
                f"no rule lets `{voter.subject}` break the glass for `{record.id}`",
                cure="Ask an approver. A rule's `break_glass` names the groups that may decide alone.",
            )
        return
    if is_requester(record, voter):
        raise ApprovalRejectedError("nobody votes on their own request", cure="Ask another approver.")
    if voter.human == human_of(record) and not all(t.get("owner_may_approve") for t in record.terms):
        raise ApprovalRejectedError(
            f"the agent asked on behalf of `{voter.subject}`, who therefore cannot vote", cure="Ask another approver."
        )
    if not any(_qualifies(terms, sorted(voter.groups), voter.subject) for terms in record.terms):
        groups = sorted({str(g) for t in record.terms for g in _as_list(t.get("groups"))})
        raise ApprovalRejectedError(
            f"`{voter.subject}` is not among the approvers of `{record.id}`",
            cure=f"The approvers are {', '.join(f'`{g}`' for g in groups) or 'named users'}.",
        )


def due(record: ApprovalRecord) -> State | None:
    """What the votes make of an open request. One rejection ends it, whatever the others say."""
    if any(v.choice == "reject" for v in record.votes):
        return State.DENIED
    if any(v.choice == BREAK_GLASS and _breaks_glass(record, v.groups) for v in record.votes):
        return State.APPROVED
    if record.terms and all(humans_for(record, terms) >= int(str(terms["quorum"])) for terms in record.terms):
        return State.APPROVED
    return None


def _breaks_glass(record: ApprovalRecord, groups: Sequence[str]) -> bool:
    """Whether every rule that wants people lets one of these groups decide alone."""
    return bool(record.terms) and all(set(groups) & set(_as_list(t.get("break_glass"))) for t in record.terms)


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
