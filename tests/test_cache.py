from __future__ import annotations

import asyncio
import threading

import anyio
import pytest
from anyio.lowlevel import checkpoint

from maas_middleware._cache import Loaded, SingleFlightCache
from maas_middleware.testing.clock import FakeClock


class Loader:
    """Loads a number that tells how often it was asked; waits for `gate` if there is one."""

    def __init__(self, seconds: float = 60.0, *, gate: anyio.Event | None = None) -> None:
        self.seconds = seconds
        self.gate = gate
        self.error: Exception | None = None
        self.calls = 0

    async def __call__(self) -> Loaded[int]:
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Loaded(self.calls, self.seconds)


def cache_of(
    maximum: int = 10, *, deadline: float = 20.0, clock: FakeClock | None = None
) -> SingleFlightCache[str, int]:
    return SingleFlightCache(maximum=maximum, deadline=deadline, clock=clock or FakeClock())


async def test_a_value_is_given_again_for_its_seconds_and_no_longer() -> None:
    clock, load = FakeClock(), Loader(5.0)
    cache = cache_of(clock=clock)

    first = await cache.get("key", load)
    clock.advance(4.9)
    second = await cache.get("key", load)
    clock.advance(0.1)
    third = await cache.get("key", load)

    assert [first, second, third] == [1, 1, 2]


@pytest.mark.parametrize("seconds", [pytest.param(0.0, id="zero"), pytest.param(-7.0, id="in the past")])
async def test_a_value_without_seconds_is_not_kept(seconds: float) -> None:
    load = Loader(seconds)
    cache = cache_of()

    assert [await cache.get("key", load), await cache.get("key", load)] == [1, 2]


async def test_each_value_has_its_own_seconds() -> None:
    clock, long, short = FakeClock(), Loader(60.0), Loader(5.0)
    cache = cache_of(clock=clock)

    await cache.get("long", long)
    await cache.get("short", short)
    clock.advance(5.0)
    await cache.get("long", long)
    await cache.get("short", short)

    assert (long.calls, short.calls) == (1, 2)


async def test_at_the_cap_what_was_not_asked_for_the_longest_goes() -> None:
    loads = {key: Loader() for key in "abc"}
    cache = cache_of(2)

    for key in "abacab":
        await cache.get(key, loads[key])

    # c took the place of b, b then that of c
    assert {key: load.calls for key, load in loads.items()} == {"a": 1, "b": 2, "c": 1}


async def test_who_asks_at_the_same_time_shares_one_load() -> None:
    load = Loader(0.0, gate=anyio.Event())
    cache = cache_of()
    values: list[int] = []

    async def ask() -> None:
        values.append(await cache.get("key", load))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert load.gate is not None
        load.gate.set()

    assert values == [1] * 20
    assert load.calls == 1


async def test_other_keys_do_not_wait() -> None:
    slow, fast = Loader(gate=anyio.Event()), Loader()
    cache = cache_of()

    async with anyio.create_task_group() as group:
        group.start_soon(cache.get, "slow", slow)
        await anyio.wait_all_tasks_blocked()
        value = await cache.get("fast", fast)
        assert slow.gate is not None
        slow.gate.set()

    assert value == 1


async def test_a_leader_that_is_cancelled_still_loads_for_its_followers() -> None:
    load = Loader(gate=anyio.Event())
    cache = cache_of()
    values: list[int] = []
    leader = anyio.CancelScope()

    async def lead() -> None:
        with leader:
            await cache.get("key", load)
            await checkpoint()
            pytest.fail("the leader is cancelled as soon as it does not load any more")

    async def follow() -> None:
        values.append(await cache.get("key", load))

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        leader.cancel()
        await anyio.wait_all_tasks_blocked()
        assert load.gate is not None
        load.gate.set()

    assert leader.cancelled_caught
    assert values == [1]
    assert load.calls == 1
    assert await cache.get("key", load) == 1


async def test_a_follower_that_is_cancelled_disturbs_nobody() -> None:
    load = Loader(gate=anyio.Event())
    cache = cache_of()
    values: list[int] = []
    follower = anyio.CancelScope()

    async def lead() -> None:
        values.append(await cache.get("key", load))

    async def follow() -> None:
        with follower:
            await cache.get("key", load)

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        follower.cancel()
        await anyio.wait_all_tasks_blocked()
        assert load.gate is not None
        load.gate.set()

    assert values == [1]


async def test_a_follower_loads_where_the_leaders_task_is_torn_down() -> None:
    """Task.cancel(), which some servers call, reaches through the shield of a cancel scope."""
    load = Loader(gate=anyio.Event())
    cache = cache_of()
    values: list[int] = []
    timeout = asyncio.timeout(None)

    async def lead() -> None:
        with pytest.raises(TimeoutError):
            async with timeout:
                await cache.get("key", load)

    async def follow() -> None:
        values.append(await cache.get("key", load))

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        timeout.reschedule(asyncio.get_running_loop().time())
        while load.calls < 2:
            await checkpoint()
        assert load.gate is not None
        load.gate.set()

    assert values == [2]


async def test_an_error_reaches_everybody_and_is_not_kept() -> None:
    load = Loader(gate=anyio.Event())
    load.error = RuntimeError("no")
    cache = cache_of()
    raised: list[Exception] = []

    async def ask() -> None:
        try:
            await cache.get("key", load)
        except RuntimeError as error:
            raised.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert load.gate is not None
        load.gate.set()
    calls, load.error = load.calls, None

    assert [str(error) for error in raised] == ["no"] * 3
    assert calls == 1
    assert await cache.get("key", load) == 2


async def test_a_load_is_broken_off_at_the_deadline_for_everybody() -> None:
    load = Loader(gate=anyio.Event())
    cache = cache_of(deadline=0.01)
    timeouts = 0

    async def ask() -> None:
        nonlocal timeouts
        with pytest.raises(TimeoutError):
            await cache.get("key", load)
        timeouts += 1

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        group.start_soon(ask)
    assert load.gate is not None
    load.gate.set()

    assert (timeouts, load.calls) == (2, 1)
    assert await cache.get("key", load) == 2


async def test_nobody_waits_for_a_load_in_another_event_loop() -> None:
    cache = cache_of()
    loading, done = threading.Event(), threading.Event()
    values: list[int] = []

    async def slow() -> Loaded[int]:
        loading.set()
        await anyio.to_thread.run_sync(done.wait)
        return Loaded(10, 0.0)

    async def ask_elsewhere() -> None:
        values.append(await cache.get("key", slow))

    async def run_another_loop() -> None:
        await anyio.to_thread.run_sync(lambda: asyncio.run(ask_elsewhere()))

    async with anyio.create_task_group() as group:
        group.start_soon(run_another_loop)
        await anyio.to_thread.run_sync(loading.wait)
        values.append(await cache.get("key", Loader()))
        done.set()

    assert values == [1, 10]
