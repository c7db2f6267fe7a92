"""The catalog's snapshot: where the columns of views come from, asked of a real server all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from gateway import catalog as reader
from gateway.model import Connection
from gateway.upstream import Upstream, UpstreamError
from policy.catalog import Catalog
from server.postgres import SUPERUSER, Postgres
from wire import frontend
from wire.upstream import UpstreamSession, connect

# A reader of the catalog who may not look into `hidden`: the queries of views over it cannot be described.
SCRIPT = """
CREATE ROLE reader LOGIN PASSWORD 'reader';
CREATE TABLE public.t (a int, b text);
CREATE SCHEMA hidden;
CREATE TABLE hidden.t (a int);
CREATE VIEW public.v1 AS SELECT b, a, a + 1 AS c FROM public.t;
CREATE VIEW public.v2 AS SELECT a FROM hidden.t;
CREATE VIEW public.v3 AS SELECT a FROM public.t;
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("postgres")) as running:
        running.run_script(SCRIPT)
        yield running


def run(server: Postgres, work: Callable[[UpstreamSession], Awaitable[None]]) -> None:
    async def main() -> None:
        connection = Connection("test", server.host, server.port, "postgres", "reader", "reader", "disable")
        upstream = await connect(connection, "test", {})
        try:
            await asyncio.wait_for(work(upstream), 30)
        finally:
            await upstream.disconnect()

    asyncio.run(main())


def origins(catalog: Catalog, name: str) -> list[tuple[str, int] | None]:
    view = catalog.relation("public", name)
    assert view is not None
    return [c.origin and (catalog.relations[c.origin[0]].qualified, c.origin[1]) for c in view.columns]


def test_a_view_that_cannot_be_described_spoils_no_other(server: Postgres) -> None:
    async def work(upstream: Upstream) -> None:
        catalog = await reader.load(upstream)
        assert origins(catalog, "v1") == [("public.t", 2), ("public.t", 1), None]
        assert origins(catalog, "v2") == [None]
        assert origins(catalog, "v3") == [("public.t", 1)]
        assert upstream.transaction_status == "I"
        assert (await reader.load(upstream)).epoch == catalog.epoch

    run(server, work)


def test_inside_a_transaction_its_error_is_raised_and_nothing_is_out_of_step(server: Postgres) -> None:
    async def work(upstream: Upstream) -> None:
        await upstream.probe("BEGIN")
        with pytest.raises(UpstreamError, match="permission denied for schema hidden"):
            await reader.load(upstream)
        assert upstream.transaction_status == "E"
        await upstream.probe("ROLLBACK")
        assert await upstream.probe("SELECT 1") == [("1",)]
        await upstream.probe("BEGIN")
        [columns] = await upstream.describe(["SELECT a FROM public.t"])
        assert not isinstance(columns, UpstreamError)
        assert upstream.transaction_status == "T"

    run(server, work)


@pytest.mark.parametrize("hidden", [False, True])
def test_an_open_batch_of_the_client_is_not_ended(server: Postgres, hidden: bool) -> None:
    texts = ["SELECT a, b FROM public.t", f"SELECT a FROM {'hidden' if hidden else 'public'}.t", "SELECT 1"]

    async def work(upstream: UpstreamSession) -> None:
        upstream.write(frontend.Parse("client", b"SELECT 1").encode())
        upstream.batch_open = True
        if hidden:
            with pytest.raises(UpstreamError, match="permission denied for schema hidden"):
                await upstream.describe(texts)
        else:
            # The first answer is to the client's own Parse; of ours none is missing.
            assert [len(columns) for columns in await upstream.describe(texts) if isinstance(columns, tuple)] == [
                2,
                1,
                1,
            ]
        assert upstream.connected

    run(server, work)


def test_many_texts_are_one_round_trip(server: Postgres) -> None:
    async def work(upstream: UpstreamSession) -> None:
        before = await upstream.probe("SELECT 1")
        found = await upstream.describe([f"SELECT a AS a{n} FROM public.t" for n in range(5_000)])
        assert [columns[0].name for columns in found if isinstance(columns, tuple)] == [f"a{n}" for n in range(5_000)]
        assert await upstream.probe("SELECT 1") == before

    run(server, work)


def test_answers_are_heard_in_order_while_later_texts_are_made_from_them(server: Postgres) -> None:
    async def work(upstream: UpstreamSession) -> None:
        heard: list[str | None] = []

        def texts() -> Iterator[str]:
            yield "SELECT 1"
            yield "SELECT 2"
            yield f"SELECT {heard[0]} + 10"
            yield f"SELECT {heard[1]} + 20"

        await upstream.probe_each(texts(), lambda rows: heard.append(rows[0][0]))
        assert heard == ["1", "2", "11", "22"]
        assert await upstream.probe("SELECT 3") == [("3",)]

    run(server, work)


@pytest.mark.parametrize("before", [(), ("BEGIN",)], ids=["alone", "in a transaction"])
def test_the_first_error_ends_the_asking_and_nothing_is_out_of_step(server: Postgres, before: tuple[str, ...]) -> None:
    async def work(upstream: UpstreamSession) -> None:
        if before:
            await upstream.probe(*before)
        heard: list[str | None] = []
        left = iter(("SELECT 1", "SELECT 1 / 0", "SELECT 2", "SELECT 3"))
        with pytest.raises(UpstreamError, match="division by zero"):
            await upstream.probe_each(left, lambda rows: heard.append(rows[0][0]))
        assert heard == ["1"]
        assert list(left) == ["SELECT 3"]
        await upstream.probe("ROLLBACK")
        assert await upstream.probe("SELECT 4") == [("4",)]

    run(server, work)


def test_what_was_committed_differs_by_every_commit_and_by_nothing_else(server: Postgres) -> None:
    async def work(upstream: UpstreamSession) -> None:
        other = await connect(
            Connection("test", server.host, server.port, "postgres", SUPERUSER, server.password, "disable"), "test", {}
        )
        try:
            before = None
            for _ in range(20):  # autovacuum may come between
                before, again = await reader.committed(upstream), await reader.committed(upstream)
                if before == again:
                    break
            assert before == again is not None
            for change in (
                "CREATE TABLE public.made (a int)",
                "COMMENT ON TABLE public.made IS 'x'",
                "DROP TABLE public.made",
            ):
                await other.probe("BEGIN")
                await other.probe(change)
                running = await reader.committed(upstream)
                await other.probe("COMMIT")
                assert await reader.committed(upstream) not in (before, running)
                before = running
        finally:
            await other.disconnect()

    run(server, work)
