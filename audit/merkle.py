"""The Merkle tree over the entries (RFC 6962 section 2.1, the same as RFC 9162 section 2.1), sans-IO.

A leaf's data is an entry's `hash`, so entry `seq` is leaf `seq - 1`. A `Tree` grows at its right end and keeps
only the roots of its perfect subtrees (at most 64 hashes), so that its root costs the same at any size. Proofs are
made from the leaves themselves, on demand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

SIZE = 32  # bytes of every hash here
EMPTY = hashlib.sha256(b"").digest()  # the root of a tree without leaves


class ProofError(ValueError):
    """A proof that proves nothing: of another shape, or of another tree. The text says which."""


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 ‖ data): a leaf can never pass for a node."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def _fold(peaks: Sequence[bytes]) -> bytes:
    """The root over perfect subtrees, the largest first: right to left."""
    if not peaks:
        return EMPTY
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


class Tree:
    """A tree that grows at its right end. `peaks` are its perfect subtrees' roots, the largest first."""

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        """Take up a tree of `size` leaves where its `peaks` were kept; raises ValueError if they cannot be its."""
        if size < 0 or len(peaks) != size.bit_count() or any(len(peak) != SIZE for peak in peaks):
            raise ValueError(f"{len(peaks)} peaks cannot be those of a tree of {size} leaves; build it from its leaves")
        self.size = size
        self._peaks = list(peaks)

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """One hash for each bit that is set in `size`."""
        return tuple(self._peaks)

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaves with these data, level by level: many at once cost little more than their hashes."""
        sha256, odd = hashlib.sha256, []
        nodes = [sha256(b"\x00" + data).digest() for data in leaves]
        at = self.size
        self.size += len(nodes)
        while nodes:
            if at & 1:  # a perfect subtree of this height waits for its right half
                nodes.insert(0, self._peaks.pop())
            if len(nodes) & 1:
                odd.append(nodes.pop())
            pairs = iter(nodes)
            nodes = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
            at >>= 1
        self._peaks += reversed(odd)

    def root(self) -> bytes:
        """The tree head's hash, 32 bytes."""
        return _fold(self._peaks)


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root over these leaves' data."""
    tree = Tree()
    tree.extend(leaves)
    return tree.root()


class Hashes:
    """The leaves' data from leaf `base` on, and the peaks of the tree before it: enough for proofs from there on."""

    def __init__(self, leaves: Sequence[bytes], base: int = 0, peaks: Sequence[bytes] = ()) -> None:
        self._leaves, self._base, self._peaks = leaves, base, peaks
        self.size = base + len(leaves)
        self._roots: dict[tuple[int, int], bytes] = {}
        first, heights = 0, [bit for bit in range(base.bit_length() - 1, -1, -1) if base >> bit & 1]
        for height, peak in zip(heights, peaks, strict=True):
            self._roots[first, first + (1 << height)] = peak
            first += 1 << height

    def __len__(self) -> int:
        """All leaves, the known and the others."""
        return self.size

    def up_to(self, size: int) -> Hashes:
        """The first `size` leaves, which are at least `base`."""
        return Hashes(self._leaves[: size - self._base], self._base, self._peaks)

    def root(self, first: int, last: int) -> bytes:
        """Of the subtree over the leaves `first` up to `last`. Raises IndexError where not enough of it is known."""
        if first >= self._base:
            return root_of(self._leaves[first - self._base : last - self._base])
        if (root := self._roots.get((first, last))) is not None:
            return root
        if last - first < 2 or last <= self._base:
            raise IndexError(f"the leaves {first} to {last} are not known: a proof of them needs the segments before")
        middle = first + split(last - first)
        return node_hash(self.root(first, middle), self.root(middle, last))


def split(size: int) -> int:
    """The largest power of two that is smaller than `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_proof(leaves: Sequence[bytes] | Hashes, index: int) -> list[bytes]:
    """The audit path of leaf `index` (from 0) in the tree over all `leaves` (RFC 6962, 2.1.1): leaf to root.

    Raises IndexError for a leaf that is not there.
    """
    known = leaves if isinstance(leaves, Hashes) else Hashes(leaves)
    if not 0 <= index < known.size:
        raise IndexError(f"there is no leaf {index} in a tree of {known.size}")
    first, last, path = 0, known.size, []
    while last - first > 1:
        middle = first + split(last - first)
        if index < middle:
            path.append(known.root(middle, last))
            last = middle
        else:
            path.append(known.root(first, middle))
            first = middle
    return path[::-1]


def consistency_proof(leaves: Sequence[bytes] | Hashes, size: int) -> list[bytes]:
    """That the tree over the first `size` leaves is a prefix of the one over all (RFC 6962, 2.1.2).

    Raises IndexError where `size` is not between 1 and the number of leaves.
    """
    tree = leaves if isinstance(leaves, Hashes) else Hashes(leaves)
    if not 1 <= size <= tree.size:
        raise IndexError(f"a tree of {tree.size} leaves has no earlier tree of {size}")
    first, last, path, known = 0, tree.size, [], True
    while size < last:
        middle = first + split(last - first)
        if size <= middle:
            path.append(tree.root(middle, last))
            last = middle
        else:
            path.append(tree.root(first, middle))
            first, known = middle, False
    if not known:  # whoever checks knows the old root, but not this part of it
        path.append(tree.root(first, last))
    return path[::-1]


def check_inclusion(data: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check an audit path (RFC 9162, 2.1.3.2). Raises ProofError."""
    if not 0 <= index < size:
        raise ProofError(f"there is no leaf {index} in a tree of {size}")
    node, at, last = leaf_hash(data), index, size - 1
    for sibling in path:
        if last == 0:
            raise ProofError("the proof is too long for this tree")
        if at & 1 or at == last:
            node = node_hash(sibling, node)
            while not at & 1 and at:  # where the right edge is ragged, levels are skipped
                at, last = at >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        at, last = at >> 1, last >> 1
    if last:
        raise ProofError("the proof is too short for this tree")
    if node != root:
        raise ProofError(f"leaf {index} is not in the tree with this root")


def check_consistency(first: int, first_root: bytes, second: int, second_root: bytes, path: Sequence[bytes]) -> None:
    """Check that the tree of `first` leaves is a prefix of that of `second` (RFC 9162, 2.1.4.2). Raises ProofError."""
    if not 1 <= first <= second:
        raise ProofError(f"a tree of {first} leaves cannot be a prefix of one of {second}")
    if first == second:
        if path:
            raise ProofError("two trees of one size need no proof")
        if first_root != second_root:
            raise ProofError(f"there are two trees of {first} leaves: a fork")
        return
    nodes = list(path) if first & (first - 1) else [first_root, *path]
    if not nodes:
        raise ProofError("the proof is too short for these trees")
    at, last = first - 1, second - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            raise ProofError("the proof is too long for these trees")
        if at & 1 or at == last:
            old, new = node_hash(node, old), node_hash(node, new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, node)
        at, last = at >> 1, last >> 1
    if last:
        raise ProofError("the proof is too short for these trees")
    if old != first_root or new != second_root:
        raise ProofError(f"the tree of {first} leaves is not a prefix of that of {second}: history was rewritten")
