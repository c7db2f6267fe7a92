"""Facts on a configured connection for commands that ask the policy: its live catalog, without a gateway."""

from __future__ import annotations

import asyncio

import uvloop

from gateway import catalog as reader
from gateway.errors import UpstreamUnavailableError
from gateway.model import Connection
from gateway.upstream import UpstreamError, UpstreamLostError
from policy.model import Facts
from wire.upstream import Factory


def facts_of(connection: Connection) -> Facts:
    """The connection's catalog and search path, as a session would find them. Raises UpstreamUnavailableError."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_facts(connection))


async def _facts(connection: Connection) -> Facts:
    try:
        upstream = await Factory().connect(connection, application_name="countersign/policy")
        try:
            path = await reader.search_path(upstream)
            await upstream.probe("SET search_path = pg_catalog")  # as the gateway reads it: equal epochs are equal
            return Facts(connection.name, await reader.load(upstream), path)
        finally:
            await upstream.disconnect()
    except (UpstreamError, UpstreamLostError) as error:
        raise UpstreamUnavailableError(
            f"the database behind `{connection.name}` cannot be used: {error}",
            cure="Check that it is up and that the gateway's own credential is right.",
        ) from None
