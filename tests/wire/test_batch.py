"""What is held back of a batch: it leaves in order and in one piece, or not at all."""

from __future__ import annotations

from tests.wire.test_replies import Book
from wire.batch import Batch
from wire.replies import Owed, Owes
from wire.session import Phase


def test_held_messages_leave_in_order_once() -> None:
    batch = Batch()
    assert not batch.hold(Owed(Owes.PARSE), b"P")
    assert not batch.hold(Owed(Owes.BIND), b"B")
    assert batch.take() == b"PB"
    assert batch.take() == b""


def test_a_long_batch_says_that_it_is_time() -> None:
    batch = Batch()
    assert not batch.hold(Owed(Owes.BIND), b"x" * 65_536)
    assert batch.hold(Owed(Owes.EXECUTE), b"x")
    batch.take()
    assert not batch.hold(Owed(Owes.EXECUTE), b"x")


def test_what_was_never_sent_is_skipped_and_what_was_sent_is_not() -> None:
    book, batch = Book(Phase.BATCH), Batch()
    book.send(Owes.EXECUTE, "sent")
    book.send(Owes.EXECUTE, "held")
    held = book.replies._queue[-1]
    batch.hold(held, b"E")
    batch.clear(book.replies)
    assert book.statuses == [("held", "skipped")]
    assert [d.grant.id for d in book.replies.unsettled()] == ["sent"]
    assert batch.take() == b""
