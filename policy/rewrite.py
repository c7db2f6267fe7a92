"""Masks at the source: every mention of a masked relation becomes a subquery that masks, by splicing bytes.

Everything else of the text stays as the client wrote it. INVARIANT: the result is returned only after
`policy.verify` has parsed it again and found nothing but the generated subqueries changed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from policy import guesses, held, sideways, tied
from policy.catalog import Relation, RelationKind
from policy.filtering import Filtering
from policy.masking import Masked, Masking
from policy.masks import Keys, UnmaskableError, expression, needs_key
from policy.model import MaskedColumn, Rewrite, Splice
from policy.names import quote
from policy.parse import NotAnalysableError, Token, statements, tokens
from policy.pseudonyms import BLANK, MaskKey, Subkey
from policy.reading import Reading, Reference, Role
from policy.verify import Replacement, verify

_DOT, _STAR, _OPEN, _CLOSE = map(ord, ".*()")


@dataclass(frozen=True, slots=True)
class _Site:
    """A masked reference in the text: the bytes to replace and what kind of place they stand in."""

    start: int
    end: int
    after_table: bool  # the name follows the word TABLE, which the splice covers


def rewrite(reading: Reading, masking: Masking, filtering: Filtering, mask_key: MaskKey | None = None) -> Rewrite:
    """The text that runs instead.

    Raises NotAnalysableError (`mask.…`, `rows.…`, `rewrite.unverified`) for what cannot be rewritten soundly.
    """
    base = reading.analysis.text
    held.check(reading, masking)
    if reading.changes:
        if sideways.has_opaque_body(reading):
            sideways.check_body(hides=masking.any_column() or filtering.any_relation())
        sideways.check_change(reading, masking)
        tied.check(reading, masking)
        guesses.check(reading, masking)
    if not reading.references:
        return Rewrite(base)
    filtering.check(reading)
    masked = [(r, columns) for r in reading.references if (columns := held.shown(masking, reading, r))]
    conditions = _conditions(reading, filtering)
    if not masked and not conditions:
        return Rewrite(base, origins=_origins(reading, masking))
    sideways.check(reading, masked)
    keyring = _Keyring(reading, masked, mask_key)
    masks = {id(reference.var): columns for reference, columns in masked}
    replacements: dict[int, Replacement] = {}
    splices: dict[int, Splice] = {}
    scanned: Sequence[Token] | None = None
    for reference in _read(reading):
        columns, condition = masks.get(id(reference.var), {}), conditions.get(id(reference.var))
        if not columns and condition is None:
            continue
        scanned = tokens(base) if scanned is None else scanned
        replacement, splice = _replace(base, scanned, reference, _Veil(columns, condition, keyring.keys))
        replacements[reference.location] = replacement
        splices[splice.start] = splice  # a shared subtree shows one place of the text twice
    ordered = tuple(splices[start] for start in sorted(splices))
    result = Rewrite(
        sql=_apply(base, ordered),
        splices=ordered,
        masked=tuple(dict.fromkeys(_columns(masked))),
        origins=_origins(reading, masking),
        filtered=tuple(dict.fromkeys(_filters(reading, filtering))),
        secrets=keyring.secrets,
    )
    verify(reading.text_of_tree, result.sql, replacements)
    return result


class _Keyring:
    """The keys that a statement may carry, and which of them it does.

    A statement whose text others could read back gets a key that is none: EXPLAIN prints expressions, and
    a trigger sees the text of the statement that fires it. Neither shows a pseudonym: EXPLAIN shows no
    values, and a statement that writes may not name the columns (`sideways.check_keyed`).
    """

    def __init__(self, reading: Reading, masked: list[tuple[Reference, Masked]], mask_key: MaskKey | None) -> None:
        self._mask_key = mask_key
        self._used: set[Subkey] = set()
        keyed = [(r, c) for r, c in masked if any(map(needs_key, c.values()))]
        sideways.check_keyed(reading, keyed)
        self._blank = reading.analysis.kind == "ExplainStmt" or sideways.writes(reading)

    @property
    def keys(self) -> Keys:
        """For `policy.masks.expression`."""
        return None if self._mask_key is None else self._key

    def _key(self, pool: str) -> Subkey:
        if self._blank or self._mask_key is None:
            return BLANK
        key = self._mask_key.subkey(pool)
        self._used.add(key)
        return key

    @property
    def secrets(self) -> frozenset[bytes]:
        """What must not be shown of the text."""
        return frozenset().union(*(key.secrets for key in self._used))


@dataclass(frozen=True, slots=True)
class _Veil:
    """What stands between a statement and a relation: masks of columns, a condition on rows, or both."""

    columns: Masked
    condition: str | None
    keys: Keys


def _replace(base: bytes, scanned: Sequence[Token], reference: Reference, veil: _Veil) -> tuple[Replacement, Splice]:
    relation, var = reference.relation, reference.var
    copying = reference.role is Role.COPY_OUT
    # COPY of a table leaves its children out, as ONLY does.
    only = relation.kind is RelationKind.TABLE if copying else "inh" not in var
    select = _select(relation, veil, only=only)
    site = _site(base, scanned, reference)
    alias = f" AS {quote(var['relname'])}"
    if copying:
        names, end = _copy_columns(base, scanned, site.end)
        listed = ", ".join(map(quote, names)) if names is not None else "*"
        text = f"(SELECT {listed} FROM ({select}){alias})"  # noqa: S608 - names are quoted
        return Replacement(var, text[1:-1], copies=True), Splice(site.start, end, text.encode())
    text = f"({select})"
    if "alias" not in var:
        text += alias
    if site.after_table:
        text = f"SELECT * FROM {text}"  # noqa: S608 - generated above
    return Replacement(var, select, copies=False), Splice(site.start, site.end, text.encode())


def _select(relation: Relation, veil: _Veil, *, only: bool) -> str:
    listed = []
    for column in relation.columns:
        name = quote(column.name)
        masks = veil.columns.get(column.number)
        try:
            listed.append(f"{expression(masks, column, veil.keys)} AS {name}" if masks else name)
        except UnmaskableError as error:
            raise NotAnalysableError(
                "mask.impossible", str(error), cure="Whoever keeps the policy must change the mask."
            ) from None
    source = f"{'ONLY ' if only else ''}{quote(relation.schema)}.{quote(relation.name)}"
    # OFFSET is the barrier: PostgreSQL neither merges such a subquery with the query around it nor pushes
    # conditions into it (subquery_is_pushdown_safe), so that nothing of the client's runs on a hidden row.
    where = f" WHERE {veil.condition} OFFSET 0" if veil.condition is not None else ""
    return f"SELECT {', '.join(listed)} FROM {source}{where}"  # noqa: S608 - names are quoted


def _site(base: bytes, scanned: Sequence[Token], reference: Reference) -> _Site:
    """Where a reference stands: `[TABLE] [ONLY] [(] [schema.] name [)] [*]`."""
    at = bisect_left(scanned, reference.location, key=lambda token: token.start)
    if at == len(scanned) or scanned[at].start != reference.location:
        raise _lost(reference)
    words = 2 if "schemaname" in reference.var else 1
    first, last = at, at
    for word in range(words):
        if word:
            if last + 2 >= len(scanned) or scanned[last + 1].token != _DOT:
                raise _lost(reference)
            last += 2
        if _word(base, scanned, last + 1) == b"uescape":
            last += 2
    if "inh" not in reference.var:
        if first and scanned[first - 1].token == _OPEN and _word(base, scanned, first - 2) == b"only":
            first, last = first - 2, last + 1
        elif _word(base, scanned, first - 1) == b"only":
            first -= 1
        else:
            raise _lost(reference)
    elif last + 1 < len(scanned) and scanned[last + 1].token == _STAR and reference.role is Role.SOURCE:
        last += 1
    after_table = reference.role is Role.SOURCE and _word(base, scanned, first - 1) == b"table"
    if after_table:
        first -= 1
    return _Site(scanned[first].start, scanned[last].end, after_table)


def _copy_columns(base: bytes, scanned: Sequence[Token], end: int) -> tuple[list[str] | None, int]:
    """The column list that may follow the relation's name in COPY, and where it ends."""
    after = next((i for i, token in enumerate(scanned) if token.start >= end), len(scanned))
    if after >= len(scanned) or scanned[after].token != _OPEN:
        return None, end
    close = next(i for i in range(after, len(scanned)) if scanned[i].token == _CLOSE)
    listed = base[scanned[after].start : scanned[close].end]
    return _names_in(listed), scanned[close].end


