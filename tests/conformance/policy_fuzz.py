"""Fuzz led by coverage: `python -m tests.conformance.policy_fuzz TARGET SECONDS [KEPT]`.

TARGET is `decide` (a text to the policy engine, with every policy and person of the corpus) or `wire` (bytes to the
codec, both directions). The cases of the corpus are the seeds; the folder KEPT holds what was worth keeping, for the
next run. Only our own exceptions may come out, and no decision may say `internal`. Needs atheris: the group `fuzz`.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["policy", "wire"]):
    from policy.engine import NotAnalysableError, decide, split
    from policy.model import Effect
    from wire.backend import Authentication, ErrorResponse
    from wire.codec import BackendDecoder, BackendStream, Frame, FrontendDecoder
    from wire.fields import ProtocolError
    from wire.frontend import Bind, Describe, Execute, Parse, Query, StartupRequest, Sync

from tests.policy.corpus import load_cases, policy_of
from tests.policy.sample import PRINCIPALS, facts

POLICIES = sorted({case.policy for case in load_cases()})
PEOPLE = sorted(PRINCIPALS)
KNOWN = facts()
_LONGEST = 4096
_WORDS = (
    "SELECT ", " FROM ", " WHERE ", "customers", "public.", "hr.employees", "*", " AS ", "WITH x AS (", " UNION ALL ",
    "EXPLAIN ", "ANALYZE ", "COPY ", " TO STDOUT", "INSERT INTO ", "UPDATE ", "DELETE FROM ", "MERGE INTO ", "ONLY ",
    "PREPARE p AS ", "EXECUTE p", "DECLARE c CURSOR FOR ", "LATERAL ", " JOIN ", " USING (", " NATURAL ", "RETURNING ",
    "::text", "$1", "U&'", " UESCAPE '!'", "/*", "*/", "--", "$$", "E'", "TABLE ", " FOR UPDATE", " OVER (",
)  # fmt: skip


def decided(data: bytes) -> None:
    """One text, decided; the first byte says under which policy and for whom."""
    if not data:
        return
    policy = policy_of(POLICIES[data[0] % len(POLICIES)])
    principal = PRINCIPALS[PEOPLE[data[0] // len(POLICIES) % len(PEOPLE)]]
    text = data[1:]
    try:
        parts = [text[start:end] for start, end in split(text)]
    except NotAnalysableError:
        parts = []
    for part in (text, *parts[:4]):
        verdict = decide(policy, principal, KNOWN, part).verdict
        assert all(reason.code != "internal" for reason in verdict.reasons), [r.text for r in verdict.reasons]
        assert (verdict.rewrite is None) == (verdict.effect is Effect.DENY)


def decoded(data: bytes) -> None:
    """Bytes to every decoder, cut where the first one says."""
    cut = data[0] if data else 0
    pieces = (data[1 : cut + 1], data[cut + 1 :])
    for read in (_as_packets, _as_messages, _as_server, _as_stream):
        try:
            read(pieces)
        except ProtocolError:
            continue


def _as_packets(pieces: tuple[bytes, bytes]) -> None:
    decoder = FrontendDecoder()
    for piece in pieces:
        decoder.feed(piece)
        while decoder.next_packet() is not None:
            pass


def _as_messages(pieces: tuple[bytes, bytes]) -> None:
    decoder = FrontendDecoder()
    for piece in pieces:
        decoder.feed(piece)
        while (received := decoder.next()) is not None:
            assert received.raw


def _as_server(pieces: tuple[bytes, bytes]) -> None:
    decoder = BackendDecoder()
    for piece in pieces:
        for message in decoder.feed(piece):
            if isinstance(message, Authentication) and message.kind == Authentication.SASL:
                message.mechanisms()


def _as_stream(pieces: tuple[bytes, bytes]) -> None:
    stream = BackendStream()
    for piece in pieces:
        for item in stream.feed(piece):
            if isinstance(item, Frame):
                item.decode()


def _texts() -> list[bytes]:
    """A case of the corpus each, under its own policy and for its own person."""
    return [
        bytes([POLICIES.index(case.policy) + len(POLICIES) * PEOPLE.index(case.who)]) + case.sql.encode()
        for case in load_cases()
        if len(case.sql) < _LONGEST
    ]


def _conversations() -> list[bytes]:
    messages = (
        StartupRequest(3, 0, {"user": "devin", "database": "shop"}),
        Query(b"SELECT 1"), Parse("s", b"SELECT $1", (23,)), Bind("", "s", values=(b"1", None)),
        Describe(b"S", "s"), Execute("", 10), Sync(),
        Authentication.sasl(["SCRAM-SHA-256"]), ErrorResponse({"S": "ERROR", "C": "42501", "M": "no"}),
    )  # fmt: skip
    row = b"T" + struct.pack(">IH", 4 + 2 + 2 + 18, 1) + b"a\0" + bytes(18)
    return [b"\x05" + message.encode() for message in messages] + [b"\x03" + row + b"D\0\0\0\x0b\0\1\0\0\0\1x"]


_TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "decide": (decided, _texts),
    "wire": (decoded, _conversations),
}


def main(target: str, seconds: int, kept: Path | None) -> None:
    """Fuzz; a finding ends the process with the input in a file `crash-…`."""
    work, seeds = _TARGETS[target]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "seeds"
        corpus.mkdir()
        for number, seed in enumerate(seeds()):
            (corpus / str(number)).write_bytes(seed)
        words = Path(folder) / "words"
        escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in _WORDS)
        words.write_text("".join(f'"{word}"\n' for word in escaped), encoding="ascii")
        folders = [*([str(kept)] if kept else []), str(corpus)]
        options = [f"-max_total_time={seconds}", f"-max_len={_LONGEST}", f"-dict={words}", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *options, *folders], work)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]) if sys.argv[3:] else None)
