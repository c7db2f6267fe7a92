"""A client that connects, runs one statement and leaves, again and again: `python -m bench.visitor`, told where by
libpq's variables. With `--stay` it connects so many times and stays, until its standard input ends.

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
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import uvloop

from wire import backend, frontend
from wire.codec import BackendDecoder
from wire.messages import BackendMessage

_READ_BYTES = 65_536
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Way:
    """To which server, as whom."""

    host: str
    port: int
    user: str
    password: str
    database: str
    settings: Mapping[str, str]


class _Talk:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = BackendDecoder()
        self._read: list[BackendMessage] = []

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def leave(self) -> None:
        self.send(frontend.Terminate().encode())
        self._writer.close()
        await self._writer.wait_closed()

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


async def _come(way: Way) -> _Talk:
    """A connection that is ready for a query."""
    talk = _Talk(*await asyncio.open_connection(way.host, way.port))
    parameters = {"user": way.user, "database": way.database, "application_name": "bench", **way.settings}
    talk.send(frontend.StartupRequest(frontend.PROTOCOL_MAJOR, 0, parameters).encode())
    await _prove(talk, way.password)
    await talk.until(backend.ReadyForQuery)
    return talk


async def _visit(way: Way, sql: bytes) -> None:
    talk = await _come(way)
    talk.send(frontend.Query(sql).encode())
    await talk.until(backend.ReadyForQuery)
    await talk.leave()


async def _stay(way: Way, count: int) -> None:
    """Connect so many times, some at a time; say so; stay until standard input ends."""
    talks: list[_Talk] = []
    while len(talks) < count:
        talks += await asyncio.gather(*(_come(way) for _ in range(min(_AT_ONCE, count - len(talks)))))
    print("here", flush=True)
    await asyncio.to_thread(sys.stdin.read)


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
    parser = argparse.ArgumentParser(prog="python -m bench.visitor", description=__doc__)
    parser.add_argument("--clients", type=int, default=4, help="how many at the same time (default 4)")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long (default 4)")
    parser.add_argument("--sql", default="SELECT 1", help="what each runs")
    parser.add_argument("--setting", nargs=2, action="append", default=[], help="a name and its value, at start-up")
    parser.add_argument("--stay", type=int, help="how many to connect and keep")
    args = parser.parse_args()
    told = os.environ
    where = told["PGHOST"], int(told["PGPORT"]), told["PGUSER"], told["PGPASSWORD"], told["PGDATABASE"]
    way = Way(*where, settings=dict(args.setting))
    if args.stay is not None:
        uvloop.run(_stay(way, args.stay))
        return 0
    count, seconds = uvloop.run(_visits(way, args.sql.encode(), args.clients, args.seconds))
    print(json.dumps({"visits": count, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
