from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest

from maas_middleware.http11._connecting import Origin
from maas_middleware.http11._connection import Connection
from maas_middleware.http11._pool import Lost, Pool
from maas_middleware.testing.clock import FakeClock

from ..transport.scripts import silent
from ..transport.upstreams import Peer, Upstream, hostile, soon, turns
from .asking import started

FOREVER = 1000.0


@asynccontextmanager
async def pooled(
    *,
    maximum: int | None = None,
    maximum_idle: int | None = None,
    idle_seconds: float = FOREVER,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[tuple[Pool, Upstream]]:
    async with hostile(silent) as upstream:
        port = httpx.URL(upstream.url).port
        assert port is not None
        origin = Origin("127.0.0.1", port, uds=None, ssl_context=None)
        pool = Pool(origin.connect, maximum=maximum, maximum_idle=maximum_idle, idle_seconds=idle_seconds, clock=clock)
        yield pool, upstream
        await pool.aclose()


class Turn:
    """Waits for a connection, in a task of its own."""

    def __init__(self, pool: Pool, seconds: float | None = None) -> None:
        self.connection: Connection | None = None
        self._pool = pool
        self._seconds = seconds

    async def __call__(self) -> None:
        self.connection = await self._pool.acquire(self._seconds, None)


async def test_newest_idle_connection_is_given_out_first() -> None:
    async with pooled() as (pool, _):
        old, new = await pool.acquire(None, None), await pool.acquire(None, None)
        pool.release(old)
        pool.release(new)

        assert [await pool.acquire(None, None), await pool.acquire(None, None)] == [new, old]


async def test_connections_are_given_to_those_who_wait_in_turn() -> None:
    async with pooled(maximum=1) as (pool, upstream), anyio.create_task_group() as group:
        connection = await pool.acquire(None, None)
        those = [Turn(pool), Turn(pool), Turn(pool, FOREVER)]
        for turn in those:
            await started(group, turn)

        for number in range(3):
            pool.release(connection)
            await anyio.wait_all_tasks_blocked()
            assert [turn.connection for turn in those] == [connection] * (number + 1) + [None] * (2 - number)
        assert len(upstream.peers) == 1


async def test_place_of_a_discarded_connection_is_given_on() -> None:
    async with pooled(maximum=1) as (pool, upstream), anyio.create_task_group() as group:
        connection, turn = await pool.acquire(None, None), Turn(pool)
        await started(group, turn)

        pool.discard(connection)

        await turns(50)
        with pytest.raises(httpx.PoolTimeout):
            await pool.acquire(0.001, None)

    assert turn.connection not in (None, connection)
    assert len(upstream.peers) == 2


@pytest.mark.parametrize("is_reusable", [True, False], ids=["connection", "place"])
async def test_who_is_cancelled_while_served_passes_on_what_it_got(is_reusable: bool) -> None:
    async with pooled(maximum=1) as (pool, _), anyio.create_task_group() as group:
        connection, turn = await pool.acquire(None, None), Turn(pool)
        task = asyncio.ensure_future(pool.acquire(None, None))  # anyio would not cancel who is served already
        await anyio.wait_all_tasks_blocked()
        await started(group, turn)

        (pool.release if is_reusable else pool.discard)(connection)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert turn.connection is not None
    assert (turn.connection is connection) is is_reusable


@pytest.mark.parametrize("is_reusable", [True, False], ids=["connection", "place"])
async def test_who_was_cancelled_is_not_served(is_reusable: bool) -> None:
    async with pooled(maximum=1) as (pool, _), anyio.create_task_group() as group:
        connection, first, second = await pool.acquire(None, None), Turn(pool), Turn(pool)
        scope = await started(group, first)
        await started(group, second)

        scope.cancel()
        (pool.release if is_reusable else pool.discard)(connection)

    assert first.connection is None
    assert second.connection is not None


async def test_waiting_ends_after_its_time_and_leaves_nothing() -> None:
    async with pooled(maximum=1) as (pool, _):
        connection = await pool.acquire(None, None)
        with pytest.raises(httpx.PoolTimeout):
            await pool.acquire(0.001, None)

        assert not pool._waiting  # which nothing else shows
        pool.release(connection)
        assert await pool.acquire(None, None) is connection


async def test_place_is_free_again_when_connecting_fails() -> None:
    async with pooled(maximum=1) as (pool, upstream):
        with pytest.raises(httpx.ConnectTimeout):
            await pool.acquire(None, -1)

        assert pool.is_empty
        await pool.acquire(None, None)
        assert not pool.is_empty
        assert len(upstream.peers) <= 2


async def test_connection_that_is_gone_when_it_is_there_is_not_given_out() -> None:
    async def hang_up(peer: Peer) -> None:
        await peer.stream.aclose()

    async with hostile(hang_up) as upstream:
        origin = Origin("127.0.0.1", httpx.URL(upstream.url).port or 0, uds=None, ssl_context=None)

        async def connect_late(lost: Lost, seconds: float | None) -> Connection:
            connection = await origin.connect(lost, seconds)
            await connection.gone
            return connection

        pool = Pool(connect_late, maximum=1, maximum_idle=None, idle_seconds=FOREVER)
        with pytest.raises(httpx.ConnectError):
            await pool.acquire(None, None)

        assert pool.is_empty


async def test_idle_connections_are_bounded() -> None:
    async with pooled(maximum_idle=1) as (pool, upstream):
        kept, closed = await pool.acquire(None, None), await pool.acquire(None, None)
        pool.release(kept)
        pool.release(closed)

        await closed.gone
        assert [await soon(peer.over) for peer in upstream.peers].count(True) == 1
        assert await pool.acquire(None, None) is kept


async def test_idle_connections_expire_each_in_its_time() -> None:
    async with pooled(idle_seconds=0.04) as (pool, upstream), pooled(idle_seconds=0.01) as (clock, _):
        first, second = await pool.acquire(None, None), await pool.acquire(None, None)
        tick = await clock.acquire(None, None)
        pool.release(first)
        clock.release(tick)
        await tick.gone
        pool.release(second)

        await first.gone
        assert not second.gone.done()
        await second.gone
        assert pool.is_empty
        assert all([await soon(peer.over) for peer in upstream.peers])


async def test_expired_connections_are_not_given_out_though_the_event_loop_stood_still() -> None:
    async with pooled(maximum=2, idle_seconds=0) as (pool, _):
        expired = [await pool.acquire(None, None) for _ in range(2)]
        for connection in expired:
            pool.release(connection)

        assert await pool.acquire(0, None) not in expired
        for connection in expired:
            await connection.gone
        await pool.acquire(0, None)


async def test_connection_is_idle_for_its_seconds_by_the_given_clock() -> None:
    clock = FakeClock()
    async with pooled(idle_seconds=60, clock=clock) as (pool, upstream):
        connection = await pool.acquire(None, None)
        pool.release(connection)
        clock.advance(59)
        assert await pool.acquire(None, None) is connection
        pool.release(connection)
        clock.advance(60)

        assert await pool.acquire(None, None) is not connection
        assert await soon(upstream.peers[0].over)


async def test_connection_that_is_used_does_not_expire() -> None:
    async with pooled(idle_seconds=0.01) as (pool, _):
        used, idle = await pool.acquire(None, None), await pool.acquire(None, None)
        pool.release(idle)
        pool.release(used)
        assert await pool.acquire(None, None) is used

        await idle.gone
        pool.release(used)

        await used.gone
        assert pool.is_empty


async def test_idle_connection_that_the_server_closes_is_forgotten() -> None:
    async with pooled(maximum=1) as (pool, upstream):
        connection = await pool.acquire(None, None)
        pool.release(connection)
        await anyio.wait_all_tasks_blocked()
        upstream.peers[0].hang_up_now()
        await connection.gone

        assert pool.is_empty
        assert await pool.acquire(None, None) is not connection


async def test_idle_connection_on_which_something_comes_is_closed() -> None:
    async with pooled() as (pool, upstream):
        connection = await pool.acquire(None, None)
        pool.release(connection)
        await anyio.wait_all_tasks_blocked()
        upstream.peers[0].say_now(b"HTTP/1.1 200 OK\r\n\r\n")
        await connection.gone

        assert pool.is_empty
        assert await soon(upstream.peers[0].over)


async def test_closing_ends_all_connections_and_all_waiting() -> None:
    async with pooled(maximum=2) as (pool, upstream), anyio.create_task_group() as group:
        used, idle = await pool.acquire(None, None), await pool.acquire(None, None)
        refusals: list[httpx.ConnectError] = []

        async def wait() -> None:
            with pytest.raises(httpx.ConnectError) as caught:
                await pool.acquire(FOREVER, None)
            refusals.append(caught.value)

        await started(group, wait)
        await pool.aclose()

        assert used.gone.done()
        assert idle.gone.done()
        await anyio.wait_all_tasks_blocked()
        assert len(refusals) == 1
    assert all([await soon(peer.over) for peer in upstream.peers])


async def test_closed_pool_gives_nothing_out() -> None:
    async with pooled() as (pool, upstream):
        pool.release(await pool.acquire(None, None))
        await pool.aclose()

        with pytest.raises(httpx.ConnectError, match="closed"):
            await pool.acquire(None, None)
        assert pool.is_empty
        assert all([await soon(peer.over) for peer in upstream.peers])
