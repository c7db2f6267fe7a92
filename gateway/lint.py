"""The migration lint: squawk's rules on locks, rewrites and compatibility. It advises people; it decides nothing."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

_SECONDS = 10.0
# The gateway sets the time-outs itself, and runs a migration in one transaction or says that it does not.
_EXCLUDED = ("require-lock-timeout", "require-statement-timeout", "prefer-robust-stmts")

Finding = dict[str, str | None]


async def lint(text: bytes) -> list[Finding]:
    """What squawk says of one statement: `rule`, `message`, `help`.

    Give it the text with its comments blanked: a comment could tell squawk to look away. A lint that is not
    installed, or fails, is a finding of its own.
    """
    program = shutil.which("squawk", path=str(Path(sys.executable).parent)) or shutil.which("squawk")
    if program is None:
        return [{"rule": "lint-missing", "message": "squawk is not installed: nothing was linted", "help": None}]
    exclude = [f"--exclude={rule}" for rule in _EXCLUDED]
    process = await asyncio.create_subprocess_exec(
        program, "--reporter=json", "--stdin-filepath=migration.sql", *exclude,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, cwd="/",
    )  # fmt: skip
    try:
        async with asyncio.timeout(_SECONDS):
            said, _ = await process.communicate(text)
        found = json.loads(said or b"[]")
    except (TimeoutError, ValueError):
        return [{"rule": "lint-failed", "message": "squawk gave no answer: nothing was linted", "help": None}]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return [{"rule": one["rule_name"], "message": one["message"], "help": one["help"]} for one in found]
