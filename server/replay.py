"""`countersign replay`: watch a session again in the terminal, or take it along as an asciicast or a page."""

from __future__ import annotations

import getpass
import html
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path

import click
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from audit import playback
from audit.search import SearchError
from gateway.errors import ConfigurationError
from server.arguments import CONFIG, STORE
from server.reading import record_reading, store_path, unread
from server.screen import Shown, Style, screen
from server.terminal import Terminal

_COLORS = {
    Style.PLAIN: "",
    Style.PROMPT: "bold cyan",
    Style.SQL: "bold",
    Style.GOOD: "green",
    Style.WAIT: "yellow",
    Style.BAD: "red",
    Style.ASIDE: "dim",
    Style.ROWS: "",
    Style.MASKED: "yellow",
    Style.NULL: "dim",
}
_HEIGHT = 36
# The blocks of Unicode whose characters run from right to left (DerivedBidiClass.txt), and single spaces between.
_FROM_THE_RIGHT = re.compile(
    "[{0}]+(?: [{0}]+)*".format("\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefe\U00010800-\U00010fff\U0001e800-\U0001efff")
)
# A cast is as wide as its widest line, within these; what is wider breaks, as in a terminal.
_NARROWEST, _WIDEST = 100, 140


@click.command()
@click.argument("session")
@STORE
@CONFIG
@click.option("--speed", type=click.FloatRange(0.01, 10_000), default=1.0, show_default=True, help="2: twice as fast.")
@click.option("--max-pause", type=click.FloatRange(0), default=None, help="Wait no longer than so many seconds.")
@click.option("--step", is_flag=True, help="Stop before each statement until Enter is pressed.")
@click.option("--export", type=click.Choice(["cast", "html"]), help="An asciicast, or one self-contained page.")
@click.option("--cast-version", type=click.Choice(["2", "3"]), default="2", show_default=True, help="Of asciicasts.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to; without it, to stdout.")
def replay(
    session: str,
    store: Path | None,
    config_path: Path,
    speed: float,
    max_pause: float | None,
    step: bool,
    export: str | None,
    cast_version: str,
    output: Path | None,
) -> None:
    """Play a session as it was: prompts, verdicts, waits for approval, and what the client was sent."""
    if output is not None and export is None:
        raise ConfigurationError(f"nothing would be written to `{output}`", cure="Add `--export cast` or `html`.")
    path = store_path(store, config_path)
    try:
        moments = playback.session(path, session)
    except SearchError as error:
        away = unread(path)
        raise ConfigurationError(f"{error}; {away}" if away else str(error)) from None
    record_reading(path, playback.reading(getpass.getuser(), session, export or "terminal"))
    shown = screen(moments)
    if export is None:
        play(shown, Terminal(), speed=speed, longest=max_pause, step=step)
        return
    begun = moments[0].time.timestamp()
    text = as_cast(shown, session, begun, int(cast_version)) if export == "cast" else as_html(shown, session)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"`{output}` cannot be written: {error.strerror}", cure="Name another.") from None


def play(
    shown: Sequence[Shown],
    console: Console,
    *,
    speed: float,
    longest: float | None,
    step: bool,
    wait: Callable[[float], None] = time.sleep,
    ask: Callable[[], str] = sys.stdin.readline,
) -> None:
    """Show everything with its pauses, or stop before each statement where `step`.

    `ask` answers a line: `q` ends it, and so does the end of the answers.
    """
    before = shown[0].at if shown else 0.0
    for one in shown:
        if step:
            if one.step:
                console.print("-- Enter goes on, q ends", style="dim", end=" ")
                if not (said := ask()) or said.strip().lower() in ("q", "quit"):
                    return
        elif (pause := (one.at - before) / speed) > 0:
            wait(pause if longest is None else min(pause, longest))
        before = one.at
        console.print(_styled(one), end="", soft_wrap=True)


def _styled(one: Shown) -> Text:
    return Text.assemble(*((text, _COLORS[style]) for style, text in one.pieces))


def as_cast(shown: Sequence[Shown], title: str, begun: float, version: int = 2) -> str:
    """An asciicast, version 2 or 3: a header line and one line of JSON per event (docs.asciinema.org).

    Each statement is a marker, which players show on their time line and stop at.
    """
    lines = (line for one in shown for line in one.text.split("\n"))
    width = min(max((cell_len(line) for line in lines), default=0), _WIDEST)
    width = max(width, _NARROWEST)
    header: dict[str, object] = {"version": version}
    header |= {"width": width, "height": _HEIGHT} if version == 2 else {"term": {"cols": width, "rows": _HEIGHT}}
    header |= {"timestamp": int(begun), "title": title, "idle_time_limit": 3}
    events: list[tuple[float, str, str]] = []
    for one in shown:
        out = io.StringIO()
        terminal = Console(file=out, force_terminal=True, color_system="standard", width=width, highlight=False)
        terminal.print(_styled(one), end="", soft_wrap=True)
        if one.step:
            events.append((one.at, "m", one.text.strip().split("\n")[0][:_NARROWEST]))
        events.append((one.at, "o", out.getvalue().replace("\n", "\r\n")))
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (header, *_timed(events, version)))


def _timed(events: Sequence[tuple[float, str, str]], version: int) -> Iterator[tuple[float, str, str]]:
    """Version 2 tells times since the beginning, version 3 since the event before."""
    before = 0
    for at, what, text in events:
        moment = round(at * 1_000_000)
        yield (moment if version == 2 else moment - before) / 1_000_000, what, text
        before = moment


def as_html(shown: Sequence[Shown], title: str) -> str:
    """One page that loads nothing, and may not: a player and the whole text, which is there without scripts too."""
    page = resources.files("server").joinpath("replay.html").read_text(encoding="utf-8")
    return page.replace("{{title}}", html.escape(title)).replace("{{moments}}", "".join(map(_element, shown)))


def _isolated(text: str) -> str:
    """Words from right to left by themselves: a browser would draw the numbers and cells after them before them."""
    return _FROM_THE_RIGHT.sub(r"<bdi>\g<0></bdi>", text)


def _element(one: Shown) -> str:
    pieces = "".join(f'<span class="{style}">{_isolated(html.escape(text))}</span>' for style, text in one.pieces)
    table = any(style is Style.ROWS for style, _ in one.pieces)
    marks = f"{' class=table' if table else ''}{' data-step' if one.step else ''}"
    return f'<div data-at="{one.at:.6f}"{marks}>{pieces}</div>'
