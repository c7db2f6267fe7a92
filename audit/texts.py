"""Pure: an entry's body without what people, agents and databases said in their own words. Sans-IO.

An allow-list: a key that is not named here is left out, so that a text which a later version records does not slip
through. Digests stay; whoever guesses a short text can confirm the guess by them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from audit.entry import as_text

_KEPT = frozenset(
    (
        # a statement and what came of it
        *("statement_id", "door", "sha256", "parameters_cut", "demands", "policy", "catalog"),
        *("search_path", "approval", "rehearsal", "instance", "status", "tag", "rows", "size", "duration_ms"),
        *("sqlstate", "masked", "filtered", "detected", "digest", "recording"),
        # who, and with which right
        *("principal", "client", "session", "connection", "token", "issuer", "expires", "voter", "choice", "terms"),
        # the audit's own affairs
        *("change", "source", "replaces", "how", "found", "shredded", "vkey", "note", "witness", "entry"),
        *("timestamp", "version", "until", "webhook", "kind"),
    )
)
# Of these, only so much.
_PARTS: Mapping[str, frozenset[str]] = {
    "verdict": frozenset(("effect", "rules")),
    "request": frozenset(("traceparent", "mcp_request", "protocol", "tool", "client", "client_version")),
    "query": frozenset(
        ("after", "follow", "format", "without_texts", "to", "session", "as", "since", "until", "limit", "kind")
    ),
}


def leave_out(body: str) -> str:
    """The body (JSON text) less its texts, as JSON text."""
    told: Mapping[str, Any] = json.loads(body)
    kept = {key: value for key, value in told.items() if key in _KEPT}
    for key, parts in _PARTS.items():
        if isinstance(value := told.get(key), dict):
            kept[key] = {name: part for name, part in value.items() if name in parts}
    return as_text(kept)
