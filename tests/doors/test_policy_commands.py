"""`countersign policy` on the running demo's configuration: `check`, `explain` and `test` against the live catalog."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from server.cli import main
from tests.policy.corpus import ROOT
from tests.stack import Stack


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


def test_explain_says_why_it_knows_no_lineage(stack: Stack) -> None:
    done = run(stack, "explain", "--as", "devin", "--group", "ai-agents", "--agent", "DROP TABLE customers")
    assert done.exit_code == 0
    assert done.output.splitlines()[-1] == "  not known: only a query has one"
