"""The proof of a rewrite: what is the original with generated subqueries passes, and nothing else does."""

from __future__ import annotations

import pytest

from policy.parse import NotAnalysableError, parsed
from policy.tree import nodes
from policy.verify import Replacement, verify

MASKED = "SELECT id, NULL AS ssn FROM public.customers"
TEXT = "SELECT c.ssn, 'customers' FROM customers AS c JOIN orders o ON o.customer_id = c.id WHERE c.id < 7"
REWRITTEN = TEXT.replace("customers AS c", f"({MASKED}) AS c")
COPY = "COPY customers (id, ssn) TO STDOUT"
COPIED = f"SELECT id, ssn FROM ({MASKED}) AS customers"


def _verify(text: str, rewritten: str, *, select: str = MASKED, name: str = "customers", copies: bool = False) -> None:
    original, [statement] = parsed(text.encode())
    key = "relation" if copies else "RangeVar"
    found = [node[key] for node in nodes(statement) if node.get(key, {}).get("relname") == name]
    replacements = {var["location"]: Replacement(var, select, copies) for var in found}
    verify(original, rewritten.encode(), replacements)


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        (TEXT, REWRITTEN),
        (TEXT + "  ;", REWRITTEN + ";"),
        (f"\n  {TEXT}", REWRITTEN),  # places do not count
        ("SELECT 1 FROM customers", f"SELECT 1 FROM ({MASKED}) AS customers"),
        ("TABLE customers", f"SELECT * FROM ({MASKED}) AS customers"),
        (
            "SELECT 1 FROM customers AS \"a\"\"b\"(x, y), customers k",
            f"SELECT 1 FROM ({MASKED}) AS \"a\"\"b\"(x, y), ({MASKED}) k",
        ),
        (
            "WITH a AS (SELECT * FROM customers) SELECT 1 FROM a WHERE '\"RangeVar\":{}'",
            f"WITH a AS (SELECT * FROM ({MASKED}) customers) SELECT 1 FROM a WHERE '\"RangeVar\":{{}}'",
        ),
        (
            "SELECT '\"location\":12, \"list_start\":3' FROM customers",
            f"SELECT '\"location\":12, \"list_start\":3' FROM ({MASKED}) customers",
        ),
    ],
)  # fmt: skip
def test_the_original_with_its_subqueries_passes(text: str, rewritten: str) -> None:
    _verify(text, rewritten)


@pytest.mark.parametrize(
    "rewritten",
    [
        TEXT,
        REWRITTEN.replace("< 7", "< 8"),
        REWRITTEN.replace("'customers'", "'Customers'"),
        REWRITTEN.replace("AS c ", "AS d "),
        REWRITTEN.replace("NULL AS ssn", "ssn"),
        REWRITTEN.replace("public.customers", "public.other"),
        REWRITTEN.replace(" WHERE c.id < 7", ""),
        REWRITTEN.replace("c.ssn,", "c.ssn, c.id,"),
        REWRITTEN.replace("orders o", f"({MASKED}) o"),
        f"{REWRITTEN}; SELECT 1",
        f"EXPLAIN {REWRITTEN}",
        "SELECT",
        "not SQL at all",
        "",
    ],
)
def test_anything_else_is_refused(rewritten: str) -> None:
    with pytest.raises(NotAnalysableError) as refused:
        _verify(TEXT, rewritten)
    assert refused.value.reason.code == "rewrite.unverified"


def test_a_copy_of_a_table_becomes_a_copy_of_a_query_and_of_nothing_else() -> None:
    _verify(COPY, f"COPY ({COPIED}) TO STDOUT", select=COPIED, copies=True)
    for wrong in (COPY, f"COPY ({COPIED}) TO STDOUT WITH CSV", f"COPY ({COPIED} LIMIT 1) TO STDOUT"):
        with pytest.raises(NotAnalysableError):
            _verify(COPY, wrong, select=COPIED, copies=True)


def test_only_the_place_that_was_to_be_replaced_may_be() -> None:
    """The name of a common table expression is no relation, although it is spelled like one."""
    text = "WITH customers AS (SELECT 1) SELECT * FROM customers, public.customers AS p"
    rewritten = text.replace("public.customers AS p", f"({MASKED}) AS p")
    original, [statement] = parsed(text.encode())
    [var] = [n["RangeVar"] for n in nodes(statement) if n.get("RangeVar", {}).get("schemaname")]
    replacements = {var["location"]: Replacement(var, MASKED, copies=False)}
    verify(original, rewritten.encode(), replacements)
    other = text.replace("FROM customers,", f"FROM ({MASKED}) customers,")
    for wrong in (other, other.replace("public.customers AS p", f"({MASKED}) AS p"), text):
        with pytest.raises(NotAnalysableError):
            verify(original, wrong.encode(), replacements)