def _names_in(parenthesised: bytes) -> list[str]:
    """Column names as PostgreSQL reads them, whatever their quoting."""
    [(_, _, tree)] = statements(b"COPY t " + parenthesised + b" TO STDOUT")
    return [item["String"]["sval"] for item in tree["CopyStmt"]["attlist"]]


def _word(base: bytes, scanned: Sequence[Token], index: int) -> bytes | None:
    if not 0 <= index < len(scanned):
        return None
    return base[scanned[index].start : scanned[index].end].lower()


def _lost(reference: Reference) -> NotAnalysableError:
    return NotAnalysableError(
        "rewrite.unverified",
        f"the place of `{reference.relation.qualified}` in the statement cannot be told for sure",
        cure="Write its name plainly, with an alias.",
        location=reference.location,
    )


def _apply(base: bytes, splices: tuple[Splice, ...]) -> bytes:
    pieces, at = [], 0
    for splice in splices:
        pieces += [base[at : splice.start], splice.replacement]
        at = splice.end
    return b"".join([*pieces, base[at:]])


def _read(reading: Reading) -> list[Reference]:
    """The references that rows are read from."""
    return [r for r in reading.references if r.role in (Role.SOURCE, Role.COPY_OUT)]


def _conditions(reading: Reading, filtering: Filtering) -> dict[int, str]:
    """The conditions on the rows that are read, by the identity of the node that names their relation."""
    if not filtering.any_filter:
        return {}
    return {id(r.var): condition for r in _read(reading) if (condition := filtering.condition(r.relation))}


def _filters(reading: Reading, filtering: Filtering) -> Iterator[str]:
    for reference in _read(reading):
        for row_filter in filtering.filters(reference.relation):
            yield f"{reference.relation.qualified}: {row_filter.label}"


def _columns(masked: list[tuple[Reference, Masked]]) -> Iterator[MaskedColumn]:
    for reference, columns in masked:
        if reference.role in (Role.SOURCE, Role.COPY_OUT):
            for column in reference.relation.columns:
                for mask in columns.get(column.number, ()):
                    yield MaskedColumn(
                        reference.relation.qualified, column.name, mask.kind.value, mask.label, mask.path
                    )


def _origins(reading: Reading, masking: Masking) -> frozenset[tuple[int, int]]:
    """Every raw column that must not show, in all that the statement reaches."""
    if not (reached := masking.relations(reading.analysis.relations)):
        return frozenset()
    return frozenset((relation.oid, number) for relation in reached for number in masking.columns(relation))
