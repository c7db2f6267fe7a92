"""Checkpoints, as c2sp.org/tlog-checkpoint writes them down: the tree's size and root under the log's name. Sans-IO."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from audit.merkle import SIZE
from audit.note import NoteError, Signer, check_name, sign


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The statement that the log `origin` has `size` entries and this root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The note's text: three lines. We write no extension lines."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode('ascii')}\n"

    def signed(self, signer: Signer) -> str:
        """The signed note; the signer's name must be the origin."""
        if signer.name != self.origin:
            raise NoteError(f"a checkpoint of `{self.origin}` is not signed by the key of `{signer.name}`")
        return sign(self.text, signer)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read the text of a note; extension lines are left aside. Raises NoteError."""
        match text.split("\n"):
            case [origin, size, root, *extensions, ""] if all(extensions) and re.fullmatch(r"0|[1-9][0-9]{0,18}", size):
                try:
                    hash_ = base64.b64decode(root, validate=True)
                except binascii.Error:
                    hash_ = b""
                if len(hash_) == SIZE:
                    return cls(check_name(origin), int(size), hash_)
        raise NoteError("this is no checkpoint: it must be a name, a size and a root hash, each on a line of its own")
