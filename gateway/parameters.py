"""A statement's parameters as the audit keeps them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

# Parameters of one statement that the audit keeps whole, together; a person reads no more than this either.
RECORDED_BYTES = 256 * 1024


def size_of(parameters: Sequence[bytes | None]) -> int:
    """Bytes of all values together."""
    return sum(len(p) for p in parameters if p is not None)


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
