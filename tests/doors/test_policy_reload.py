"""A policy that contradicts a live catalog is not put in force; the old one stays, and the audit says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ConfigurationError
from tests.stack import Stack


def test_a_mask_that_cannot_make_a_columns_type_is_refused_at_load(fresh_stack: Stack) -> None:
    assert fresh_stack.psql("devin", "SELECT 1").returncode == 0  # the catalog is known now
    policies = fresh_stack.app.hall.gateway.policies
    before = policies.current.hash
    path: Path = fresh_stack.demo.config.policy_path
    text = path.read_text(encoding="utf-8")
    assert text.count("\nmasks:\n") == 1
    wrong = "\nmasks:\n  - columns: [public.orders.total]\n    with: redact\n"
    path.write_text(text.replace("\nmasks:\n", wrong), encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        fresh_stack.call(policies.reload)
    assert "error: `public.orders`: a `redact` mask cannot produce `total`: it is `numeric(10,2)`" in str(caught.value)
    assert "use `null` or `range` with `size`" in str(caught.value)
    assert policies.current.hash == before
    [row] = fresh_stack.audit("SELECT body FROM entries WHERE kind = 'policy.rejected'")
    assert "cannot produce `total`" in row["body"]
