"""Rules about columns: what a refusal says, what is touched unseen, and what a policy file may say of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy.check import check
from policy.document import DocumentError
from policy.engine import decide
from policy.load import load_policy
from policy.model import Action, Demand, Effect, ObjectKind, ObjectName
from policy.rules import judge
from tests.policy.corpus import ROOT, policy_of
from tests.policy.sample import CATALOG, PRINCIPALS, facts

POLICY = policy_of("tests/policy/policies/columns.yaml")
DEVIN = PRINCIPALS["devin"]
ORDERS = ObjectName(ObjectKind.RELATION, "public", "orders")


def refusal(sql: str) -> tuple[str, str | None]:
    verdict = decide(POLICY, DEVIN, facts(), sql.encode()).verdict
    [reason] = [r for r in verdict.reasons if r.effect is Effect.DENY]
    return reason.text, reason.cure


def test_a_refused_star_names_the_column_and_offers_the_others() -> None:
    text, cure = refusal("SELECT * FROM orders")
    assert text == "the rule `no-totals` does not let `devin` select `public.orders.total`, which `*` stands for"
    assert cure == (
        "Name the columns that you need, of customer_id, id, placed_at, status. "
        "Whoever may change the rule `no-totals` can allow it."
    )


def test_a_refused_column_is_named() -> None:
    text, cure = refusal("SELECT id FROM orders WHERE total > 5")
    assert text == "the rule `no-totals` does not let `devin` select `public.orders.total`"
    assert cure is not None
    assert cure.startswith("Leave `total` out, also as a name of something else. ")
    text, cure = refusal("SELECT id, body FROM tickets")
    assert text == "no rule lets `devin` select `public.tickets.body`"
    assert cure is not None
    assert cure.endswith("Whoever keeps the policy can add one.")


@pytest.mark.parametrize(
    ("sql", "masks", "effect"),
    [
        ("SELECT gross FROM orders", "", Effect.DENY),
        ("SELECT id FROM orders ORDER BY gross", "", Effect.DENY),
        ("SELECT id FROM orders", "", Effect.ALLOW),
        ("SELECT gross FROM orders", "masks: [{columns: [public.orders.gross], with: clear}]", Effect.ALLOW),
    ],
)
def test_a_generated_column_touches_what_it_is_computed_from(sql: str, masks: str, effect: Effect) -> None:
    policy = load_policy((ROOT / "tests/policy/policies/columns.yaml").read_text("utf-8") + masks, "policy.yaml")
    orders = CATALOG.relation("public", "orders")
    assert orders is not None
    total = next(column for column in orders.columns if column.name == "total")
    gross = replace(total, number=99, name="gross", computed_from=frozenset((total.number,)))
    generated = replace(orders, columns=(*orders.columns, gross))
    catalog = replace(CATALOG, relations=CATALOG.relations | {orders.oid: generated})
    verdict = decide(policy, DEVIN, facts(catalog=catalog), sql.encode()).verdict
    assert verdict.effect is effect
    if effect is Effect.DENY:
        assert verdict.reasons[0].text.endswith("select `public.orders.total`, which the generated `gross` stands for")
        assert (verdict.reasons[0].cure or "").startswith("Leave `gross` out, ")


@pytest.mark.parametrize(("name", "effect"), [("orders", Effect.DENY), ("tickets", Effect.DENY)])
def test_what_is_touched_unseen_could_be_any_column(name: str, effect: Effect) -> None:
    unseen = Demand(Action.SELECT, ObjectName(ObjectKind.RELATION, "public", name), via="the body of `f`")
    assert judge(POLICY, DEVIN, "shop", [unseen]).effect is effect


def test_approval_is_asked_of_all_whom_any_column_wants() -> None:
    policy = load_policy(
        "rules:\n"
        "  - {name: read, effect: allow, actions: [select], relations: ['public.*']}\n"
        "  - {name: a, effect: approve, actions: [select], columns: [public.orders.id], approvers: {groups: [x]}}\n"
        "  - {name: b, effect: approve, actions: [select], columns: [public.orders.total], approvers: {groups: [y]}}\n",
        "policy.yaml",
    )
    verdict = decide(policy, DEVIN, facts(), b"SELECT id, total FROM orders").verdict
    assert (verdict.effect, {g for t in verdict.terms for g in t.groups}) == (Effect.APPROVE, {"x", "y"})


def test_conditions_on_rows_are_asked_of_rules_about_columns() -> None:
    policy = load_policy(
        "rules:\n  - {name: few, effect: allow, actions: [update], columns: [public.tickets.status],"
        " when: {rows_at_most: 3}}\n  - {name: read, effect: allow, actions: [select], relations: ['public.*']}\n",
        "policy.yaml",
    )
    assert decide(policy, DEVIN, facts(), b"UPDATE tickets SET status = 'x' WHERE id = 1").counts


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("actions: [delete], columns: [public.orders.total]", "`columns` are read and written"),
        ('actions: ["*"], columns: [public.orders.total]', "`columns` are read and written"),
        ("actions: [select], columns: [a.b.c], relations: [a.b]", "a rule about `columns` is about nothing else"),
        ("actions: [select], columns: [orders.total]", "`orders.total` is no pattern of the form"),
    ],
)
def test_a_rule_about_columns_is_about_nothing_else(rule: str, text: str) -> None:
    with pytest.raises(DocumentError, match=text) as error:
        load_policy(f"rules:\n  - {{name: a, effect: deny, {rule}}}\n", "policy.yaml")
    assert str(error.value).startswith("policy.yaml:2:")


def test_check_names_columns_that_do_not_exist_and_rules_that_never_win() -> None:
    policy = load_policy(
        "rules:\n"
        "  - {name: wrong, effect: deny, actions: [select], columns: [public.orders.totl]}\n"
        "  - {name: void, effect: allow, actions: [select], columns: [public.orders.id]}\n"
        "  - {name: never, effect: deny, actions: [select], columns: [public.orders.id, public.orders.total]}\n"
        "  - {name: read, effect: allow, actions: [select], relations: [public.orders]}\n",
        "policy.yaml",
    )
    assert [str(problem) for problem in check(policy, CATALOG)] == [
        "policy.yaml:2:5: warning: the rule `wrong`: no column matches `public.orders.totl`; "
        "did you mean `public.orders.total`?",
        "policy.yaml:3:5: warning: the rule `void` can never win: `never` is about all of it and stricter; "
        "narrow the stricter rule, for instance by `when`",
    ]
