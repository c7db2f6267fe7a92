"""`countersign policy`: check a policy, explain what it says to a statement, publish its schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from gateway.errors import ConfigurationError
from gateway.model import Connection
from gateway.policies import read_policy
from policy.cases import Case, CasesFile, Difference, read_cases, run_case
from policy.catalog import Catalog
from policy.check import Severity
from policy.check import check as check_against
from policy.document import DocumentError
from policy.engine import decide
from policy.file import policy_schema
from policy.model import Circumstances, Decision, Effect, Facts, Principal, PrincipalKind
from policy.rules import Policy
from server import policy_diff
from server.arguments import CONFIG
from server.config import Config, load_config
from server.lineage import LineageUnknownError, lineage
from server.live_catalog import facts_of
from server.terminal import Terminal


@click.group()
def policy() -> None:
    """Check the policy, and ask it what it would say."""


policy.add_command(policy_diff.diff)


@policy.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@CONFIG
@click.pass_context
def check(context: click.Context, file: Path | None, config_path: Path) -> None:
    """Check a policy FILE by itself, or the configured one against its live catalogs.

    Exit status 0: nothing wrong. 1: errors. 2: unreadable, with file, line and column.
    """
    if file is not None:
        context.exit(_report(file.name, read_policy(file)[0], None))
    config = load_config(config_path)
    loaded, _ = read_policy(config.policy_path)
    worst = 0
    for connection in config.connections:
        worst = max(worst, _report(connection.name, loaded, facts_of(connection).catalog, config))
    context.exit(worst)


def _report(name: str, loaded: Policy, catalog: Catalog | None, config: Config | None = None) -> int:
    """Print what is wrong; 1 if any of it is an error."""
    mask_key, names = (config.mask_key, [c.name for c in config.connections]) if config else (None, None)
    problems = check_against(loaded, catalog, mask_key, names)
    for problem in problems:
        click.echo(str(problem))
    errors = sum(problem.severity is Severity.ERROR for problem in problems)
    against = f" against {len(catalog.relations)} relations" if catalog else ""
    click.echo(
        f"{name}: {len(loaded.rules)} rules, {len(loaded.masks)} masks and {len(loaded.rows)} row filters "
        f"checked{against}: "
        f"{errors} errors, {len(problems) - errors} warnings"
    )
    return 1 if errors else 0


@policy.command()
@click.argument("sql")
@CONFIG
@click.option("--connection", help="The connection. [default: the first configured]")
@click.option("--as", "subject", default="somebody", show_default=True, help="The principal's subject.")
@click.option("--group", "groups", multiple=True, help="A group of the principal; may be repeated.")
@click.option("--agent", is_flag=True, help="The principal is an agent.")
@click.option("--rows", type=click.IntRange(min=0), help="How many rows the statement changes. [default: any number]")
@click.option("--door", type=click.Choice(["mcp", "wire"]), help="The door it comes through. [default: not known]")
def explain(
    sql: str,
    config_path: Path,
    connection: str | None,
    subject: str,
    groups: tuple[str, ...],
    agent: bool,
    rows: int | None,
    door: str | None,
) -> None:
    """Say what would happen to SQL, and why. Nothing is run and nothing is recorded."""
    config = load_config(config_path)
    loaded, _ = read_policy(config.policy_path)
    kind = PrincipalKind.AGENT if agent else PrincipalKind.HUMAN
    principal = Principal(subject, "", kind, frozenset(groups))
    circumstances = Circumstances(rows, datetime.now(UTC), door)
    facts = replace(facts_of(_named(config, connection)), mask_key=config.mask_key, circumstances=circumstances)
    decision = decide(loaded, principal, facts, sql.encode())
    _show(decision)
    if decision.analysis is not None:
        _show_lineage(decision, facts)


@policy.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@CONFIG
@click.option("--connection", help="The connection whose catalog counts. [default: the first configured]")
@click.pass_context
def test(context: click.Context, path: Path, config_path: Path, connection: str | None) -> None:
    """Run the cases of a YAML file, or of all in a folder, against the policy.

    Nothing is run and nothing is recorded. Exit status 0: the policy says what the cases say. 1: it does not,
    and each difference is shown. 2: something is unreadable, with file, line and column.
    """
    config = load_config(config_path)
    facts = replace(facts_of(_named(config, connection)), mask_key=config.mask_key)
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise ConfigurationError(f"`{path}` holds no cases", cure="Put files named `*.yaml` into it.")
    ran = different = 0
    for file in files:
        named, cases = _cases_of(file)
        loaded, _ = read_policy(file.parent / named if named else config.policy_path)
        for case in cases:
            ran += 1
            if differences := run_case(case, loaded, facts):
                different += 1
                _show_differences(file.name, case, differences)
    click.echo(f"{ran} cases: {ran - different} as said, {different} different")
    context.exit(1 if different else 0)


@policy.command()
@click.option("--cases", is_flag=True, help="That of case files, for `countersign policy test`.")
def schema(cases: bool) -> None:
    """Print the JSON Schema of policy files, for editors."""
    click.echo(json.dumps(CasesFile.model_json_schema() if cases else policy_schema(), indent=2))


def _cases_of(file: Path) -> tuple[str | None, list[Case]]:
    try:
        return read_cases(file.read_text(encoding="utf-8"), str(file))
    except DocumentError as error:
        raise ConfigurationError(str(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the cases `{file}` cannot be read: {error}", cure="Save them as UTF-8.") from None


def _show_differences(name: str, case: Case, differences: list[Difference]) -> None:
    console = Terminal(soft_wrap=True)
    console.print(f"{name}:{case.line}: {case.file.note or 'case'}", style="bold")
    console.print(f"    {case.principal.subject}: {' '.join(case.file.sql.split())}")
    for difference in differences:
        console.print(f"  - {difference.what}: {difference.expected}", style="red")
        why = f"  ({difference.why})" if difference.why else ""
        console.print(f"  + {difference.what}: {difference.actual}{why}", style="green")


def _named(config: Config, name: str | None) -> Connection:
    by_name: Mapping[str, Connection] = {c.name: c for c in config.connections}
    if name is None:
        return config.connections[0]
    if name not in by_name:
        known = ", ".join(f"`{n}`" for n in sorted(by_name))
        raise ConfigurationError(f"there is no connection `{name}`", cure=f"The configured connections: {known}.")
    return by_name[name]


def _show(decision: Decision) -> None:
    colours = {Effect.ALLOW: "green", Effect.APPROVE: "yellow", Effect.DENY: "red"}
    verdict, console = decision.verdict, Terminal()
    console.print(Text.assemble("verdict  ", (str(verdict.effect), f"bold {colours[verdict.effect]}")))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "demand", "why", "rule"):
        table.add_column(name, overflow="fold")
    for reason in verdict.reasons:
        table.add_row(str(reason.effect), str(reason.demand or ""), reason.text, reason.rule or reason.code)
    console.print(table)
    for reason in verdict.reasons:
        if reason.effect is verdict.effect and reason.cure:
            console.print(f"cure     {reason.cure}")
    for terms in verdict.terms:
        who = ", ".join(terms.names)
        console.print(f"approval {terms.quorum} of {who}, within {terms.expires}")
    for entry in verdict.rewrite.filtered if verdict.rewrite is not None else ():
        console.print(f"only some rows of {entry}")
    if verdict.rewrite is not None and verdict.rewrite.splices:
        console.print("runs as", style="bold")
        console.print(verdict.rewrite.shown, soft_wrap=True)


def _show_lineage(decision: Decision, facts: Facts) -> None:
    """Where the columns of the result come from, as far as a second parser can tell."""
    console = Terminal(soft_wrap=True)
    assert decision.analysis is not None
    console.print("columns come from (advisory: sqlglot's reading, which no verdict rests on)", style="bold")
    try:
        columns = lineage(decision.analysis.text.decode(), facts.catalog, facts.search_path)
    except LineageUnknownError as error:
        console.print(f"  not known: {error}")
        return
    rewrite = decision.verdict.rewrite
    masked = {f"{m.relation}.{m.column}": m.how for m in rewrite.masked} if rewrite is not None else {}
    for place, column in enumerate(columns, 1):
        sources = [f"{s} (masked: {masked[s]})" if s in masked else s for s in column.sources]
        sources += [] if column.whole else ["something that was not traced"]
        console.print(f"  {column.name or f'column {place}'}: {', '.join(sources) or 'no column'}")
