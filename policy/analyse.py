"""From one statement's tree to its facts: demands, relations, effects. An allow-list walk; unknown is a deny.

INVARIANT: every node of the tree is visited, or lies in a field that `policy.grammar` declares to hold
names or data only. What is neither handled here nor listed there raises `NotAnalysableError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from policy import alterations, bounds, definitions, secrets, session, temporary, versions
from policy.calls import Calls
from policy.catalog import Relation
from policy.demands import Demands
from policy.functions import is_builtin
from policy.grammar import GRAMMAR, Holds
from policy.implied import Implied
from policy.model import Action, Analysis, Effects, Facts, ObjectKind, ObjectName
from policy.names import Names, is_system, parts, with_database
from policy.parse import Node, NotAnalysableError, base_text, parsed, statements
from policy.reading import Reading, Reference, Role

MAX_REFERENCES = 2000

_NO_EFFECTS: Final = Effects()
_DATA: Final = Holds.DATA
_NODES: Final = Holds.NODES
# The fields of a RangeVar that hold nothing to visit.
_PLAIN_NAME: Final = {name for name, holds in GRAMMAR["RangeVar"].items() if holds is _DATA}


def analyse(facts: Facts, text: bytes) -> Reading | None:
    """The facts of exactly one statement; None for a text that holds none.

    Raises NotAnalysableError for what must be refused before any rule is asked.
    """
    base = base_text(text)
    text_of_tree, found = parsed(base)
    if not found:
        return None
    if len(found) > 1:
        raise NotAnalysableError(
            "statement.several",
            f"the text holds {len(found)} statements, and each is decided on its own",
            cure="Send one statement at a time.",
            location=statements(base)[1][0],
        )
    try:
        return Analyser(facts).read(base, found[0]["stmt"], text_of_tree)
    except RecursionError:
        raise NotAnalysableError("text.deep", "the statement nests too deep to be analysed") from None


class Analyser:
    """One walk over one statement. `policy.session` and `policy.definitions` use its public methods."""

    __slots__ = (
        "_column_refs",
        "_ctes",
        "_enclosing",
        "_locking",
        "_parameters",
        "_sampling",
        "calls",
        "demand",
        "demand_on",
        "demands",
        "effects",
        "facts",
        "implied",
        "names",
        "references",
        "stores",
    )

    def __init__(self, facts: Facts) -> None:
        # None of these holds the walk itself: a cycle would keep every tree until the collector comes.
        self.facts = facts
        self.names = Names(facts.catalog, facts.search_path)
        self.effects: dict[str, Any] = {}
        self.demands = Demands()
        self.calls = Calls(self.names, self.demands, self.effects)
        self.implied = Implied(self.names, self.calls, self.demands)
        self.demand = self.demands.note
        self.demand_on = self.implied.demand_on
        self.references: list[Reference] = []
        self.stores: str | None = None
        self._ctes: frozenset[str] = frozenset()
        self._locking = False
        self._sampling = False
        self._enclosing: Node = {}  # the innermost SELECT
        self._column_refs = 0
        self._parameters = 0

    def read(self, base: bytes, tree: Node, text_of_tree: bytes = b"") -> Reading:
        """Walk a whole statement. `text_of_tree` is the parser's own, for what may be rewritten."""
        [(tag, body)] = tree.items()
        session.check_allowed(tag, body)
        self.visit(tag, body)
        secrets.check(self.names, tree, self.references)
        self.calls.settle()
        self.implied.settle()
        temporary.settle(self, tag, body)
        analysis = Analysis(
            text=base,
            kind=tag,
            demands=self.demands.all,
            effects=Effects(**self.effects) if self.effects else _NO_EFFECTS,
            relations=self.facts.catalog.closure([r.relation.oid for r in self.references]),
            parameters=self._parameters,
        )
        return Reading(
            analysis,
            tree,
            text_of_tree,
            tuple(self.references),
            self.stores,
            frozenset(self.demands.unseen),
            frozenset(self.implied.keys),
        )

    # -- the walk ---------------------------------------------------------------------------------------

    def visit(self, tag: str, body: Node) -> None:
        """Visit a node of this tag."""
        handler = _HANDLERS.get(tag)
        if handler is not None:
            handler(self, body)
        else:
            self.children(tag, body)

    def nodes(self, value: Any) -> None:
        """Visit a wrapped node, or a list of them."""
        for item in value if isinstance(value, list) else (value,):
            for tag, body in item.items():
                handler = _HANDLERS.get(tag)
                if handler is not None:
                    handler(self, body)
                else:
                    self.children(tag, body)

    def children(self, tag: str, body: Node, without: tuple[str, ...] = ()) -> None:
        """Visit what a node holds, except the fields `without`; an unknown field is a refusal."""
        fields = GRAMMAR.get(tag)
        if fields is None:
            raise _unknown_node(tag, body)
        for name, value in body.items():
            holds = fields.get(name)
            if holds is _DATA:
                continue
            if holds is _NODES:
                if name not in without:
                    self.nodes(value)
            elif holds is None:
                raise _unknown_node(f"{tag}.{name}", body)
            elif isinstance(holds, str) and name not in without:
                self.visit(holds, value)

    # -- relations --------------------------------------------------------------------------------------

    def refer(self, var: Node, role: Role, action: Action, *, bounded: bool = True) -> Relation:
        """Resolve a RangeVar that is never a common table expression, note it and what it demands."""
        relation = self.names.relation(var)
        location = var.get("location", 0)
        if len(self.references) >= MAX_REFERENCES:
            raise NotAnalysableError(
                "text.large",
                f"the statement names relations more than {MAX_REFERENCES} times",
                cure="Split it.",
                location=location,
            )
        self.references.append(Reference(var, relation, role, self._sampling))
        self.demand_on(action, relation, location, bounded=bounded)
        return relation

    def target(self, var: Node, action: Action, *, bounded: bool = True, role: Role = Role.TARGET) -> Relation:
        """The relation that a statement writes to."""
        relation = self.names.relation(var)
        location = var.get("location", 0)
        if is_system(relation):
            raise NotAnalysableError(
                "catalog.write",
                f"`{relation.qualified}` belongs to the server and is never written to",
                location=location,
            )
        if relation.rules:
            raise NotAnalysableError(
                "relation.rules",
                f"`{relation.qualified}` has rewrite rules, so what a write to it does cannot be analysed",
                cure="Replace the rules by triggers.",
                location=location,
            )
        self.effects["writes"] = True
        return self.refer(var, role, action, bounded=bounded)

    # -- queries ----------------------------------------------------------------------------------------

    def _range_var(self, body: Node) -> None:
        if "schemaname" not in body and "catalogname" not in body and body["relname"] in self._ctes:
            return
        relation = self.refer(body, Role.SOURCE, Action.SELECT)
        location = body.get("location", 0)
        self.names.check_readable(relation, location)
        if self._locking:
            self.effects["writes"] = True
            self.demand_on(Action.LOCK, relation, location)
        if not body.keys() <= _PLAIN_NAME:
            self.children("RangeVar", body)

    def _select(self, body: Node) -> None:
        # A row-locking clause reaches the relations of FROM, subqueries there included; not the
        # common table expressions (the SELECT page of the documentation, "The Locking Clause").
        outer_ctes, outer_locking, outer = self._ctes, self._locking, self._enclosing
        if "withClause" in body:
            self._locking = False
            self._with(body["withClause"])
        self._locking = outer_locking or "lockingClause" in body
        self._enclosing = body
        if "fromClause" in body:
            self.nodes(body["fromClause"])
        self._locking = False
        if "intoClause" in body:
            definitions.select_into(self, body["intoClause"])
        self._locking = outer_locking
        if "larg" in body:
            self._select(body["larg"])
            self._select(body["rarg"])
        self._locking = False
        self.children("SelectStmt", body, ("withClause", "fromClause", "intoClause", "larg", "rarg"))
        self._ctes, self._locking, self._enclosing = outer_ctes, outer_locking, outer

    def _with(self, body: Node) -> None:
        """Bring the names of a WITH into scope (the caller restores it)."""
        self.children("WithClause", body, ("ctes",))
        expressions = [item["CommonTableExpr"] for item in body["ctes"]]
        if body.get("recursive"):
            self._ctes |= {cte["ctename"] for cte in expressions}
        for cte in expressions:
            self.children("CommonTableExpr", cte)
            self._ctes |= {cte["ctename"]}

    def _sample(self, body: Node) -> None:
        outer, self._sampling = self._sampling, True
        self.nodes(body["relation"])
        self._sampling = outer
        self.children("RangeTableSample", body, ("relation",))

    # -- writes -----------------------------------------------------------------------------------------

    def _insert(self, body: Node) -> None:
        outer = self._ctes
        if "withClause" in body:
            self._with(body["withClause"])
        var = body["relation"]
        relation = self.target(var, Action.INSERT)
        conflict = body.get("onConflictClause", {})
        if conflict.get("action") == "ONCONFLICT_UPDATE":
            self.demand_on(Action.UPDATE, relation, var.get("location", 0))
            self.implied.row_changes(Action.UPDATE, relation, var.get("location", 0), _set_columns(conflict))
        if conflict or "returningClause" in body:
            self.demand_on(Action.SELECT, relation, var.get("location", 0))
        self.children("InsertStmt", body, ("withClause", "relation"))
        self._ctes = outer

    def _update(self, body: Node) -> None:
        self._change("UpdateStmt", Action.UPDATE, body)

    def _delete(self, body: Node) -> None:
        self._change("DeleteStmt", Action.DELETE, body)

    def _change(self, tag: str, action: Action, body: Node) -> None:
        outer = self._ctes
        if "withClause" in body:
            self._with(body["withClause"])
        var = body["relation"]
        relation = self.target(var, action, bounded=bounds.is_bounded(body))
        self.implied.row_changes(action, relation, var.get("location", 0), _set_columns(body))
        before = self._column_refs
        self.children(tag, body, ("withClause", "relation"))
        if self._column_refs > before or "returningClause" in body:
            self.demand_on(Action.SELECT, relation, var.get("location", 0))
        self._ctes = outer

    def _merge(self, body: Node) -> None:
        outer = self._ctes
        if "withClause" in body:
            self._with(body["withClause"])
        var = body["relation"]
        clauses = [clause["MergeWhenClause"] for clause in body["mergeWhenClauses"]]
        actions = {
            "CMD_INSERT": Action.INSERT,
            "CMD_UPDATE": Action.UPDATE,
            "CMD_DELETE": Action.DELETE,
        }
        relation = self.target(var, Action.SELECT)
        for clause in clauses:
            action = actions.get(clause.get("commandType"))
            if action is not None:
                self.demand_on(action, relation, var.get("location", 0), bounded=action is Action.INSERT)
                if action is not Action.INSERT:
                    self.implied.row_changes(action, relation, var.get("location", 0), _set_columns(clause))
        self.children("MergeStmt", body, ("withClause", "relation"))
        self._ctes = outer

    # -- expressions ------------------------------------------------------------------------------------

    def _column_ref(self, body: Node) -> None:
        self._column_refs += 1
        fields = body["fields"]
        if len(fields) > 3:  # database.schema.relation.column, which no later check looks for
            raise with_database(parts(fields), body.get("location", 0))
        if len(fields) > 1:
            for field in fields[1:]:
                if "String" in field:
                    name = field["String"]["sval"]
                    self.calls.note_attribute(name, body.get("location", 0), of_row=True)
                    self.implied.note_type([name], body.get("location", 0))

    def _indirection(self, body: Node) -> None:
        self.children("A_Indirection", body)
        for step in body["indirection"]:
            if "String" in step:
                self.calls.note_attribute(step["String"]["sval"], 0, of_row=False)
                self.implied.note_type([step["String"]["sval"]], 0)

    def _range_function(self, body: Node) -> None:
        self.calls.note_function_in_from()
        self.children("RangeFunction", body)

    def _func_call(self, body: Node) -> None:
        words = versions.as_called(self, body, parts(body["funcname"]))
        arguments = body.get("args", ())
        channel = self.calls.notified(words, arguments)
        if channel is not None:
            self.demand(
                Action.NOTIFY,
                ObjectName(ObjectKind.CHANNEL, None, channel),
                location=body.get("location", 0),
            )
        else:
            if words[-1] == "set_config" and self._is_set(words, arguments, body.get("location", 0)):
                self.children("FuncCall", body)
                return
            inputs = len(arguments) + (len(body.get("agg_order", ())) if body.get("agg_within_group") else 0)
            self.calls.call(words, body.get("location", 0), inputs)
            if len(arguments) == 1:
                self.implied.note_type(words, body.get("location", 0))  # `name(x)` may be a cast
        self.children("FuncCall", body)

    def _is_set(self, words: list[str], arguments: list[Node], location: int) -> bool:
        """Note a call of set_config as the SET that it is, where the name of the setting can be told."""
        if len(arguments) != 3 or not all(map(is_builtin, self.names.overloads(words))):
            return False
        match arguments[0]:
            case {"A_Const": {"sval": {"sval": str(name)}}}:
                pass
            case {"ColumnRef": {"fields": [{"String": {"sval": "name"}}]}} if asked := self._setting_asked_for():
                name = asked
            case _:
                return False
        session.call_of_set_config(self, name, location)
        return True

    def _setting_asked_for(self) -> str | None:
        return None if "pg_settings" in self._ctes else session.setting_asked_for(self, self._enclosing)

    def _type_name(self, body: Node) -> None:
        self.implied.note_type(parts(body.get("names", ())), max(body.get("location", 0), 0))
        self.children("TypeName", body)

    def _expression(self, body: Node) -> None:
        if self.calls.any_operators:
            words = parts(body["name"])
            for word in _BEHIND_BETWEEN.get(words[-1], ()) or (words[-1],):
                self.calls.operator([*words[:-1], word], body.get("location", 0))
        self.children("A_Expr", body)

    def _implied_equality(self, tag: str, field: str, body: Node) -> None:
        if field in body:
            self.calls.operator(("=",), body.get("location", 0))
        self.children(tag, body)

    def _sublink(self, body: Node) -> None:
        if body.get("subLinkType") in ("ANY_SUBLINK", "ALL_SUBLINK"):
            self.calls.operator(parts(body.get("operName", ())) or ("=",), body.get("location", 0))
        self.children("SubLink", body)

    def _sort_by(self, body: Node) -> None:
        if "useOp" in body:
            self.calls.operator(parts(body["useOp"]), body.get("location", 0))
        self.children("SortBy", body)

    def _parameter(self, body: Node) -> None:
        self._parameters = max(self._parameters, body.get("number", 0))
        self.implied.note_parameter()


