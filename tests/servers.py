"""Every PostgreSQL that this machine has, and catalog snapshots of databases made for a test."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psycopg

from gateway import catalog
from gateway.model import Connection
from policy.catalog import Catalog
from server.postgres import SUPERUSER, Postgres, binaries
from wire.upstream import Factory


def found_binaries() -> list[Path]:
    """The embedded package's folder, and every other one that can be found."""
    folders = [binaries(), *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    # Where PG_BIN is set, `binaries` names that one; else the embedded one.
    if pg_config := shutil.which("pg_config"):
        said = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=True)
        folders.append(Path(said.stdout.strip()))
    servers = [folder.resolve() for folder in folders if (folder / "postgres").exists()]
    return list(dict.fromkeys(servers))


def snapshot(server: Postgres, database: str) -> Catalog:
    """The catalog of a database, as the gateway reads it."""

    async def load() -> Catalog:
        connection = Connection("test", server.host, server.port, database, SUPERUSER, server.password, "disable")
        upstream = await Factory().connect(connection, application_name="test")
        try:
            return await catalog.load(upstream)
        finally:
            await upstream.disconnect()

    return asyncio.run(load())


def rows(server: Postgres, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
    """What a query answers, asked as the superuser."""
    with psycopg.connect(
        host=server.host,
        port=server.port,
        user=SUPERUSER,
        password=server.password,
        dbname=database,
        autocommit=True,
    ) as connection:
        return connection.execute(sql.encode()).fetchall()
