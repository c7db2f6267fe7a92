"""Errors that teach: every exception that can leave a tool, as sentences a model can act on.

What is not known here is a bug of ours: the client gets a reference, the log gets the traceback.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping

from mcp.types import CallToolResult
from pydantic import ValidationError

from gateway.errors import CountersignError, RefusedError
from gateway.model import Statement
from gateway.upstream import UpstreamError, UpstreamLostError
from policy.model import Decision
from server.mcp_results import Failure, failed

log = logging.getLogger(__name__)

# Wider lines are cut around the error, so that the caret stays in view.
_CARET_WIDTH = 100


class CallError(Exception):
    """The call itself is wrong (an argument, a cursor). Sentence and cure go to the client as they are."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(f"{what}. {cure}")
        self.what = what
        self.cure = cure


class PostgresError(Exception):
    """PostgreSQL refused a granted statement; what of its answer the client may see."""

    def __init__(
        self, error: UpstreamError, statement: Statement, decision: Decision, reference: str, *, quiet: bool
    ) -> None:
        """`quiet` keeps back what may quote values of rows: DETAIL, HINT and WHERE."""
        super().__init__(str(error))
        fields = {k: v for k, v in error.fields.items() if not quiet or k not in ("D", "H", "W")}
        if (rewrite := decision.verdict.rewrite) is not None:
            fields = {k: rewrite.without_secrets(v) for k, v in fields.items()}
        self.shown = {k: v for k, v in fields.items() if k in "SCMDH"}
        self.failure, self.text = _postgres_failure(fields, statement, decision, reference)


def as_result(error: BaseException) -> CallToolResult:
    """The answer to a call that raised `error`."""
    match error:
        case PostgresError():
            return failed(error.failure, error.text)
        case RefusedError():
            return _refused(error)
        case CountersignError():
            failure = Failure(
                kind=_kind(error),
                what=error.text,
                detail=error.detail,
                cure=error.cure,
                sqlstate=error.sqlstate,
            )
        case UpstreamLostError():
            failure = Failure(
                kind="upstream",
                what=str(error),
                cure="A statement that was running may have taken effect or not: look before you repeat it.",
            )
        case UpstreamError():
            failure = Failure(kind="upstream", what=f"the database said: {error}", sqlstate=error.sqlstate)
        case CallError():
            failure = Failure(kind="call", what=error.what, cure=error.cure)
        case ValidationError():
            failure = _invalid_arguments(error)
        case _:
            reference = secrets.token_hex(4)
            log.error("call failed, reference %s", reference, exc_info=error)
            failure = Failure(
                kind="internal",
                what=f"the gateway failed (reference {reference})",
                cure="Tell whoever runs it; the reference is in its log.",
            )
    return failed(failure, _sentences(failure))


def _refused(error: RefusedError) -> CallToolResult:
    reasons = [r for r in error.decision.verdict.reasons if r.effect is error.decision.verdict.effect]
    failure = Failure(
        kind="refused",
        what=error.text,
        rule=next((r.rule for r in reasons if r.rule), None),
        cure=error.cure,
        detail=error.detail,
        statement=error.statement,
        sqlstate=error.sqlstate,
        position=next((_character(error, r.location) for r in reasons if r.location is not None), None),
    )
    return failed(failure, f"Refused, nothing ran: {_sentences(failure)}")


def _character(error: RefusedError, offset: int) -> int | None:
    analysis = error.decision.analysis
    # Comments are blanked byte for byte, so offsets into the analysed text are the client's own.
    return len(analysis.text[:offset].decode("utf-8", "replace")) + 1 if analysis is not None else None


def _kind(error: CountersignError) -> str:
    """`ApprovalRejectedError` → `approval rejected`."""
    name = type(error).__name__.removesuffix("Error")
    return "".join(f" {char.lower()}" if char.isupper() else char for char in name).strip()


def _invalid_arguments(error: ValidationError) -> Failure:
    problems = [
        f"`{'.'.join(str(part) for part in problem['loc'])}`: {problem['msg'].lower()}"
        for problem in error.errors(include_url=False, include_input=False)
    ]
    return Failure(
        kind="call",
        what=f"the arguments do not fit: {'; '.join(dict.fromkeys(problems))}",
        cure="See the tool's input schema.",
    )


def _sentences(failure: Failure) -> str:
    lines = [f"{failure.what}."]
    if failure.detail:
        lines.append(failure.detail)
    elif failure.rule:
        lines.append(f"rule: {failure.rule}")
    if failure.cure:
        lines.append(failure.cure)
    if failure.statement:
        lines.append(f"audit reference: {failure.statement}")
    return "\n".join(lines)


def _postgres_failure(
    fields: Mapping[str, str], statement: Statement, decision: Decision, reference: str
) -> tuple[Failure, str]:
    message, sqlstate = fields.get("M", "unknown error"), fields.get("C", "XX000")
    position = client_position(fields.get("P"), decision, statement)
    detail, hint = fields.get("D"), fields.get("H")
    lines = [f"PostgreSQL: {fields.get('S', 'ERROR')} {sqlstate}: {message}"]
    if position is not None:
        lines += caret(statement.text.decode("utf-8"), position)
    lines += [f"DETAIL: {detail}"] if detail else []
    lines += [f"HINT: {hint}"] if hint else []
    lines.append(f"audit reference: {reference}")
    failure = Failure(
        kind="postgresql",
        what=message,
        detail=detail,
        cure=hint,
        statement=reference,
        sqlstate=sqlstate,
        position=position,
    )
    return failure, "\n".join(lines)


def client_position(field: str | None, decision: Decision, statement: Statement) -> int | None:
    """PostgreSQL's error position (1-based characters of the text that ran) in the client's own text.

    None where there is none, or where it lies in text that we generated.
    """
    rewrite = decision.verdict.rewrite
    if field is None or not field.isdecimal() or rewrite is None:
        return None
    offset = len(rewrite.sql.decode("utf-8")[: int(field) - 1].encode("utf-8"))
    original = rewrite.original_offset(offset)
    if original is None or original > len(statement.text):
        return None
    return len(statement.text[:original].decode("utf-8", "replace")) + 1


def caret(text: str, position: int) -> list[str]:
    """The line of `text` that holds the 1-based character `position`, and a caret below it."""
    start = text.rfind("\n", 0, position - 1) + 1
    line = text[start:].split("\n", 1)[0].replace("\t", " ")
    number, column = text.count("\n", 0, start) + 1, position - 1 - start
    cut = max(0, column - _CARET_WIDTH // 2)
    head = f"LINE {number}: {'…' if cut else ''}"
    return [head + line[cut : cut + _CARET_WIDTH], " " * (len(head) + column - cut) + "^"]
