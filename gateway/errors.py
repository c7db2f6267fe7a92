"""What can go wrong on the path, as types with a sentence, a cure and the SQLSTATE that the wire door sends.

Grammar of every text: what happened and where, lower case, no full stop, the caller's words in
back-ticks; the cure is a sentence of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.approvals import Pending
    from policy.model import Decision


class CountersignError(Exception):
    """Base of all errors that may be shown to a client as they are."""

    sqlstate = "XX000"

    def __init__(self, text: str, *, cure: str | None = None, detail: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.cure = cure
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.text}. {self.cure}" if self.cure else self.text


class ConfigurationError(CountersignError):
    """A file of ours is wrong; the text names file, line and column."""

    sqlstate = "F0000"


class AuthenticationError(CountersignError):
    """The caller is not who they must be: token missing, expired, foreign, revoked."""

    sqlstate = "28000"


class WrongPasswordError(AuthenticationError):
    """A session secret does not exist, is over, or its password is another: which of them is not said."""

    sqlstate = "28P01"

    def __init__(self, user: str) -> None:
        super().__init__(
            f'password authentication failed for user "{user}"', cure="Get a new secret: `countersign login`."
        )


class IssuerUnavailableError(AuthenticationError):
    """Nobody can be verified now: the issuer's keys cannot be fetched and none are known. Try again later."""

    sqlstate = "08006"


class UnknownConnectionError(CountersignError):
    """No connection of this name is configured."""

    sqlstate = "3D000"


class SessionEndedError(CountersignError):
    """The session was revoked or its time is over."""

    sqlstate = "57P01"


class AuditUnavailableError(CountersignError):
    """The audit cannot be written, so nothing runs."""

    sqlstate = "58030"


class UpstreamUnavailableError(CountersignError):
    """The database behind the gateway cannot be reached or was lost."""

    sqlstate = "08006"


class LimitExceededError(CountersignError):
    """A limit of the gateway's own was reached."""

    sqlstate = "54000"


class UnsearchableError(CountersignError):
    """What the policy looks for could not be found in a result as it comes, so it is not delivered."""

    sqlstate = "0A000"


class TooManyConnectionsError(CountersignError):
    """A door is full, or full for this principal or address."""

    sqlstate = "53300"


class RowCountError(CountersignError):
    """A write changed another number of rows than it was allowed for, and was rolled back."""

    sqlstate = "42501"


class MigrationError(CountersignError):
    """A migration that cannot be proposed, or that failed. `reported` is PostgreSQL's SQLSTATE, if it gave one."""

    sqlstate = "42601"

    def __init__(self, text: str, *, cure: str | None = None, reported: str | None = None) -> None:
        super().__init__(text, cure=cure)
        self.reported = reported


class RefusedError(CountersignError):
    """The verdict is deny. `decision` carries every reason."""

    sqlstate = "42501"

    def __init__(self, decision: Decision, statement: str) -> None:
        from gateway.explain import refusal

        text, detail, cure = refusal(decision)
        super().__init__(text, detail=detail, cure=cure)
        self.decision = decision
        self.statement = statement


class ApprovalPendingError(CountersignError):
    """The statement waits for people. Not a failure: the MCP door answers `pending` with it."""

    sqlstate = "42501"

    def __init__(self, pending: Pending) -> None:
        super().__init__(
            f"the statement waits for approval {pending.id}",
            detail=pending.why,
            cure=f"Ask {pending.who} to approve it before {pending.expires:%Y-%m-%d %H:%M:%S} UTC.",
        )
        self.pending = pending


class ApprovalRejectedError(CountersignError):
    """An approval ended without permission: denied, expired, withdrawn, void."""

    sqlstate = "42501"


class InvariantViolatedError(CountersignError):
    """A bug in us: a raw masked column was about to leave. The session ends."""

    sqlstate = "XX001"
