"""In which steps a migration runs: what PostgreSQL refuses in a transaction stands alone, the rest stays together."""

from __future__ import annotations

import pytest

from gateway.steps import Step, steps_of

ALONE = [
    "CREATE INDEX CONCURRENTLY a ON b (c)",
    "DROP INDEX CONCURRENTLY a",
    "REINDEX (CONCURRENTLY) TABLE a",
    "REINDEX INDEX CONCURRENTLY a",
    "REINDEX SCHEMA a",
    "VACUUM (FULL) a",
    "CLUSTER",
    "ALTER TABLE a DETACH PARTITION b CONCURRENTLY",
    "CREATE DATABASE a",
    "ALTER DATABASE a SET TABLESPACE b",
]
TOGETHER = [
    "CREATE INDEX concurrently_used ON b (c)",  # a name is no keyword
    "REFRESH MATERIALIZED VIEW CONCURRENTLY a",
    "ALTER TABLE a DETACH PARTITION b FINALIZE",
    "REINDEX TABLE a",
    "ANALYZE a",
    "CLUSTER a",
    "ALTER TYPE a RENAME VALUE 'x' TO 'y'",
]


def shape(*texts: str) -> list[tuple[int, int, bool]]:
    return [(step.first, step.last, step.outside) for step in steps_of([text.encode() for text in texts])]


@pytest.mark.parametrize("text", ALONE)
def test_what_cannot_be_in_a_transaction_is_a_step_of_its_own_and_order_is_kept(text: str) -> None:
    assert shape("SELECT 1", "SELECT 2", f"{text} /* one */", "SELECT 3") == [
        (1, 2, False),
        (3, 3, True),
        (4, 4, False),
    ]


@pytest.mark.parametrize("text", TOGETHER)
def test_what_can_be_in_a_transaction_stays_in_it(text: str) -> None:
    assert shape("SELECT 1", text, "SELECT 2") == [(1, 3, False)]


def test_a_new_value_of_an_enum_is_committed_before_the_statement_that_uses_it() -> None:
    add = "ALTER TYPE mood ADD VALUE 'so-so'"
    assert shape("SELECT 1", add, "UPDATE t SET m = 'so-so'", "SELECT 2") == [(1, 2, False), (3, 4, False)]
    assert shape(add, "UPDATE t SET m = 'other'") == [(1, 2, False)]


def test_a_step_says_what_it_is() -> None:
    assert str(Step(1, 3)) == "statements 1 to 3, in a transaction"
    assert (
        str(Step(4, 4, "VACUUM cannot be in one")) == "statement 4, outside of a transaction: VACUUM cannot be in one"
    )
