"""Statements about temporary relations: what of them is refused, and that they change one session only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policy.model import Action
from policy.names import TEMPORARY
from policy.parse import Node, NotAnalysableError

if TYPE_CHECKING:
    from policy.analyse import Analyser

_DEFINES: Final = frozenset((Action.CREATE, Action.ALTER, Action.DROP, Action.GRANT))
# Definitions that last, or that run code with a relation.
_LASTS: Final = frozenset(
    (
        "ViewStmt", "CreateFunctionStmt", "CreatePolicyStmt", "AlterPolicyStmt", "CreateTrigStmt", "CreateStatsStmt",
        "AlterObjectSchemaStmt", "AlterOwnerStmt",
    )
)  # fmt: skip
_ALTERATIONS: Final = frozenset(
    (
        "AT_AddColumn", "AT_DropColumn", "AT_ColumnDefault", "AT_SetNotNull", "AT_DropNotNull", "AT_AlterColumnType",
        "AT_AddConstraint", "AT_DropConstraint", "AT_SetStatistics", "AT_SetStorage", "AT_AddIdentity",
        "AT_SetIdentity", "AT_DropIdentity", "AT_DropExpression", "AT_SetRelOptions", "AT_ResetRelOptions",
    )
)  # fmt: skip


def settle(walk: Analyser, tag: str, body: Node) -> None:
    """After the walk: refuse what a temporary relation may not be in, and note whom the statement concerns.

    Raises NotAnalysableError `temporary.refused`.
    """
    demands = walk.demands.all
    on_temporary = [d for d in demands if d.object.schema == TEMPORARY]
    if not on_temporary:
        return
    kinds = {command["AlterTableCmd"].get("subtype", "") for command in body.get("cmds", ())}
    if tag in _LASTS or (tag == "AlterTableStmt" and not kinds <= _ALTERATIONS):
        raise NotAnalysableError(
            "temporary.refused",
            f"a temporary relation, `{on_temporary[0].object}`, may not be part of this definition: what it would do"
            " cannot be followed",
            cure="Make the temporary table anew, as it should be.",
            location=on_temporary[0].location,
        )
    if any(demand.action is Action.CREATE for demand in on_temporary):
        walk.effects["session"] = True
    if walk.effects.get("catalog") and all(d.object.schema == TEMPORARY for d in demands if d.action in _DEFINES):
        # Names change for this session, and for nobody else.
        walk.effects["catalog"], walk.effects["search_path"] = False, True
