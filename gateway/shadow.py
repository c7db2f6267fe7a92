"""A shadow: a database with the schema of the live one and none of its rows, made for one rehearsal and dropped after.

It is filled by PostgreSQL's own pg_dump and psql, which must be on this machine and as new as the server.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from gateway.connections import Connections
from gateway.errors import MigrationError
from gateway.model import Connection
from gateway.upstream import Upstream, UpstreamError

_SECONDS = 120.0
# Owners and grants name roles that the shadow's server need not have; the others reach outside.
_SCHEMA_ONLY = (
    "--schema-only", "--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions",
    "--no-security-labels", "--no-tablespaces", "--no-comments",
)  # fmt: skip
_PREFIX = "countersign_shadow_"


@asynccontextmanager
async def made(connections: Connections, live: Connection) -> AsyncIterator[Upstream]:
    """An upstream session on a shadow of `live`. Raises MigrationError, UpstreamUnavailableError."""
    keeper = live.shadow
    assert keeper is not None, "the configuration has one where rehearsals are on a shadow"
    dump = await _run("pg_dump", live, *_SCHEMA_ONLY)
    there = replace(keeper, database=_PREFIX + secrets.token_hex(8))
    admin = await connections.connect(keeper, "countersign/shadow")
    try:
        try:
            await admin.probe(f"CREATE DATABASE {there.database} TEMPLATE template0")
        except UpstreamError as error:
            raise _failed(live, str(error), "Let the role of `shadow` create databases (CREATEDB).") from None
        try:
            await _run("psql", there, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", text=dump)
            upstream = await connections.connect(there, "countersign/shadow")
            try:
                yield upstream
            finally:
                await upstream.disconnect()
        finally:
            await asyncio.shield(admin.probe(f"DROP DATABASE {there.database} WITH (FORCE)"))
    finally:
        await admin.disconnect()


async def _run(program: str, connection: Connection, *arguments: str, text: bytes = b"") -> bytes:
    """The output of a program of PostgreSQL's on a database; the password goes in by the environment."""
    found = shutil.which(program, path=os.environ.get("PG_BIN")) or shutil.which(program)
    if found is None:
        raise _failed(
            connection,
            f"there is no `{program}` on this machine",
            "Install PostgreSQL's client programs, or set PG_BIN.",
        )
    process = await asyncio.create_subprocess_exec(
        found, *arguments, "--no-password", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=_environment(connection), cwd="/",
    )  # fmt: skip
    try:
        async with asyncio.timeout(_SECONDS):
            out, said = await process.communicate(text)
    except TimeoutError:
        raise _failed(connection, f"`{program}` took longer than {_SECONDS:.0f} s", "Rehearse live.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        last = said.decode("utf-8", "replace").strip().splitlines()[:1]
        cure = "The gateway's role must be able to read every table's definition, and the shadow's to make all of it."
        raise _failed(connection, f"`{program}` says: {''.join(last)}", cure)
    return out


def _environment(connection: Connection) -> Mapping[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {
        "PGHOST": connection.host,
        "PGPORT": str(connection.port),
        "PGDATABASE": connection.database,
        "PGUSER": connection.user,
        "PGPASSWORD": connection.password,
        "PGSSLMODE": connection.sslmode,
        "PGAPPNAME": "countersign/shadow",
        "PGCONNECT_TIMEOUT": "15",
        **({"PGSSLROOTCERT": connection.sslrootcert} if connection.sslrootcert else {}),
    }


def _failed(connection: Connection, why: str, cure: str) -> MigrationError:
    return MigrationError(f"no shadow of `{connection.name}` can be made to rehearse on: {why}", cure=cure)
