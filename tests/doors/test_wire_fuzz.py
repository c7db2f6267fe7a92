"""The running listener fed with mangled conversations: it answers, or ends the one connection; nothing stays behind."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.wire_fuzz import nothing_left, one_client
from tests.stack import Stack, running_stack
from tests.wire.mangled import conversation


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("fuzz")) as stack:
        yield stack


FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@settings(FUZZ, max_examples=120)
@given(random=st.randoms(use_true_random=False))
def test_a_mangled_conversation_ends_itself_only(stack: Stack, random: Random) -> None:
    sent = conversation(random, started=True)
    assert "XX000" not in one_client(stack, random.choice(("devin", "ada", "grace")), sent, random)


@settings(FUZZ, max_examples=40)
@given(random=st.randoms(use_true_random=False))
def test_a_mangled_start_lets_nobody_in(stack: Stack, random: Random) -> None:
    assert "XX000" not in one_client(stack, None, conversation(random, started=False, broken_of_100=30), random)


def test_of_all_that_nothing_is_left(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    random = Random(4)
    for _ in range(40):
        one_client(stack, "devin", conversation(random, started=True, broken_of_100=1), random)
    nothing_left(stack)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []
