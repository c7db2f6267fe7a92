"""What `countersign audit search` shows on a terminal of what clients have sent."""

from __future__ import annotations

import contextlib
from pathlib import Path

from click.testing import CliRunner

from audit.entry import Draft, Kind
from audit.store import Item, Store
from server.audit_commands import audit


def test_a_statements_escape_sequences_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    text = "SELECT 1 /* \x1b[2J\x1b]0;owned\x07 \x9b2J \u202e [/bold] */, 2"
    body = {"verdict": {"effect": "allow"}, "text": text, "statement": "st-1"}
    with contextlib.closing(Store.open(path)) as store:
        store.append([[Item(Draft(Kind.INTENT, "se-1", "dev\x1b[31min", "shop", body))]])
    shown = CliRunner().invoke(audit, ["search", str(path)]).output
    assert "SELECT 1" in shown
    assert not set("\x1b\x07\x9b\u202e") & set(shown)
    assert "".join(shown.split()).count("\\u{1b}") == 3
