from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from maas_middleware.errors import StoreUnavailable
from maas_middleware.ledgers.throttles import MemoryWindows, MovingWindowThrottle, ThrottleStorage
from maas_middleware.limiting import Limit
from maas_middleware.testing.clock import FakeClock
from maas_middleware.throttling import Refusal

from .redis_server import RedisServer, running_redis

MINUTE = 60_000
FAILS = "the throttles' store fails (%s): this process counts on its own"
ANSWERS_AGAIN = "the throttles' store answers again"
PATIENCE = 5.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The time. `limits` takes it from `time.time` and has no parameter for it, so this is the one way to turn it."""
    clock = FakeClock()
    for module in ("limits.aio.storage.memory", "limits.aio.storage.redis.redispy"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(time=clock))
    return clock


@pytest.fixture(scope="module")
def module_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def server(module_server: RedisServer) -> Iterator[RedisServer]:
    yield module_server
    module_server.do("FLUSHALL")


@asynccontextmanager
async def stored(server: RedisServer, **options: Any) -> AsyncIterator[ThrottleStorage]:
    storage = ThrottleStorage(server.url, **{"timeout": PATIENCE, **options})
    try:
        yield storage
    finally:
        await storage.aclose()


@pytest.fixture(params=["memory", "redis"])
async def storage(request: pytest.FixtureRequest) -> AsyncIterator[ThrottleStorage | None]:
    if request.param == "memory":
        yield None
        return
    async with stored(request.getfixturevalue("server")) as storage:
        yield storage
        assert not storage.degraded


async def passes(throttle: MovingWindowThrottle, count: int, key: str = "alice") -> list[bool]:
    return [await throttle.hit(key) is None for _ in range(count)]


async def test_acts_pass_up_to_their_limit(storage: ThrottleStorage | None, clock: FakeClock) -> None:
    throttle = MovingWindowThrottle("3/minute", name="acts", storage=storage, clock=clock)

    assert await passes(throttle, 5) == [True, True, True, False, False]
    assert await passes(throttle, 1, "bob") == [True]


async def test_refusal_names_the_limit_and_when_the_next_act_passes(
    storage: ThrottleStorage | None, clock: FakeClock
) -> None:
    throttle = MovingWindowThrottle("2/minute", name="acts", storage=storage, clock=clock)
    await throttle.hit("alice")
    clock.advance(20)
    await throttle.hit("alice")
    clock.advance(10)

    refusal = await throttle.hit("alice")

    assert refusal == Refusal(Limit(2, 60), MINUTE // 2 + 1)
    clock.advance(refusal.retry_after_ms / 1000 - 0.002)
    assert await passes(throttle, 1) == [False]
    clock.advance(0.002)
    assert await passes(throttle, 2) == [True, False]  # the window moves on by one act


async def test_refused_act_costs_nothing(storage: ThrottleStorage | None, clock: FakeClock) -> None:
    throttle = MovingWindowThrottle("1/minute", name="acts", storage=storage, clock=clock)

    for _ in range(4):
        await throttle.hit("alice")
        clock.advance(15)

    clock.advance(0.001)
    assert await passes(throttle, 1) == [True]


async def test_all_limits_are_tested_before_any_is_charged(storage: ThrottleStorage | None, clock: FakeClock) -> None:
    throttle = MovingWindowThrottle("3/minute;2/hour", name="acts", storage=storage, clock=clock)
    swapped = MovingWindowThrottle("2/hour;3/minute", name="swapped", storage=storage, clock=clock)

    for each in (throttle, swapped):
        assert await passes(each, 4) == [True, True, False, False]
    minute = MovingWindowThrottle("3/minute", name="acts", storage=storage, clock=clock)

    if storage is not None:  # its counters are those of the minute above: two acts are counted there
        assert await minute.peek("alice", 1) is None
        assert await minute.peek("alice", 2) is not None


async def test_of_several_limits_the_one_with_the_longest_wait_refuses(
    storage: ThrottleStorage | None, clock: FakeClock
) -> None:
    throttle = MovingWindowThrottle("1/minute;2/hour;2/2minutes", name="acts", storage=storage, clock=clock)
    await throttle.hit("alice")

    assert await throttle.hit("alice") == Refusal(Limit(1, 60), MINUTE + 1)
    clock.advance(90)
    await throttle.hit("alice")

    assert await throttle.hit("alice") == Refusal(Limit(2, 3600), 60 * MINUTE - 90_000 + 1)


async def test_peek_counts_nothing_and_tells_whether_so_many_would_pass(
    storage: ThrottleStorage | None, clock: FakeClock
) -> None:
    throttle = MovingWindowThrottle("3/minute", name="acts", storage=storage, clock=clock)
    await throttle.hit("alice")

    answers = [await throttle.peek("alice", count) for count in (1, 2, 3, 4)]
    default = await throttle.peek("alice")
    await throttle.hit("bob")
    await throttle.hit("bob")

    assert answers == [None, None, Refusal(Limit(3, 60), 1000), Refusal(Limit(3, 60), 1000)]
    assert default is None
    assert await passes(throttle, 3) == [True, True, False]
    assert await throttle.peek("alice") == Refusal(Limit(3, 60), MINUTE + 1)
    assert await throttle.peek("bob", 2) == Refusal(Limit(3, 60), 1000)
    assert await throttle.peek("carol", 3) is None


async def test_acts_at_once_never_pass_more_than_the_limit(storage: ThrottleStorage | None, clock: FakeClock) -> None:
    throttle = MovingWindowThrottle("10/minute;50/hour", name="acts", storage=storage, clock=clock)
    passed: list[bool] = []

    async def act() -> None:
        passed.append(await throttle.hit("alice") is None)

    async with anyio.create_task_group() as acts:
        for _ in range(100):
            acts.start_soon(act)

    assert (len(passed), sum(passed)) == (100, 10)


@pytest.mark.parametrize("limits", ["unlimited", ()])
async def test_without_limits_everything_passes(storage: ThrottleStorage | None, limits: str | tuple[()]) -> None:
    throttle = MovingWindowThrottle(limits, name="acts", storage=storage)

    assert await passes(throttle, 50) == [True] * 50
    assert await throttle.peek("alice", 1_000_000) is None


async def test_limits_are_text_or_values_and_the_same_twice_is_counted_once(
    storage: ThrottleStorage | None, clock: FakeClock
) -> None:
    throttle = MovingWindowThrottle([Limit(2, 60), Limit(2, 60)], name="acts", storage=storage, clock=clock)

    assert await passes(throttle, 3) == [True, True, False]


async def test_keys_that_look_alike_or_are_odd_are_counted_apart(
    storage: ThrottleStorage | None, clock: FakeClock
) -> None:
    throttle = MovingWindowThrottle("1/minute", name="acts", storage=storage, clock=clock)
    keys = ["a", "a/1", "a/1/1", "A", "", "2001:db8::/64", "ä", "\udce4", "a\x00", "x" * 10_000]

    assert [await throttle.hit(key) for key in keys] == [None] * len(keys)
    assert {(await throttle.hit(key)) is None for key in keys} == {False}


async def test_throttles_of_other_names_do_not_count_together(
    storage: ThrottleStorage | None, clock: FakeClock
) -> None:
    mints, failures = (MovingWindowThrottle("1/minute", name=name, storage=storage, clock=clock) for name in "mf")

    assert await passes(mints, 2) == [True, False]
    assert await passes(failures, 2) == [True, False]


async def test_real_time_is_what_it_counts_by(storage: ThrottleStorage | None) -> None:
    throttle = MovingWindowThrottle("1/minute", name="acts", storage=storage)
    await throttle.hit("alice")

    refusal = await throttle.hit("alice")

    assert refusal is not None
    assert MINUTE - 10_000 < refusal.retry_after_ms <= MINUTE + 1


@pytest.mark.parametrize("limits", ["", "5", "5/fortnight", "0/minute", "5/month"])
def test_what_is_no_limit_is_refused(limits: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(limits))):
        MovingWindowThrottle(limits, name="acts")


@pytest.mark.parametrize("url", ["", "memory://", "http://localhost", "redis://", "redis://host:port"])
def test_what_is_no_redis_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^the url of Redis has to be like redis://"):
        ThrottleStorage(url)


async def test_act_that_is_free_again_by_the_time_of_the_refusal_may_come_back_at_once(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    throttle = MovingWindowThrottle("1/minute", name="acts", clock=clock)
    await throttle.hit("alice")

    times = iter([clock.now + 59.9, clock.now + 60.1])
    monkeypatch.setattr("limits.aio.storage.memory.time", SimpleNamespace(time=times.__next__))
    refusal = await throttle.hit("alice")

    assert refusal == Refusal(Limit(1, 60), 1)


async def test_wait_is_never_in_the_past(clock: FakeClock) -> None:
    throttle = MovingWindowThrottle("1/minute", name="acts", clock=lambda: clock.now + 100)
    await throttle.hit("alice")

    assert await throttle.hit("alice") == Refusal(Limit(1, 60), 1)


# in the memory of a process


def test_throttle_starts_no_task_and_no_thread_and_outlives_event_loops(clock: FakeClock) -> None:
    throttle = MovingWindowThrottle("3/minute", name="acts", clock=clock)
    threads = threading.active_count()

    async def act() -> tuple[int, list[Refusal | None]]:
        refusals: list[Refusal | None] = []

        async def hit() -> None:
            refusals.append(await throttle.hit("alice"))

        async with anyio.create_task_group() as group:
            group.start_soon(hit)
            group.start_soon(hit)
        return len(asyncio.all_tasks()), refusals

    answers = [asyncio.run(act()) for _ in range(2)]

    assert [tasks for tasks, _ in answers] == [1, 1]
    assert [refusals.count(None) for _, refusals in answers] == [2, 1]
    assert threading.active_count() == threads


async def fill(windows: MemoryWindows, start: int, count: int) -> None:
    for number in range(start, start + count):
        assert await windows.acquire_entry(f"{number}", 5, 60)


async def test_memory_of_addresses_that_are_old_goes(clock: FakeClock) -> None:
    windows = MemoryWindows(100_000)
    await fill(windows, 0, 1000)
    clock.advance(30)
    await fill(windows, 900, 100)  # these again: what is young stays
    clock.advance(30)

    await fill(windows, 1000, 100)

    assert set(windows.events) == {f"{number}" for number in range(900, 1100)}
    assert {key for key in windows.events if len(windows.events[key]) > 1} == {
        f"{number}" for number in range(900, 1000)
    }
    assert len(windows.locks) == 0


async def test_hit_forgets_what_is_old_of_its_own_key(clock: FakeClock) -> None:
    windows = MemoryWindows(100_000)
    for _ in range(20):
        await fill(windows, 1, 1)
        clock.advance(59)

    assert len(windows.events["1"]) == 2


async def test_memory_is_bounded_and_whoever_was_hit_last_stays(clock: FakeClock) -> None:
    windows = MemoryWindows(100)
    await fill(windows, 0, 100)
    await fill(windows, 0, 1)

    await fill(windows, 100, 99)
    kept = list(windows.events)
    await fill(windows, 1000, 10_000)

    assert kept == ["0", *(f"{number}" for number in range(100, 199))]
    assert len(windows.events) == 100


async def test_throttle_keeps_no_more_keys_than_it_may(clock: FakeClock) -> None:
    throttle = MovingWindowThrottle("1/minute", name="acts", maximum_keys=2, clock=clock)
    for key in ("alice", "bob", "eve"):
        await throttle.hit(key)

    assert [await throttle.peek(key) is None for key in ("alice", "bob", "eve")] == [True, False, False]


async def test_entries_of_several_acts_are_taken_together(clock: FakeClock) -> None:
    windows = MemoryWindows(10)

    assert [await windows.acquire_entry("alice", 5, 60, amount=2) for _ in range(3)] == [True, True, False]
    assert (await windows.get_moving_window("alice", 5, 60))[1] == 4


# in Redis


async def test_replicas_count_together(server: RedisServer, clock: FakeClock) -> None:
    async with stored(server) as one, stored(server) as other:
        throttles = [MovingWindowThrottle("3/minute", name="acts", storage=each, clock=clock) for each in (one, other)]

        answers = [await throttle.hit("alice") is None for throttle in throttles * 2]

    assert answers == [True, True, True, False]


async def test_keys_in_redis_tell_nothing_and_expire(server: RedisServer) -> None:
    async with stored(server, key_prefix="ours") as storage:
        throttle = MovingWindowThrottle("3/minute", name="acts", storage=storage)
        await throttle.hit("openshift/alice")
        await throttle.peek("openshift/bob")

    keys = server.do("KEYS", "*").decode().split("\r\n")[2::2]
    assert [bool(re.fullmatch(r"ours:throttle:acts/[0-9a-f]{64}/3/60/second", key)) for key in keys] == [True]
    assert 50 <= int(server.do("TTL", keys[0])[1:]) <= 60


async def test_forgotten_scripts_are_no_outage(server: RedisServer) -> None:
    async with stored(server) as storage:
        throttle = MovingWindowThrottle("2/minute;9/day", name="acts", storage=storage)
        answers = []
        for _ in range(3):
            server.do("SCRIPT", "FLUSH")
            answers.append(await throttle.hit("alice") is None)

        assert not storage.degraded
    assert answers == [True, True, False]


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.name == "maas_middleware"]


async def test_frozen_redis_costs_its_budget_once_and_each_process_counts_on_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running_redis() as server:
        rest = FakeClock()
        async with stored(server, timeout=0.25, clock=rest) as storage:
            throttle = MovingWindowThrottle("5/minute", name="acts", storage=storage)
            await throttle.hit("carol")
            server.freeze()
            began = anyio.current_time()
            answers: list[bool] = []

            async def act() -> None:
                answers.append(await throttle.hit("alice") is None)

            async with anyio.create_task_group() as acts:
                for _ in range(50):
                    acts.start_soon(act)
            answers += await passes(throttle, 10)
            took = anyio.current_time() - began
            peeked = await throttle.peek("alice")
            degraded = storage.degraded
            server.thaw()

            still = await throttle.peek("alice"), lines(caplog), storage.degraded
            rest.advance(1.0)
            while storage.degraded:  # what the server had not answered when it was frozen may still be in its way
                await throttle.hit("bob")
                rest.advance(5.0)

            assert await throttle.peek("carol", 4) is None
            assert await throttle.peek("carol", 5) == Refusal(Limit(5, 60), 1000)

    assert (sum(answers), len(answers), degraded) == (5, 60, True)
    assert 0.2 < took < 1.5
    assert peeked is not None
    assert still[0] is not None  # what can be read again does not count yet
    assert still[1:] == ([FAILS % "TimeoutError"], True)
    assert lines(caplog) == [FAILS % "TimeoutError", ANSWERS_AGAIN]
    records = [record for record in caplog.records if record.name == "maas_middleware"]
    assert {(record.levelno, record.exc_info) for record in records} == {(logging.WARNING, None)}


async def test_redis_that_is_gone_is_asked_again_in_growing_intervals(caplog: pytest.LogCaptureFixture) -> None:
    with running_redis() as server:
        server.kill()
        rest = FakeClock()
        async with stored(server, clock=rest) as storage:
            throttle = MovingWindowThrottle("2/minute", name="acts", storage=storage)
            silent = MovingWindowThrottle("unlimited", name="silent", storage=storage)
            assert await passes(throttle, 3) == [True, True, False]

            with running_redis(port=server.port):
                rest.advance(0.9)
                await throttle.hit("alice")
                assert storage.degraded
                rest.advance(0.1)
                await silent.hit("alice")
                await silent.peek("alice")
                await throttle.peek("alice")
                assert storage.degraded  # these did not ask it
                assert await passes(throttle, 3) == [True, True, False]
                assert not storage.degraded

    assert lines(caplog) == [FAILS % "ConnectionError", ANSWERS_AGAIN]
    assert server.url.removeprefix("redis://") not in caplog.text
    assert [record.exc_info for record in caplog.records if record.name == "maas_middleware"] == [None, None]


async def test_redis_that_refuses_to_write_is_an_outage(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async with stored(server) as storage:
        throttle = MovingWindowThrottle("2/minute", name="acts", storage=storage)
        server.do("CONFIG", "SET", "maxmemory", "1")
        answers = await passes(throttle, 3)
        server.do("CONFIG", "SET", "maxmemory", "0")

    assert answers == [True, True, False]
    [line] = lines(caplog)
    assert line.startswith("the throttles' store fails (")
    assert "OutOfMemory" in line


async def test_what_no_storage_should_raise_is_logged_whole_and_takes_nothing_down(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with stored(server) as storage:
        throttle = MovingWindowThrottle("1/minute", name="acts", storage=storage)
        refusals = []
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await storage.ask(_broken)
            refusals.append(await throttle.hit("alice") is None)

    assert refusals == [True, False]
    assert lines(caplog) == [FAILS % "ZeroDivisionError: by zero"]
    assert "in _broken" in caplog.text


async def _broken() -> None:
    raise ZeroDivisionError("by zero")