_BEHIND_BETWEEN: Final = {
    "BETWEEN": (">=", "<="),
    "NOT BETWEEN": ("<", ">"),
    "BETWEEN SYMMETRIC": (">=", "<="),
    "NOT BETWEEN SYMMETRIC": ("<", ">"),
}

_HANDLERS: Final[dict[str, Callable[[Analyser, Node], None]]] = {
    "RangeVar": Analyser._range_var,
    "SelectStmt": Analyser._select,
    "RangeTableSample": Analyser._sample,
    "RangeFunction": Analyser._range_function,
    "InsertStmt": Analyser._insert,
    "UpdateStmt": Analyser._update,
    "DeleteStmt": Analyser._delete,
    "MergeStmt": Analyser._merge,
    "ColumnRef": Analyser._column_ref,
    "A_Indirection": Analyser._indirection,
    "FuncCall": Analyser._func_call,
    "TypeName": Analyser._type_name,
    "A_Expr": Analyser._expression,
    "JoinExpr": lambda self, body: self._implied_equality(
        "JoinExpr", "isNatural" if body.get("isNatural") else "usingClause", body
    ),
    "CaseExpr": lambda self, body: self._implied_equality("CaseExpr", "arg", body),
    "SubLink": Analyser._sublink,
    "SortBy": Analyser._sort_by,
    "ParamRef": Analyser._parameter,
    "A_Const": lambda _self, _body: None,
    **session.HANDLERS,
    **definitions.HANDLERS,
    **alterations.HANDLERS,
    **versions.HANDLERS,
}


def _set_columns(body: Node) -> list[str]:
    """The columns that a SET clause names."""
    return [item["ResTarget"].get("name", "") for item in body.get("targetList", ())]


def _unknown_node(name: str, body: Node) -> NotAnalysableError:
    location = body.get("location")
    return NotAnalysableError(
        "node.unknown",
        f"the statement contains `{name}`, which the analysis does not know",
        cure="Write it another way, or ask for support of this construct.",
        location=location if isinstance(location, int) and location >= 0 else None,
    )
