"""What a view WITH CHECK OPTION holds rows against, as far as it must be known."""

from __future__ import annotations

import pytest

from policy.tied import words_of_condition


@pytest.mark.parametrize(
    ("query", "words", "others"),
    [
        (" SELECT id, name FROM tied WHERE (tied.lower_end <= tied.amount);", {"lower_end", "amount"}, {"id", "*"}),
        (" SELECT id FROM tied;", set(), {"id", "*"}),
        (" SELECT id FROM tied t WHERE (t.* IS NOT NULL);", {"*"}, set()),
        (" SELECT id FROM tied WHERE something that a later server prints (;", {"*"}, {"id"}),
    ],
)
def test_the_words_of_a_views_condition_are_found_or_are_any(query: str, words: set[str], others: set[str]) -> None:
    found = words_of_condition(query)
    assert words <= found
    assert found.isdisjoint(others)
