"""The gateway's own side: which user and host it connects to, and sessions that are used again only when clean."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from gateway.model import Connection, UpstreamRole
from gateway.pool import NAME, Pool
from gateway.upstream import Upstream, UpstreamError, UpstreamLostError
from server.app import App, serve
from server.postgres import SUPERUSER
from server.wire_config import WireFile
from tests.stack import Stack
from tests.waiting import until
from wire.upstream import Factory, connect

POLICY = """
rules:
  - {name: agents-read, effect: allow, who: {groups: [ai-agents]}, actions: [select], relations: ["public.*"]}
  - {name: dbas-write, effect: allow, who: {groups: [dba]}, actions: [select, insert, update, delete], relations: ["public.*"]}
"""  # noqa: E501 - a rule on a line


@pytest.fixture(scope="module")
def shop(stack: Stack) -> Connection:
    return stack.demo.config.connections[0]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


# -- statements of our own --------------------------------------------------------------------------------


async def test_several_go_in_one_write_and_the_first_error_is_raised_when_all_are_answered(shop: Connection) -> None:
    upstream = await Factory().connect(shop, application_name="test")
    try:
        assert await upstream.probe("SET TimeZone = 'UTC'", "SELECT 1 UNION SELECT 2") == [("1",), ("2",)]
        with pytest.raises(UpstreamError, match="division by zero"):
            await upstream.probe("SELECT 1/0", "SET TimeZone = 'Asia/Tokyo'", "SELEC")
        assert await upstream.probe("SHOW TimeZone") == [("Asia/Tokyo",)]  # each ran by itself, and all are answered
    finally:
        await upstream.disconnect()


# -- sessions that are used again -------------------------------------------------------------------------


async def pid(upstream: Upstream) -> str:
    return str((await upstream.probe("SELECT pg_catalog.pg_backend_pid()"))[0][0])


@pytest.mark.parametrize(
    "left",
    [
        "SET TimeZone = 'Asia/Tokyo'",
        "SET search_path = nowhere",
        "SET countersign.test = 'mine'",
        "PREPARE mine AS SELECT 1",
        "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
        "LISTEN mine",
        "SELECT pg_advisory_lock(7)",
        "BEGIN",
        "SELECT nextval('pg_temp.mine')",
    ],
)
async def test_a_session_that_is_used_again_holds_nothing_of_who_had_it(shop: Connection, left: str) -> None:
    pool = Pool(Factory())
    first = await pool.fresh(shop)
    try:
        used = await pid(first)
        with contextlib.suppress(UpstreamError):  # the last one fails, and leaves nothing but that
            await first.probe(left)
        await pool.give_back(first)
        again = pool.idle(shop)
        assert again is first
        assert await pid(again) == used
        assert await again.probe("SHOW TimeZone") != [("Asia/Tokyo",)]
        assert await again.probe("SELECT current_setting('countersign.test', true)") in ([(None,)], [("",)])
        assert await again.probe("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [("0",)]
        assert await again.probe("SELECT current_setting('search_path') = 'nowhere'") == [("f",)]
        assert await again.probe(
            "SELECT (SELECT count(*) FROM pg_prepared_statements) + (SELECT count(*) FROM pg_cursors)"
        ) == [("0",)]
        assert await again.probe("SELECT count(*) FROM pg_listening_channels()") == [("0",)]
    finally:
        await first.disconnect()


async def test_a_session_that_cannot_be_clean_is_ended(stack: Stack, shop: Connection) -> None:
    admin = dataclasses.replace(shop, user=SUPERUSER, password=stack.demo.postgres.password)
    pool = Pool(Factory())
    temporary = await pool.fresh(admin)
    await temporary.probe("CREATE TEMPORARY TABLE mine ()")  # its schema outlives DISCARD
    await pool.give_back(temporary)
    assert pool.idle(admin) is None
    assert not temporary.connected
    # Interpreters of other languages keep variables for the whole session: not seen by any query.
    other = await pool.fresh(admin)
    stack.direct("CREATE LANGUAGE plother HANDLER plpgsql_call_handler")
    try:
        await pool.give_back(other)
        assert not other.connected
    finally:
        stack.direct("DROP LANGUAGE plother")


async def test_roles_do_not_share_sessions_and_what_comes_back_late_ends(stack: Stack, shop: Connection) -> None:
    pool = Pool(Factory())
    first = await pool.fresh(shop)
    await pool.give_back(first)
    assert pool.idle(dataclasses.replace(shop, user=SUPERUSER)) is None
    assert pool.idle(dataclasses.replace(shop, read_only=True)) is None
    late = await pool.fresh(shop)
    await pool.close()
    await pool.give_back(late)
    assert not first.connected
    assert not late.connected


async def test_as_many_are_kept_ready_as_the_connection_wants(shop: Connection) -> None:
    wanted = dataclasses.replace(shop, warm=2)
    pool = Pool(Factory())
    try:
        await pool.tend(wanted)
        await pool.tend(wanted)
        ready = [pool.idle(wanted), pool.idle(wanted)]
        assert all(ready)
        assert pool.idle(wanted) is None
        for upstream in filter(None, ready):
            await pool.give_back(upstream)
    finally:
        await pool.close()


@asynccontextmanager
async def serving(stack: Stack, folder: Path, change: Callable[[Connection], Connection]) -> AsyncIterator[App]:
    """A wire door of another gateway, on the same server and with a policy of its own."""
    policy = folder / "policy.yaml"
    policy.write_text(POLICY, encoding="utf-8")
    config = dataclasses.replace(
        stack.demo.config, policy_path=policy, mcp=None, wire=WireFile(port=0),
        connections=tuple(change(c) for c in stack.demo.config.connections),
    )  # fmt: skip
    async with serve(config) as app:
        yield app


async def come(stack: Stack, app: App, who: str, **settings: str) -> asyncpg.Connection:
    return await asyncpg.connect(
        host=app.wire_host, port=app.wire_port, user=who, password=stack.tokens[who], database=stack.database,
        server_settings=settings,
    )  # fmt: skip


def backends(stack: Stack, name: str = "countersign/se-%") -> list[tuple[int, str]]:
    sql = "SELECT pid, application_name FROM pg_stat_activity WHERE application_name LIKE "
    return [(int(pid), str(name)) for pid, name in stack.direct(f"{sql} '{name}' ORDER BY backend_start")]


async def waited(condition: Callable[[], bool]) -> None:
    """Beside the loop, on which the door runs."""
    await asyncio.to_thread(until, condition, "the session did not come back, or did not end")


async def test_the_next_client_gets_the_clean_session_of_the_last_under_its_own_name(
    stack: Stack, tmp_path: Path
) -> None:
    async with serving(stack, tmp_path, lambda c: c) as app:
        before = backends(stack)
        first = await come(stack, app, "grace")
        [used] = [b for b in backends(stack) if b not in before]
        await first.execute("SET TimeZone = 'Asia/Tokyo'")
        statement = await first.prepare("SELECT 1")
        assert await statement.fetchval() == 1
        await first.close()
        await waited(lambda: any(pid == used[0] for pid, _ in backends(stack, NAME)))
        second = await come(stack, app, "grace")
        [again] = [b for b in backends(stack) if b not in before]
        assert again[0] == used[0]
        assert again[1] != used[1], "it carries the id of the session that it serves now"
        assert await second.fetchval("SHOW TimeZone") != "Asia/Tokyo"
        await second.close()
        # A setting of the start-up packet would be the default that RESET goes back to.
        third = await come(stack, app, "grace", timezone="Asia/Tokyo")
        [own] = [b for b in backends(stack) if b not in before]
        assert own[0] != used[0]
        await third.close()
        await waited(lambda: own[0] not in {pid for pid, _ in backends(stack, "countersign/%")})


async def test_principals_run_as_the_user_of_their_group_and_read_only_where_they_only_read(
    stack: Stack, shop: Connection, tmp_path: Path
) -> None:
    stack.direct("CREATE ROLE gw_dba LOGIN PASSWORD 'for the dbas'")
    stack.direct(f"GRANT CONNECT ON DATABASE {shop.database} TO gw_dba")
    roles = (UpstreamRole(frozenset({"dba"}), "gw_dba", "for the dbas"),)
    try:
        async with serving(stack, tmp_path, lambda c: dataclasses.replace(c, roles=roles)) as app:
            for who, user, read_only in (("devin", shop.user, "on"), ("grace", "gw_dba", "off")):
                connection = await come(stack, app, who)
                assert await connection.fetchval("SHOW default_transaction_read_only") == read_only
                [(running,)] = stack.direct(
                    "SELECT usename FROM pg_stat_activity WHERE application_name LIKE 'countersign/se-%' "
                    "ORDER BY backend_start DESC LIMIT 1"
                )
                assert running == user
                [opened] = stack.audit(
                    "SELECT json_extract(body, '$.upstream_user') AS user, json_extract(body, '$.read_only') AS ro "
                    "FROM entries WHERE kind = 'session.opened' ORDER BY seq DESC LIMIT 1"
                )
                assert (opened["user"], bool(opened["ro"])) == (user, read_only == "on")
                await connection.close()
    finally:
        stack.direct("DROP OWNED BY gw_dba")
        stack.direct("DROP ROLE gw_dba")


# -- hosts -----------------------------------------------------------------------------------------------


async def test_the_next_host_is_asked_where_one_does_not_answer_and_first_from_then_on(
    shop: Connection, closed_port: int
) -> None:
    several = dataclasses.replace(
        shop, port=closed_port, fallbacks=((shop.host, closed_port), (shop.host, shop.port)), order=type(shop.order)()
    )
    session = await connect(several, "test", {})
    assert await session.probe("SELECT 1") == [("1",)]
    await session.cancel()  # to the server that it is connected to
    await session.disconnect()
    assert several.order.first == 2
    assert [c.port for c in several.candidates()] == [shop.port, closed_port, closed_port]


async def test_where_no_host_will_do_each_is_told(shop: Connection, closed_port: int) -> None:
    several = dataclasses.replace(shop, port=closed_port, fallbacks=((shop.host, closed_port),))
    with pytest.raises(UpstreamLostError) as lost:
        await connect(several, "test", {})
    assert str(lost.value).count("connection refused") == 2


async def test_a_wrong_password_is_an_answer(shop: Connection, closed_port: int) -> None:
    wrong = dataclasses.replace(shop, password="guessed", fallbacks=((shop.host, closed_port),))
    with pytest.raises(UpstreamError, match="password authentication failed"):
        await connect(wrong, "test", {})


async def test_a_server_that_takes_no_writes_is_passed_over_where_writes_are_wanted(
    stack: Stack, shop: Connection
) -> None:
    stack.direct("CREATE ROLE gw_standby LOGIN PASSWORD 'x'")
    stack.direct(f"GRANT CONNECT ON DATABASE {shop.database} TO gw_standby")
    stack.direct("ALTER ROLE gw_standby SET default_transaction_read_only = on")
    try:
        standby = dataclasses.replace(shop, user="gw_standby", password="x", target="read-write")
        with pytest.raises(UpstreamLostError, match="does not take writes"):
            await connect(standby, "test", {})
        # That we made it read only ourselves says nothing of the server.
        ours = await connect(dataclasses.replace(shop, target="read-write", read_only=True), "test", {})
        assert await ours.probe("SHOW default_transaction_read_only") == [("on",)]
        await ours.disconnect()
    finally:
        stack.direct("DROP OWNED BY gw_standby")
        stack.direct("DROP ROLE gw_standby")
