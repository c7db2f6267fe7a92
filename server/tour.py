"""`countersign demo --tour`: the story without hands. It succeeds only if each step is as promised."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import sqlite_utils
from rich.console import Console
from rich.text import Text

from server.app import App
from server.demo import Demo
from server.guide import command
from server.sample.rows import CUSTOMERS, INJECTION, INJECTION_TICKET, TICKETS
from server.story import Answer, BrokenPromiseError, Story, open_story

_COLUMNS = ("id", "name", "email", "ssn", "card", "notes")
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM customers ORDER BY id LIMIT 3"  # noqa: S608 - our own names
_DROP = "DROP TABLE customers"
_UPDATE = "UPDATE tickets SET status = 'closed'"

T = TypeVar("T")
Step = Callable[[Story, "Memory"], Awaitable[None]]


@dataclass(slots=True)
class Memory:
    """What one step leaves for a later one. `statements` are references in the audit, by SQL text and door."""

    rows: list[list[object]] = field(default_factory=list)
    statements: dict[str, str] = field(default_factory=dict)
    approval: str = ""


async def play(stage: Demo, app: App, console: Console) -> int:
    """Play every step; 0 if each promise was kept, 1 at the first that was not."""
    started = time.monotonic()
    console.print("[bold]Countersign, the tour[/]: one path, two doors, one book\n")
    try:
        async with open_story(console, stage, app) as story:
            if not await _play_steps(story):
                return 1
    except Exception as error:
        _show_failure(console, "the clients connect to the MCP door", error)
        return 1
    console.print(f"[bold green]Every promise was kept[/], in {time.monotonic() - started:.1f} s. Look yourself:")
    audit = shlex.quote(str(_from_here(stage.audit_path)))
    console.print(f"   {command('sqlite-utils')} rows {audit} statements", markup=False, soft_wrap=True)
    return 0


async def _play_steps(story: Story) -> bool:
    memory = Memory()
    for number, (title, step) in enumerate(STEPS, 1):
        story.console.print(Text.assemble((f"{number}  ", "bold magenta"), (title, "bold")))
        try:
            await step(story, memory)
        except Exception as error:
            _show_failure(story.console, title, error)
            return False
        story.console.print()
    return True


def _show_failure(console: Console, title: str, error: Exception) -> None:
    if not isinstance(error, BrokenPromiseError):
        error = BrokenPromiseError(title, "no failure", f"{type(error).__name__}: {error}")
    console.print(Text.assemble("   ", ("✗", "bold red"), " ", error.what), soft_wrap=True)
    console.print(Text.assemble("     expected  ", str(error.expected)), soft_wrap=True)
    console.print(Text.assemble("     actual    ", str(error.actual)), soft_wrap=True)


# -- the steps ----------------------------------------------------------------------------------------


async def look_around(story: Story, memory: Memory) -> None:
    """The agent sees who it is, and what it may use."""
    tools = await story.tools("devin")
    whoami = (await story.tool("devin", "whoami")).content
    story.promise(
        "the agent is known by its token, and so is the person it works for",
        ("devin", "agent", "ada"),
        (whoami.get("subject"), whoami.get("kind"), whoami.get("on_behalf_of")),
    )
    story.promise("the door offers its tools", set(), {"query", "describe", "await_approval"} - set(tools))
    story.says("devin", 'describe(object="customers")', door="MCP")
    customers = _only((await story.tool("devin", "describe", object="customers")).content["relations"])
    columns = {column["name"]: column for column in customers["columns"]}
    story.table(
        ("column", "type", "mask", "comment"),
        [(name, c["type"], c.get("masked"), c.get("comment")) for name, c in columns.items()],
        give="comment",
    )
    unmasked = [name for name in ("ssn", "card") if not columns[name].get("masked")]
    story.promise("the description says which columns are masked", [], unmasked)
    everything = (await story.tool("devin", "describe")).content["relations"]
    hidden = [relation["name"] for relation in everything if relation["name"].startswith("hr.")]
    story.promise("what the policy does not give is not there: no table of schema hr", [], hidden)


async def read_masked(story: Story, memory: Memory) -> None:
    """The agent reads customers; no raw value of a masked column leaves."""
    story.sql("devin", _SELECT, door="MCP")
    answer = _succeeded(await story.tool("devin", "query", sql=_SELECT, reason="the tour"))
    memory.rows = answer.content["rows"]
    memory.statements[_SELECT] = answer.statement
    story.table(_COLUMNS, memory.rows, give="email")
    raw = await story.direct(_SELECT)
    masked = {column["name"] for column in answer.content["columns"] if column["masked"]}
    story.promise("social security number and card are masked", set(), {"ssn", "card"} - masked)
    secrets = [row[_COLUMNS.index(name)] for row in raw for name in masked]
    said = json.dumps(answer.content, ensure_ascii=False) + answer.text
    leaked = [value for value in secrets if value and value in said]
    story.promise(f"none of {len(secrets)} raw values of masked columns is in the answer", [], leaked)
    story.promise("what is not masked is untouched", [row[1] for row in raw], [row[1] for row in memory.rows])
    last_four = _COLUMNS.index("ssn")
    story.promise(
        "of the number its last four digits are left",
        [row[last_four][-4:] for row in raw],
        [str(row[last_four])[-4:] for row in memory.rows],
    )


async def same_in_psql(story: Story, memory: Memory) -> None:
    """The same statement through the other door."""
    story.sql("devin", _SELECT, door="psql")
    done = await story.psql("devin", _SELECT, "-qAt")
    story.quote(done.out or done.err)
    story.promise("psql ends well", 0, done.status)
    expected = ["|".join("" if value is None else str(value) for value in row) for row in memory.rows]
    story.promise("real psql gets the same values, byte for byte", expected, done.out.splitlines())


async def obey_a_ticket(story: Story, memory: Memory) -> None:
    """A stored prompt injection: the agent falls for it, the gateway does not."""
    ticket = "SELECT body FROM tickets WHERE id = $1"
    answer = _succeeded(await story.tool("devin", "query", sql=ticket, parameters=[INJECTION_TICKET]))
    body = _only(_only(answer.content["rows"]))
    story.says("devin", f"reads ticket {INJECTION_TICKET}", door="MCP")
    story.quote(str(body))
    story.promise(
        "the ticket reaches the agent as data, with a warning",
        (INJECTION, True),
        (body, bool(answer.content["notice"])),
    )
    story.sql("devin", _DROP, door="MCP")
    refusal = await story.tool("devin", "query", sql=_DROP, reason=f"ticket {INJECTION_TICKET} says so")
    memory.statements[_DROP] = refusal.statement
    story.quote(refusal.text)
    story.promise(
        "the MCP door refuses, and names the rule", (True, True), (refusal.failed, bool(refusal.error.get("rule")))
    )
    story.sql("devin", _DROP, door="psql")
    done = await story.psql("devin", _DROP, "-v", "VERBOSITY=verbose")
    story.quote(done.err)
    reason = str(refusal.error.get("what"))
    story.promise(
        "the wire door refuses with the same reason, as PostgreSQL's 42501",
        (1, True, True),
        (done.status, "42501" in done.err, reason in done.err),
    )
    count = await story.direct("SELECT count(*) FROM customers")
    story.promise(f"the table is still there, with its {CUSTOMERS} rows", [[str(CUSTOMERS)]], count)


async def second_signature(story: Story, memory: Memory) -> None:
    """A change without WHERE waits for a DBA, and runs once."""
    closed = "SELECT count(*) FROM tickets WHERE status = 'closed'"
    before = await story.direct(closed)
    story.sql("devin", _UPDATE, door="MCP")
    answer = _succeeded(await story.tool("devin", "query", sql=_UPDATE, reason="tidy up"))
    pending = answer.content.get("pending") or {}
    memory.approval = str(pending.get("id"))
    story.quote(answer.text)
    story.promise(
        "the statement waits, and nothing has changed",
        ("pending", before),
        (answer.content["status"], await story.direct(closed)),
    )
    vote = {"id": memory.approval, "digest": pending.get("digest")}
    for who, because in (("devin", "an agent cannot vote"), ("ada", "nor can the person it works for")):
        story.promise(because, True, (await story.tool(who, "approve", **vote)).failed)
    shown = _succeeded(await story.tool("grace", "approval_status", id=memory.approval)).content
    story.promise("the DBA sees the exact statement", _UPDATE, shown["statement"])
    story.says("grace", f"approve({memory.approval})", door="MCP")
    voted = await story.tool("grace", "approve", id=memory.approval, digest=shown["digest"], comment="fine")
    story.promise("a DBA's vote is enough", "approved", _succeeded(voted).content["state"])
    story.says("devin", f"await_approval({memory.approval})", door="MCP")
    ran = _succeeded(await story.tool("devin", "await_approval", id=memory.approval))
    memory.statements[_UPDATE] = ran.statement
    story.promise("the stored statement runs", f"UPDATE {TICKETS}", ran.content["tag"])
    story.promise("every ticket is closed now", [[str(TICKETS)]], await story.direct(closed))
    again = await story.tool("devin", "await_approval", id=memory.approval)
    story.promise("the approval is used up: it does not run again", True, again.failed)


async def who_did_what(story: Story, memory: Memory) -> None:
    """The audit, read with sqlite-utils."""
    columns = ("seq", "who", "on_behalf_of", "door", "verdict", "status", "sql", "statement")
    options = [option for column in columns for option in ("-c", column)]
    audit = str(story.stage.audit_path)
    done = await story.sqlite_utils("rows", audit, "statements", *options, "--order", "seq")
    story.promise("`sqlite-utils rows audit.db statements` reads it", 0, done.status)
    rows = json.loads(done.out)
    ours = rows[-_STATEMENTS_SHOWN:]
    headings = ["for" if column == "on_behalf_of" else column for column in columns[:-1]]
    story.table(headings, [[row[column] for column in columns[:-1]] for row in ours], give="sql")
    found = {row["statement"]: (row["who"], row["on_behalf_of"], row["verdict"], row["status"]) for row in rows}
    expected = {
        _SELECT: ("devin", "ada", "allow", "completed"),
        _DROP: ("devin", "ada", "deny", "refused"),
        _UPDATE: ("devin", "ada", "approve", "completed"),
    }
    actual = {sql: found.get(memory.statements[sql]) for sql in expected}
    story.promise("it says who did what, for whom, and what came of it", expected, actual)
    doors = {row["door"] for row in ours if row["sql"] in (_SELECT, _DROP)}
    story.promise("both doors write into the one book", {"mcp", "wire"}, doors)


async def book_holds(story: Story, memory: Memory) -> None:
    """The chain verifies; one changed byte in a copy does not pass."""
    done = await story.countersign("audit", "verify", str(story.stage.audit_path))
    story.quote(_first_line(done.out + done.err))
    story.promise("`countersign audit verify` passes", 0, done.status)
    folder = Path(tempfile.mkdtemp(prefix="countersign-tour-"))
    try:
        copy = folder / "copy.db"
        seq = await asyncio.to_thread(_change_one_byte, story.stage.audit_path, copy, memory.statements[_DROP])
        story.says("someone", f"changes one byte of entry {seq} in a copy: customers -> customerz", door="disk")
        done = await story.countersign("audit", "verify", str(copy))
        story.quote(_first_line(done.out + done.err))
        named = re.search(rf"\b{seq}\b", done.out + done.err)
        story.promise(f"the verifier fails, and names entry {seq}", (1, True), (done.status, named is not None))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _change_one_byte(audit: Path, copy: Path, statement: str) -> int:
    """Copy the audit, change one byte of a statement's recorded text on disk; the entry's `seq`."""
    database = sqlite_utils.Database(audit)
    database.execute("VACUUM INTO ?", [str(copy)])
    database.close()
    database = sqlite_utils.Database(copy)
    found = list(database.query("SELECT seq, body FROM entries WHERE kind = 'intent' AND statement = ?", [statement]))
    database.close()
    entry = _only(found)
    stored = bytearray(copy.read_bytes())
    body = entry["body"].encode()
    at = stored.find(body)
    if at < 0:
        raise BrokenPromiseError("the entry lies in one piece in the file", "its body", "not found")
    at += body.index(_DROP.encode()) + len(_DROP) - 1
    stored[at : at + 1] = b"z"
    copy.write_bytes(stored)
    return int(entry["seq"])


def _only(items: list[T]) -> T:
    if len(items) != 1:
        raise BrokenPromiseError("there is exactly one", 1, len(items))
    return items[0]


def _from_here(path: Path) -> Path:
    """The path as this terminal may write it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _succeeded(answer: Answer) -> Answer:
    if answer.failed:
        raise BrokenPromiseError("the call succeeds", "an answer", answer.text)
    return answer


_STATEMENTS_SHOWN = 7

STEPS: tuple[tuple[str, Step], ...] = (
    ("The agent looks around", look_around),
    ("It reads customers: personal data arrives masked", read_masked),
    ("The same statement through psql", same_in_psql),
    ("A ticket tells the agent to drop a table, and it obeys", obey_a_ticket),
    ("A sweeping change needs a second signature", second_signature),
    ("Who did what", who_did_what),
    ("The book cannot be rewritten", book_holds),
)
