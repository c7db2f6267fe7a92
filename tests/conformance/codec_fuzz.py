"""The codec under a coverage-guided fuzzer: `python -m tests.conformance.codec_fuzz CORPUS RUNS`.

Needs the dependency group `fuzz`. CORPUS is a folder for inputs: seeds are put there first, captured from psycopg's
and asyncpg's conversations with a real server; what reaches new code is kept there by the fuzzer. `one_input` says
what must hold of any bytes; it raises AssertionError where it does not, and the fuzzer then leaves the input behind
and exits with a status that is not 0.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import psycopg

from server.postgres import SUPERUSER, Postgres
from tests.tap import tap
from wire.binary import as_text
from wire.codec import BackendDecoder, BackendStream, Frame, FrontendDecoder, Rows
from wire.copy import CopyData
from wire.fields import ProtocolError, frame

_TARGETS = 4
_SEED_BYTES = 8_192


# -- what must hold ------------------------------------------------------------------------------------------


def one_input(data: bytes) -> None:
    """The first byte says which decoder reads, the second where the rest is cut."""
    if len(data) < 2:
        return
    body = data[2:]
    at = data[1] * len(body) // 256
    target = (packets, client, server, relayed)[data[0] % _TARGETS]
    assert target([body]) == target([body[:at], body[at:]]), "what is decoded depends on the cuts"
    as_text(body, int.from_bytes(data[:2], "big"))


def packets(pieces: list[bytes]) -> list[Any]:
    """Packets from before the start, up to an error."""
    return _decoded(FrontendDecoder(), pieces, lambda decoder: decoder.next_packet())


def client(pieces: list[bytes]) -> list[Any]:
    """A client's messages, up to an error; each means the same written again."""
    found = _decoded(FrontendDecoder(), pieces, lambda decoder: _written_again(decoder.next()))
    return [m for message in found for m in (_one_by_one(message) if isinstance(message, CopyData) else [message])]


def server(pieces: list[bytes]) -> list[Any]:
    """A server's messages, up to an error."""
    decoder, found = BackendDecoder(), list[Any]()
    try:
        for piece in pieces:
            found += decoder.feed(piece)
    except ProtocolError as error:
        return [str(error)]  # messages of the piece that holds the error are not given out
    for message in found:
        assert BackendDecoder().feed(message.encode()).__next__() == message
    return found


def relayed(pieces: list[bytes]) -> list[Any]:
    """What a relay passes on is what came, as far as it came; rows are not looked into."""
    stream, out, frames = BackendStream(), bytearray(), list[Any]()
    try:
        for piece in pieces:
            for item in stream.feed(piece):
                out += item.data if isinstance(item, Rows) else item.raw
                if isinstance(item, Frame):
                    frames.append(item)
    except ProtocolError as error:
        frames.append(str(error))
    assert b"".join(pieces).startswith(out)
    return frames


def _decoded(decoder: FrontendDecoder, pieces: list[bytes], take: Callable[[FrontendDecoder], Any]) -> list[Any]:
    found: list[Any] = []
    try:
        for piece in pieces:
            decoder.feed(piece)
            while (message := take(decoder)) is not None:
                found.append(message)
    except ProtocolError as error:
        found.append(str(error))
    return found


def _written_again(received: Any) -> Any:
    if received is None:
        return None
    again = FrontendDecoder()
    again.feed(received.message.encode())
    once_more = again.next()
    assert once_more is not None
    assert once_more.message == received.message
    return received.message


def _one_by_one(run: CopyData) -> list[bytes]:
    """Adjacent CopyData come in runs, which depend on the cuts."""
    found, rest = list[bytes](), run.run
    while rest:
        size = 1 + int.from_bytes(rest[1:5], "big")
        found.append(rest[:size])
        rest = rest[size:]
    return found


# -- what drivers and a server really say ------------------------------------------------------------------------


async def captured() -> tuple[list[bytes], list[bytes]]:
    """The pieces that two drivers sent, and that the server answered."""
    sent, heard = list[bytes](), list[bytes]()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with Postgres(Path(folder, "postgres")) as postgres:
            async with tap(postgres.host, postgres.port, sent.append, heard.append) as port:
                await asyncio.to_thread(_by_psycopg, port, postgres.password)
                await _by_asyncpg(port, postgres.password)
    return sent, heard


def _by_psycopg(port: int, password: str) -> None:
    there = f"host=127.0.0.1 port={port} user={SUPERUSER} password={password} dbname=postgres"
    with psycopg.connect(there) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, name text, at timestamptz DEFAULT now())")
        with connection.cursor().copy("COPY t (id, name) FROM STDIN") as copying:
            for number in range(5):
                copying.write_row((number, "süß"))
        with connection.cursor().copy("COPY t TO STDOUT (FORMAT binary)") as copying:
            list(copying)
        for binary in (False, True):
            connection.execute("SELECT *, %s::numeric, NULL FROM t WHERE id < %s", (1.5, 3), binary=binary).fetchall()
        connection.execute("SELECT 1; SELECT 'two'; ;")
        connection.execute("LISTEN a; NOTIFY a, 'b'; DO $$ BEGIN RAISE NOTICE 'x'; END $$")
        connection.commit()
        with connection.cursor(name="c") as cursor:
            cursor.execute("SELECT * FROM t")
            cursor.fetchmany(2)
        with connection.pipeline():
            for number in range(3):
                connection.execute("SELECT %s::int8", (number,), prepare=True)
        for wrong in ("SELEC", "INSERT INTO t VALUES (1)", "SELECT 1/0"):
            connection.rollback()
            try:
                connection.execute(wrong.encode())
            except psycopg.Error:
                continue


async def _by_asyncpg(port: int, password: str) -> None:
    connection = await asyncpg.connect(
        host="127.0.0.1", port=port, user=SUPERUSER, password=password, database="postgres", ssl=False
    )
    await connection.executemany("INSERT INTO t (id, name) VALUES ($1, $2)", [(n, "x" * n) for n in range(10, 20)])
    statement = await connection.prepare("SELECT id, name, at FROM t WHERE id > $1 AND name = ANY ($2)")
    await statement.fetch(3, ["x", None, "süß"])
    async with connection.transaction():
        async for _ in connection.cursor("SELECT * FROM t", prefetch=3):
            pass
    await connection.close()


def write_seeds(corpus: Path) -> int:
    """Inputs for the targets, of what was captured; how many."""
    corpus.mkdir(parents=True, exist_ok=True)
    sent, heard = asyncio.run(captured())
    seeds = [bytes((0, 128)) + piece for piece in sent[:2]]
    seeds += [bytes((1, 128)) + piece[:_SEED_BYTES] for piece in sent]
    seeds += [bytes((target, 128)) + piece[:_SEED_BYTES] for piece in heard for target in (2, 3)]
    seeds.append(bytes((3, 99)) + frame(b"D", b"\0\1" + (70_000).to_bytes(4, "big") + b"x" * 70_000))
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number:04}").write_bytes(seed)
    return len(seeds)


def main(corpus: Path, runs: int) -> None:
    """Seed the corpus and fuzz; does not return."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: install the dependency group `fuzz`")
    print(f"{write_seeds(corpus)} seeds", flush=True)
    for target in (packets, client, server, relayed, as_text):
        atheris.instrument_func(target)
    atheris.instrument_all()
    options = (f"-runs={runs}", f"-artifact_prefix={corpus}/", "-timeout=10", "-max_len=16384")
    atheris.Setup([sys.argv[0], *options, str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
