"""The tree against RFC 6962's own definition and example, and the published vectors of its reference log."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.merkle import (
    EMPTY,
    ProofError,
    Tree,
    check_consistency,
    check_inclusion,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
)

# The eight leaves that the Certificate Transparency reference implementations are tested with, and the root of
# the tree over the first 1, 2 … 8 of them.
VECTOR_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
VECTOR_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def defined_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word by word: k is the largest power of two smaller than n."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + defined_root(leaves[:k]) + defined_root(leaves[k:])).digest()


@pytest.mark.parametrize("size", range(1, 9))
def test_the_published_roots(size: int) -> None:
    assert root_of(VECTOR_LEAVES[:size]).hex() == VECTOR_ROOTS[size - 1]


def test_the_empty_tree() -> None:
    assert Tree().root() == EMPTY == bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


def test_the_proofs_of_the_rfcs_example() -> None:
    """RFC 6962, 2.1.3: a tree of seven leaves, its nodes named a to l."""
    leaves = [bytes([number]) for number in range(7)]
    a, b, c, d, e, f, j = map(leaf_hash, leaves)
    g, h, i = node_hash(a, b), node_hash(c, d), node_hash(e, f)
    k, l = node_hash(g, h), node_hash(i, j)  # noqa: E741 - the RFC's names
    assert root_of(leaves) == node_hash(k, l)
    assert inclusion_proof(leaves, 0) == [b, h, l]
    assert inclusion_proof(leaves, 3) == [c, g, l]
    assert inclusion_proof(leaves, 4) == [f, j, k]
    assert inclusion_proof(leaves, 6) == [i, k]
    assert consistency_proof(leaves, 3) == [c, d, g, l]
    assert consistency_proof(leaves, 4) == [l]
    assert consistency_proof(leaves, 6) == [i, j, k]


LEAVES = st.lists(st.binary(max_size=4), min_size=1, max_size=70)


@given(LEAVES)
def test_growing_gives_the_root_of_the_definition_at_every_size(leaves: list[bytes]) -> None:
    tree = Tree()
    for size, data in enumerate(leaves, 1):
        tree.extend([data])
        assert tree.root() == defined_root(leaves[:size])
        assert Tree(tree.size, tree.peaks).root() == tree.root()


@given(LEAVES, LEAVES, LEAVES)
def test_growing_by_many_at_once_gives_the_same_tree(one: list[bytes], two: list[bytes], three: list[bytes]) -> None:
    tree = Tree()
    for leaves in (one, two, [], three):
        tree.extend(leaves)
    assert (tree.size, tree.root()) == (len(one + two + three), defined_root(one + two + three))
    assert Tree(tree.size, tree.peaks).root() == tree.root()


@given(LEAVES, st.data())
def test_every_leaf_is_proved_and_no_other_data_is(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    path, root = inclusion_proof(leaves, index), root_of(leaves)
    check_inclusion(leaves[index], index, len(leaves), path, root)
    with pytest.raises(ProofError):
        check_inclusion(leaves[index] + b"x", index, len(leaves), path, root)
    with pytest.raises(ProofError):
        check_inclusion(leaves[index], index, len(leaves), [*path, EMPTY], root)
    if path:
        with pytest.raises(ProofError):
            check_inclusion(leaves[index], index, len(leaves), path[:-1], root)


@given(LEAVES, st.data())
def test_a_prefix_is_proved_and_a_rewritten_one_is_not(leaves: list[bytes], data: st.DataObject) -> None:
    size, second = data.draw(st.integers(1, len(leaves))), len(leaves)
    path, root = consistency_proof(leaves, size), root_of(leaves)
    check_consistency(size, root_of(leaves[:size]), second, root, path)
    at = data.draw(st.integers(0, size - 1))
    rewritten = [*leaves[:at], leaves[at] + b"x", *leaves[at + 1 :]]
    with pytest.raises(ProofError):
        check_consistency(size, root_of(rewritten[:size]), second, root, path)
    with pytest.raises(ProofError):
        check_consistency(size, root_of(leaves[:size]), second, root, [*path, EMPTY])
    if path:
        with pytest.raises(ProofError):
            check_consistency(size, root_of(leaves[:size]), second, root, path[:-1])


@pytest.mark.parametrize(("size", "peaks"), [(1, []), (2, [b"x" * 32, b"y" * 32]), (1, [b"short"]), (-1, [])])
def test_peaks_that_cannot_be_a_trees_are_refused(size: int, peaks: list[bytes]) -> None:
    with pytest.raises(ValueError, match="peaks cannot be"):
        Tree(size, peaks)


def test_proofs_of_what_is_not_there_are_refused() -> None:
    with pytest.raises(IndexError):
        inclusion_proof([b"a"], 1)
    with pytest.raises(IndexError):
        consistency_proof([b"a"], 2)
    with pytest.raises(ProofError, match="no leaf"):
        check_inclusion(b"a", 1, 1, [], EMPTY)
    with pytest.raises(ProofError, match="cannot be a prefix"):
        check_consistency(2, EMPTY, 1, EMPTY, [])
    with pytest.raises(ProofError, match="a fork"):
        check_consistency(2, EMPTY, 2, b"x" * 32, [])
