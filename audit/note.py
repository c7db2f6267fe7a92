"""Signed notes with Ed25519 keys, as c2sp.org/signed-note writes them down. Sans-IO.

A note is a text and, after an empty line, one line per signature. Keys are texts too: a public one is a `vkey`
(`<name>+<id>+<base64>`), a secret one says `PRIVATE+KEY` before it. Other tools of transparency logs read both.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ED25519 = b"\x01"  # signed-note's signature type
_SECRET = "PRIVATE+KEY+"  # noqa: S105 - the format's prefix, no secret
_KEY_BYTES = 32
_LONGEST_NOTE = 1 << 20  # characters; signed-note wants some limit
_DASH = "\N{EM DASH}"


class NoteError(ValueError):
    """A key or a note that is malformed, or that no trusted key signed; the text says which, and the cure."""


def check_name(name: str) -> str:
    """The name, if a key may have it (signed-note: not empty, no Unicode space, no `+`). Raises NoteError."""
    if not name or "+" in name or not name.isprintable() or any(char.isspace() for char in name):
        raise NoteError(f"`{name}` cannot name a key: use a name like example.com/audit, without spaces and `+`")
    return name


@dataclass(frozen=True)
class PublicKey:
    """Whom a signature is checked against: a name and 32 bytes (RFC 8032, 5.1.5)."""

    name: str
    key: bytes

    @cached_property
    def id(self) -> bytes:
        """The first 4 bytes of SHA-256(name ‖ LF ‖ 0x01 ‖ key): a hint which key signed, no proof of it."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.key).digest()[:4]

    def __str__(self) -> str:
        """The vkey."""
        return f"{self.name}+{self.id.hex()}+{_encode(_ED25519 + self.key)}"

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Read a vkey. Raises NoteError."""
        return cls(*_parse_key(text.strip()))

    def verifies(self, signature: bytes, text: str) -> bool:
        """Whether this key made this signature (64 bytes) of the text."""
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class Signer:
    """A key that signs. Its seed never shows in `repr`."""

    name: str
    seed: bytes = field(repr=False)

    @cached_property
    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @cached_property
    def public(self) -> PublicKey:
        """The other half."""
        return PublicKey(self.name, self._private.public_key().public_bytes_raw())

    def secret(self) -> str:
        """The secret key as text: for the key's file only."""
        return f"{_SECRET}{self.name}+{self.public.id.hex()}+{_encode(_ED25519 + self.seed)}"

    @classmethod
    def parse(cls, text: str) -> Signer:
        """Read a secret key. Raises NoteError, whose text holds nothing of the key."""
        text = text.strip()
        if not text.startswith(_SECRET):
            raise NoteError(f"a secret key starts with `{_SECRET}`, and this text does not: name the key's own file")
        name, _, rest = text.removeprefix(_SECRET).partition("+")
        id_, _, encoded = rest.partition("+")
        try:
            data = _decode(encoded)
        except NoteError:
            data = b""
        if not data.startswith(_ED25519) or len(data) != 1 + _KEY_BYTES:
            raise NoteError("a secret key ends with the base64 of 0x01 and 32 bytes; this one does not: restore it")
        signer = cls(check_name(name), data[1:])
        if signer.public.id.hex() != id_:
            raise NoteError("the secret key's id does not match its name and key: it was cut or altered; restore it")
        return signer

    def line(self, text: str) -> str:
        """The signature line for this text."""
        return f"{_DASH} {self.name} {_encode(self.public.id + self._private.sign(text.encode()))}\n"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature line, not checked yet."""

    name: str
    id: bytes  # 4
    value: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A text (it ends with a line feed) and its signatures, not checked yet."""

    text: str
    signatures: Sequence[Signature]

    @classmethod
    def parse(cls, note: str) -> Note:
        """Take a signed note apart. Raises NoteError."""
        text, found, lines = note.rpartition("\n\n")
        if not found or not lines.endswith("\n"):
            raise NoteError("this is no signed note: it lacks an empty line with signatures below it")
        if len(note) > _LONGEST_NOTE or re.search(r"[\x00-\x09\x0b-\x1f]", note):
            raise NoteError("this is no signed note: it is too long, or holds control characters")
        return cls(text + "\n", [_parse_line(line) for line in lines[:-1].split("\n")])

    def signed_by(self, key: PublicKey) -> bool:
        """Whether this key signed. Raises NoteError where a signature claims to be this key's and is not."""
        mine = [one.value for one in self.signatures if (one.name, one.id) == (key.name, key.id)]
        if not all(key.verifies(value, self.text) for value in mine):
            raise NoteError(f"the signature of `{key.name}` ({key.id.hex()}) does not hold: the note was altered")
        return bool(mine)


def sign(text: str, *signers: Signer) -> str:
    """The text with these keys' signatures below it. Raises NoteError for a text that no note can hold."""
    if not text.endswith("\n") or re.search(r"[\x00-\x09\x0b-\x1f]", text):
        raise NoteError("a note's text ends with a line feed and holds no other control character")
    return f"{text}\n{''.join(signer.line(text) for signer in signers)}"


def open_note(note: str, keys: Collection[PublicKey]) -> str:
    """The text of a note that at least one of these keys signed. Raises NoteError."""
    parsed = Note.parse(note)
    if not [key for key in keys if parsed.signed_by(key)]:  # a list: one bad signature is one too many
        named = ", ".join(f"{one.name} ({one.id.hex()})" for one in parsed.signatures)
        raise NoteError(f"no trusted key signed this note, only {named}: give that key if you trust it")
    return parsed.text


def split_notes(text: str) -> list[str]:
    """The signed notes of a file that holds one after the other."""
    return re.findall(rf"(?:(?!{_DASH} )[^\n]+\n)+\n(?:{_DASH} [^\n]+\n)+", text)


def _parse_line(line: str) -> Signature:
    match line.split(" "):
        case [dash, name, encoded] if dash == _DASH and len(data := _decode(encoded)) > len(_ED25519) + 4:
            return Signature(check_name(name), data[:4], data[4:])
    raise NoteError(f"`{line[:80]}` is no signature line: it must be a dash, a name and a base64 text")


def _parse_key(text: str) -> tuple[str, bytes]:
    name, _, rest = text.partition("+")
    id_, _, encoded = rest.partition("+")
    data = _decode(encoded)
    if not data.startswith(_ED25519) or len(data) != 1 + _KEY_BYTES:
        raise NoteError(f"`{text[:120]}` is no Ed25519 vkey: it must be <name>+<id>+<base64 of 0x01 and 32 bytes>")
    if PublicKey(check_name(name), data[1:]).id.hex() != id_:
        raise NoteError(f"the vkey's id `{id_[:16]}` does not match its name and key: it was cut or altered")
    return name, data[1:]


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data or _encode(data) != text:  # one text for one value: no stray bits at the end
        raise NoteError(f"`{text[:80]}` is not base64")
    return data
