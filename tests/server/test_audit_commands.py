"""`countersign audit search` and `export` at the command line: what is printed, and what is recorded of the reader."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from audit.entry import Draft, Kind
from audit.note import Signer
from audit.recording import Chunk, Mode, Recording
from audit.store import Item, Store
from gateway.model import Status
from server.audit_commands import STATUSES
from server.cli import main
from tests.audit.test_search import STATEMENTS
from tests.audit.test_store import outcome


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "audit.db"
    with contextlib.closing(Store.open(path)) as store:
        for pair in STATEMENTS:
            store.append([pair])
    return path


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(main, ["audit", *map(str, arguments)], env=environment)


def readings(path: Path) -> list[tuple[str, dict[str, object]]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT subject, body FROM entries WHERE kind = 'audit.read' ORDER BY seq").fetchall()
    return [(subject, json.loads(body)) for subject, body in rows]


def test_a_search_prints_csv_and_is_recorded_with_what_was_asked(path: Path) -> None:
    done = run("search", path, "--action", "delete", "--relation", "public.*", "--min-rows", 0, "--csv")
    assert done.exit_code == 0, done.output
    header, *rows = csv.reader(io.StringIO(done.stdout))
    assert header == ["seq", "time", "kind", "session", "subject", "connection", "statement", "body"]
    assert [row[0] for row in rows] == ["5", "6"]
    assert rows[0][-2] == "st-2"
    [(reader, body)] = readings(path)
    assert reader
    assert body == {
        "how": "search",
        "query": {"action": "delete", "relation": "public.*", "rows": 0, "limit": 200},
        "found": 2,
    }


def test_every_kind_of_entry_has_its_line_in_the_table(path: Path) -> None:
    with contextlib.closing(Store.open(path)) as store:
        store.checkpoint(Signer("example.com/audit", bytes(32)))
    assert run("search", path, "--words", "drop*").exit_code == 0
    done = run("search", path)
    assert done.exit_code == 0, done.output
    for word in ("[deny]", "refused", "example.com/audit", "search"):
        assert word in done.output.replace("\n", "")


def test_an_export_contains_the_entry_that_tells_of_it(path: Path) -> None:
    done = run("export", path, "--after", 10)
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    assert [entry["seq"] for entry in entries] == [11, 12, 13]
    assert entries[-1]["body"] == {"how": "export", "query": {"after": 10, "follow": False, "format": "jsonl"}}


def test_outside_a_terminal_an_entry_is_one_line(path: Path) -> None:
    lines = run("search", path, COLUMNS="40").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["seq", *map(str, range(1, 13))]
    assert all(line == line.rstrip() for line in lines)
    assert "st-2" in lines[6], "an outcome names its statement, as `shred` wants it"


def test_on_a_narrow_terminal_what_happened_stands_below(path: Path) -> None:
    plain = {"NO_COLOR": "1", "FORCE_COLOR": "1"}
    lines = run("search", path, "--limit", 11, COLUMNS="48", **plain).stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if "DELETE" in line)
    assert re.fullmatch(r"3 +\S+ +devin +intent", lines[at - 1])
    assert lines[at : at + 2] == ["    [allow] DELETE FROM orders WHERE order_id =", "    7"]
    lines = run("search", path, "--limit", 12, COLUMNS="100", **plain).stdout.splitlines()
    [beside] = [line for line in lines if "DELETE" in line]
    assert beside.split()[2:5] == ["devin", "intent", "[allow]"]


def test_a_session_is_found_with_the_name_that_replay_wants(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    body = {"door": "wire", "client": {"name": "psql"}, "expires": "2026-11-24T10:00:00+00:00"}
    with contextlib.closing(Store.open(path)) as store:
        store.append([[Item(Draft(Kind.SESSION_OPENED, "se-0123456789abcdef", "devin", "shop", body))]])
    assert "se-0123456789abcdef · wire door, psql, " in run("search", path).stdout


def test_what_clients_sent_is_read_as_no_markup(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    text = "SELECT ':cat:', ARRAY[1] [bold], x[/]"
    body = {"verdict": {"effect": "allow"}, "text": text}
    with contextlib.closing(Store.open(path)) as store:
        store.append([[Item(Draft(Kind.INTENT, "se-1", "devin", "shop", body, "st-1"))]])
    assert f"[allow] {text}\n" in run("search", path).stdout


def test_the_statuses_that_can_be_asked_for_are_all_there_are() -> None:
    assert tuple(Status) == STATUSES


def test_an_empty_option_is_no_missing_one(path: Path) -> None:
    """Such as `--since "$WHEN"` where nothing is in it: not all entries there ever were."""
    assert run("search", path, "--since", "").exit_code == 2
    assert run("search", path, "--until", "").exit_code == 2


@pytest.mark.parametrize(
    "command", ["search", "export", "verify", "key", "checkpoint", "roll", "witnessed", "segments"]
)
def test_an_empty_file_is_no_store_and_becomes_none(tmp_path: Path, command: str) -> None:
    """It may be what is left of one."""
    path = tmp_path / "audit.db"
    path.touch()
    done = run(command, path)
    assert (done.exit_code, "is empty, and no audit store" in done.output) == (2, True), done.output
    assert [(one.name, one.stat().st_size) for one in tmp_path.iterdir()] == [("audit.db", 0)]


def test_where_there_is_nothing_to_list_it_is_said(path: Path) -> None:
    for command, words in (("segments", "nothing was sealed yet"), ("witnessed", "no witness has said anything")):
        done = run(command, path)
        assert (done.exit_code, done.stdout, words in done.stderr) == (0, "", True)


def test_a_search_that_makes_no_sense_is_one_sentence(path: Path) -> None:
    done = run("search", path, "--words", "*")
    assert (done.exit_code, "there is no word" in done.output) == (2, True)


def test_a_statements_escape_sequences_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    text = "SELECT 1 /* \x1b[2J\x1b]0;owned\x07 \x9b2J \u202e [/bold] */, 2"
    body = {"verdict": {"effect": "allow"}, "text": text}
    with contextlib.closing(Store.open(path)) as store:
        store.append([[Item(Draft(Kind.INTENT, "se-1", "dev\x1b[31min", "shop", body, "st-1"))]])
    shown = run("search", path).output
    assert "SELECT 1" in shown
    assert not set("\x1b\x07\x9b\u202e") & set(shown)
    assert "".join(shown.split()).count("\\u{1b}") == 3


def test_shredding_deletes_one_recording_and_says_so(path: Path) -> None:
    with contextlib.closing(Store.open(path)) as store:
        made = Recording(Mode.FULL, [Chunk(0, True, b"to be forgotten")])
        store.append([[Item(outcome(77).draft, made)]])
    done = run("shred", "st-in-test-77", path, "--why", "a privacy request")
    assert (done.exit_code, "shredded: the recording of st-in-test-77" in done.output) == (0, True), done.output
    assert run("verify", path).exit_code == 0
    again = run("shred", "st-in-test-77", path, "--why", "twice")
    assert (again.exit_code, "has no recording (any more)" in again.output) == (2, True)
    unknown = run("shred", "st-nowhere", path, "--why", "x")
    assert (unknown.exit_code, "no outcome of a statement `st-nowhere`" in unknown.output) == (2, True)
    assert "a privacy request" in run("search", path, "--kind", "recording.shredded").output
