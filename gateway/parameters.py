"""A statement's parameters as the audit keeps them."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence

# Parameters of one statement that the audit keeps whole, together; a person reads no more than this either.
RECORDED_BYTES = 256 * 1024


def size_of(parameters: Sequence[bytes | None]) -> int:
    """Bytes of all values together."""
    return sum(len(p) for p in parameters if p is not None)


def concealed(value: bytes | None, key: bytes, whose: str) -> str | None:
    """What stands for a value that must not be in clear: equal values of one person look equal.

    Not those of others: whoever reads the audit could send guesses, and look for what they are recorded as.
    """
    return None if value is None else _keyed(hmac.digest(key, b"parameters of " + whose.encode(), "sha256"), value)


def concealed_digest(rows: str, key: bytes, statement: str) -> str:
    """What stands for the SHA-256 of the rows that a statement delivered: who tries all short rows must find none."""
    return _keyed(hmac.digest(key, b"rows of " + statement.encode(), "sha256"), rows.encode())


def _keyed(key: bytes, data: bytes) -> str:
    return "hmac-sha256:" + hmac.digest(key, data, "sha256").hex()


def without_values(text: str, parameters: Sequence[bytes | None]) -> str:
    """A text of PostgreSQL's with the numbers of the parameters for what it quotes of them, whole or in part."""
    values = {number: value.decode("utf-8", "replace") for number, value in enumerate(parameters, 1) if value}
    for number, value in values.items():
        text = text.replace(value, f"${number}")

    def quoted(part: re.Match[str]) -> str:
        # An element of an array, a field of a date.
        return next((f'"${number}"' for number, value in values.items() if part[1] in value), part[0])

    return _QUOTED.sub(quoted, text)


_QUOTED = re.compile(r'"([^"]+)"')


# Classes of errors that quote names alone: constraints, relations that are locked or in the way.
_NAMES_ONLY = ("23", "2B", "40", "55")
_BYTES = re.compile(r"0x[0-9a-fA-F]{2}")


def without_data(text: str, sqlstate: str, said: Sequence[str]) -> str:
    """A text of PostgreSQL's without what it quotes, unless a client `said` that itself: else it may be of a row.

    Where a value holds quotes nobody can tell where it ends: it goes up to the last of them.
    """
    if sqlstate.startswith(_NAMES_ONLY):
        return text
    first, last = text.find('"'), text.rfind('"')
    parts = _QUOTED.findall(text[first : last + 1])
    if first < last and not (parts and all(any(_holds(one, part) for one in said) for part in parts)):
        text = f'{text[:first]}"…"{text[last + 1 :]}'
    return _BYTES.sub("0x…", text)


def _holds(said: str, part: str) -> bool:
    """Whether a text holds this as a word, or between quotes, of its own."""
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", said) is not None


# Fields of a report that say what kind it is, and those that may hold any part of a value (DETAIL, CONTEXT, a query).
_KIND, _AROUND = frozenset(b"SVC"), frozenset(b"DWq")
_HEAD_BYTES = 5  # type and length


def report_without_values(report: bytes, parameters: Sequence[bytes | None]) -> bytes:
    """As `without_values`, of a whole ErrorResponse or NoticeResponse, which loses its DETAIL and CONTEXT."""
    fields = [one for one in report[_HEAD_BYTES:].split(b"\0") if not one or one[0] not in _AROUND]
    for at, field in enumerate(fields):
        if field and field[0] not in _KIND:
            text = without_values(field[1:].decode("utf-8", "surrogateescape"), parameters)
            fields[at] = field[:1] + text.encode("utf-8", "surrogateescape")
    body = b"\0".join(fields)
    return report[:1] + (len(body) + 4).to_bytes(4, "big") + body


def recorded_parameters(parameters: Sequence[bytes | None]) -> dict[str, object]:
    """Parameters as the audit keeps them: whole up to a size, else their beginnings, and what they were by digest.

    `parameters_cut` is there only where something is left out: `bytes` of all values, and `sha256` of them,
    each preceded by its length as 8 bytes, big-endian (all ones for NULL).
    """
    size = size_of(parameters)
    if size <= RECORDED_BYTES:
        return {"parameters": [None if p is None else p.decode("utf-8", "replace") for p in parameters]}
    digest = hashlib.sha256()
    for value in parameters:
        digest.update(b"\xff" * 8 if value is None else len(value).to_bytes(8, "big") + value)
    share = RECORDED_BYTES // len(parameters)
    return {
        "parameters": [None if p is None else p[:share].decode("utf-8", "replace") for p in parameters],
        "parameters_cut": {"bytes": size, "sha256": digest.hexdigest()},
    }
