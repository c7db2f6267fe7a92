"""The upstreams: their catalogs kept true, and clean pooled sessions for statements that stand alone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from gateway import catalog as reader
from gateway import counting, temporary
from gateway.errors import UnknownConnectionError, UpstreamUnavailableError
from gateway.model import Connection, Session
from gateway.pool import OUR_NAMES, Pool
from gateway.upstream import Upstream, UpstreamError, UpstreamFactory, UpstreamLostError
from policy.catalog import Catalog
from policy.names import is_temporary

log = logging.getLogger(__name__)

# A change of the schema made elsewhere is noticed at the latest after this long ...
_PROBE_SECONDS = 2.0
# ... and a snapshot that could not be verified for this long is not decided upon.
_TRUST_SECONDS = 10.0
# By strength: a relation is named once. Locks on PostgreSQL's own catalogs are in nobody's way.
_LOCKS = """
SELECT DISTINCT ON (relation) relation::pg_catalog.regclass::pg_catalog.text, mode FROM pg_catalog.pg_locks
 WHERE pid = %d AND locktype = 'relation' AND granted AND relation >= 16384
   AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
 ORDER BY relation, pg_catalog.array_position(ARRAY['AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock',
       'ShareLock', 'ShareUpdateExclusiveLock', 'RowExclusiveLock', 'RowShareLock', 'AccessShareLock'], mode)"""


@dataclass(slots=True)
class _Shelf:
    """What the gateway keeps for one connection."""

    connection: Connection
    pool: Pool
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    keeper: Upstream | None = None  # our own upstream session, for the catalog only
    catalog: Catalog | None = None
    version: str = ""
    committed: str | None = None  # what had been committed when the version was found
    verified: float = float("-inf")  # time.monotonic at the start of the last successful probe


class Connections:
    """All configured upstreams of this process."""

    def __init__(self, connections: Sequence[Connection], factory: UpstreamFactory) -> None:
        self._shelves = {c.name: _Shelf(c, Pool(factory)) for c in connections}
        self._factory = factory
        self._prober: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for schema changes made elsewhere."""
        self._prober = asyncio.create_task(self._probe_forever(), name="catalog-probe")

    async def stop(self) -> None:
        """Disconnect from everything."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
        for shelf in self._shelves.values():
            await shelf.pool.close()
            if shelf.keeper is not None:
                await shelf.keeper.disconnect()
                shelf.keeper = None

    @property
    def names(self) -> list[str]:
        """The configured connections' names, sorted."""
        return sorted(self._shelves)

    def named(self, name: str) -> Connection:
        """The connection of this name. Raises UnknownConnectionError."""
        if name not in self._shelves:
            known = ", ".join(f"`{n}`" for n in self.names) or "none"
            raise UnknownConnectionError(
                f"there is no connection `{name}`", cure=f"The configured connections: {known}."
            )
        return self._shelves[name].connection

    # -- catalog --------------------------------------------------------------------------------------

    async def catalog(self, connection: Connection) -> Catalog:
        """The shared snapshot, verified not long ago. Raises UpstreamUnavailableError."""
        shelf = self._shelves[connection.name]
        oldest = time.monotonic() - _TRUST_SECONDS
        if shelf.catalog is not None and shelf.verified > oldest:
            return shelf.catalog
        return await self._verify(shelf, oldest)

    async def latest(self, connection: Connection) -> Catalog:
        """The snapshot, looked at again just now."""
        return await self._verify(self._shelves[connection.name], time.monotonic())

    def changed(self, session: Session) -> None:
        """This session may have changed the schema: the shared snapshot is checked before anybody's next use."""
        session.stale = session.schema_changed = True
        self._shelves[session.connection.name].verified = float("-inf")

    async def refresh(self, session: Session, upstream: Upstream, *first: str) -> None:
        """Make the session's search path and catalog true again, by its own upstream's word.

        Inside a transaction the session may see schema changes that nobody else sees yet: it gets a
        snapshot of its own until the transaction ends. Statements of ours may go `first`, in the same round trip.
        """
        shelf = self._shelves[session.connection.name]
        path = await reader.search_path(upstream, *first)
        if session.schema_changed:
            if upstream.transaction_status == "I":
                session.catalog, session.schema_changed = None, False
                await self._verify(shelf, time.monotonic())
            else:
                session.catalog = await reader.load(upstream)
        session.temporary = None
        if any(map(is_temporary, path)):
            catalog = session.catalog or await self.catalog(session.connection)
            own = await temporary.load(upstream, path, catalog)
            if own is not None and own.empty:
                path = tuple(schema for schema in path if schema != own.schema)  # as if it were not there
            else:
                session.temporary = own
        session.search_path = path
        session.stale = False

    async def _verify(self, shelf: _Shelf, since: float) -> Catalog:
        """The shared snapshot, as true as at `since` (time.monotonic) or later."""
        async with shelf.lock:
            if shelf.catalog is not None and shelf.verified > since:
                return shelf.catalog  # somebody else did it while we waited
            started = time.monotonic()
            try:
                if shelf.keeper is None or not shelf.keeper.connected:
                    shelf.keeper = await self._factory.connect(
                        shelf.connection,
                        application_name=f"{OUR_NAMES}catalog",
                        settings={"search_path": "pg_catalog"},
                    )
                    shelf.committed = None
                shelf.catalog = await _looked_at(shelf, shelf.keeper)
            except (UpstreamError, UpstreamLostError) as error:
                if shelf.keeper is not None:
                    await shelf.keeper.disconnect()
                    shelf.keeper = None
                raise _unavailable(shelf.connection, error) from None
            shelf.verified = started
            return shelf.catalog

    async def _probe_forever(self) -> None:
        while True:
            await asyncio.sleep(_PROBE_SECONDS)
            for shelf in self._shelves.values():
                try:
                    if shelf.catalog is not None or shelf.connection.warm:  # else nobody uses it yet
                        await self._verify(shelf, time.monotonic() - _PROBE_SECONDS / 2)
                    await shelf.pool.tend(shelf.connection)
                except (UpstreamUnavailableError, UpstreamError, UpstreamLostError) as error:
                    # Decisions stop by themselves once the snapshot is older than _TRUST_SECONDS.
                    log.warning("%s", error)

    # -- pool -----------------------------------------------------------------------------------------

    def idle(self, session: Session) -> Upstream | None:
        """A clean upstream session for this one alone, if one is ready; `give_back` or disconnect it."""
        return self._shelves[session.connection.name].pool.idle(session.connection)

    async def take(self, session: Session) -> Upstream:
        """As `idle`, or a new one. Raises UpstreamUnavailableError."""
        try:
            return self.idle(session) or await self._shelves[session.connection.name].pool.fresh(session.connection)
        except (UpstreamError, UpstreamLostError) as error:
            raise _unavailable(session.connection, error) from None

    async def give_back(self, upstream: Upstream) -> None:
        """Done with it: it is used again only if it can be verified clean. Nothing of a client's may run on it."""
        await self._shelves[upstream.connection.name].pool.give_back(upstream)

    @asynccontextmanager
    async def lease(self, session: Session) -> AsyncIterator[Upstream]:
        """A clean upstream session, refreshed; given back afterwards."""
        upstream = await self.take(session)
        try:
            session.stale = True
            try:
                await self.refresh(session, upstream)
            except (UpstreamError, UpstreamLostError) as error:
                raise _unavailable(session.connection, error) from None
            yield upstream
        except BaseException:
            # Whatever state it is in, nobody else will meet it.
            await upstream.disconnect()
            raise
        await self.give_back(upstream)

    @asynccontextmanager
    async def aside(self, session: Session) -> AsyncIterator[Upstream]:
        """An upstream beside the session's own, for nobody else afterwards. Raises UpstreamUnavailableError."""
        # What runs here is a write, or rolled back: the policy has said so.
        upstream = await self.connect(replace(session.connection, read_only=False), f"{OUR_NAMES}{session.id}/aside")
        try:
            yield upstream
        except asyncio.CancelledError:
            await asyncio.shield(upstream.cancel())  # what runs there is of no use any more
            raise
        finally:
            await upstream.disconnect()

    async def estimate(self, session: Session, sql: bytes, parameters: Sequence[bytes | None]) -> int:
        """How many rows the planner expects `sql` to change; 0 where nobody can tell. Nothing is run."""
        try:
            async with self._pooled(session) as upstream:
                return await counting.estimate(upstream, session.search_path, sql, parameters)
        except (UpstreamUnavailableError, UpstreamLostError):
            return 0

    async def locks(self, session: Session, backend: int) -> list[str]:
        """The relations that a server process has locked, each with the strongest mode, asked beside it.

        Raises UpstreamUnavailableError, UpstreamError, UpstreamLostError.
        """
        async with self._pooled(session) as upstream:
            return [f"{name} ({mode})" for name, mode in await upstream.probe(_LOCKS % backend)]

    @asynccontextmanager
    async def _pooled(self, session: Session) -> AsyncIterator[Upstream]:
        """An upstream of the pool for a question of our own."""
        upstream = await self.take(session)
        try:
            yield upstream
        except BaseException:
            await upstream.disconnect()
            raise
        await self.give_back(upstream)

    def snapshots(self) -> list[Catalog]:
        """The shared snapshots of the connections that were used so far, as they were last seen."""
        return [shelf.catalog for shelf in self._shelves.values() if shelf.catalog is not None]

    def snapshot(self, connection: Connection) -> Catalog | None:
        """The shared snapshot as it was last seen."""
        return self._shelves[connection.name].catalog

    async def connect(
        self, connection: Connection, application_name: str, settings: Mapping[str, str] | None = None
    ) -> Upstream:
        """A new upstream session. Raises UpstreamUnavailableError with a sentence that names the server."""
        try:
            return await self._factory.connect(connection, application_name=application_name, settings=settings)
        except (UpstreamError, UpstreamLostError) as error:
            raise _unavailable(connection, error) from None


async def _looked_at(shelf: _Shelf, keeper: Upstream) -> Catalog:
    """The shelf's catalog as it is now. Asks from the cheap to the dear, so that a change between is seen next time."""
    committed = await reader.committed(keeper)
    if shelf.catalog is not None and committed is not None and committed == shelf.committed:
        return shelf.catalog
    version = await reader.version(keeper)
    if shelf.catalog is None or version != shelf.version:
        shelf.catalog, shelf.version = await reader.load(keeper), version
    shelf.committed = committed
    return shelf.catalog


def _unavailable(connection: Connection, error: Exception) -> UpstreamUnavailableError:
    return UpstreamUnavailableError(
        f"the database behind `{connection.name}` cannot be used: {error}",
        cure="Nothing was executed. Check that it is up and that the gateway's own credential is right.",
    )
