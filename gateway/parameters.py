"""A statement's parameters as the audit keeps them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

# Parameters of one statement that the audit keeps whole, together; a person reads no more than this either.
RECORDED_BYTES = 256 * 1024


def size_of(parameters: Sequence[bytes | None]) -> int:
    """Bytes of all values together."""
    return sum(len(p) for p in parameters if p is not None)


def concealed(value: bytes | None, key: bytes) -> str | None:
    """What stands for a value that must not be in clear: equal values look equal, and nobody else can try guesses."""
    return None if value is None else "hmac-sha256:" + hmac.digest(key, value, "sha256").hex()


def without_values(text: str, parameters: Sequence[bytes | None]) -> str:
    """A text of PostgreSQL's with the numbers of the parameters in place of what it quotes of them."""
    for number, value in enumerate(parameters, 1):
        if value:
            text = text.replace(value.decode("utf-8", "replace"), f"${number}")
    return text


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
