"""Error reports: ours, made of the gateway's errors, and PostgreSQL's, mapped back to the client's text. Sans-IO.

A report is a mapping by the protocol's field codes ("Error and Notice Message Fields"): S and V severity,
C SQLSTATE, M message, D detail, H hint, P position, q p internal query and position, W where.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.errors import CountersignError, RefusedError
from policy.detection import Findings
from wire import sqlstate
from wire.texts import Forwarded, position_at

Report = Mapping[str, str]

# On statements that mask, these may quote values that the masks hide.
_SCRUBBED = frozenset("DHWqp")
# `client_min_messages` sends them to clients: with `log_min_duration_statement` or auto_explain they quote
# statements and plans.
_LOG_SEVERITIES = ("LOG", "DEBUG")
_MULTIPLE_COMMANDS = "cannot insert multiple commands into a prepared statement"


class RefusalError(Exception):
    """A client's message is refused with this report; the conversation goes on."""

    def __init__(self, report: Report) -> None:
        super().__init__(report["M"])
        self.report = report


def report(
    code: str, text: str, *, severity: str = "ERROR", detail: str | None = None, hint: str | None = None
) -> dict[str, str]:
    """A report of our own."""
    fields = {"S": severity, "V": severity, "C": code, "M": text}
    if detail:
        fields["D"] = detail
    if hint:
        fields["H"] = hint
    return fields


def fatal(code: str, text: str, *, detail: str | None = None, hint: str | None = None) -> dict[str, str]:
    """A report that ends the connection."""
    return report(code, text, severity="FATAL", detail=detail, hint=hint)


FAST_PATH: Report = report(
    sqlstate.FEATURE_NOT_SUPPORTED,
    "the fast-path function call is always refused: it names no statement",
    hint="Call the function in a SELECT.",
)
CHANGED: Report = report(
    sqlstate.FEATURE_NOT_SUPPORTED, "the policy changed while the statement waited", hint="Prepare it again."
)
NOT_MASKED: Report = fatal(
    sqlstate.DATA_CORRUPTED,
    "the gateway failed to mask a column and delivered nothing",
    hint="Report this with the session and the time: it is a bug in the gateway.",
)


def of_error(error: CountersignError, *, severity: str = "ERROR") -> dict[str, str]:
    """The report of an error that concerns no place in a text."""
    return report(error.sqlstate, error.text, severity=severity, detail=error.detail, hint=error.cure)


def of_refusal(error: RefusedError, client: bytes, start: int) -> dict[str, str]:
    """The report of a deny of the statement that begins at byte `start` of the client's text."""
    verdict = error.decision.verdict
    reason = next(r for r in verdict.reasons if r.effect is verdict.effect)
    fields = of_error(error)
    fields["C"] = sqlstate.of_reason(reason.code)
    if reason.code == "statement.several":
        return report(fields["C"], _MULTIPLE_COMMANDS)
    if reason.location is not None:
        fields["P"] = str(position_at(client, start + reason.location))
    return fields


def is_log_line(fields: Report) -> bool:
    """Whether a notice is a line of the server's log, which may quote the text that ran: never a client's."""
    return fields.get("V", fields.get("S", "")).startswith(_LOG_SEVERITIES)


def as_client_sees(fields: Report, text: Forwarded | None, *, quiet: bool = False) -> Report:
    """PostgreSQL's report on a text that ran, in terms of the text that the client sent.

    `quiet`: it may be about what an earlier text of the transaction did, which hides something.
    """
    if quiet or (text is not None and text.masked):
        fields = {k: v for k, v in fields.items() if k not in _SCRUBBED}
    if text is None:
        return fields
    mapped = {k: text.without_secrets(v) for k, v in fields.items()}
    if "P" in mapped:
        position = text.client_position(int(mapped["P"])) if _is_number(mapped["P"]) else None
        if position is None:
            del mapped["P"]
        else:
            mapped["P"] = str(position)
    return mapped


def found_notice(findings: Findings) -> Report:
    """Says what was hidden in a result."""
    return report(
        sqlstate.NOTICE,
        f"the policy hid in this result: {'; '.join(map(str, findings))}",
        severity="NOTICE",
        hint="They were replaced by stars, in numbers by zeros.",
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
