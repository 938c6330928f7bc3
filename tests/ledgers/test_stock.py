from __future__ import annotations

import hashlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest
from limits import RateLimitItem
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.storage.redis.redispy import RedispyBridge
from limits.aio.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    RateLimiter,
    SlidingWindowCounterRateLimiter,
)
from limits.util import WindowStats
from redis.asyncio import Redis

from maas_middleware.errors import StoreUnavailable
from maas_middleware.ledgers.guarded import GuardedLedger
from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.ledgers.stock import LimitsLedger
from maas_middleware.limiting import Budget, Charge, Demand, Lease, Ledger, Limit, Subject, Verdict
from maas_middleware.testing.clock import FakeClock

from .contract import remaining, subject
from .redis_server import RedisServer, running_redis

STRATEGIES = [FixedWindowRateLimiter, MovingWindowRateLimiter, SlidingWindowCounterRateLimiter]


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@asynccontextmanager
async def redis_storage(port: int, *, wrap_exceptions: bool) -> AsyncIterator[RedisStorage]:
    storage = RedisStorage(f"async+redis://127.0.0.1:{port}", implementation="redispy", wrap_exceptions=wrap_exceptions)
    try:
        yield storage
    finally:
        assert isinstance(storage.bridge, RedispyBridge)
        client = storage.bridge.get_connection()
        assert isinstance(client, Redis)
        await client.aclose()  # `limits` leaves its connections open


@pytest.fixture(params=["memory", "redis"])
async def storage(request: pytest.FixtureRequest) -> AsyncIterator[Storage]:
    if request.param == "memory":
        yield MemoryStorage()
        return
    async with redis_storage(request.getfixturevalue("server").port, wrap_exceptions=True) as storage:
        yield storage
        await storage.reset()


@pytest.fixture(params=STRATEGIES)
def limiter(request: pytest.FixtureRequest, storage: Storage) -> RateLimiter:
    strategy: RateLimiter = request.param(storage)
    return strategy


@pytest.fixture
def ledger(limiter: RateLimiter) -> LimitsLedger:
    return LimitsLedger(limiter)


async def pass_or_not(ledger: Ledger, subject: Subject, count: int) -> list[bool]:
    verdicts = [await ledger.admit(subject, Demand(f"{number}", 50)) for number in range(count)]
    return [verdict.lease is not None for verdict in verdicts]


async def test_requests_pass_up_to_their_limit(ledger: LimitsLedger) -> None:
    assert await pass_or_not(ledger, subject("3/day"), 5) == [True, True, True, False, False]


async def test_calls_at_once_never_pass_more_than_the_limit(ledger: LimitsLedger) -> None:
    passed: list[bool] = []

    async def call(number: int) -> None:
        verdict = await ledger.admit(subject("10/day"), Demand(f"{number}", 1))
        passed.append(verdict.lease is not None)

    async with anyio.create_task_group() as calls:
        for number in range(30):
            calls.start_soon(call, number)

    assert (len(passed), sum(passed)) == (30, 10)


async def test_refused_request_costs_nothing(ledger: LimitsLedger) -> None:
    await pass_or_not(ledger, subject("1/day;5/hour"), 4)

    assert await remaining(ledger, subject("5/hour")) == (4, None)


async def test_admitted_request_holds_no_tokens_and_is_told_of_the_closest_limit(ledger: LimitsLedger) -> None:
    alice = subject("9/hour;5/day")

    verdict = await ledger.admit(alice, Demand("one", 50))

    assert verdict.lease is not None
    assert (verdict.lease.id, verdict.lease.subject, verdict.lease.tokens) == ("one", alice, 0)
    assert verdict.requests is not None
    assert (verdict.requests.limit, verdict.requests.remaining) == (Limit(5, 86_400), 4)
    assert 0 < verdict.requests.reset_ms <= 86_401_000
    assert (verdict.tokens, verdict.refused_by) == (None, None)


async def test_refused_request_is_told_when_to_come_back(ledger: LimitsLedger) -> None:
    await ledger.admit(subject("1/day"), Demand("one", 1))

    verdict = await ledger.admit(subject("1/day"), Demand("two", 1))

    assert (verdict.lease, verdict.refused_by) == (None, "requests")
    assert 0 < verdict.retry_after_ms <= 86_401_000


async def test_what_was_not_used_is_full_at_once(ledger: LimitsLedger) -> None:
    assert await ledger.peek(subject("5/day")) == Verdict(None, Budget(Limit(5, 86_400), 5, 0, 0), None)


async def test_peek_tells_whether_the_next_request_passes_and_consumes_nothing(ledger: LimitsLedger) -> None:
    alice = subject("2/day")
    await ledger.admit(alice, Demand("one", 1))

    before = [await ledger.peek(alice) for _ in range(3)]
    await ledger.admit(alice, Demand("two", 1))
    after = await ledger.peek(alice)

    assert {(verdict.refused_by, verdict.retry_after_ms) for verdict in before} == {(None, 0)}
    assert after.refused_by == "requests"
    assert 0 < after.retry_after_ms <= 86_401_000


async def test_settled_request_stays_counted(ledger: LimitsLedger) -> None:
    alice = subject("5/day")
    verdict = await ledger.admit(alice, Demand("one", 1))
    assert verdict.lease is not None

    await ledger.renew(verdict.lease)
    await ledger.settle(verdict.lease, Charge(0, request=False))

    assert await remaining(ledger, alice) == (4, None)


