"""Rows and COPY data as the client may have them: what the policy looks for is hidden before they leave. Sans-IO.

No length changes, so every message stays as it was framed. Chunks that hold nothing pass after one quick look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.errors import UnsearchableError
from gateway.screening import too_large
from policy.detection import Detection, Findings, hide
from policy.detectors import Kind, Kinds, likely
from policy.forms import Form
from wire import layout
from wire.backend import Column, RowDescription
from wire.codec import Rows
from wire.copy import CopyOutResponse
from wire.layout import Layout
from wire.values import Hidden, hide_binary

# Forms in which digits need not stand as digits: no quick look at the bytes sees them.
_DEEP = frozenset((Form.INTEGER, Form.NUMERIC, Form.ARRAY, Form.RECORD, Form.RANGE, Form.MULTIRANGE))

_Hide = Callable[[bytes, Kinds], Hidden]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the rows of a result are searched: where values stand, and what is done to those of each column."""

    layout: Layout
    names: tuple[str, ...]
    hide: tuple[_Hide | None, ...]  # None: a column whose type can hold nothing
    deep: frozenset[int]  # columns in which no quick look sees a card number


class Screen:
    """Searches one statement's result. Its columns are told before its rows; `findings` counts what was hidden."""

    def __init__(self, detection: Detection) -> None:
        self.detection = detection
        self.findings = Findings()
        self._columns: tuple[Column, ...] = ()
        self._plan: _Plan | None = None
        self._why_not = "its columns are not known"

    def describe(self, description: RowDescription) -> None:
        """These are the columns; a COPY still says in which format it sends them."""
        self._columns = description.columns
        if self.detection.copy is None:
            self._prepare(layout.data_row, [column.format for column in description.columns])

    def begin_copy(self, response: CopyOutResponse) -> None:
        """COPY data follow."""
        copy = self.detection.copy
        if copy is None or len(response.columns) != len(self._columns):
            self._why_not = "the columns of the COPY are not known: list them, or COPY a query"
            return
        self._prepare(layout.copied_binary if response.format else layout.copied_text(copy), response.columns)

    def rows(self, piece: Rows) -> Rows:
        """The same rows, searched.

        Raises UnsearchableError, LimitExceededError (a row too large to be searched), ProtocolError.
        """
        if not piece.whole:
            raise too_large(self.detection)
        if (plan := self._plan) is None:
            raise UnsearchableError(
                f"the policy looks for {self.detection} in what is delivered, and here it cannot: {self._why_not}"
            )
        data = piece.data
        kinds = likely(data, self.detection.kinds)
        if not kinds and not plan.deep:
            return piece
        hidden: bytearray | None = None
        for start, end in layout.messages(data):
            message = data[start:end]
            here = likely(message, kinds) if kinds else kinds
            if not here and not plan.deep:
                continue
            for column, begin, stop in plan.layout(message, len(plan.names)):
                hide_value = plan.hide[column]
                if hide_value is None or not (here or column in plan.deep):
                    continue
                value, spans = hide_value(message[begin:stop], here)
                if spans:
                    hidden = bytearray(data) if hidden is None else hidden
                    hidden[start + begin : start + stop] = value
                    self.findings.note(plan.names[column], spans)
        return piece if hidden is None else piece._replace(data=bytes(hidden))

    def _prepare(self, places: Layout, formats: Sequence[int]) -> None:
        columns = tuple(zip(self._columns, formats, strict=True))
        forms = [self.detection.forms.get(column.type, Form.UNKNOWN) for column in self._columns]
        for (column, format), form in zip(columns, forms, strict=True):
            if format and form is Form.UNKNOWN:
                self._plan = None
                self._why_not = (
                    f"the binary format of the column `{column.name}`, of the type with OID {column.type}, is not"
                    " known; ask for it as text"
                )
                return
        self._plan = _Plan(
            places,
            tuple([column.name for column in self._columns]),
            tuple(
                [
                    None if form is Form.PLAIN else self._hide(column.type, binary=bool(format))
                    for (column, format), form in zip(columns, forms, strict=True)
                ]
            ),
            frozenset(
                [
                    at
                    for at, ((_, format), form) in enumerate(zip(columns, forms, strict=True))
                    if format and form in _DEEP
                ]
                if Kind.CARD in self.detection.kinds
                else []
            ),
        )

    def _hide(self, oid: int, *, binary: bool) -> _Hide:
        if not binary:
            return hide
        return lambda value, _: hide_binary(value, oid, self.detection)
