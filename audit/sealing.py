"""Signs the store's entries: which key may, the tree carried on from the last checkpoint, the note beside it.

All of it happens in the caller's write transaction, so that nobody appends between the root and its signature.
A signature is refused over what we can see is not the history that was signed before.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from audit.chain import GENESIS
from audit.checkpoint import Checkpoint
from audit.entry import Draft, Entry, Kind, Open
from audit.errors import AuditUnavailable
from audit.merkle import SIZE, Tree
from audit.note import Note, NoteError, PublicKey, Signer, open_note, sign
from audit.segments import Segment

# The first line of the text that both keys sign. No checkpoint can be mistaken for it: its second line is a number.
ROTATION = "countersign key rotation v1"

# As the index says.
_OF_KEYS = f"kind = '{Kind.KEY_CREATED}' OR kind = '{Kind.KEY_ROTATED}' OR kind = '{Kind.SEGMENT_SEALED}'"

# Entries that the tree grows by at once.
_AT_ONCE = 4096


class WrongKey(AuditUnavailable):
    """The key at hand is not the one that the audit names as its own."""


def created(signer: Signer) -> Draft:
    """The entry that names the first key."""
    return Draft(Kind.KEY_CREATED, None, None, None, {"vkey": str(signer.public)})


def rotated(old: Signer, new: Signer) -> Draft:
    """The entry that hands over from `old` to `new`, signed by both. Raises NoteError for keys of two logs."""
    if old.name != new.name or old.seed == new.seed:
        raise NoteError(f"a rotation needs two keys of one name, not `{old.name}` and `{new.name}`; make a new key")
    note = sign(f"{ROTATION}\n{old.public}\n{new.public}\n", old, new)
    return Draft(Kind.KEY_ROTATED, None, None, None, {"note": note})


def segment_sealed(db: sqlite3.Connection, segment: Segment, began: Sequence[Open]) -> Draft:
    """The entry after a segment: which one it was, and what whoever has not that segment needs of it.

    Those are the keys, with what hands over from each to the next, and all that has not ended: `began`.
    """
    [note] = db.execute("SELECT note FROM checkpoints WHERE size = ?", (segment.last,)).fetchone()
    root = Checkpoint.parse(Note.parse(note).text).root.hex()
    told = {"first": segment.first, "last": segment.last, "root": root}
    body = {"segment": told, "keys": key_history(db), "open": [asdict(one) for one in began]}
    return Draft(Kind.SEGMENT_SEALED, None, None, None, body)


def key_history(db: sqlite3.Connection) -> list[Mapping[str, object]]:
    """What the chain says of its keys: `seq` and `vkey` of the first, then `seq` and `note` of each rotation.

    Raises NoteError where that breaks.
    """
    found: list[Mapping[str, object]] = []
    sql = f"SELECT seq, kind, body FROM entries WHERE {_OF_KEYS} ORDER BY seq"  # noqa: S608 - constants
    for seq, kind, body in db.execute(sql):
        try:
            told = json.loads(body)
        except (ValueError, RecursionError):
            told = None
        match kind, told:
            case Kind.KEY_CREATED, {"vkey": str(vkey)} if not found:
                found.append({"seq": seq, "vkey": vkey})
            case Kind.KEY_ROTATED, {"note": str(note)} if found:
                found.append({"seq": seq, "note": note})
            case Kind.SEGMENT_SEALED, {"keys": list(before)} if not found or found == before:
                found = list(before)
            case _:
                raise NoteError("a key was made twice, or rotated before it was made: verify the audit")
    return found


def keys(db: sqlite3.Connection) -> list[PublicKey]:
    """The keys that the chain names, in order; the last one may sign. Raises NoteError where that history breaks."""
    found: list[PublicKey] = []
    for told in key_history(db):
        match told:
            case {"vkey": str(vkey)} if not found:
                found.append(PublicKey.parse(vkey))
            case {"note": str(note)} if found:
                found.append(_successor(found[-1], note))
            case _:
                raise NoteError("a segment's entry names no keys: verify the audit")
    if not found and db.execute("SELECT 1 FROM checkpoints LIMIT 1").fetchone():
        raise NoteError("there are checkpoints, and the entry that names their key is gone: verify the audit")
    return found


def _successor(old: PublicKey, note: str) -> PublicKey:
    parsed = Note.parse(note)
    match parsed.text.split("\n"):
        case [title, before, after, ""] if title == ROTATION and before == str(old):
            new = PublicKey.parse(after)
            if new.name == old.name and parsed.signed_by(old) and parsed.signed_by(new):
                return new
    raise NoteError("a rotation of keys is not signed by both keys: verify the audit")


def require(known: Sequence[PublicKey], signer: Signer) -> None:
    """Refuse a key that is not the audit's present one. Raises WrongKey."""
    if known and known[-1] != signer.public:
        raise WrongKey(
            f"the audit is signed by `{known[-1]}`, and the key at hand is `{signer.public}`;"
            " restore the key, or rotate from it to a new one with `countersign audit key --rotate`"
        )


