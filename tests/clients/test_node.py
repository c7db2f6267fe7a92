"""The Node.js clients, each by its own script: what an application does with it, through the wire door.

Where Node.js or the clients are not installed, tests/conftest.py deselects this file and says so; in CI it fails.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.stack import Stack

HERE = Path(__file__).parent


@pytest.mark.parametrize("script", ["node_postgres.mjs", "postgres_js.mjs"])
def test_a_node_client_works_as_applications_use_it(stack: Stack, script: str) -> None:
    door = {"DOOR_HOST": stack.host, "DOOR_PORT": str(stack.port), "DOOR_DATABASE": stack.database}
    tokens = {f"TOKEN_{who.upper()}": token for who, token in stack.tokens.items()}
    done = subprocess.run(
        ["node", "--test-reporter=tap", HERE / script],
        env={"PATH": os.environ["PATH"], **door, **tokens},
        stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# fail 0" in done.stdout
