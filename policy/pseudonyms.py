"""Keyed pseudonyms: HMAC-SHA-256 (RFC 2104) as SQL of immutable built-ins, so that equal values stay joinable.

The statement that runs carries a key as a literal. It is not the configured secret but one derived from it
for the pool of columns that are to be joined: whoever sees one can try guesses against that pool's values,
and learns nothing of the other pools. `Subkey.secrets` are the spellings that nobody may be shown.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

SHORTEST_SECRET: Final = 32  # bytes
_BLOCK: Final = 64  # bytes of a SHA-256 block


@dataclass(frozen=True, slots=True)
class Subkey:
    """The padded halves of one HMAC key, in hexadecimal."""

    inner: str = field(repr=False)
    outer: str = field(repr=False)

    @property
    def secrets(self) -> frozenset[bytes]:
        """What must not be shown of a text that holds this key."""
        return frozenset((self.inner.encode(), self.outer.encode()))


@dataclass(frozen=True, slots=True)
class MaskKey:
    """The configured secret behind all pseudonyms; at least 32 bytes. Raises ValueError for a shorter one."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) < SHORTEST_SECRET:
            raise ValueError(f"the key of `hash` masks has {len(self.secret)} bytes; give it {SHORTEST_SECRET} or more")

    @property
    def digest_key(self) -> bytes:
        """The key of the digests that stand for parameters in the audit."""
        return hmac.digest(self.secret, b"countersign recorded parameters", "sha256")

    def subkey(self, pool: str) -> Subkey:
        """The key of one pool of columns."""
        return _derive(self.secret, pool)


@lru_cache(maxsize=64)
def _derive(secret: bytes, pool: str) -> Subkey:
    return _padded(hmac.digest(secret, b"countersign hash mask\0" + pool.encode(), "sha256"))


def _padded(key: bytes) -> Subkey:
    block = key.ljust(_BLOCK, b"\0")
    return Subkey(bytes(b ^ 0x36 for b in block).hex(), bytes(b ^ 0x5C for b in block).hex())


# In place of a key where only the shape of the statement counts, such as in EXPLAIN: known to everybody.
BLANK: Final = _padded(b"")


def digest(key: Subkey, text: str) -> str:
    """SQL for the 32 bytes of HMAC-SHA-256 over the bytes of a text expression; NULL of NULL."""
    # `decode(…, 'escape')` is the immutable way from text to its bytes once backslashes are doubled;
    # the collation is named because `replace` refuses nondeterministic ones.
    plain = f'{text} COLLATE "pg_catalog"."C"'
    message = rf"pg_catalog.decode(pg_catalog.replace({plain}, '\', '\\'), 'escape')"
    inner = rf"pg_catalog.sha256(CAST('\x{key.inner}' AS pg_catalog.bytea) OPERATOR(pg_catalog.||) {message})"
    return rf"pg_catalog.sha256(CAST('\x{key.outer}' AS pg_catalog.bytea) OPERATOR(pg_catalog.||) {inner})"


def token(key: Subkey, text: str, length: int) -> str:
    """SQL for a pseudonym of so many characters (at most 43) of the URL-safe base64 alphabet: 6 bits each."""
    encoded = f"pg_catalog.encode({digest(key, text)}, 'base64')"
    return f"pg_catalog.\"left\"(pg_catalog.translate({encoded}, '+/', '-_'), {length})"