class Growth:
    """The tree over all entries up to one that this process has read or written, so that they need not be read again.

    It stands for a store whose newest entry has the same `hash`: that is over everything before it. Whatever became
    of a transaction, it can only be of use or not.
    """

    def __init__(self) -> None:
        self._tree, self._head = Tree(), GENESIS

    def wrote(self, entries: Sequence[Entry]) -> None:
        """These came next. Where they follow others than those known here, nothing is known until the next seal."""
        if entries and entries[0].prev == self._head:
            self.take(self._tree, [entry.hash for entry in entries])

    def take(self, tree: Tree, hashes: Sequence[bytes]) -> None:
        """This tree, and then the entries with these hashes."""
        tree.extend(hashes)
        self._tree, self._head = tree, hashes[-1]

    def upto(self, seq: int, head: bytes) -> Tree | None:
        """The tree of the store whose newest entry is this one, where it is known."""
        return self._tree if (self._tree.size, self._head) == (seq, head) else None


def seal(db: sqlite3.Connection, signer: Signer, time: str, growth: Growth) -> str | None:
    """Sign all entries there are, and store the note; None if the newest checkpoint already covers them.

    Raises AuditUnavailable where the entries do not carry on what was signed before, WrongKey, sqlite3.Error.
    """
    known = keys(db)
    require(known, signer)
    signed, prev = _last(db, known)
    newest = db.execute("SELECT seq, hash FROM entries WHERE seq > ? ORDER BY seq DESC LIMIT 1", [signed.size])
    if (found := newest.fetchone()) is None:
        return None
    tree = growth.upto(*found)
    if (
        tree is None
        or db.execute(_LINKS, {"after": signed.size, "prev": prev}).fetchone()[0] != tree.size - signed.size
    ):
        tree = _read(db, signed, prev, growth)
    note = Checkpoint(signer.name, tree.size, tree.root()).signed(signer)
    db.execute(
        "INSERT INTO checkpoints (size, time, note, peaks) VALUES (?, ?, ?, ?)",
        (tree.size, time, note, b"".join(tree.peaks)),
    )
    return note


# How many entries carry on what was signed, each following the one before it.
_LINKS = (
    "SELECT count(*) FROM entries e LEFT JOIN entries b ON b.seq = e.seq - 1"
    " WHERE e.seq > :after AND e.prev = iif(e.seq = :after + 1, :prev, b.hash)"
)


def _read(db: sqlite3.Connection, tree: Tree, prev: bytes, growth: Growth) -> Tree:
    """The tree of a checkpoint whose last entry has the hash `prev`, grown by all entries after it."""
    rows = db.execute("SELECT seq, prev, hash FROM entries WHERE seq > ? ORDER BY seq", [tree.size])
    while found := rows.fetchmany(_AT_ONCE):
        for due, (seq, entry_prev, hash_) in enumerate(found, tree.size + 1):
            if seq != due or entry_prev != prev:
                raise AuditUnavailable(f"entry {due} does not follow the one before it: verify the audit")
            prev = hash_
        growth.take(tree, [hash_ for _, _, hash_ in found])
    return tree


def _last(db: sqlite3.Connection, known: Sequence[PublicKey]) -> tuple[Tree, bytes]:
    """The tree under the newest checkpoint, and the hash of its last entry; what is stored must be what was signed."""
    row = db.execute("SELECT size, note, peaks FROM checkpoints ORDER BY size DESC LIMIT 1").fetchone()
    if row is None:
        return Tree(), GENESIS
    size, note, peaks = row
    try:
        tree = Tree(size, [peaks[at : at + SIZE] for at in range(0, len(peaks), SIZE)])
        signed = Checkpoint.parse(open_note(note, known))
    except ValueError as error:
        raise AuditUnavailable(f"the checkpoint of {size} entries: {error}; verify the audit") from None
    if (signed.size, signed.root) != (tree.size, tree.root()):
        raise AuditUnavailable(f"the checkpoint of {size} entries was altered: verify the audit")
    # Where the entry is in a segment by now, the next one says what its hash was.
    found = db.execute(
        "SELECT hash FROM entries WHERE seq = ? UNION ALL"
        " SELECT prev FROM entries WHERE seq = ? + 1 AND EXISTS (SELECT 1 FROM segments WHERE last = seq - 1)",
        [size, size],
    ).fetchone()
    if found is None:
        raise AuditUnavailable(f"entry {size} was signed and is gone: verify the audit")
    return tree, found[0]
