"""A session watched again: what the screen shows is what was sent, and no value can take the screen over."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from subprocess import PIPE

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from audit import playback
from audit.entry import Draft, Kind
from audit.note import Signer
from audit.recording import Chunk, Mode, Recording, Shred
from audit.rolling import roll
from audit.search import SearchError
from audit.store import Item, Store
from server.cli import main
from server.replay import as_cast, as_html, play
from server.screen import Shown, Style, screen
from tests.audit.test_store import intent, outcome, rows
from tests.doors.mcp_calls import answer, call, query
from tests.stack import Stack
from tests.waiting import until
from wire.backend import Column, DataRow, NoticeResponse, RowDescription


def session_of(stack: Stack, like: str) -> str:
    """The session of the newest statement like this, closed."""
    [found] = stack.audit("SELECT session FROM statements WHERE sql LIKE ? ORDER BY seq DESC LIMIT 1", like)
    session = str(found["session"])
    until(lambda: stack.audit("SELECT 1 FROM sessions WHERE session = ? AND closed IS NOT NULL", session), "still open")
    return session


def watched(path: Path, session: str) -> str:
    return "".join(one.text for one in screen(playback.session(path, session)))


def test_a_psql_session_reads_as_psql_showed_it(stack: Stack) -> None:
    text = "SELECT id, full_name FROM customers\n WHERE id < 3 ORDER BY id"
    columns = {
        row[0] for row in stack.direct("SELECT attname FROM pg_attribute WHERE attrelid = 'customers'::regclass")
    }
    text = text if "full_name" in columns else text.replace("full_name", "name")
    none = "SELECT id, created_at FROM customers WHERE id < 0"
    done = stack.psql("devin", text, "-c", none, "-c", "SELECT 1/0", "-c", "SELECT pg_read_file('x')")
    shown = watched(stack.audit_path, session_of(stack, "SELECT id,%\n WHERE id < 3%"))
    assert "=> SELECT id" in shown
    assert "\n->  WHERE id < 3 ORDER BY id\n" in shown
    table = [line.rstrip() for line in done.stdout.splitlines() if re.search(r" \| |-\+-|^\(", line)]
    assert [line.rstrip() for line in shown.splitlines() if re.search(r" \| |-\+-|^\(\d+ row", line)] == table
    assert "(0 rows)" in table
    assert "ERROR:  division by zero" in shown
    assert "deny: " in shown
    assert shown.rstrip().splitlines()[-1].startswith("the session ended: ")


async def test_a_wait_for_approval_and_the_run_are_in_the_picture(stack: Stack) -> None:
    text = "CREATE TABLE replayed (id int)"
    pending = (await query(stack, "devin", text, reason="to see it again"))["pending"]
    vote = {"id": pending["id"], "digest": pending["digest"], "comment": "why not"}
    answer(await call(stack, "grace", "approve", **vote))
    answer(await call(stack, "devin", "await_approval", id=pending["id"]))
    [found] = stack.audit("SELECT session FROM statements WHERE sql = ? LIMIT 1", text)
    shown = watched(stack.audit_path, str(found["session"]))
    shown = shown[shown.index(text) :]  # what the session was asked before is others' concern
    at = [shown.index(words) for words in (text, "reason: to see it again", "approve: ", f"{pending['id']} requested")]
    at += [shown.index(words) for words in (f"{pending['id']} voted", "(why not)", f"{pending['id']} approved")]
    assert at == sorted(at)
    assert at[-1] < shown.index(f"approved: {pending['id']}") < shown.index("completed · CREATE TABLE")
    assert shown.count(f"approved: {pending['id']}") == 1  # not where it was asked for
    stack.direct("DROP TABLE replayed")


# -- the commands, on a store made by hand ------------------------------------------------------------

NAMES = RowDescription((Column("n", 0, 0, 23, 4, -1, 0), Column("name", 0, 0, 25, -1, -1, 0))).encode()
EVIL = "\x1b[2J\x1b]0;owned\x07\u202e\r\n=> drop table x"


def opened() -> Item:
    body = {
        "principal": {"kind": "agent", "on_behalf_of": "ada"},
        "connection": "shop",
        "door": "wire",
        "client": {"name": EVIL},
    }
    return Item(Draft(Kind.SESSION_OPENED, "se-1", "devin", "shop", body))


def sent(*chunks: tuple[int, bool, bytes], mode: Mode = Mode.FULL, left_out: int = 0) -> Recording:
    return Recording(mode, [Chunk(*chunk) for chunk in chunks], left_out)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "audit.db"
    row = DataRow((b"1", EVIL.encode())).encode()
    notice = NoticeResponse({"S": "NOTICE", "M": EVIL}).encode()
    with contextlib.closing(Store.open(path)) as store:
        store.append([[opened()], [intent(1)]])
        made = sent(
            (10, False, notice), (20, False, NAMES), (30, True, row + row), (40, False, b"C\0\0\0\x0dSELECT 2\0")
        )
        store.append([[Item(outcome(1, rows=2, size=9, tag="SELECT 2", duration_ms=1.5, masked=["a.b"]).draft, made)]])
        store.append([[intent(2)], [Item(outcome(2, rows=7, size=9).draft, sent((5, True, b""), mode=Mode.METADATA))]])
        store.append([[intent(3)], [Item(outcome(3).draft, sent((5, True, row[:9]), left_out=77))]])
        store.append([[intent(4)], [Item(outcome(4).draft, sent((5, True, row)))]])
        store.append([[Item(Draft(Kind.RECORDING_SHREDDED, None, "ada", None, {"why": "x"}), Shred(9, 9))]])
        store.append([[intent(5)], [outcome(5, status="failed", sqlstate="XX000", message=EVIL)]])
        store.append([[Item(Draft(Kind.SESSION_CLOSED, "se-1", "devin", "shop", {"reason": EVIL}))]])
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["replay", *map(str, arguments)])


def test_the_command_shows_it_and_leaves_an_entry(path: Path) -> None:
    done = run("se-1", path, "--speed", 10_000)
    assert done.exit_code == 0, done.output
    escaped = "\\u{1b}[2J"
    assert f" 1 | {escaped}" in done.output
    assert f"NOTICE:  {escaped}" in done.output
    assert "(2 rows)" in done.output
    assert "completed · SELECT 2 · 1.5 ms · masked: a.b" in done.output
    assert "(7 rows were sent, and not recorded)" in done.output
    assert "(77 bytes of what was sent are not in the recording)" in done.output
    assert "(the recording was shredded)" in done.output
    [(subject, body)] = rows(path, "SELECT subject, body FROM entries WHERE kind = 'audit.read'")
    assert subject
    assert json.loads(str(body)) == {"how": "replay", "query": {"session": "se-1", "as": "terminal"}}


def test_no_value_can_take_the_screen_over(path: Path) -> None:
    shown = screen(playback.session(path, "se-1"))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", "".join(one.text for one in shown))
    prompts = [line for one in shown for line in one.text.splitlines() if line.startswith("=> ")]
    assert prompts == [f"=> select {number}" for number in (1, 2, 3, 4, 5)]
    for line in as_cast(shown, "t", 0).splitlines()[1:]:
        assert set(re.findall("\x1b[^m]*m", json.loads(line)[2])) <= {
            f"\x1b[{code}m" for code in ("0", "1", "2", "1;36", "31", "32", "33")
        }


@given(st.lists(st.tuples(st.integers(0, 99), st.booleans(), st.binary(max_size=40)), max_size=5))
def test_any_recording_at_all_can_be_shown(chunks: list[tuple[int, bool, bytes]]) -> None:
    """Also one that a bug, or somebody with the file, filled with anything."""
    now = datetime(2026, 11, 24, tzinfo=UTC)
    body = {"text": "select 1", "verdict": {"effect": "allow", "rules": [], "reasons": []}}
    told = {"status": "completed", "recording": {"mode": "full", "left_out": 0}}
    both = [
        playback.Moment(1, now, "intent", "devin", "st-1", body),
        playback.Moment(2, now, "outcome", "devin", "st-1", told, [Chunk(*chunk) for chunk in chunks]),
    ]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", "".join(one.text for one in screen(both)))


@pytest.mark.parametrize("version", [2, 3])
def test_the_cast_is_an_asciicast_with_a_marker_for_each_statement(path: Path, tmp_path: Path, version: int) -> None:
    target = tmp_path / "session.cast"
    done = run("se-1", path, "--export", "cast", "--cast-version", version, "--output", target)
    assert done.exit_code == 0
    header, *events = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert (header["version"], header["title"], header["idle_time_limit"]) == (version, "se-1", 3)
    width, height = (header["width"], header["height"]) if version == 2 else header["term"].values()
    assert (100 <= width <= 140, height) == (True, 36)
    times = [when for when, _, _ in events]
    assert min(times) >= 0
    assert times == sorted(times) or version == 3  # there, each since the one before
    assert [text for _, code, text in events if code == "m"] == [f"=> select {number}" for number in range(1, 6)]
    assert {code for _, code, _ in events} == {"o", "m"}
    assert all("\n" not in text.replace("\r\n", "") for _, _, text in events)


def test_both_versions_of_a_cast_tell_the_same_times() -> None:
    shown = [Shown(at, [(Style.PLAIN, "x")], step=True) for at in (0.0, 0.1, 0.3, 71.000001)]
    second, third = ([json.loads(line) for line in as_cast(shown, "t", 0, v).splitlines()[1:]] for v in (2, 3))
    passed = list(itertools.accumulate(when for when, _, _ in third))
    assert passed == pytest.approx([when for when, _, _ in second])
    assert passed[-1] == pytest.approx(71.000001)


def test_null_is_no_empty_text_and_a_masked_column_is_marked() -> None:
    columns = (Column("ssn"), Column("note", table=7), Column("n", type=23))
    rows_ = DataRow((b"***1", b"", None)).encode() + DataRow((None, b"x ", b"5")).encode()
    now = datetime(2026, 11, 24, tzinfo=UTC)
    chunks = [Chunk(0, False, RowDescription(columns).encode()), Chunk(1, True, rows_)]
    intended = {"text": "select", "verdict": {"effect": "allow", "rules": [], "reasons": []}}
    told = {"status": "completed", "masked": ["public.customers.ssn", "public.customers.note"]}
    both = [
        playback.Moment(1, now, "intent", "d", "st-1", intended),
        playback.Moment(2, now, "outcome", "d", "st-1", told, chunks),
    ]
    table = next(one for one in screen(both) if any(style is Style.ROWS for style, _ in one.pieces))
    assert table.text.splitlines() == [
        " ssn  | note | n",
        "------+------+---",
        " ***1 |      | ∅",
        " ∅    | x    | 5",
        "(2 rows)",
    ]
    assert [text.strip() for style, text in table.pieces if style is Style.MASKED] == ["ssn"]
    assert [text.strip() for style, text in table.pieces if style is Style.NULL] == ["∅", "∅"]


def test_the_page_is_one_file_that_loads_nothing(path: Path) -> None:
    done = run("se-1", path, "--export", "html")
    assert done.exit_code == 0
    assert not re.findall(r'(?:src|href)="|url\(|@import', done.output)
    assert "default-src 'none'" in done.output
    assert done.output.count("data-step") >= 5
    page = as_html([Shown(0.0, [(Style.PLAIN, "<script>alert(1)</script>")])], "<b>")
    assert "<script>alert" not in page
    assert "<title>&lt;b&gt;</title>" in page


def test_what_runs_from_right_to_left_reorders_nothing_on_the_page() -> None:
    """Browsers draw `12 | A | 34` with 34 in the second column where A is Arabic, unless A is by itself."""
    page = as_html([Shown(0.0, [(Style.ROWS, " 12 | \u05e9\u05dc \u05d5 | \u0645\u0631 | 34 <\n")])], "t")
    assert " 12 | <bdi>\u05e9\u05dc \u05d5</bdi> | <bdi>\u0645\u0631</bdi> | 34 &lt;\n" in page


def test_a_pipe_that_closes_is_no_failure(path: Path) -> None:
    for command in (["replay", "se-1", str(path)], ["audit", "search", str(path)]):
        with subprocess.Popen([sys.executable, "-m", "server", *command], stdout=PIPE, stderr=PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            said = process.stderr.read()
        assert (process.returncode, said) == (0, b"")


def played(shown: Sequence[Shown], **more: object) -> tuple[str, list[float]]:
    out, waits = io.StringIO(), list[float]()
    settings = {"speed": 1.0, "longest": None, "step": False} | more
    play(shown, Console(file=out, width=200), wait=waits.append, **settings)  # type: ignore[arg-type]
    return out.getvalue(), waits


def test_pauses_are_as_they_were_or_shorter_on_request() -> None:
    shown = [Shown(at, [(Style.PLAIN, f"{at}\n")], step=True) for at in (0.0, 2.0, 62.0)]
    assert played(shown) == ("0.0\n2.0\n62.0\n", [2.0, 60.0])
    assert played(shown, speed=4.0)[1] == [0.5, 15.0]
    assert played(shown, speed=4.0, longest=3.0)[1] == [0.5, 3.0]


def test_step_by_step_waits_for_enter_and_ends_with_q() -> None:
    shown = [Shown(at, [(Style.PLAIN, f"{at}\n")], step=at != 1) for at in (0.0, 1.0, 2.0)]
    for end in ("q\n", ""):  # "": Ctrl-D, or nobody there to ask
        answers = iter(["\n", end])
        text, waits = played(shown, step=True, ask=answers.__next__)
        assert ("0.0\n" in text, "1.0\n" in text, "2.0\n" in text, waits) == (True, True, False, [])


def test_an_unknown_session_or_file_is_a_sentence(path: Path, tmp_path: Path) -> None:
    done = run("se-nobody", path)
    assert (done.exit_code, "there is no session `se-nobody`" in done.output) == (2, True)
    done = run("se-1", path, "--output", tmp_path / "x.cast")
    assert (done.exit_code, "nothing would be written to" in done.output) == (2, True)
    done = run("se-1", path, "--export", "html", "--output", tmp_path / "no" / "where")
    assert (done.exit_code, "cannot be written" in done.output) == (2, True)
    with pytest.raises(SearchError):
        playback.session(tmp_path / "nothing.db", "se-1")
    with contextlib.closing(Store.open(path)) as store:
        segment = roll(path, lambda: Signer("example.com/audit", bytes(32)))
        assert segment is not None
        assert store.head()[0] > segment.last
    segment.path.unlink()
    done = run("se-1", path)
    assert (done.exit_code, "1 of its segments are elsewhere" in done.output) == (2, True), done.output
