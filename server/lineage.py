"""Which columns each output column of a query comes from, for people who read an explanation.

Advisory: it is sqlglot's reading of the statement, not PostgreSQL's, so it never takes part in a verdict or in a
rewrite (docs/decisions/0001). sqlglot comes with the extra `lineage`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policy.catalog import Catalog

if TYPE_CHECKING:
    from sqlglot.lineage import Node

_DIALECT = "postgres"
_LARGEST_TEXT = 64 * 1024


class LineageUnknownError(Exception):
    """There is none to show; the text says why."""


@dataclass(frozen=True, slots=True)
class OutputColumn:
    """A column of the result and the columns, as `schema.relation.column`, that its values come from, sorted.

    `name` is empty where the statement gives none. `whole` is False where something was not traced, such as a row
    used as a value: there may be more sources.
    """

    name: str
    sources: tuple[str, ...]
    whole: bool


def lineage(sql: str, catalog: Catalog, search_path: Sequence[str]) -> list[OutputColumn]:
    """The output columns of a query, in order. Raises LineageUnknownError for what is none, or is not understood.

    Columns that only decide which rows there are (conditions, joins, groups) are not among the sources.
    """
    try:
        from sqlglot import exp, parse_one
        from sqlglot.errors import SqlglotError
        from sqlglot.lineage import to_node
        from sqlglot.optimizer.qualify import qualify
        from sqlglot.optimizer.scope import build_scope
        from sqlglot.schema import MappingSchema
    except ImportError:
        raise LineageUnknownError("it needs sqlglot: pip install 'countersign[lineage]'") from None
    if len(sql) > _LARGEST_TEXT:
        raise LineageUnknownError("the statement is too long")
    try:
        tree = parse_one(sql, dialect=_DIALECT)
        if not isinstance(tree, exp.Query):
            raise LineageUnknownError("only a query has one")
        known: dict[str, dict[str, dict[str, str]]] = {}
        ctes = {cte.alias for cte in tree.find_all(exp.CTE)}
        for table in tree.find_all(exp.Table):
            if not table.db and table.name in ctes:
                continue
            homes = (table.db,) if table.db else search_path
            found = next((r for home in homes if (r := catalog.relation(home, table.name))), None)
            if found is not None:
                table.set("db", exp.to_identifier(found.schema, quoted=True))
                known.setdefault(found.schema, {})[found.name] = {column.name: "text" for column in found.columns}
        schema = MappingSchema({**known}, dialect=_DIALECT, normalize=False)
        tree = qualify(tree, schema=schema, dialect=_DIALECT, validate_qualify_columns=False)
        scope = build_scope(tree)
        if scope is None:
            raise LineageUnknownError("its structure is not understood")
        return [
            _output(column.alias_or_name, to_node(place, scope=scope, dialect=_DIALECT, schema=schema))
            for place, column in enumerate(tree.selects)
        ]
    except (SqlglotError, ValueError, KeyError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LineageUnknownError(f"sqlglot does not understand the statement ({reason})") from None


def _output(name: str, node: Node) -> OutputColumn:
    from sqlglot import exp

    leaves = [leaf for leaf in node.walk() if not leaf.downstream]
    # Placeholders stand for the second round of a recursion: it adds no new source.
    inner = [leaf for leaf in leaves if not isinstance(leaf.expression, (exp.Table, exp.Placeholder))]
    whole = not any(leaf.expression.find(exp.Column, exp.TableColumn, exp.Table) for leaf in inner)
    return OutputColumn("" if name.startswith("_col_") else name, tuple(sorted(set(_sources(leaves)))), whole)


def _sources(leaves: Sequence[Node]) -> Iterator[str]:
    from sqlglot import exp

    for leaf in leaves:
        if isinstance(leaf.expression, exp.Table):
            column = exp.to_column(leaf.name, dialect=_DIALECT)
            yield ".".join(filter(None, (leaf.expression.db, leaf.expression.name, column.name)))
