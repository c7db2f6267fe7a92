"""`countersign doctor` on a real server: users that are as they should be, and users that are not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from server.cli import main
from server.postgres import SUPERUSER
from tests.stack import Stack


@pytest.fixture(scope="module")
def strong(stack: Stack) -> Iterator[None]:
    """A user that has too much, and one that has too little."""
    stack.direct("CREATE ROLE gw_strong LOGIN PASSWORD 'x' CREATEROLE CREATEDB VALID UNTIL 'tomorrow'")
    stack.direct("CREATE ROLE gw_weak LOGIN PASSWORD 'x'")
    for grant in (
        "GRANT CONNECT ON DATABASE shop TO gw_strong, gw_weak",
        "GRANT pg_read_server_files, pg_monitor TO gw_strong",
        "CREATE TABLE gw_owned ()",
        "ALTER TABLE gw_owned OWNER TO gw_strong",
    ):
        stack.direct(grant)
    yield
    stack.direct("DROP OWNED BY gw_strong, gw_weak")
    stack.direct("DROP ROLE gw_strong, gw_weak")


def doctor(
    stack: Stack, folder: Path, user: str | None, password: str = "x", *arguments: str, **more: object
) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and findings for the demo's configuration with another user."""
    configuration = yaml.safe_load(stack.demo.config_path.read_text())
    base = stack.demo.config_path.parent
    configuration["policy"] = str(base / configuration["policy"])
    configuration["mask_key_file"] = str(base / configuration["mask_key_file"])
    shop = configuration["connections"]["shop"]
    shop["password_file"] = str(base / shop["password_file"])
    if user is not None:
        (folder / "password").write_text(password)
        shop |= {"user": user, "password_file": str(folder / "password")}
    shop |= more
    path = folder / "countersign.yaml"
    path.write_text(yaml.safe_dump(configuration))
    done = CliRunner().invoke(main, ["doctor", "--config", str(path), "--json", *arguments])
    assert done.exit_code in (0, 1), done.output
    return done.exit_code, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_demos_user_is_as_it_should_be(stack: Stack, tmp_path: Path) -> None:
    status, found = doctor(stack, tmp_path, None)
    assert [f for f in found if f["severity"] != "note"] == []
    assert any("the wire door lets in 500 clients" in f["text"] for f in found)
    assert status == 0


def test_a_user_that_is_too_strong_is_told_what_and_how_to_cure_it(stack: Stack, strong: None, tmp_path: Path) -> None:
    status, found = doctor(stack, tmp_path, "gw_strong")
    assert status == 1
    told = {f["severity"]: " ".join(g["text"] for g in found if g["severity"] == f["severity"]) for f in found}
    for words in ("CREATEROLE", "`pg_read_server_files`"):
        assert words in told["error"]
    for words in ("CREATEDB", "`pg_monitor`", "owns 1 relations", "is good until"):
        assert words in told["warning"]
    assert "SUPERUSER" not in json.dumps(found)
    assert {f["cure"] for f in found if "CREATEROLE" in f["text"]} == {'ALTER ROLE "gw_strong" NOCREATEROLE;'}
    assert [f["severity"] for f in found if f["user"]] == sorted(
        (f["severity"] for f in found if f["user"]), key=["error", "warning", "note"].index
    )


def test_a_superuser_is_told_once(stack: Stack, tmp_path: Path) -> None:
    _, found = doctor(stack, tmp_path, SUPERUSER, stack.demo.postgres.password)
    assert any("has SUPERUSER" in f["text"] for f in found)
    assert not any("member of" in f["text"] for f in found)


def test_what_the_policy_counts_on_is_missing_only_where_no_user_has_it(
    stack: Stack, strong: None, tmp_path: Path
) -> None:
    _, found = doctor(stack, tmp_path, "gw_weak")
    assert any("SELECT" in f["text"] and "`public.customers`" in f["text"] and f["user"] is None for f in found)
    gateway = stack.demo.config.connections[0]
    (tmp_path / "gateway").write_text(gateway.password)
    role = {"groups": ["dba"], "user": gateway.user, "password_file": str(tmp_path / "gateway")}
    _, found = doctor(stack, tmp_path, "gw_weak", roles=[role])
    assert not any("`public.customers`" in f["text"] for f in found)


def test_a_user_that_cannot_connect_is_a_finding(stack: Stack, tmp_path: Path) -> None:
    status, found = doctor(stack, tmp_path, "gw_nobody")
    assert status == 1
    assert [f["severity"] for f in found] == ["error"]
    assert "`gw_nobody` cannot connect" in found[0]["text"]
