"""Which columns are masked for whom, by which SQL, and what `check` finds in a policy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy.catalog import Catalog, Column, ForeignKey, Relation, RelationKind
from policy.check import Severity, check
from policy.engine import decide
from policy.load import load_policy
from policy.masking import Masking
from policy.masks import Mask, MaskKind, UnmaskableError, expression
from policy.patterns import parse_pattern
from tests.policy.corpus import policy_of
from tests.policy.sample import CATALOG, PRINCIPALS, facts

ANY = parse_pattern("*", 3, "")
TEXT = Column(1, 'a"b', "text", 25)


def test_partial_hides_all_but_what_is_kept() -> None:
    text = 'CAST("a""b" AS pg_catalog.text)'
    assert expression((Mask(ANY, MaskKind.PARTIAL, keep_last=4),), TEXT) == (
        f"CAST(CASE WHEN pg_catalog.length({text}) OPERATOR(pg_catalog.>) 4 THEN "
        f"pg_catalog.repeat('*', pg_catalog.length({text}) OPERATOR(pg_catalog.-) 4) OPERATOR(pg_catalog.||) "
        f"pg_catalog.\"right\"({text}, 4) ELSE pg_catalog.repeat('*', pg_catalog.length({text})) END AS text)"
    )


def test_a_mask_has_the_type_and_the_collation_of_its_column() -> None:
    column = Column(1, "c", "character varying(5)", 1043, '"pg_catalog"."C"')
    assert expression((Mask(ANY, MaskKind.REDACT),), column) == (
        'CAST(CAST(\'[redacted]\' AS pg_catalog.text) AS character varying(5)) COLLATE "pg_catalog"."C"'
    )
    assert expression((Mask(ANY, MaskKind.REDACT),), Column(1, "c", "jsonb", 3802)) == (
        "CAST(CAST('\"[redacted]\"' AS pg_catalog.jsonb) AS jsonb)"
    )
    assert expression((Mask(ANY, MaskKind.NULL),), Column(1, "c", "integer[]", 1007)) == "CAST(NULL AS integer[])"


@pytest.mark.parametrize("kind", [MaskKind.REDACT, MaskKind.PARTIAL])
def test_a_kind_that_cannot_make_the_type_says_which_could(kind: MaskKind) -> None:
    with pytest.raises(UnmaskableError, match="use `null`"):
        expression((Mask(ANY, kind),), Column(1, "c", "integer", 23))


def _masked(policy_text: str, who: str, schema: str, name: str, catalog: Catalog = CATALOG) -> dict[str, str]:
    relation = catalog.relation(schema, name)
    assert relation is not None
    columns = Masking(load_policy(policy_text, "p"), PRINCIPALS[who], catalog).columns(relation)
    return {c.name: columns[c.number][0].kind.value for c in relation.columns if c.number in columns}


EXAMPLE = "masks:\n  - {columns: [public.customers.ssn], with: redact, unless: {groups: [dba]}}\n"


def test_a_mask_holds_for_all_but_the_excused() -> None:
    assert _masked(EXAMPLE, "devin", "public", "customers") == {"ssn": "redact"}
    assert _masked(EXAMPLE, "grace", "public", "customers") == {}


def test_somebody_excused_from_one_mask_stays_under_the_others() -> None:
    both = EXAMPLE + "  - {columns: ['*.customers.ssn'], with: {partial: {keep_last: 4}}}\n"
    assert _masked(both, "grace", "public", "customers") == {"ssn": "partial"}


def test_of_several_masks_the_one_that_shows_least_applies() -> None:
    entries = ["redact", "null", "{partial: {keep_last: 4}}"]
    for order in (entries, entries[::-1]):
        text = "masks:\n" + "".join(f"  - {{columns: [public.customers.ssn], with: {kind}}}\n" for kind in order)
        assert _masked(text, "devin", "public", "customers") == {"ssn": "null"}


def test_a_column_of_a_view_has_the_mask_of_what_it_shows() -> None:
    text = "masks:\n  - {columns: [public.customers.email], with: redact}\n"
    assert _masked(text, "devin", "public", "customer_contacts") == {"email": "redact"}


def test_derived_columns_over_a_masked_relation_are_null_unless_cleared() -> None:
    derived = {"orders": "null", "total": "null"}
    assert _masked(EXAMPLE, "devin", "public", "customer_orders") == derived
    cleared = EXAMPLE + "  - {columns: [public.customer_orders.orders], with: clear}\n"
    assert _masked(cleared, "devin", "public", "customer_orders") == {"total": "null"}
    assert _masked(EXAMPLE, "grace", "public", "customer_orders") == {}


def _with_generated() -> Catalog:
    """`customers.tail` is computed from `ssn`, and `customers.size` from `name`."""
    customers = CATALOG.relation("public", "customers")
    assert customers is not None
    numbers = {column.name: column.number for column in customers.columns}
    computed = (
        Column(90, "tail", "text", 25, computed_from=frozenset((numbers["ssn"],))),
        Column(91, "size", "integer", 23, computed_from=frozenset((numbers["name"],))),
    )
    grown = replace(customers, columns=(*customers.columns, *computed))
    return replace(CATALOG, relations={**CATALOG.relations, customers.oid: grown})


def test_a_generated_column_that_is_computed_from_a_masked_one_is_null_unless_cleared() -> None:
    catalog = _with_generated()
    assert _masked(EXAMPLE, "devin", "public", "customers", catalog) == {"ssn": "redact", "tail": "null"}
    assert _masked(EXAMPLE, "grace", "public", "customers", catalog) == {}
    cleared = EXAMPLE + "  - {columns: [public.customers.tail], with: clear}\n"
    assert _masked(cleared, "devin", "public", "customers", catalog) == {"ssn": "redact"}
    masked = EXAMPLE + "  - {columns: [public.customers.tail], with: redact}\n"
    assert _masked(masked, "devin", "public", "customers", catalog) == {"ssn": "redact", "tail": "redact"}
    assert check(load_policy(cleared, "p"), catalog) == []


def test_clear_never_lifts_a_mask() -> None:
    text = EXAMPLE + "  - {columns: [public.customers.ssn], with: clear}\n"
    assert _masked(text, "devin", "public", "customers") == {"ssn": "redact"}


@pytest.mark.parametrize("pattern", ["public.orders.total", "public.orders_2026_03.total"])
def test_a_mask_on_one_member_of_a_partition_family_holds_for_all(pattern: str) -> None:
    text = f"masks:\n  - {{columns: [{pattern}], with: null}}\n"
    for member in ("orders", "orders_2026_01", "orders_2026_03"):
        assert _masked(text, "devin", "public", member) == {"total": "null"}


def _with_views() -> Catalog:
    """Views over views: `v1.secret` shows `customers.ssn`, `v2` shows `v1`, `v3` computes from `v2`."""
    customers = CATALOG.relation("public", "customers")
    assert customers is not None
    view = Relation(
        90001,
        "public",
        "v1",
        RelationKind.VIEW,
        (
            Column(1, "secret", "text", 25, origin=(customers.oid, 4)),
            Column(2, "id", "integer", 23, origin=(customers.oid, 1)),
        ),
        frozenset((90001,)),
        frozenset((customers.oid,)),
    )
    second = replace(
        view, oid=90002, name="v2", columns=(Column(1, "x", "text", 25, origin=(90001, 1)),),
        family=frozenset((90002,)), reads=frozenset((90001,)),
    )  # fmt: skip
    third = replace(
        second, oid=90003, name="v3", columns=(Column(1, "n", "bigint", 20),), reads=frozenset((90002,)),
        family=frozenset((90003,)),
    )  # fmt: skip
    relations = CATALOG.relations | {view.oid: view, second.oid: second, third.oid: third}
    return replace(CATALOG, relations=relations)


def test_masks_reach_through_nested_views() -> None:
    catalog = _with_views()
    assert _masked(EXAMPLE, "devin", "public", "v1", catalog) == {"secret": "redact"}
    assert _masked(EXAMPLE, "devin", "public", "v2", catalog) == {"x": "redact"}
    assert _masked(EXAMPLE, "devin", "public", "v3", catalog) == {"n": "null"}


def test_a_user_view_over_a_secret_catalog_is_not_readable() -> None:
    activity = CATALOG.relation("pg_catalog", "pg_stat_activity")
    assert activity is not None
    view = Relation(
        90001, "public", "who", RelationKind.VIEW, (Column(1, "q", "text", 25),), reads=frozenset((activity.oid,))
    )
    catalog = replace(CATALOG, relations=CATALOG.relations | {view.oid: view})
    decision = decide(policy_of("examples/policy.yaml"), PRINCIPALS["grace"], facts(catalog=catalog), b"TABLE who")
    assert [r.code for r in decision.verdict.reasons] == ["catalog.refused"]


def test_the_origins_are_every_raw_column_within_reach() -> None:
    decision = decide(
        policy_of("tests/policy/policies/card.yaml"), PRINCIPALS["devin"], facts(), b"SELECT name FROM customer_orders"
    )
    assert decision.verdict.rewrite is not None
    customers, view = CATALOG.relation("public", "customers"), CATALOG.relation("public", "customer_orders")
    assert customers is not None
    assert view is not None
    assert decision.verdict.rewrite.origins == {(customers.oid, 5), (view.oid, 4), (view.oid, 5)}


def test_positions_in_the_rewritten_text_lead_back_to_the_clients() -> None:
    text = b"SELECT name FROM customers WHERE nme = 1"
    decision = decide(policy_of("tests/policy/policies/card.yaml"), PRINCIPALS["devin"], facts(), text)
    rewrite = decision.verdict.rewrite
    assert rewrite is not None
    assert rewrite.original_offset(rewrite.sql.index(b"nme")) == text.index(b"nme")
    assert rewrite.original_offset(rewrite.sql.index(b"CAST")) is None


def test_the_example_policy_has_no_problems() -> None:
    assert check(policy_of("examples/policy.yaml"), CATALOG) == []


def test_check_names_masks_that_hide_nothing_and_rules_that_never_win() -> None:
    text = (
        "rules:\n"
        "  - {name: read, effect: allow, actions: [select], relations: [public.orders]}\n"
        "  - {name: never, effect: deny, actions: ['*']}\n"
        "masks:\n"
        "  - {columns: [public.customers.snn], with: redact}\n"
        "  - {columns: [public.customers.id], with: redact}\n"
        "  - {columns: [public.customers.ssn], with: clear}\n"
    )
    found = check(load_policy(text, "p.yaml"), CATALOG)
    assert [(p.severity, p.line) for p in found] == [
        (Severity.WARNING, 2),
        (Severity.WARNING, 5),
        (Severity.ERROR, 6),
        (Severity.ERROR, 7),
    ]
    assert "did you mean `public.customers.ssn`?" in str(found[1])


def test_views_too_deep_to_be_followed_are_refused_each_time() -> None:
    customers, contacts = CATALOG.relation("public", "customers"), CATALOG.relation("public", "customer_contacts")
    assert customers is not None
    assert contacts is not None
    card = next(column for column in customers.columns if column.name == "card")
    relations, below = dict(CATALOG.relations), (customers.oid, card.number)
    for oid in range(100_000, 100_400):
        columns, reads = (replace(card, number=1, origin=below),), frozenset((below[0],))
        relations[oid] = replace(
            contacts, oid=oid, name=f"v{oid}", columns=columns, family=frozenset((oid,)), reads=reads
        )
        below = (oid, 1)
    policy, catalog = policy_of("tests/policy/policies/card.yaml"), replace(CATALOG, relations=relations)
    for _ in range(4):
        verdict = decide(policy, PRINCIPALS["devin"], facts(catalog=catalog), b"SELECT card FROM v100399").verdict
        assert [reason.code for reason in verdict.reasons] == ["internal"]


def test_check_names_columns_that_hold_masked_values_by_a_foreign_key() -> None:
    customers, tickets = CATALOG.relation("public", "customers"), CATALOG.relation("public", "tickets")
    assert customers is not None
    assert tickets is not None
    key = ForeignKey(tickets.oid, frozenset({3}), customers.oid, frozenset({4}), "a", "a")
    catalog = replace(CATALOG, relations={**CATALOG.relations, tickets.oid: replace(tickets, refers_by=(key,))})
    text = "rules: []\nmasks:\n  - {columns: [public.customers.ssn], with: null}\n"
    [found] = check(load_policy(text, "p"), catalog)
    assert (found.severity, found.line) == (Severity.WARNING, 3)
    assert "`public.tickets.subject` refers to a masked column" in found.text
    both = text + "  - {columns: [public.tickets.subject], with: null}\n"
    assert check(load_policy(both, "p"), catalog) == []
