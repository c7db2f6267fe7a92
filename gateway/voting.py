"""Pure: whose word counts for which approval, by which login, and what the words together make of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from audit.approvals import ApprovalRecord, State, Vote
from gateway.errors import ApprovalRejectedError
from policy.model import Approver, Principal, PrincipalKind, as_address

# One person's yes in an emergency, alone and on their own request too, where every rule allows it: loud in the audit.
BREAK_GLASS = "break_glass"
Terms = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Login:
    """When and how a voter logged in, where their issuer says so."""

    time: datetime | None = None
    acr: str | None = None


UNKNOWN = Login()


def is_requester(record: ApprovalRecord, principal: Principal) -> bool:
    """Whether somebody of this name asked, in whatever role."""
    return (record.requester_issuer, record.requester_subject) == (principal.issuer, principal.subject)


def may_be_requester(record: ApprovalRecord, principal: Principal) -> bool:
    """Whether it could be the same person, by another issuer's account with the same e-mail address."""
    address = record.principal.get("email")
    known = isinstance(address, str) and principal.email is not None
    return is_requester(record, principal) or (known and as_address(str(address)) == as_address(principal.email or ""))


def asked(record: ApprovalRecord, principal: Principal) -> bool:
    """Whether a request is this principal's own: an agent's are its own only while it works for the same human."""
    body = record.principal
    human = (body.get("on_behalf_of"), body.get("human_issuer"))
    return (
        is_requester(record, principal)
        and body.get("kind") == principal.kind.value
        and human == (principal.on_behalf_of, principal.human_issuer)
    )


def may_see(record: ApprovalRecord, principal: Principal) -> bool:
    """Whether somebody may read a request, its parameters and rows: who asked, for whom, and whose word may count.

    To all others it does not exist.
    """
    if asked(record, principal):
        return True
    if principal.kind is not PrincipalKind.HUMAN:
        return False
    voted = any((vote.issuer, vote.subject) == (principal.issuer, principal.subject) for vote in record.votes)
    approves = any(_approves(record, terms, principal) for terms in record.terms) or _breaks_glass(record, principal)
    return voted or approves or is_owner(record, principal)


def human_of(record: ApprovalRecord) -> tuple[str, str] | None:
    """The (issuer, subject) of the human who asked, or for whom the agent asked."""
    if record.principal.get("kind") == PrincipalKind.HUMAN.value:
        return (record.requester_issuer, record.requester_subject)
    human = record.principal.get("on_behalf_of")
    return (str(record.principal.get("human_issuer") or record.requester_issuer), str(human)) if human else None


def approvers_of(terms: Terms, key: str = "users") -> list[Approver]:
    """The persons that stored terms name."""
    return [
        Approver(str(user["subject"]), None if user["issuer"] is None else str(user["issuer"]))
        for user in _as_list(terms.get(key))
        if isinstance(user, dict)
    ]


def humans_for(record: ApprovalRecord, terms: Terms) -> int:
    """Distinct verified humans whose yes counts for these terms. Never groups, never tokens."""
    yes = {(v.issuer, v.subject) for v in record.votes if v.choice == "approve" and _approves(record, terms, v)}
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
        if not _breaks_glass(record, voter):
            raise ApprovalRejectedError(
                f"no rule lets `{voter.subject}` break the glass for `{record.id}`",
                cure="Ask an approver. A rule's `break_glass` names those who may decide alone.",
            )
        return
    if may_be_requester(record, voter):
        raise ApprovalRejectedError("nobody votes on their own request", cure="Ask another approver.")
    if is_owner(record, voter) and not all(t.get("owner_may_approve") for t in record.terms):
        raise ApprovalRejectedError(
            f"the agent asked on behalf of `{voter.subject}`, who therefore cannot vote", cure="Ask another approver."
        )
    if not any(_approves(record, terms, voter) for terms in record.terms):
        named = dict.fromkeys(str(one) for t in record.terms for one in (*_groups(t, "groups"), *approvers_of(t)))
        raise ApprovalRejectedError(
            f"`{voter.subject}` is not among the approvers of `{record.id}`",
            cure=f"The approvers are {', '.join(f'`{name}`' for name in named)}.",
        )


def is_owner(record: ApprovalRecord, voter: Principal) -> bool:
    """Whether the voter is the human for whom the request was made."""
    return voter.human is not None and voter.human == human_of(record)


def check_login(record: ApprovalRecord, voter: Principal, choice: str, login: Login, now: datetime) -> None:
    """Raise ApprovalRejectedError where a yes needs a login that is more recent, or of another class.

    It is asked for by every rule for which this yes counts.
    """
    concerned = [t for t in record.terms if choice == BREAK_GLASS or _approves(record, t, voter)]
    ages = [timedelta(seconds=float(str(t["fresh"]))) for t in concerned if t.get("fresh") is not None]
    classes = [set(map(str, _as_list(t.get("acr")))) for t in concerned if t.get("acr")]
    parameters = [f"max_age={int(min(ages).total_seconds())}"] if ages else []
    parameters += [f"acr_values={' '.join(sorted(set.intersection(*classes)))}"] if classes else []
    cure = f"Log in at `{voter.issuer}` again ({', '.join(parameters)}), and vote with the new token."
    if ages and login.time is None:
        raise ApprovalRejectedError(
            f"a yes to `{record.id}` needs a login of the last {_spoken(min(ages))}, and your token does not say "
            "when you logged in",
            cure=f"{cure} The issuer must put `auth_time` into access tokens.",
        )
    if ages and login.time is not None and now - login.time > min(ages):
        raise ApprovalRejectedError(
            f"a yes to `{record.id}` needs a login of the last {_spoken(min(ages))}, and yours is "
            f"{_spoken(now - login.time)} old",
            cure=cure,
        )
    if not all(login.acr in named for named in classes):
        raise ApprovalRejectedError(
            f"a yes to `{record.id}` needs a stronger login than yours (its class is `{login.acr or 'not said'}`)",
            cure=cure,
        )


def due(record: ApprovalRecord) -> State | None:
    """What the votes make of an open request. One rejection ends it, whatever the others say."""
    if any(v.choice == "reject" for v in record.votes):
        return State.DENIED
    if any(v.choice == BREAK_GLASS and _breaks_glass(record, v) for v in record.votes):
        return State.APPROVED
    if record.terms and all(humans_for(record, terms) >= int(str(terms["quorum"])) for terms in record.terms):
        return State.APPROVED
    return None


def _approves(record: ApprovalRecord, terms: Terms, voter: Principal | Vote) -> bool:
    return _named(record, _groups(terms, "groups"), approvers_of(terms), voter)


def _breaks_glass(record: ApprovalRecord, voter: Principal | Vote) -> bool:
    """Whether every rule that wants people lets this one decide alone."""
    return bool(record.terms) and all(
        _named(record, _groups(t, "break_glass"), approvers_of(t, "break_glass_users"), voter) for t in record.terms
    )


def _named(
    record: ApprovalRecord, groups: Iterable[object], users: Iterable[Approver], voter: Principal | Vote
) -> bool:
    if not set(voter.groups).isdisjoint(groups):
        return True
    return any(u.subject == voter.subject and (u.issuer or record.requester_issuer) == voter.issuer for u in users)


def _groups(terms: Terms, key: str) -> list[str]:
    return [str(group) for group in _as_list(terms.get(key))]


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _spoken(time: timedelta) -> str:
    seconds = int(time.total_seconds())
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
