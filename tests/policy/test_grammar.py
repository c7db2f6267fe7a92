"""The allow-list against the parser's own description of its nodes."""

from __future__ import annotations

import pytest
from postgast import pg_query_pb2

from policy.grammar import GRAMMAR, Holds

MESSAGES = pg_query_pb2.DESCRIPTOR.message_types_by_name
# Fields that hold names, lists or scalars where the parser's description says Node or message.
_DATA_NODES = {("A_Const", name) for name in ("ival", "fval", "boolval", "sval", "bsval")} | {
    ("LockingClause", "lockedRels")
}


@pytest.mark.parametrize("tag", sorted(GRAMMAR))
def test_each_field_holds_what_the_parser_says(tag: str) -> None:
    described = {field.json_name: field for field in MESSAGES[tag].fields}
    for name, holds in GRAMMAR[tag].items():
        if name in ("location", "direction_keyword") and name not in described:
            continue
        kind = described[name].message_type
        if kind is None:
            assert holds is Holds.DATA, name
        elif holds is Holds.DATA:
            assert (tag, name) in _DATA_NODES, name
        elif kind.name == "Node":
            assert holds in (Holds.NODES, Holds.NAMES), name
        else:
            assert holds == kind.name, name


def test_every_bare_tag_is_itself_on_the_list() -> None:
    bare = {holds for fields in GRAMMAR.values() for holds in fields.values() if isinstance(holds, str)}
    assert bare <= GRAMMAR.keys()
