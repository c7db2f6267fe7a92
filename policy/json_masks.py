"""Masks inside jsonb values, as SQL: by a path of keys, through arrays of objects on the way.

Where the document has another shape than the path says, less is shown, never more: an array inside an array
on the way becomes null, and an object or array at the end of a path is hidden whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Leaf = Callable[[str], str]


def literal(text: str) -> str:
    """A string constant (standard_conforming_strings is pinned)."""
    return "'" + text.replace("'", "''") + "'"


def at_path(document: str, path: Sequence[str], leaf: Leaf, depth: int = 0) -> str:
    """SQL for the jsonb `document` with `leaf(value)` in place of every value at the path."""
    if not path:
        return leaf(document)
    # One object and an array of objects go the same way: the former as an array of one, taken out again.
    alias = f'"level{depth}"'
    item = f'{alias}."value"'
    null = "CAST('null' AS pg_catalog.jsonb)"
    is_array = f"pg_catalog.jsonb_typeof({document}) OPERATOR(pg_catalog.=) 'array'"
    key = f"CAST({literal(path[0])} AS pg_catalog.text)"
    inside = at_path(f"({item} OPERATOR(pg_catalog.->) {key})", path[1:], leaf, depth + 1)
    changed = (
        f"CASE WHEN pg_catalog.jsonb_typeof({item}) OPERATOR(pg_catalog.=) 'array' THEN {null} "
        f"WHEN {item} OPERATOR(pg_catalog.?) {key} "
        f"AND pg_catalog.jsonb_typeof({item}) OPERATOR(pg_catalog.=) 'object' "
        f"THEN pg_catalog.jsonb_set({item}, ARRAY[{key}], {inside}) ELSE {item} END"
    )
    items = f"CASE WHEN {is_array} THEN {document} ELSE pg_catalog.jsonb_build_array({document}) END"
    together = f'pg_catalog.jsonb_agg({changed} ORDER BY {alias}."place")'
    return (
        f"CASE WHEN {document} IS NOT NULL THEN (SELECT CASE WHEN {is_array} "  # noqa: S608 - names are quoted
        f"THEN COALESCE({together}, CAST('[]' AS pg_catalog.jsonb)) ELSE {together} OPERATOR(pg_catalog.->) 0 END "
        f'FROM pg_catalog.jsonb_array_elements({items}) WITH ORDINALITY AS {alias} ("value", "place")) END'
    )


def of_scalar(value: str, make: Callable[[str], str], hidden: str) -> str:
    """SQL for a jsonb string made by `make` of the text of a scalar; null stays null, objects are `hidden`."""
    kind = f"pg_catalog.jsonb_typeof({value})"
    text = f"({value} OPERATOR(pg_catalog.#>>) CAST('{{}}' AS pg_catalog.text[]))"
    return (
        f"CASE WHEN {kind} OPERATOR(pg_catalog.=) 'null' THEN {value} "
        f"WHEN {kind} OPERATOR(pg_catalog.=) 'object' OR {kind} OPERATOR(pg_catalog.=) 'array' "
        f"THEN {hidden} ELSE pg_catalog.to_jsonb(CAST({make(text)} AS pg_catalog.text)) END"
    )
