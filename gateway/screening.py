"""Rows in text format as the policy lets them be seen: what it looks for is hidden in them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.errors import LimitExceededError
from gateway.upstream import ResultColumn
from policy.detection import MOST_SEARCHED_BYTES, NOTHING, Detection, Findings, hide, hide_text
from policy.detectors import Kinds
from policy.forms import Form

Row = tuple[bytes | None, ...]

# Message, detail, hint, context and internal query, and the names, which a function's RAISE may set to any text; all
# other fields are the server's own codes and places.
_TEXTS = frozenset("MDHWqstcdn")


def too_large(detection: Detection) -> LimitExceededError:
    """The error for a row that is too large to be searched."""
    return LimitExceededError(
        f"the policy looks for {detection} in what is delivered, and a row is larger than the"
        f" {MOST_SEARCHED_BYTES >> 20} MiB in which it does",
        cure="Select shorter values, such as a part of the text.",
    )


def searched_report(fields: Mapping[str, str], kinds: Kinds, findings: Findings | None = None) -> Mapping[str, str]:
    """An error or notice of PostgreSQL's, by the protocol's field codes, searched: its texts may quote values."""
    if not kinds:
        return fields
    return {k: hide_text(v, kinds, findings) if k in _TEXTS else v for k, v in fields.items()}


class TextScreen:
    """Searches one result; without a detection it lets everything pass. `findings` counts what was hidden."""

    def __init__(self, detection: Detection | None) -> None:
        self.findings = Findings()
        self._detection = detection

    def rows(self, columns: Sequence[ResultColumn], rows: Sequence[Row]) -> Sequence[Row]:
        """The rows of these columns, searched. Raises LimitExceededError for a row too large to be searched."""
        if (detection := self._detection) is None:
            return rows
        if any(sum(map(len, filter(None, row))) > MOST_SEARCHED_BYTES for row in rows):
            raise too_large(detection)
        open_columns = [detection.forms.get(column.type) is not Form.PLAIN for column in columns]
        return [
            tuple(
                [
                    self._value(detection, column.name, value) if value is not None and is_open else value
                    for column, is_open, value in zip(columns, open_columns, row, strict=True)
                ]
            )
            for row in rows
        ]

    def report(self, fields: Mapping[str, str]) -> Mapping[str, str]:
        """As `searched_report`."""
        return searched_report(fields, self._detection.kinds if self._detection is not None else NOTHING, self.findings)

    def _value(self, detection: Detection, column: str, value: bytes) -> bytes:
        hidden, spans = hide(value, detection.kinds)
        if spans:
            self.findings.note(column, spans)
        return hidden