async def test_without_limits_everything_passes(ledger: LimitsLedger) -> None:
    assert await pass_or_not(ledger, subject(), 3) == [True] * 3
    assert await ledger.peek(subject()) == Verdict(None, None, None)


async def test_same_limit_twice_is_charged_once(ledger: LimitsLedger) -> None:
    assert await pass_or_not(ledger, subject("2/day;2/day"), 3) == [True, True, False]


async def test_subjects_whose_keys_look_alike_are_counted_apart(ledger: LimitsLedger) -> None:
    await ledger.admit(subject("1/second", key="a/1"), Demand("one", 1))
    await ledger.admit(subject("1/day", key="a"), Demand("one", 1))

    assert await remaining(ledger, subject("1/day", key="a/1")) == (1, None)
    assert await remaining(ledger, subject("1/day", key="b")) == (1, None)


@pytest.mark.parametrize(
    "alice",
    [
        pytest.param(subject("5/day", "100/minute"), id="tokens"),
        pytest.param(Subject("openshift/alice", concurrency=1), id="concurrency"),
    ],
)
async def test_limits_that_it_cannot_keep_are_refused(alice: Subject) -> None:
    ledger = LimitsLedger(FixedWindowRateLimiter(MemoryStorage()))

    with pytest.raises(ValueError, match="counts requests only"):
        await ledger.admit(alice, Demand("one", 1))
    with pytest.raises(ValueError, match="counts requests only"):
        await ledger.peek(alice)


@pytest.mark.parametrize("wrap_exceptions", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_storage_that_cannot_be_reached_is_unavailable(
    strategy: type[RateLimiter], wrap_exceptions: bool
) -> None:
    async with redis_storage(unused_port(), wrap_exceptions=wrap_exceptions) as storage:
        ledger = LimitsLedger(strategy(storage))

        with pytest.raises(StoreUnavailable):
            await ledger.admit(subject("5/day"), Demand("one", 1))
        with pytest.raises(StoreUnavailable):
            await ledger.peek(subject("5/day"))


class Scripted(RateLimiter):
    """A strategy that knows what it will say."""

    def __init__(self, stats: dict[int, WindowStats], *, passes: bool = True, hits: bool = True) -> None:
        super().__init__(MemoryStorage())
        self.hit_keys: list[str] = []
        self._stats = stats
        self._passes = passes
        self._hits = hits

    async def test(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        return self._passes

    async def hit(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        self.hit_keys.append(item.key_for(*identifiers))
        return self._hits

    async def get_window_stats(self, item: RateLimitItem, *identifiers: str) -> WindowStats:
        return self._stats[item.get_expiry()]


async def test_of_two_limits_that_refuse_the_one_with_the_longer_wait_is_named() -> None:
    limiter = Scripted({60: WindowStats(1030.5, 0), 3600: WindowStats(1200.0001, 0)}, passes=False)
    ledger = LimitsLedger(limiter, clock=FakeClock(1000))

    verdict = await ledger.admit(subject("5/minute;9/hour"), Demand("one", 1))

    assert verdict == Verdict(None, Budget(Limit(9, 3600), 0, 200_001, 200_001), None, "requests", 200_001)
    assert limiter.hit_keys == []


async def test_request_that_loses_a_race_is_refused() -> None:
    limiter = Scripted({60: WindowStats(1000, 5)}, hits=False)
    ledger = LimitsLedger(limiter, clock=FakeClock(1000))

    verdict = await ledger.admit(subject("5/minute"), Demand("one", 1))

    assert verdict == Verdict(None, Budget(Limit(5, 60), 5, 0, 0), None, "requests", 1)


async def test_what_is_used_is_not_full_even_if_the_strategy_says_that_it_was_before_now() -> None:
    ledger = LimitsLedger(Scripted({60: WindowStats(999, 4)}), clock=FakeClock(1000))

    verdict = await ledger.peek(subject("5/minute"))

    assert verdict.requests == Budget(Limit(5, 60), 4, 1, 1)


async def test_lease_tells_the_time_of_its_admission_and_keys_hide_the_subject() -> None:
    limiter = Scripted({60: WindowStats(1060, 4)})
    ledger = LimitsLedger(limiter, clock=FakeClock(1000.25))
    alice = subject("5/minute")

    verdict = await ledger.admit(alice, Demand("one", 1))

    assert verdict.lease == Lease("one", alice, 0, 1_000_250)
    assert limiter.hit_keys == [f"maas/{hashlib.sha256(b'openshift/alice').hexdigest()}/5/60/second"]


async def test_guarded_ledger_goes_on_while_redis_is_frozen_and_comes_back_by_itself(server: RedisServer) -> None:
    clock, alice = FakeClock(), subject("8/day")
    async with redis_storage(server.port, wrap_exceptions=True) as storage:
        limits = LimitsLedger(MovingWindowRateLimiter(storage))
        ledger = GuardedLedger(limits, fallback=MemoryLedger(clock=clock), replicas=4, budget=0.5, clock=clock)
        before = await pass_or_not(ledger, alice, 1)
        server.freeze()
        try:
            with anyio.fail_after(5):
                frozen = await pass_or_not(ledger, alice, 3)
            degraded = ledger.degraded
        finally:
            server.thaw()
        clock.advance(5)
        after = await pass_or_not(ledger, alice, 8)
        await storage.reset()

    assert (before, frozen, degraded) == ([True], [True, True, False], True)
    assert not ledger.degraded
    assert sum(after) in (6, 7)  # the request that was under way may have been counted when Redis went on
