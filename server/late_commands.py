"""Commands that are imported when they are called: a command line of many rooms starts as fast as its smallest one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class LateGroup(click.Group):
    """A group that knows of commands by name, module and one line of help: `late` is {name: (module, line)}.

    The command is the module's attribute of that name.
    """

    def __init__(self, *args: Any, late: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.late = late

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in order."""
        return sorted({*super().list_commands(ctx), *self.late})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported by now; None where there is none."""
        if cmd_name not in self.late:
            return super().get_command(ctx, cmd_name)
        found: click.Command = getattr(import_module(self.late[cmd_name][0]), cmd_name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the group's help, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._line(name)) for name in self.list_commands(ctx)])

    def _line(self, name: str) -> str:
        return self.late[name][1] if name in self.late else self.commands[name].get_short_help_str(100)
