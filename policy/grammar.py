"""The allow-list: every node and field of PostgreSQL's parse tree that the analysis understands.

A tag or a field that is not here is a deny. One line per node: the fields that hold plain data end in
`.`; those that hold names only (lists of String nodes) in `=`; `field:Tag` holds that node bare, as
libpg_query's JSON writes fields of a fixed type; the others hold wrapped nodes or lists of them.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

_NODES = """
Integer: ival.
Float: fval.
Boolean: boolval.
String: sval.
BitString: bsval.
List: items
A_Const: ival. fval. boolval. sval. bsval. isnull.
A_Star:
A_Expr: kind. name= lexpr rexpr rexpr_list_start. rexpr_list_end.
A_Indices: is_slice. lidx uidx
A_Indirection: arg indirection
A_ArrayExpr: elements list_start. list_end.
BoolExpr: boolop. args
BooleanTest: arg booltesttype.
NullTest: arg nulltesttype.
CaseExpr: arg args defresult
CaseWhen: expr result
CoalesceExpr: args
MinMaxExpr: op. args
CollateClause: arg collname=
ColumnRef: fields
ParamRef: number.
ResTarget: name. indirection val
MultiAssignRef: source colno. ncolumns.
RowExpr: args row_format. colnames=
SetToDefault: typeMod.
SubLink: subLinkType. testexpr operName= subselect
SQLValueFunction: op. typmod.
TypeCast: arg typeName:TypeName
TypeName: names= setof. pct_type. typmods typemod. arrayBounds
FuncCall: funcname= args agg_order agg_filter over:WindowDef agg_within_group. agg_star. agg_distinct. \
func_variadic. funcformat.
NamedArgExpr: arg name. argnumber.
GroupingFunc: args
GroupingSet: kind. content
MergeSupportFunc: msftype.
SortBy: node sortby_dir. sortby_nulls. useOp=
WindowDef: name. refname. partitionClause orderClause frameOptions. startOffset endOffset
CurrentOfExpr: cursor_name.
XmlExpr: op. name. named_args args xmloption. indent.
XmlSerialize: xmloption. expr typeName:TypeName indent.
JsonFormat: format_type. encoding.
JsonReturning: format:JsonFormat typmod.
JsonOutput: typeName:TypeName returning:JsonReturning
JsonValueExpr: raw_expr formatted_expr format:JsonFormat
JsonArgument: val:JsonValueExpr name.
JsonBehavior: btype. expr
JsonKeyValue: key value:JsonValueExpr
JsonParseExpr: expr:JsonValueExpr output:JsonOutput unique_keys.
JsonScalarExpr: expr output:JsonOutput
JsonSerializeExpr: expr:JsonValueExpr output:JsonOutput
JsonIsPredicate: expr format:JsonFormat item_type. unique_keys.
JsonObjectConstructor: exprs output:JsonOutput absent_on_null. unique.
JsonArrayConstructor: exprs output:JsonOutput absent_on_null.
JsonArrayQueryConstructor: query output:JsonOutput format:JsonFormat absent_on_null.
JsonAggConstructor: output:JsonOutput agg_filter agg_order over:WindowDef
JsonObjectAgg: constructor:JsonAggConstructor arg:JsonKeyValue absent_on_null. unique.
JsonArrayAgg: constructor:JsonAggConstructor arg:JsonValueExpr absent_on_null.
JsonFuncExpr: op. column_name. context_item:JsonValueExpr pathspec passing output:JsonOutput \
on_empty:JsonBehavior on_error:JsonBehavior wrapper. quotes.
JsonTable: context_item:JsonValueExpr pathspec:JsonTablePathSpec passing columns on_error:JsonBehavior \
alias:Alias lateral.
JsonTablePathSpec: string name. name_location.
JsonTableColumn: coltype. name. typeName:TypeName pathspec:JsonTablePathSpec format:JsonFormat wrapper. \
quotes. columns on_empty:JsonBehavior on_error:JsonBehavior
Alias: aliasname. colnames=
RangeVar: catalogname. schemaname. relname. inh. relpersistence. alias:Alias
RangeSubselect: lateral. subquery alias:Alias
RangeFunction: lateral. ordinality. is_rowsfrom. functions alias:Alias coldeflist
RangeTableFunc: lateral. docexpr rowexpr namespaces columns alias:Alias
RangeTableFuncCol: colname. typeName:TypeName for_ordinality. is_not_null. colexpr coldefexpr
RangeTableSample: relation method= args repeatable
JoinExpr: jointype. isNatural. larg rarg usingClause= join_using_alias:Alias quals alias:Alias rtindex.
WithClause: ctes recursive.
CommonTableExpr: ctename. aliascolnames= ctematerialized. ctequery search_clause:CTESearchClause \
cycle_clause:CTECycleClause
CTESearchClause: search_col_list= search_breadth_first. search_seq_column.
CTECycleClause: cycle_col_list= cycle_mark_column. cycle_mark_value cycle_mark_default cycle_path_column.
SelectStmt: distinctClause intoClause:IntoClause targetList fromClause whereClause groupClause \
groupDistinct. havingClause windowClause valuesLists sortClause limitOffset limitCount limitOption. \
lockingClause withClause:WithClause op. all. larg:SelectStmt rarg:SelectStmt
LockingClause: lockedRels. strength. waitPolicy.
IntoClause: rel:RangeVar colNames= accessMethod. options onCommit. tableSpaceName. skipData.
InsertStmt: relation:RangeVar cols selectStmt onConflictClause:OnConflictClause \
returningClause:ReturningClause withClause:WithClause override.
OnConflictClause: action. infer:InferClause targetList whereClause
InferClause: indexElems whereClause conname.
IndexElem: name. expr indexcolname. collation= opclass= opclassopts ordering. nulls_ordering.
DeleteStmt: relation:RangeVar usingClause whereClause returningClause:ReturningClause withClause:WithClause
UpdateStmt: relation:RangeVar targetList whereClause fromClause returningClause:ReturningClause \
withClause:WithClause
MergeStmt: relation:RangeVar sourceRelation joinCondition mergeWhenClauses \
returningClause:ReturningClause withClause:WithClause
MergeWhenClause: matchKind. commandType. override. condition targetList values
ReturningClause: options exprs
ReturningOption: option. value.
ExplainStmt: query options
TransactionStmt: kind. options savepoint_name. chain.
VariableSetStmt: kind. name. args jumble_args. is_local.
VariableShowStmt: name.
DiscardStmt: target.
PrepareStmt: name. argtypes query
ExecuteStmt: name. params
DeallocateStmt: name. isall.
CallStmt: funccall:FuncCall
DeclareCursorStmt: portalname. options. query
FetchStmt: direction. howMany. portalname. ismove. direction_keyword.
ClosePortalStmt: portalname.
CopyStmt: relation:RangeVar query attlist= is_from. is_program. filename. options whereClause
ConstraintsSetStmt: constraints deferred.
ListenStmt: conditionname.
UnlistenStmt: conditionname.
NotifyStmt: conditionname. payload.
DefElem: defnamespace. defname. arg defaction.
RoleSpec: roletype. rolename.
CreateTableAsStmt: query into:IntoClause objtype. is_select_into. if_not_exists.
RefreshMatViewStmt: concurrent. skipData. relation:RangeVar
ViewStmt: view:RangeVar aliases= query replace. options withCheckOption.
CreateStmt: relation:RangeVar tableElts inhRelations partbound:PartitionBoundSpec \
partspec:PartitionSpec ofTypename:TypeName constraints options oncommit. tablespacename. accessMethod. \
if_not_exists.
ColumnDef: colname. typeName:TypeName compression. inhcount. is_local. is_not_null. storage. storage_name. \
raw_default identity. generated. collClause:CollateClause constraints fdwoptions
Constraint: contype. conname. deferrable. initdeferred. is_enforced. skip_validation. initially_valid. \
is_no_inherit. raw_expr generated_when. generated_kind. nulls_not_distinct. keys= without_overlaps. \
including= exclusions options indexname. indexspace. reset_default_tblspc. access_method. where_clause \
pktable:RangeVar fk_attrs= pk_attrs= fk_with_period. pk_with_period. fk_matchtype. fk_upd_action. \
fk_del_action. fk_del_set_cols=
TableLikeClause: relation:RangeVar options.
PartitionSpec: strategy. partParams
PartitionElem: name. expr collation= opclass=
PartitionBoundSpec: strategy. is_default. modulus. remainder. listdatums lowerdatums upperdatums
PartitionRangeDatum: kind. value
PartitionCmd: name:RangeVar bound:PartitionBoundSpec concurrent.
AlterTableStmt: relation:RangeVar cmds objtype. missing_ok.
AlterTableCmd: subtype. name. num. newowner:RoleSpec def behavior. missing_ok. recurse.
ATAlterConstraint: conname. alterEnforceability. is_enforced. alterDeferrability. deferrable. initdeferred. \
alterInheritability. noinherit.
ReplicaIdentityStmt: identity_type. name.
IndexStmt: idxname. relation:RangeVar accessMethod. tableSpace. indexParams indexIncludingParams options \
whereClause excludeOpNames= unique. nulls_not_distinct. concurrent. if_not_exists.
CreateSchemaStmt: schemaname. authrole:RoleSpec if_not_exists.
CreateSeqStmt: sequence:RangeVar options if_not_exists.
AlterSeqStmt: sequence:RangeVar options missing_ok.
CompositeTypeStmt: typevar:RangeVar coldeflist
CreateEnumStmt: typeName= vals=
AlterEnumStmt: typeName= oldVal. newVal. newValNeighbor. newValIsAfter. skipIfNewValExists.
CreateDomainStmt: domainname= typeName:TypeName collClause:CollateClause constraints
AlterDomainStmt: subtype. typeName= name. def behavior. missing_ok.
CreateFunctionStmt: is_procedure. replace. funcname= parameters returnType:TypeName options sql_body
FunctionParameter: name. argType:TypeName mode. defexpr
ReturnStmt: returnval
AlterFunctionStmt: objtype. func:ObjectWithArgs actions
ObjectWithArgs: objname= objargs objfuncargs args_unspecified.
CreateTrigStmt: replace. isconstraint. trigname. relation:RangeVar funcname= args= row. timing. events. \
columns= whenClause transitionRels deferrable. initdeferred. constrrel:RangeVar
TriggerTransition: name. isNew. isTable.
CreatePolicyStmt: policy_name. table:RangeVar cmd_name. permissive. roles qual with_check
AlterPolicyStmt: policy_name. table:RangeVar roles qual with_check
CreateRangeStmt: typeName= params
AlterStatsStmt: defnames= stxstattarget missing_ok.
CreateStatsStmt: defnames= stat_types= exprs relations if_not_exists.
StatsElem: name. expr
DropStmt: objects removeType. behavior. missing_ok. concurrent.
TruncateStmt: relations restart_seqs. behavior.
CommentStmt: objtype. object comment.
RenameStmt: renameType. relationType. relation:RangeVar object subname. newname. behavior. missing_ok.
AlterObjectSchemaStmt: objectType. relation:RangeVar object newschema. missing_ok.
AlterOwnerStmt: objectType. relation:RangeVar object newowner:RoleSpec
GrantStmt: is_grant. targtype. objtype. objects privileges grantees grant_option. grantor:RoleSpec behavior.
AccessPriv: priv_name. cols=
LockStmt: relations mode. nowait.
VacuumStmt: options rels is_vacuumcmd.
VacuumRelation: relation:RangeVar va_cols=
ReindexStmt: kind. relation:RangeVar name. params
ClusterStmt: relation:RangeVar indexname. params
"""


class Holds(Enum):
    """What a field holds, where it is not a bare node of a fixed tag."""

    DATA = "data"
    NAMES = "names"
    NODES = "nodes"


Field = Holds | str  # a str is the tag of a bare node


def _field(word: str) -> tuple[str, Field]:
    if word.endswith("."):
        return word[:-1], Holds.DATA
    if word.endswith("="):
        return word[:-1], Holds.NAMES
    name, _, tag = word.partition(":")
    return name, tag or Holds.NODES


def _compile(lines: str) -> dict[str, dict[str, Field]]:
    table: dict[str, dict[str, Field]] = {}
    for line in lines.strip().splitlines():
        tag, _, words = line.partition(":")
        table[tag] = dict(map(_field, words.split())) | {"location": Holds.DATA}
    return table


GRAMMAR: Final = _compile(_NODES)
