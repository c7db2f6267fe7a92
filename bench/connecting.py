"""A client that connects, runs one statement and leaves, again and again: `python -m bench.connecting`, told by libpq's
variables where.

It computes its password's key once (RFC 5802, section 9 allows to keep it), so that the time is the server's and not
its own: pgbench derives it for each connect, by 4,096 rounds, and its threads wait for one connect at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import os
import secrets
import sys
import time
from dataclasses import dataclass
from functools import lru_cache

import uvloop

from wire import backend, frontend
from wire.codec import BackendDecoder
from wire.messages import BackendMessage

_READ_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Way:
    """To which server, as whom."""

    host: str
    port: int
    user: str
    password: str
    database: str


class _Talk:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = BackendDecoder()
        self._read: list[BackendMessage] = []

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def until(self, kind: type[BackendMessage]) -> BackendMessage:
        """Skip to the next message of this type. Raises RuntimeError for an error."""
        while True:
            while self._read:
                message = self._read.pop(0)
                if isinstance(message, backend.ErrorResponse):
                    raise RuntimeError(message.fields["M"])
                if isinstance(message, kind):
                    return message
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise RuntimeError("the server closed the connection")
            self._read += self._decoder.feed(data)

    async def authentication(self) -> bytes:
        request = await self.until(backend.Authentication)
        assert isinstance(request, backend.Authentication)
        return request.data


@lru_cache
def _salted(password: str, salt: bytes, rounds: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)


async def _prove(talk: _Talk, password: str) -> None:
    """SCRAM-SHA-256 (RFC 5802, section 3), without looking at the server's own proof."""
    await talk.authentication()
    first = f"n=,r={secrets.token_urlsafe(18)}"
    talk.send(frontend.AuthenticationResponse.sasl_initial("SCRAM-SHA-256", f"n,,{first}".encode()).encode())
    challenge = (await talk.authentication()).decode()
    told = dict(part.split("=", 1) for part in challenge.split(","))
    unproved = f"c=biws,r={told['r']}"
    salted = _salted(password, base64.b64decode(told["s"]), int(told["i"]))
    key = hmac.digest(salted, b"Client Key", "sha256")
    message = f"{first},{challenge},{unproved}".encode()
    signature = hmac.digest(hashlib.sha256(key).digest(), message, "sha256")
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True))).decode()
    talk.send(frontend.AuthenticationResponse(f"{unproved},p={proof}".encode()).encode())


async def _visit(way: Way, sql: bytes) -> None:
    reader, writer = await asyncio.open_connection(way.host, way.port)
    talk = _Talk(reader, writer)
    parameters = {"user": way.user, "database": way.database, "application_name": "bench"}
    talk.send(frontend.StartupRequest(frontend.PROTOCOL_MAJOR, 0, parameters).encode())
    await _prove(talk, way.password)
    await talk.until(backend.ReadyForQuery)
    talk.send(frontend.Query(sql).encode())
    await talk.until(backend.ReadyForQuery)
    talk.send(frontend.Terminate().encode())
    writer.close()
    await writer.wait_closed()


async def _visits(way: Way, sql: bytes, clients: int, seconds: float) -> tuple[int, float]:
    """(how many, in how many seconds)."""
    start = time.perf_counter()
    count = 0

    async def come_and_go() -> None:
        nonlocal count
        while time.perf_counter() - start < seconds:
            await _visit(way, sql)
            count += 1

    async with asyncio.TaskGroup() as together:
        for _ in range(clients):
            together.create_task(come_and_go())
    return count, time.perf_counter() - start


def main() -> int:
    """Print how many visits there were, and in how many seconds, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.connecting", description=__doc__)
    parser.add_argument("--clients", type=int, default=4, help="how many at the same time (default 4)")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long (default 4)")
    parser.add_argument("--sql", default="SELECT 1", help="what each runs")
    args = parser.parse_args()
    told = os.environ
    way = Way(told["PGHOST"], int(told["PGPORT"]), told["PGUSER"], told["PGPASSWORD"], told["PGDATABASE"])
    count, seconds = uvloop.run(_visits(way, args.sql.encode(), args.clients, args.seconds))
    print(json.dumps({"visits": count, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
