"""`countersign policy` on the running demo's configuration: `check`, `explain` and `test` against the live catalog."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from server.cli import main
from tests.policy.corpus import ROOT
from tests.stack import Stack, running_stack


def run(stack: Stack, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["policy", *arguments, "--config", str(stack.demo.config_path)])


def test_the_examples_cases_pass_against_the_live_catalog(stack: Stack) -> None:
    done = run(stack, "test", str(ROOT / "examples/policy-cases.yaml"))
    assert (done.exit_code, done.output) == (0, "8 cases: 8 as said, 0 different\n")


def test_differences_are_shown_and_end_in_status_1(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "principals: {eve: {}}\nwho: eve\ncases:\n  - {note: not eve, sql: 'SELECT [1] FROM orders', decision: deny}\n"
        "  - note: eve [reads]\n    sql: |\n      SELECT id\n        FROM orders\n"
        "    decision: allow\n    rules: [x]\n",
        encoding="utf-8",
    )
    done = run(stack, "test", str(tmp_path))
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert lines[:3] == ["a.yaml:5: eve [reads]", "    eve: SELECT id FROM orders", "  - decision: allow"]
    assert lines[3].startswith("  + decision: deny  (no rule lets `eve` select `public.orders`")
    assert lines[4:] == ["  - rules: x", "  + rules: none", "2 cases: 1 as said, 1 different"]


def test_check_names_what_a_mask_cannot_do_on_the_live_catalog(stack: Stack) -> None:
    done = run(stack, "check")
    assert done.exit_code == 0, done.output
    assert "masks and 0 row filters checked against" in done.output


def test_explain_takes_the_number_of_rows(stack: Stack) -> None:
    done = run(stack, "explain", "--as", "devin", "--group", "ai-agents", "--agent", "--rows", "3", "SELECT 1")
    assert done.exit_code == 0
    assert "allow" in done.output


def test_explain_shows_rules_masks_and_where_the_columns_come_from(stack: Stack) -> None:
    sql = "SELECT upper(name) AS who, card || ssn AS paid, 1 AS one FROM customers"
    done = run(stack, "explain", "--as", "devin", "--group", "ai-agents", "--agent", sql)
    assert done.exit_code == 0
    words = " ".join(done.output.split())
    assert "verdict allow" in words
    assert "agents-read" in words
    assert 'FROM "public"."customers"' in words
    assert done.output.splitlines()[-4:] == [
        "columns come from (advisory: sqlglot's reading, which no verdict rests on)",
        "  who: public.customers.name",
        "  paid: public.customers.card (masked: redact), public.customers.ssn (masked: partial)",
        "  one: no column",
    ]


def test_explain_reads_no_markup_and_no_pictures_in_names(stack: Stack) -> None:
    who = ("explain", "--as", "devin", "--group", "ai-agents", "--agent")
    done = run(stack, *who, 'SELECT 1 FROM "[/red]"')
    assert (done.exit_code, 'relation "[/red]" does not exist' in " ".join(done.output.split())) == (0, True)
    done = run(stack, *who, "SELECT ssn, ':cat:' FROM customers")
    assert "SELECT ssn, ':cat:' FROM (SELECT " in done.output


def test_explain_says_why_it_knows_no_lineage(stack: Stack) -> None:
    done = run(stack, "explain", "--as", "devin", "--group", "ai-agents", "--agent", "DROP TABLE customers")
    assert done.exit_code == 0
    assert done.output.splitlines()[-1] == "  not known: only a query has one"


# -- diff ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose audit holds a few statements of devin's and grace's."""
    with running_stack(tmp_path_factory.mktemp("diff")) as stack:
        record(stack)
        yield stack


def record(stack: Stack) -> None:
    for sql in ("SELECT id FROM orders LIMIT 1", "SELECT ssn FROM customers LIMIT 1", "DROP TABLE orders", "SELECT 1"):
        stack.psql("devin", sql)
    stack.psql("devin", "SELECT id FROM orders LIMIT 1")
    stack.psql("grace", "SELECT id FROM orders LIMIT 1")
    stack.psql("devin", None, "-c", "PREPARE p AS SELECT total FROM orders LIMIT 1", "-c", "EXECUTE p")


def changed(stack: Stack, tmp_path: Path, before: str, after: str) -> Path:
    text = stack.demo.config.policy_path.read_text(encoding="utf-8")
    assert before in text
    new = tmp_path / "new.yaml"
    new.write_text(text.replace(before, after, 1), encoding="utf-8")
    return new


def test_diff_shows_whose_statements_would_change_and_by_which_rule(recorded: Stack, tmp_path: Path) -> None:
    deny = "  - {name: no-orders, effect: deny, actions: [select], relations: [public.orders], who: {kinds: [agent]}}\n"
    done = run(recorded, "diff", str(changed(recorded, tmp_path, "rules:\n", f"rules:\n{deny}")), "--json")
    assert done.exit_code == 1, done.output
    report = json.loads(done.output)
    assert report["statements"] == 8
    assert report["left_out"] == report["notes"] == {}
    found = {(c["principal"]["subject"], c["text"]): (c["times"], c["old"], c["new"]) for c in report["changed"]}
    assert set(found) == {
        ("devin", "SELECT id FROM orders LIMIT 1"),
        ("devin", "PREPARE p AS SELECT total FROM orders LIMIT 1"),
        ("devin", "EXECUTE p"),
    }
    times, old, new = found["devin", "SELECT id FROM orders LIMIT 1"]
    assert (times, old["verdict"], new["verdict"]) == (2, "allow", "deny")
    assert (old["rules"], new["rules"]) == (["agents-read (policy.yaml:10)"], ["no-orders (new.yaml:9)"])
    shown = run(recorded, "diff", str(tmp_path / "new.yaml"))
    assert shown.output.splitlines()[:3] == [
        f"devin on {recorded.database} (wire, 2 times): SELECT id FROM orders LIMIT 1",
        "  - allow: agents-read (policy.yaml:10)",
        "  + deny: no-orders (new.yaml:9)",
    ]
    assert shown.output.splitlines()[-1] == "8 statements, 7 distinct: 3 would change"
    readings = recorded.audit("SELECT body FROM entries WHERE kind = 'audit.read' ORDER BY seq")
    assert {json.loads(r["body"])["how"] for r in readings} == {"policy diff"}


def test_diff_shows_other_masks_and_nothing_where_nothing_changes(recorded: Stack, tmp_path: Path) -> None:
    same = run(recorded, "diff", str(recorded.demo.config.policy_path))
    assert (same.exit_code, same.output) == (0, "8 statements, 7 distinct: 0 would change\n")
    new = changed(recorded, tmp_path, "with: {partial: {keep_last: 4}}", "with: {partial: {keep_last: 2}}")
    done = run(recorded, "diff", str(new), "--since", "1h", "--json")
    assert done.exit_code == 1
    [change] = json.loads(done.output)["changed"]
    assert change["text"] == "SELECT ssn FROM customers LIMIT 1"
    assert "  + with another form of the same masks or row filters\n" in run(recorded, "diff", str(new)).output


def test_diff_says_what_it_cannot_replay(recorded: Stack, tmp_path: Path) -> None:
    recorded.direct("CREATE TABLE public.elsewhere (id int)")
    done = run(recorded, "diff", str(recorded.demo.config.policy_path))
    assert done.exit_code == 0
    assert "8 statements: decided against the schema of today, which differs from the one of then" in done.output
    bad = run(recorded, "diff", str(recorded.demo.config.policy_path), "--since", "yesterday")
    assert bad.exit_code != 0
    assert "`yesterday` is not a time" in bad.output
