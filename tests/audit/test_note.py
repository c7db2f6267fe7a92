"""Signed notes and checkpoints against the published examples of signed-note, tlog-checkpoint and sumdb/note."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.checkpoint import Checkpoint
from audit.merkle import EMPTY
from audit.note import Note, NoteError, PublicKey, Signer, check_name, open_note, sign, split_notes

# The example of golang.org/x/mod/sumdb/note. Ed25519 is deterministic (RFC 8032): we must write the same bytes.
SECRET = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
OTHER = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
NOTE = (
    TEXT
    + "\n— PeterNeumann"
    + " x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


def test_the_published_note_is_written_byte_for_byte_and_read() -> None:
    signer = Signer.parse(SECRET)
    assert str(signer.public) == VKEY
    assert signer.secret() == SECRET
    assert sign(TEXT, signer) == NOTE
    assert open_note(NOTE, [PublicKey.parse(OTHER), PublicKey.parse(VKEY)]) == TEXT


def test_the_published_checkpoint_is_read_and_written() -> None:
    """The example of c2sp.org/tlog-checkpoint."""
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    found = Checkpoint.parse(text)
    assert (found.origin, found.size, found.text) == ("example.com/behind-the-sofa", 20852163, text)
    assert Checkpoint.parse(text + "an extension\n") == found


def test_a_note_of_others_is_refused_and_names_them() -> None:
    with pytest.raises(NoteError, match=r"no trusted key signed this note, only PeterNeumann \(c74f20a3\)"):
        open_note(NOTE, [PublicKey.parse(OTHER)])


def test_an_unknown_signature_beside_a_good_one_is_left_aside() -> None:
    line = Signer("example.com/witness", bytes(32)).line(TEXT)
    assert open_note(NOTE + line, [PublicKey.parse(VKEY)]) == TEXT


def test_a_bad_signature_of_a_known_key_spoils_the_note() -> None:
    two = NOTE.replace("cryptography", "hope") + Signer("example.com/other", bytes(32)).line(
        TEXT.replace("cryptography", "hope")
    )
    other = Signer("example.com/other", bytes(32)).public
    assert open_note(two, [other])
    with pytest.raises(NoteError, match="altered"):
        open_note(two, [other, PublicKey.parse(VKEY)])


@given(st.integers(0, len(NOTE.encode()) - 1), st.integers(0, 7))
def test_no_flipped_bit_passes(at: int, bit: int) -> None:
    data = bytearray(NOTE.encode())
    data[at] ^= 1 << bit
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    with pytest.raises(NoteError):
        open_note(text, [PublicKey.parse(VKEY)])


@pytest.mark.parametrize("cut", range(len(VKEY)))
def test_no_part_of_a_key_is_a_key(cut: int) -> None:
    with pytest.raises(NoteError):
        PublicKey.parse(VKEY[:cut])
    with pytest.raises(NoteError) as error:
        Signer.parse(SECRET[: len(SECRET) - len(VKEY) + cut])
    assert SECRET[-8:] not in str(error.value)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\N{NO-BREAK SPACE}b"])
def test_names_that_a_key_cannot_have(name: str) -> None:
    with pytest.raises(NoteError):
        check_name(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\n1\n",
        "a\n01\n" + "A" * 43 + "=\n",
        "a\n-1\n" + "A" * 43 + "=\n",
        "a\n1\nAAAA\n",
        "a\n1\n" + "A" * 43 + "=\n\nb\n",
        "a\n1\n" + "A" * 43 + "=",
    ],
)
def test_what_is_no_checkpoint(text: str) -> None:
    with pytest.raises(NoteError):
        Checkpoint.parse(text)


def test_a_checkpoint_is_signed_by_its_own_log_only() -> None:
    signer = Signer("example.com/audit", bytes(range(32)))
    note = Checkpoint("example.com/audit", 0, EMPTY).signed(signer)
    assert Checkpoint.parse(open_note(note, [signer.public])).size == 0
    with pytest.raises(NoteError, match="not signed by the key"):
        Checkpoint("example.com/another", 0, EMPTY).signed(signer)


def test_a_secret_never_shows() -> None:
    signer = Signer("example.com/audit", b"s" * 32)
    assert "ssss" not in repr(signer)
    assert "c3Nz" not in repr(signer)


def test_a_file_of_notes_is_cut_into_notes() -> None:
    signer = Signer("example.com/audit", bytes(32))
    notes = [sign(f"example.com/audit\n{size}\nroot\n", signer, Signer("w", bytes(32))) for size in range(3)]
    assert split_notes("".join(notes)) == notes
    assert split_notes("\n".join(notes)) == notes
    assert [len(Note.parse(note).signatures) for note in notes] == [2, 2, 2]
