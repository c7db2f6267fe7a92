"""A policy that contradicts a live catalog is not put in force; the old one stays, and the audit says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ConfigurationError
from policy.catalog import Catalog
from tests.stack import Stack
from tests.waiting import until


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


def test_the_file_is_watched_on_after_a_failure_that_nobody_expected(fresh_stack: Stack) -> None:
    policies = fresh_stack.app.hall.gateway.policies
    path: Path = fresh_stack.demo.config.policy_path
    text, known = path.read_text(encoding="utf-8"), policies.catalogs

    def broken() -> list[Catalog]:
        raise RuntimeError("the catalogs are gone")

    def loaded() -> list[str]:
        return [row["kind"] for row in fresh_stack.audit("SELECT kind FROM entries WHERE kind LIKE 'policy.%'")]

    policies.catalogs = broken
    path.write_text(text + "\n# one\n", encoding="utf-8")
    until(lambda: loaded() == ["policy.loaded", "policy.rejected"], "the file is not watched")
    [row] = fresh_stack.audit("SELECT body FROM entries WHERE kind = 'policy.rejected'")
    assert "RuntimeError: the catalogs are gone" in row["body"]
    policies.catalogs = known
    path.write_text(text.replace("rules:\n", "rules:\n  - {name: new, effect: deny, actions: [drop]}\n", 1), "utf-8")
    until(lambda: loaded() == ["policy.loaded", "policy.rejected", "policy.loaded"], "the file is not watched")
