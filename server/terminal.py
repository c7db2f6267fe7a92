"""The console of our commands: what rich prints, on a terminal, in a file, or into a pipe that closes before its end.

INVARIANT: what is printed is what is shown. Rich would read `[bold]` as a style and `:cat:` as a picture, in SQL too.
"""

from __future__ import annotations

from typing import TextIO

from rich.console import Console


class Terminal(Console):
    """Rich's console that changes no text, and does not end the process by itself: commands have one way to end."""

    def __init__(self, file: TextIO | None = None, *, soft_wrap: bool = False, width: int | None = None) -> None:
        super().__init__(file=file, soft_wrap=soft_wrap, width=width, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """What is printed to nobody (`| head`) is no failure: `server.cli` ends the command, with status 0."""
        raise BrokenPipeError
