"""Pure: a session's moments as what a screen would have shown, and when: prompts, verdicts, waits, results as psql's.

INVARIANT: nothing that a client or a database said reaches a screen but through `server.visible`: no value can move
a cursor, colour a line or forge one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.cells import cell_len

from audit.playback import Moment
from audit.recording import Chunk
from server.visible import visible
from wire import backend
from wire.binary import as_text
from wire.codec import Frame
from wire.fields import ProtocolError

# Type OIDs that psql aligns to the right.
_NUMBERS = frozenset((20, 21, 23, 26, 700, 701, 790, 1700))
_HEAD_BYTES = 5
_WIDEST_CELL = 200
_NULL = "∅"


class Style(StrEnum):
    """What a piece of the screen is; how it looks is up to whoever shows it."""

    PLAIN = "plain"
    PROMPT = "prompt"
    SQL = "sql"
    GOOD = "good"
    WAIT = "wait"
    BAD = "bad"
    ASIDE = "aside"
    ROWS = "rows"
    MASKED = "masked"
    NULL = "null"


Piece = tuple[Style, str]


@dataclass(frozen=True, slots=True)
class Shown:
    """What appears `at` seconds after the session began; `step` marks what a reader going step by step stops before."""

    at: float
    pieces: Sequence[Piece]
    step: bool = False

    @property
    def text(self) -> str:
        """The words alone."""
        return "".join(text for _, text in self.pieces)


def screen(moments: Sequence[Moment]) -> list[Shown]:
    """Everything that the moments show, in time."""
    begun = {m.statement: m for m in moments if m.kind == "intent"}
    # A statement that waited stands there twice: as it was asked for, and as it ran with the approval it used.
    used = {str(m.body["statement_id"]) for m in moments if m.kind == "approval.consumed" and "statement_id" in m.body}
    shown: list[Shown] = []
    for moment in moments:
        at = (moment.time - moments[0].time).total_seconds()
        intent = begun.get(moment.statement) if moment.kind == "outcome" else None
        if intent is None:
            shown.append(Shown(at, list(_told(moment, used)), step=moment.kind == "intent"))
            continue
        start = (intent.time - moments[0].time).total_seconds()
        masked = frozenset(str(name).rpartition(".")[2] for name in moment.body.get("masked") or ())
        none = moment.body.get("rows") == 0
        shown += [Shown(start + when, pieces) for when, pieces in _sent(moment.sent or (), masked, none)]
        shown.append(Shown(max(start, at), list(_outcome(moment, intent))))
    return sorted(shown, key=lambda one: one.at)


def _told(moment: Moment, used: Collection[str]) -> Iterator[Piece]:
    body = moment.body
    match moment.kind:
        case "session.opened":
            principal = body["principal"]
            behalf = f" on behalf of {principal['on_behalf_of']}" if principal.get("on_behalf_of") else ""
            client = body["client"].get("name") or "an unnamed client"
            who = f"{moment.subject} ({principal['kind']}{behalf})"
            what = f"{who} · {body['connection']} · {body['door']} door · {client}"
            yield Style.ASIDE, f"{moment.time:%Y-%m-%d %H:%M:%S} UTC · {_line(what)}\n"
        case "session.closed":
            yield Style.ASIDE, f"\nthe session ended: {_line(str(body['reason']))}\n"
        case "intent":
            yield from _intent(moment, used)
        case "outcome":
            yield from _outcome(moment)
        case kind if kind.startswith("approval."):
            what = f"{body['approval']} {kind.removeprefix('approval.')}"
            if voter := body.get("voter"):
                what += f" by {voter.get('subject')}: {body.get('choice')}"
            if comment := body.get("comment"):
                what += f" ({comment})"
            yield Style.WAIT, f"{_line(what)}\n"
        case kind:
            yield Style.BAD if kind == "invariant.violated" else Style.ASIDE, f"{_line(kind)}\n"


def _intent(moment: Moment, used: Collection[str]) -> Iterator[Piece]:
    body = moment.body
    yield Style.PROMPT, "\n=> "
    first, *more = visible(body["text"]).split("\n")
    yield Style.SQL, f"{first}\n"
    for line in more:
        yield Style.PROMPT, "-> "
        yield Style.SQL, f"{line}\n"
    for number, value in enumerate(body.get("parameters") or (), 1):
        yield Style.ASIDE, f"   ${number} = {'NULL' if value is None else _line(value)}\n"
    if reason := (body.get("request") or {}).get("reason"):
        yield Style.ASIDE, f"   reason: {_line(reason)}\n"
    if body.get("rehearsal"):
        yield Style.ASIDE, "   a rehearsal, to show people its effect: rolled back, whatever it does\n"
        return
    verdict = body["verdict"]
    style, said = {"allow": Style.GOOD, "approve": Style.WAIT}.get(verdict["effect"], Style.BAD), verdict["effect"]
    why = "; ".join(verdict.get("rules") or ()) if said == "allow" else _reasons(moment)
    if said == "approve" and moment.statement in used:
        style, said, why = Style.GOOD, "approved", str(body["approval"])
    yield style, f"   {said}{': ' if why else ''}{_line(why)}\n"


def _reasons(intent: Moment) -> str:
    return "; ".join(intent.body["verdict"]["reasons"])


def _outcome(moment: Moment, intent: Moment | None = None) -> Iterator[Piece]:
    body = moment.body
    recorded = body.get("recording")
    if recorded is not None and moment.sent is None:
        yield Style.ASIDE, "(the recording was shredded)\n"
    elif recorded is not None and recorded["mode"] == "metadata" and body.get("size"):
        yield Style.ASIDE, f"({body['rows']} rows were sent, and not recorded)\n"
    elif recorded is not None and recorded["left_out"]:
        yield Style.ASIDE, f"({recorded['left_out']} bytes of what was sent are not in the recording)\n"
    status = body["status"]
    message = str(body.get("message") or "")
    if intent is not None and (why := _reasons(intent)):
        message = message.removesuffix(why).removesuffix(": ")  # it stands above, as the verdict's
    parts = [status, body.get("tag"), body.get("sqlstate"), *([] if status == "completed" else [message])]
    parts += [f"{body['duration_ms']:g} ms"] if body.get("duration_ms") is not None else []
    parts += [f"masked: {', '.join(body['masked'])}"] if body.get("masked") else []
    hidden = ", ".join(f"{one['count']} {one['kind']}" for one in body.get("detected", ()))
    parts += [f"hidden: {hidden}"] if hidden else []
    parts += [moment.statement]  # by which its entries are found, and its recording is shredded
    style = {"completed": Style.ASIDE, "pending": Style.WAIT, "rehearsed": Style.WAIT}.get(status, Style.BAD)
    yield style, f"{_line(' · '.join(str(part) for part in parts if part))}\n"


def _sent(chunks: Sequence[Chunk], masked: Collection[str], none: bool) -> Iterator[tuple[float, list[Piece]]]:
    """(seconds, what was shown) of a recording. Rows appear once all are there, as psql shows them; so do `none`."""
    columns: Sequence[backend.Column] = ()
    data, arrived = b"", 0.0
    for chunk in chunks:
        when = chunk.at / 1_000_000
        if chunk.rows:
            data, arrived = data + chunk.data, when
            continue
        for message in _messages(chunk.data):
            match message:
                case backend.RowDescription():
                    columns = message.columns
                case backend.CommandComplete() if none and columns:
                    yield when, list(_table(columns, (), masked))
                case backend.NoticeResponse():
                    yield when, [(Style.WAIT, _report(message.fields))]
                case backend.ErrorResponse():
                    yield when, [(Style.BAD, _report(message.fields))]
        if data:
            yield arrived, _rows(columns, data, masked)
            data = b""
    if data:
        yield arrived, _rows(columns, data, masked)


def _messages(data: bytes) -> Iterator[object]:
    """Whole messages; what is no message any more ends them."""
    at = 0
    while len(data) - at >= _HEAD_BYTES:
        end = at + 1 + int.from_bytes(data[at + 1 : at + _HEAD_BYTES], "big")
        if end > len(data) or end < at + _HEAD_BYTES:
            return
        try:
            yield Frame(data[at], data[at:end]).decode() if data[at : at + 1] != b"d" else data[at + _HEAD_BYTES : end]
        except ProtocolError:
            return
        at = end


def _report(fields: Mapping[str, str]) -> str:
    named = {"D": "DETAIL", "H": "HINT"}
    lines = [f"{fields.get('S', 'ERROR')}:  {fields.get('M', '')}"]
    lines += [f"{name}:  {fields[code]}" for code, name in named.items() if code in fields]
    return "".join(f"{_line(line)}\n" for line in lines)


def _rows(columns: Sequence[backend.Column], data: bytes, masked: Collection[str]) -> list[Piece]:
    rows: list[Sequence[str | None]] = []
    copied: list[str] = []
    for message in _messages(data):
        match message:
            case backend.DataRow(values):
                rows.append([_value(value, columns, at) for at, value in enumerate(values)])
            case bytes():
                copied.append(_line(message.decode("utf-8", "backslashreplace").removesuffix("\n")) + "\n")
    return [(Style.ROWS, "".join(copied)), *(_table(columns, rows, masked) if rows else ())]


def _value(value: bytes | None, columns: Sequence[backend.Column], at: int) -> str | None:
    if value is None:
        return None
    column = columns[at] if at < len(columns) else None
    text = as_text(value, column.type) if column and column.format else value.decode("utf-8", "backslashreplace")
    text = _line(text)
    return text if len(text) <= _WIDEST_CELL else f"{text[:_WIDEST_CELL]}…"


def _table(
    columns: Sequence[backend.Column], rows: Sequence[Sequence[str | None]], masked: Collection[str]
) -> Iterator[Piece]:
    """As psql's aligned format with a sign for NULL; a column that bears a masked one's name has a coloured head."""
    count = max((len(row) for row in rows), default=len(columns))
    names = [_line(columns[at].name) if at < len(columns) else "?" for at in range(count)]
    cells = [names, *([_NULL if cell is None else cell for cell in row] for row in rows)]
    widths = [max(cell_len(row[at]) for row in cells if at < len(row)) for at in range(count)]
    right = [at < len(columns) and columns[at].type in _NUMBERS for at in range(count)]
    # What is masked comes out of a subquery, and so of no relation.
    hidden = [at < len(columns) and not columns[at].table and columns[at].name in masked for at in range(count)]
    heads = [Style.MASKED if one else Style.ROWS for one in hidden]
    yield from _across([*zip(heads, (_padded(*one, 0.5) for one in zip(names, widths, strict=True)), strict=True)])
    yield Style.ROWS, "+".join("-" * (width + 2) for width in widths) + "\n"
    for row in rows:
        line: list[Piece] = []
        for cell, width, number in zip(row, widths, right, strict=False):
            style = Style.NULL if cell is None else Style.ROWS
            line.append((style, _padded(_NULL if cell is None else cell, width, 1.0 if number else 0.0)))
        yield from _across(line)
    yield Style.ROWS, f"({len(rows)} {'row' if len(rows) == 1 else 'rows'})\n"


def _across(cells: Sequence[Piece]) -> Iterator[Piece]:
    """One line of a table: neighbours of one style become one piece, and nothing trails."""
    last, text = Style.ROWS, " "
    for number, (style, cell) in enumerate(cells):
        if number:
            joined = text if last is Style.ROWS else ""
            if last is not Style.ROWS:
                yield last, text
            last, text = Style.ROWS, f"{joined} | "
        if style is not last:
            yield last, text
            last, text = style, ""
        text += cell
    yield last, text.rstrip()
    yield Style.ROWS, "\n"


def _padded(text: str, width: int, before: float) -> str:
    room = width - cell_len(text)
    left = int(room * before)
    return " " * left + text + " " * (room - left)


def _line(text: object) -> str:
    """Text that cannot leave its line."""
    return visible(str(text)).replace("\n", "\\n").replace("\t", "\\t")
