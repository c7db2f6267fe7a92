"""Found entries for people: a table on a terminal, one line an entry in a file or a pipe."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from audit.search import Found
from server.terminal import Terminal
from server.visible import visible

_HEADS = ("seq", "time", "who", "kind")
_GAP = "  "
# Columns of the terminal; where what happened has fewer beside the rest, it stands below.
_BESIDE_AT_LEAST = 36
_BELOW = " " * 4


def show(found: Sequence[Found]) -> None:
    """Print them. Outside a terminal no line is broken, so that `grep` and `less -S` see entries."""
    console = Terminal(soft_wrap=True)
    if not found:
        console.print("nothing found")
        return
    rows = [tuple(map(_cell, (str(one.seq), one.time[:19], one.subject or "", one.kind))) for one in found]
    widths = [max(map(cell_len, column)) for column in zip(_HEADS, *rows, strict=True)]
    beside = console.width - sum(widths) - len(_GAP) * len(widths)

    def line(cells: Sequence[str], what: str, style: str = "") -> None:
        head = _GAP.join(map(set_cell_size, cells, widths))
        if not what or not console.is_terminal:
            text = f"{head}{_GAP}{what}"
        elif beside >= _BESIDE_AT_LEAST:
            text = f"{head}{_GAP}{_folded(what, beside, ' ' * (console.width - beside))}"
        else:
            text = f"{head}\n{_BELOW}{_folded(what, console.width - len(_BELOW), _BELOW)}"
        console.print("\n".join(map(str.rstrip, text.split("\n"))), style=style)

    def _folded(what: str, room: int, before: str) -> str:
        return f"\n{before}".join(part.plain for part in Text(what).wrap(console, room))

    line(_HEADS, "what", style="bold")
    for one, cells in zip(found, rows, strict=True):
        line(cells, _cell(_what(one)))


def _cell(text: str) -> str:
    """In one line; what clients sent reaches no terminal as control sequences, nor looks like something else."""
    return " ".join(visible(text).split())


def _what(entry: Found) -> str:
    """The one thing that a reader of this kind of entry wants to see."""
    body = json.loads(entry.body)
    match entry.kind:
        case "intent":
            return f"[{body['verdict']['effect']}] {' '.join(body['text'].split())}"
        case "outcome":
            parts = [body["status"], body.get("tag"), body.get("sqlstate"), body.get("message"), entry.statement]
            return " · ".join(part for part in parts if part)
        case "session.opened":
            client = body["client"].get("name") or "unnamed client"
            return f"{entry.session} · {body['door']} door, {client}, until {body['expires'][:19]}"
        case "session.closed" | "session.refused":
            return str(body["reason"])
        case "policy.loaded" | "policy.rejected":
            return f"{body['source']} {body.get('error') or body['policy'][:12]}"
        case "audit.read":
            came = f": {body['found']} found" if "found" in body else ""
            came += f": refused, {body['refused']}" if "refused" in body else ""
            return f"{body['how']} {json.dumps(body['query'], ensure_ascii=False)}{came}"
        case "key.created" | "key.rotated":
            return str(body.get("vkey") or body["note"].split("\n")[2])
        case "recording.shredded":
            span = body["shredded"]
            return f"{span['first']} to {span['last']}: {body['why']}"
        case "checkpoint.failed":
            return str(body["reason"])
        case "checkpoint.witnessed":
            return f"{body['size']} entries, by {body['witness']}"
        case kind if kind.startswith("approval."):
            voter = body.get("voter", {}).get("subject", "")
            asked = " ".join(str(body.get("statement") or "").split())
            return " ".join(str(p) for p in (body["approval"], voter, body.get("choice", ""), asked) if p)
    return ""
