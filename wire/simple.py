"""A simple query's statements, each decided in its turn: one message may hold any number of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from gateway.admission import Gateway
from gateway.drafts import denial
from gateway.model import Session, Statement
from policy.engine import NotAnalysableError, split
from policy.model import Decision
from wire import cursors, searching
from wire.replies import depends_on_context, moves_context
from wire.session import Portal


async def decide_each(
    text: bytes,
    session: Session,
    gateway: Gateway,
    portals: Mapping[str, Portal],
    freshen: Callable[[], Awaitable[None]],
) -> tuple[list[Statement], list[Decision], list[int]]:
    """Each statement with its decision, and the byte of `text` where it begins.

    They are decided before the first of them runs. One that comes after a statement which may change what
    names mean cannot be decided yet, so it is denied, unless it names nothing.
    """
    try:
        ranges: Sequence[tuple[int, int]] = split(text)
    except NotAnalysableError:
        ranges = ((0, len(text)),)  # `decide` says the same of it, as a value to be recorded
    statements, decisions = [], []
    moved = False
    declared: set[str] = set()  # cursors whose rows are counted
    for start, end in ranges:
        await freshen()
        statement = Statement(session, text[start:end])
        decision = await gateway.decide(session, statement.text)
        decision = await cursors.checked(decision, portals, session, gateway)
        if moved and depends_on_context(decision):
            decision = denial(
                decision,
                "statement.order",
                "an earlier statement of the same message may change what this one's names mean",
                "Send the statements one by one.",
            )
        if decision.counts and len(ranges) > 1:
            decision = denial(
                decision,
                "statement.counted",
                "a statement whose rows are counted cannot be part of several in one message",
                "Send it on its own.",
            )
        if (name := cursors.read_by(decision)) is not None and name in declared:
            decision = denial(
                decision,
                "cursor.declared",
                f'"{name}" is declared in the same message, and how many rows may be fetched of it is not known yet',
                "Send the statements one by one.",
            )
        if decision.streams and decision.analysis is not None and decision.analysis.effects.declares is not None:
            declared.add(decision.analysis.effects.declares)
        decision = searching.checked(decision, alone=len(ranges) == 1)
        moved = moved or moves_context(decision)
        statements.append(statement)
        decisions.append(decision)
    return statements, decisions, [start for start, _ in ranges]
