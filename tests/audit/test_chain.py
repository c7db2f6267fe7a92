"""The format: SPEC.md's own example, and the fields that a hash covers."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import chain, verify
from audit.checkpoint import Checkpoint
from audit.entry import LARGEST_BODY_BYTES, BodyError, Draft, Entry, Kind, as_text
from audit.merkle import root_of
from audit.note import Signer, split_notes

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


def spec_entries() -> list[Entry]:
    """The example of SPEC.md, read from the page itself."""
    page = resources.files("audit").joinpath("SPEC.md").read_text(encoding="utf-8")
    block = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    assert block is not None
    rows = [json.loads(line) for line in block[1].splitlines()]
    return [Entry(**row | {"prev": bytes.fromhex(row["prev"]), "hash": bytes.fromhex(row["hash"])}) for row in rows]


def test_the_example_of_the_specification_is_a_chain() -> None:
    before = None
    for entry in spec_entries():
        assert chain.check(before, entry) is None
        before = entry
    assert before is not None


def test_the_writer_makes_the_example_of_the_specification() -> None:
    prev = chain.GENESIS
    for e in spec_entries():
        draft = Draft(Kind(e.kind), e.session, e.subject, e.connection, json.loads(e.body), e.statement)
        assert chain.link(prev, e.seq, e.time, draft) == e
        prev = e.hash


def test_the_lone_verifier_restates_the_same_format() -> None:
    for e in spec_entries():
        assert e.hash == verify.entry_hash(e.prev, e.seq, *e[1:-2])
    assert verify.GENESIS == chain.GENESIS


@pytest.mark.parametrize("field", ["time", "kind", "session", "subject", "connection", "statement", "body"])
def test_every_field_is_covered_by_the_hash(field: str) -> None:
    first = spec_entries()[0]
    other: dict[str, Any] = {field: (getattr(first, field) or "") + "x"}
    changed = first._replace(**other)
    assert chain.check(None, changed) == "its contents do not match its hash"


def test_null_is_not_the_empty_text() -> None:
    first = spec_entries()[0]
    assert chain.check(None, first._replace(connection="")) == "its contents do not match its hash"


def test_an_entry_is_bound_to_its_place() -> None:
    first, second = spec_entries()
    draft = Draft(Kind.INTENT, None, None, None, {})
    assert chain.check(None, second) == "entry 1 is missing (the next one is 2)"
    assert chain.check(first, chain.link(chain.GENESIS, 2, second.time, draft)) == (
        "it does not follow the entry before it"
    )
    assert chain.check(first, chain.link(first.hash, 2, "2020-01-01T00:00:00.000000Z", draft)) == (
        "its time is before that of the entry before it"
    )


FIELDS = st.lists(st.one_of(st.none(), TEXT), min_size=4, max_size=4)


def hashed(fields: list[str | None]) -> bytes:
    session, subject, connection, statement = fields
    return chain.digest(chain.GENESIS, 1, "t", "k", session, subject, connection, statement, "{}")


@given(FIELDS, FIELDS)
def test_no_two_entries_share_a_hash_by_moving_bytes_between_fields(a: list[str | None], b: list[str | None]) -> None:
    assert (hashed(a) == hashed(b)) == (a == b)


@given(st.dictionaries(TEXT, st.one_of(st.none(), st.booleans(), st.integers(), TEXT), max_size=4))
def test_a_body_survives_its_text(body: dict[str, object]) -> None:
    assert json.loads(as_text(body)) == body


def test_a_lone_surrogate_is_kept_escaped_so_that_the_text_is_utf8() -> None:
    text = as_text({"text": "\ud800"})
    assert json.loads(text) == {"text": "\ud800"}
    text.encode("utf-8")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}, "x" * (LARGEST_BODY_BYTES + 1)])
def test_a_body_that_the_store_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(BodyError, match="an audit body"):
        chain.link(chain.GENESIS, 1, "t", Draft(Kind.INTENT, None, None, None, {"x": value}))


def test_the_specifications_checkpoint_is_the_one_we_sign() -> None:
    page = resources.files("audit").joinpath("SPEC.md").read_text(encoding="utf-8")
    [note] = [note for note in split_notes(page.replace("```\n", "")) if note.startswith("example.com/audit\n2\n")]
    signer = Signer("example.com/audit", bytes(range(32)))
    assert note == Checkpoint(signer.name, 2, root_of(e.hash for e in spec_entries())).signed(signer)
