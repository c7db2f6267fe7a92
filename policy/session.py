"""Statements about the session: transactions, settings, prepared statements, cursors, COPY, EXPLAIN, channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from policy.model import Action, ObjectKind, ObjectName, Transaction
from policy.names import is_system, parts
from policy.parse import Node, NotAnalysableError
from policy.reading import Role
from policy.settings import refusal_of_setting

if TYPE_CHECKING:
    from policy.analyse import Analyser

_ROLES = "roles are managed outside of the gateway"
_FILES = "it gives the server access to files, programs or other servers"
_CODE = "it runs code that cannot be analysed"
_SEARCH = "it changes what text search finds, which no rule describes"
_SERVER = "it administers the whole server"

# Always refused, each with its reason.
_REFUSED: Final[dict[str, str]] = {
    "DoStmt": _CODE,
    "LoadStmt": _FILES,
    "AlterSystemStmt": _SERVER,
    "CheckPointStmt": _SERVER,
    "CreatedbStmt": _SERVER,
    "DropdbStmt": _SERVER,
    "AlterDatabaseStmt": _SERVER,
    "AlterDatabaseSetStmt": _SERVER,
    "AlterDatabaseRefreshCollStmt": _SERVER,
    "CreateTableSpaceStmt": _SERVER,
    "DropTableSpaceStmt": _SERVER,
    "AlterTableSpaceOptionsStmt": _SERVER,
    "AlterTableMoveAllStmt": _SERVER,
    "CreateRoleStmt": _ROLES,
    "AlterRoleStmt": _ROLES,
    "AlterRoleSetStmt": _ROLES,
    "DropRoleStmt": _ROLES,
    "GrantRoleStmt": _ROLES,
    "DropOwnedStmt": _ROLES,
    "ReassignOwnedStmt": _ROLES,
    "AlterDefaultPrivilegesStmt": "it grants rights on objects that do not exist yet",
    "CreateExtensionStmt": _CODE,
    "AlterExtensionStmt": _CODE,
    "AlterExtensionContentsStmt": _CODE,
    "CreatePLangStmt": _CODE,
    "CreateFdwStmt": _FILES,
    "AlterFdwStmt": _FILES,
    "CreateForeignServerStmt": _FILES,
    "AlterForeignServerStmt": _FILES,
    "CreateForeignTableStmt": _FILES,
    "ImportForeignSchemaStmt": _FILES,
    "CreateUserMappingStmt": _FILES,
    "AlterUserMappingStmt": _FILES,
    "DropUserMappingStmt": _FILES,
    "CreateSubscriptionStmt": _FILES,
    "AlterSubscriptionStmt": _FILES,
    "DropSubscriptionStmt": _FILES,
    "CreatePublicationStmt": "it publishes rows past the policy",
    "AlterPublicationStmt": "it publishes rows past the policy",
    "CreateEventTrigStmt": _CODE,
    "AlterEventTrigStmt": _CODE,
    "RuleStmt": "rewrite rules change what other statements do after they were analysed",
    "CreateCastStmt": "it changes what other statements mean after they were analysed",
    "CreateConversionStmt": "it changes what other statements mean after they were analysed",
    "CreateTransformStmt": _CODE,
    "CreateAmStmt": _CODE,
    "CreateOpClassStmt": "it changes what other statements mean after they were analysed",
    "CreateOpFamilyStmt": "it changes what other statements mean after they were analysed",
    "AlterOpFamilyStmt": "it changes what other statements mean after they were analysed",
    "DefineStmt": "it makes other statements call functions that they do not name",
    "AlterOperatorStmt": "it changes what other statements mean after they were analysed",
    "SecLabelStmt": _ROLES,
    "AlterCollationStmt": _SERVER,
    "AlterTypeStmt": "it changes the code behind a type",
    "AlterObjectDependsStmt": "it changes what a later DROP takes along",
    "AlterTSDictionaryStmt": _SEARCH,
    "AlterTSConfigurationStmt": _SEARCH,
}  # fmt: skip

_ACCESS_SHARE: Final = 1  # lockdefs.h AccessShareLock

_SPOKEN: Final = {
    "DoStmt": "DO",
    "AlterSystemStmt": "ALTER SYSTEM",
    "CheckPointStmt": "CHECKPOINT",
    "RuleStmt": "CREATE RULE",
    "SecLabelStmt": "SECURITY LABEL",
    "AlterObjectDependsStmt": "ALTER … DEPENDS ON EXTENSION",
    "AlterTSDictionaryStmt": "ALTER TEXT SEARCH DICTIONARY",
    "AlterTSConfigurationStmt": "ALTER TEXT SEARCH CONFIGURATION",
    "AlterTypeStmt": "ALTER TYPE … SET",
}


# CREATE of these, which the grammar calls DefineStmt; of the others it is about code.
_DEFINED: Final = {
    "OBJECT_COLLATION": "it changes how text compares, which no rule describes",
    "OBJECT_TSPARSER": _SEARCH,
    "OBJECT_TSDICTIONARY": _SEARCH,
    "OBJECT_TSTEMPLATE": _SEARCH,
    "OBJECT_TSCONFIGURATION": _SEARCH,
}


def check_allowed(tag: str, body: Node) -> None:
    """Raise NotAnalysableError for a statement kind that is always refused."""
    if tag == "DefineStmt":
        kind = body["kind"]
        word = kind.removeprefix("OBJECT_").replace("TS", "TEXT SEARCH ", 1) if kind in _DEFINED else kind[7:]
        why = _DEFINED.get(kind, _REFUSED[tag])
        raise NotAnalysableError("statement.refused", f"CREATE {word} is always refused: {why}")
    if reason := _REFUSED.get(tag):
        spoken = _SPOKEN.get(tag) or _words(tag.removesuffix("Stmt"))
        raise NotAnalysableError("statement.refused", f"{spoken} is always refused: {reason}")


def _words(tag: str) -> str:
    spaced = "".join(f" {c}" if c.isupper() else c for c in tag).strip()
    return spaced.upper().replace("P LANG", "LANGUAGE")


def options(body: Node, field: str = "options") -> dict[str, Node]:
    """DefElem options by lower-case name."""
    return {o["DefElem"]["defname"].lower(): o["DefElem"].get("arg", {}) for o in body.get(field, ())}


def is_on(argument: Node) -> bool:
    """A Boolean option as defGetBoolean reads it: absent means true; anything doubtful counts as true."""
    if not argument:
        return True
    [(tag, body)] = argument.items()
    match tag:
        case "Boolean":
            return bool(body.get("boolval"))
        case "Integer":
            return bool(body.get("ival"))
        case "String":
            return str(body.get("sval", "")).lower() not in ("false", "off", "0")
    return True


def _transaction(walk: Analyser, body: Node) -> None:
    kind: str = body["kind"].removeprefix("TRANS_STMT_")
    if "PREPARE" in kind:
        raise NotAnalysableError(
            "statement.refused", "prepared transactions are always refused: they outlive the session that made them"
        )
    # Rolling back to a savepoint undoes SET and DDL since then, as a whole rollback does.
    walk.effects["transaction"] = {
        "BEGIN": Transaction.BEGIN,
        "START": Transaction.BEGIN,
        "COMMIT": Transaction.COMMIT,
        "ROLLBACK": Transaction.ROLLBACK,
        "ROLLBACK_TO": Transaction.ROLLBACK,
        "SAVEPOINT": Transaction.SAVEPOINT,
        "RELEASE": Transaction.SAVEPOINT,
    }[kind]
    walk.effects["search_path"] = kind in ("ROLLBACK", "ROLLBACK_TO", "COMMIT")
    _check_modes(body.get("options", ()))
    walk.children("TransactionStmt", body)


def _check_modes(modes: list[Node] | tuple[()]) -> None:
    for mode in modes:
        element = mode["DefElem"]
        if element["defname"] == "transaction_read_only" and not element["arg"]["A_Const"]["ival"].get("ival"):
            raise NotAnalysableError(
                "setting.refused",
                "a transaction may not be declared READ WRITE: whether it may write is the policy's business",
                cure="Leave READ WRITE out.",
            )


def _set(walk: Analyser, body: Node) -> None:
    walk.effects["session"] = True
    kind, name = body["kind"], body.get("name", "")
    if kind == "VAR_RESET_ALL":
        walk.effects["search_path"] = True
        return
    if kind == "VAR_SET_MULTI":
        if name not in ("TRANSACTION", "SESSION CHARACTERISTICS"):
            raise NotAnalysableError(
                "setting.refused", f"SET {name} is always refused: it imports another session's view"
            )
        _check_modes(body.get("args", ()))
        walk.children("VariableSetStmt", body)
        return
    folded = name.lower()
    location = body.get("location", -1)
    if folded == "client_encoding":
        _check_encoding(body)
    elif reason := refusal_of_setting(name):
        raise NotAnalysableError(
            "setting.refused",
            f"the setting `{name}` may not be changed here: {reason}",
            location=location if location >= 0 else None,
        )
    walk.effects["search_path"] = folded == "search_path"
    walk.children("VariableSetStmt", body)


def call_of_set_config(walk: Analyser, name: str, location: int) -> None:
    """`set_config` with a known name: the effects of SET. Raises NotAnalysableError as SET does."""
    reason = refusal_of_setting(name)  # client_encoding is not on its list
    if reason:
        raise NotAnalysableError(
            "setting.refused", f"the setting `{name}` may not be changed here: {reason}", location=location
        )
    walk.effects["session"] = True
    walk.effects["search_path"] = walk.effects["moves_names"] = True


def setting_asked_for(walk: Analyser, select: Node) -> str | None:
    """The `x` of `SELECT … FROM pg_settings WHERE name = 'x'`, where nothing else is in FROM; as pg_dump asks."""
    match select:
        case {
            "fromClause": [{"RangeVar": var}],
            "whereClause": {
                "A_Expr": {
                    "kind": "AEXPR_OP",
                    "name": [{"String": {"sval": "="}}],
                    "lexpr": {"ColumnRef": {"fields": [{"String": {"sval": "name"}}]}},
                    "rexpr": {"A_Const": {"sval": {"sval": str(name)}}},
                }
            },
        } if "alias" not in var and not walk.names.user_operators(("=",)):
            found = walk.names.find(var)
            return name if found is not None and is_system(found) and found.name == "pg_settings" else None
    return None


def _check_encoding(body: Node) -> None:
    values = [a.get("A_Const", {}).get("sval", {}).get("sval", "") for a in body.get("args", ())]
    if body["kind"] == "VAR_SET_VALUE" and [v.lower().replace("-", "") for v in values] != ["utf8"]:
        raise NotAnalysableError(
            "setting.refused",
            "`client_encoding` may only be UTF8 here: it changes how text is read after it was analysed",
            cure="SET client_encoding = 'UTF8'.",
        )


def _discard(walk: Analyser, body: Node) -> None:
    walk.effects["session"] = True
    if body["target"] in ("DISCARD_ALL", "DISCARD_TEMP"):
        walk.effects["search_path"] = True
    if body["target"] == "DISCARD_ALL":
        walk.effects["deallocates"] = walk.effects["closes"] = ""
    walk.children("DiscardStmt", body)


def _prepare(walk: Analyser, body: Node) -> None:
    walk.effects["session"] = True
    walk.effects["prepares"] = body["name"]
    walk.children("PrepareStmt", body)


def _execute(walk: Analyser, body: Node) -> None:
    walk.effects["executes"] = body["name"]
    if walk.stores is not None:
        raise NotAnalysableError(
            "statement.refused",
            "CREATE TABLE AS EXECUTE is always refused: what it stores cannot be checked",
            cure="Write the query itself.",
        )
    walk.children("ExecuteStmt", body)


def _deallocate(walk: Analyser, body: Node) -> None:
    walk.effects["session"] = True
    walk.effects["deallocates"] = body.get("name", "")
    walk.children("DeallocateStmt", body)


def _declare(walk: Analyser, body: Node) -> None:
    walk.effects["session"] = True
    walk.effects["declares"] = body["portalname"]
    walk.children("DeclareCursorStmt", body)


def _close(walk: Analyser, body: Node) -> None:
    walk.effects["closes"] = body.get("portalname", "")
    walk.children("ClosePortalStmt", body)


def _copy(walk: Analyser, body: Node) -> None:
    if body.get("is_program") or "filename" in body:
        what = "a program" if body.get("is_program") else "a file"
        raise NotAnalysableError(
            "copy.server",
            f"COPY to or from {what} of the server is always refused",
            cure="Use COPY … TO STDOUT or FROM STDIN (`\\copy` in psql).",
        )
    if body.get("is_from"):
        walk.effects["copy_in"] = True
        walk.target(body["relation"], Action.INSERT, role=Role.COPY_IN)
    else:
        walk.effects["copy_out"] = True
        if "relation" in body:
            var = body["relation"]
            relation = walk.refer(var, Role.COPY_OUT, Action.SELECT)
            walk.names.check_readable(relation, var.get("location", 0))
    walk.children("CopyStmt", body, ("relation",))


def _explain(walk: Analyser, body: Node) -> None:
    walk.children("ExplainStmt", body)
    if not is_on(options(body).get("analyze", {"Boolean": {}})):
        for effect in walk.effects.keys() - {"executes"}:
            del walk.effects[effect]
    for reference in tuple(walk.references):
        walk.demand_on(Action.EXPLAIN, reference.relation, reference.location)


def _channel(action: Action) -> Callable[[Analyser, Node], None]:
    def note(walk: Analyser, body: Node) -> None:
        walk.effects["session"] = action is Action.LISTEN
        walk.demand(action, ObjectName(ObjectKind.CHANNEL, None, body["conditionname"]))

    return note


def _set_constraints(walk: Analyser, body: Node) -> None:
    walk.effects["session"] = True  # when constraints are checked; what that runs, the writes have demanded
    walk.children("ConstraintsSetStmt", body, ("constraints",))


def _call(walk: Analyser, body: Node) -> None:
    call = body["funccall"]
    words = parts(call["funcname"])
    if any(f.kind == "p" and f.body is None for f in walk.names.overloads(words)):
        raise NotAnalysableError(
            "statement.refused",
            f"CALL is always refused for procedures in other languages than SQL, such as `{'.'.join(words)}`: {_CODE}",
            location=call.get("location", 0),
        )
    walk.calls.call(words, call.get("location", 0))  # its OUT parameters count too: any number of arguments
    walk.children("FuncCall", call)


def _unlisten(walk: Analyser, body: Node) -> None:
    walk.effects["session"] = True
    walk.children("UnlistenStmt", body)


def _lock(walk: Analyser, body: Node) -> None:
    # ACCESS SHARE is the lock that a SELECT takes, and PostgreSQL gives it to whoever may select (LOCK, "Notes").
    action = Action.SELECT if body["mode"] == _ACCESS_SHARE else Action.LOCK
    for item in body["relations"]:
        relation = walk.refer(item["RangeVar"], Role.STRUCTURE, action)
        if is_system(relation):
            raise NotAnalysableError(
                "catalog.write", f"`{relation.qualified}` belongs to the server and is never locked"
            )
    walk.effects["writes"] = action is Action.LOCK
    walk.children("LockStmt", body, ("relations",))


HANDLERS: Final[dict[str, Callable[[Analyser, Node], None]]] = {
    "TransactionStmt": _transaction,
    "VariableSetStmt": _set,
    "DiscardStmt": _discard,
    "PrepareStmt": _prepare,
    "ExecuteStmt": _execute,
    "CallStmt": _call,
    "DeallocateStmt": _deallocate,
    "DeclareCursorStmt": _declare,
    "ClosePortalStmt": _close,
    "CopyStmt": _copy,
    "ExplainStmt": _explain,
    "ListenStmt": _channel(Action.LISTEN),
    "NotifyStmt": _channel(Action.NOTIFY),
    "UnlistenStmt": _unlisten,
    "ConstraintsSetStmt": _set_constraints,
    "LockStmt": _lock,
}
