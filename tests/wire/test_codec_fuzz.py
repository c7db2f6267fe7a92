"""What the codec's fuzzer asks of any bytes, asked of mangled conversations for a moment."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance.codec_fuzz import one_input
from tests.wire.mangled import conversation
from tests.wire.test_messages import BACKEND_MESSAGES


@settings(deadline=None)
@given(head=st.binary(min_size=2, max_size=2), random=st.randoms(use_true_random=False))
def test_mangled_conversations_are_decoded_alike_however_they_are_cut(head: bytes, random: Random) -> None:
    one_input(head + b"".join(conversation(random, started=bool(head[0] & 4))))


@settings(deadline=None)
@given(
    head=st.binary(min_size=2, max_size=2),
    messages=st.lists(st.sampled_from(BACKEND_MESSAGES), max_size=6),
    garbage=st.binary(max_size=12),
)
def test_a_servers_messages_with_garbage_too(head: bytes, messages: list[object], garbage: bytes) -> None:
    one_input(head + b"".join(m.encode() for m in messages) + garbage)  # type: ignore[attr-defined]
