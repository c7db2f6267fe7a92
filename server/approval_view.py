"""An approval as a person reads it in a terminal: nothing hidden, nothing that a stored text could forge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from server import evidence
from server.terminal import Terminal
from server.visible import visible

Approval = Mapping[str, Any]

_COLOURS = {"requested": "yellow", "approved": "green", "consumed": "green"}
_SHORT = 60


def table_of(approvals: Sequence[Approval], now: datetime) -> Table:
    """One line an approval, the oldest first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "state", "asked by", "connection", "left", "who can approve", "statement"):
        table.add_column(name, no_wrap=name in ("id", "state", "left"), overflow="fold")
    for approval in approvals:
        table.add_row(
            _plain(approval["id"]),
            _state(approval),
            _plain(_requester(approval)),
            _plain(approval["connection"]),
            Text(left(approval, now)),
            _plain("; ".join(approval["who"])),
            _plain(_first_words(approval["statement_visible"])),
        )
    return table


def page_of(approval: Approval, now: datetime) -> RenderableType:
    """Everything that an approver must see before a vote; the statement is whole and indented, never cut."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("approval", Text.assemble(_plain(approval["id"]), "  ", _state(approval)))
    facts.add_row("asked by", _plain(f"{_requester(approval)}, on {approval['connection']}"))
    facts.add_row("why", _lines(approval["why"]))
    facts.add_row("who", _lines(approval["who"]))
    facts.add_row("until", Text(f"{_time(approval['expires']):%Y-%m-%d %H:%M:%S} UTC ({left(approval, now)})"))
    for vote in approval["votes"]:
        facts.add_row("vote", _plain(_vote(vote)))
    for warning in approval["warnings"]:
        facts.add_row("warning", Text(visible(warning), style="bold red"))
    if approval["review"]:
        facts.add_row("review", Text(visible(approval["review"]), style="bold red" * (approval["review"] == "open")))
    for line in evidence.sentences(approval["evidence"], with_locks=False):
        facts.add_row("measured", _plain(line))
    if taken := evidence.locks(approval["evidence"]):
        facts.add_row("locks", _locks(taken))
    for line in evidence.samples(approval["evidence"]):
        facts.add_row("row", _plain(line))
    facts.add_row("digest", _plain(approval["digest"]))
    parts: list[RenderableType] = [facts, Text("\nstatement", style="dim"), _block(approval["statement_visible"])]
    if approval["parameters"]:
        parts += [Text("parameters", style="dim"), _block(_parameters(approval["parameters"]))]
    return Group(*parts)


def _locks(taken: Sequence[tuple[str, str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("statement", "lock", "relation"):
        table.add_column(name, overflow="fold")
    for row in taken:
        table.add_row(*map(_plain, row))
    return table


def left(approval: Approval, now: datetime) -> str:
    """How long it can still be decided, in minutes; in seconds below two."""
    rest = _time(approval["expires"]) - now
    if rest <= timedelta(0):
        return "over"
    seconds = int(rest.total_seconds())
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"


def console() -> Terminal:
    """Where it is shown. Stored texts are never read as markup, and never fold into each other."""
    return Terminal()


def _plain(text: str) -> Text:
    return Text(visible(text))


def _lines(texts: Sequence[str]) -> Text:
    return _plain("\n".join(texts))


def _block(text: str) -> RenderableType:
    return Padding(Text(visible(text), overflow="fold"), (0, 0, 1, 4))


def _state(approval: Approval) -> Text:
    return Text(approval["state"], style=_COLOURS.get(approval["state"], "red"))


def _requester(approval: Approval) -> str:
    behalf = f" for {approval['on_behalf_of']}" if approval["on_behalf_of"] else ""
    return f"{approval['requester']} ({approval['requester_kind']}){behalf}"


def _vote(vote: Mapping[str, Any]) -> str:
    comment = f": {vote['comment']}" if vote["comment"] else ""
    return f"{vote['voter']} {vote['choice']}{comment}"


def _parameters(values: Sequence[str | None]) -> str:
    return "\n".join(f"${number} = {'NULL' if v is None else repr(v)}" for number, v in enumerate(values, 1))


def _first_words(statement: str) -> str:
    line = " ".join(statement.split())
    return line if len(line) <= _SHORT else f"{line[:_SHORT]} … ({len(statement)} characters)"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
