"""Fixtures for every room: real PostgreSQL servers, a real issuer, the real gateway with both doors open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import Stack, running_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """PostgreSQL with the sample data, the issuer, the gateway and both doors, for the whole run."""
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture
def fresh_stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack of a test's own, for tests that break things."""
    with running_stack(tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def wire_door(stack: Stack) -> Stack:
    """The wire door: `host`, `port`, `database`, `tokens`."""
    return stack


@pytest.fixture(scope="session")
def mcp_http(stack: Stack) -> Stack:
    """The MCP door over HTTP: `url`, `tokens`."""
    return stack


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The sans-IO rooms first: a broken table should not wait for servers to start."""
    order = {name: rank for rank, name in enumerate(("policy", "wire", "audit", "gateway", "server", "doors", "e2e"))}
    items.sort(key=lambda item: order.get(Path(item.path).parent.name, len(order)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was skipped where nothing may be: a skipped test proves nothing."""
    skipped = terminalreporter.stats.get("skipped", [])
    if os.environ.get("CI") and skipped:
        terminalreporter.write_line(f"{len(skipped)} tests were skipped, and in CI none may be", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run in CI that skipped something."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and exitstatus == pytest.ExitCode.OK and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
