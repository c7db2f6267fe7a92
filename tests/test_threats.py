"""Every known way of breaking systems like ours has a case that names it: the numbers are those of the threat list.

A case of the policy corpus names its numbers where its note begins (`"1, 2 stacked statements"`). What no text of a
statement can say is tried by the tests below, each at the door that it is about.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.policy.corpus import load_cases

ROOT = Path(__file__).parent
NUMBERS = [*range(1, 31), 38, 39, 40]
# Of the protocol, not of a statement.
ELSEWHERE = {
    18: ("doors/test_wire_protocol.py", "test_a_start_up_that_asks_for_too_much_is_refused"),
    19: ("doors/test_wire_protocol.py", "test_the_fast_path_function_call_is_refused"),
    20: ("doors/test_wire_protocol.py", "test_a_name_means_what_was_parsed_last"),
    22: ("doors/test_wire_login.py", "test_what_is_sent_behind_the_request_for_tls_is_never_read"),
    23: ("gateway/test_admission.py", "test_decisions_are_kept_by_exact_bytes_never_by_a_fingerprint"),
}
_BEGINNING = re.compile(r"(\d+)(?:, (\d+))*\b")


def numbers(note: str) -> list[int]:
    found = _BEGINNING.match(note)
    return [int(number) for number in re.findall(r"\d+", found[0])] if found else []


@pytest.mark.parametrize("number", NUMBERS)
def test_a_threat_has_a_case_that_names_it(number: int) -> None:
    cases = [case for case in load_cases() if number in numbers(case.note)]
    if number in ELSEWHERE:
        file, name = ELSEWHERE[number]
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
    else:
        assert cases


def test_the_corpus_of_attacks_is_large_and_most_of_it_is_refused() -> None:
    attacks = [case for case in load_cases() if numbers(case.note)]
    assert len({case.sql for case in attacks}) >= 250
    # The others are masked, or wait for people.
    assert sum(case.decision == "deny" for case in attacks) >= 200
