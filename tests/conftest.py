"""Fixtures for every room: real PostgreSQL servers, a real issuer, the real gateway with both doors open."""

from __future__ import annotations

import os
import shutil
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


ROOMS = ("policy", "wire", "audit", "gateway", "server", "doors", "clients", "e2e")
NODE_TESTS = Path(__file__).with_name("clients") / "test_node.py"
LEFT_OUT = pytest.StashKey[list[pytest.Item]]()


def node_clients_are_here() -> bool:
    """Whether Node.js and the clients for it can be used; `make` installs the clients where npm is."""
    return shutil.which("node") is not None and NODE_TESTS.with_name("node_modules").exists()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The sans-IO rooms first: a broken table should not wait for servers to start."""
    order = {name: rank for rank, name in enumerate(ROOMS)}
    items.sort(key=lambda item: order.get(Path(item.path).parent.name, len(order)))
    if not os.environ.get("CI") and not node_clients_are_here():
        left_out = config.stash[LEFT_OUT] = [item for item in items if item.path == NODE_TESTS]
        items[:] = [item for item in items if item.path != NODE_TESTS]
        config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what was left out, or skipped where nothing may be: a skipped test proves nothing."""
    if left_out := config.stash.get(LEFT_OUT, []):
        told = "were left out: they need Node.js and npm, and `make test`, which installs the clients"
        terminalreporter.write_line(f"{len(left_out)} tests of Node.js clients {told}", yellow=True)
    skipped = terminalreporter.stats.get("skipped", [])
    if os.environ.get("CI") and skipped:
        terminalreporter.write_line(f"{len(skipped)} tests were skipped, and in CI none may be", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run in CI that skipped something."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and exitstatus == pytest.ExitCode.OK and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
