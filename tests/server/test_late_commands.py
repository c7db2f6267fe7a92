"""Commands that are imported when they are called: all of them are there, and help imports none."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from server.cli import main
from server.late_commands import LateGroup


def late_commands(group: LateGroup) -> list[tuple[LateGroup, str]]:
    context = click.Context(group)
    found = [(group, name) for name in group.late]
    for name in group.list_commands(context):
        if isinstance(command := group.get_command(context, name), LateGroup):
            found += late_commands(command)
    return found


@pytest.mark.parametrize(("group", "name"), late_commands(main), ids=lambda value: getattr(value, "name", value))
def test_a_command_is_where_the_table_says(group: LateGroup, name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert command.name == name
    assert command.help
    assert group.late[name][1].endswith(".")


def test_help_lists_all_commands_and_imports_none() -> None:
    probe = (
        "import sys; from server.cli import main; main(['--help'], standalone_mode=False);"
        "sys.exit(sum(name.partition('.')[0] in ('pydantic', 'mcp', 'rich', 'wire', 'policy') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for name in main.list_commands(click.Context(main)):
        assert f"\n  {name}" in done.stdout
