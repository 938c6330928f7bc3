from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from redis.asyncio import Redis

from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.ledgers.redis import RedisLedger
from maas_middleware.limiting import Ledger
from maas_middleware.testing.clock import FakeClock

from .contract import spend
from .law_machine import KEYS, TIERS, WINDOWS, LedgerMachine
from .redis_server import RedisServer, running_redis


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.mark.timeout(120)
def test_law_holds_in_redis_for_any_schedule_and_memory_says_the_same(server: RedisServer) -> None:
    class InRedis(LedgerMachine):
        def make_ledgers(self, clock: FakeClock) -> Sequence[Ledger]:
            server.do("FLUSHALL")
            self.redis = RedisLedger(server.url, clock=clock, timeout=10)
            return [MemoryLedger(clock=clock), self.redis]

        async def look_inside(self) -> None:
            clock, keys = self.clock, sorted(set(KEYS))
            clock.advance(2 * 86_400)
            for key, (number, tier) in product(keys, enumerate(TIERS)):
                await spend(self.redis, tier.subject(key), f"last {number}", 0)
            async with Redis.from_url(server.url, decode_responses=True) as redis:
                leases = [name async for name in redis.scan_iter("*:l")]
                fields = [
                    field async for name in redis.scan_iter("maas:*", _type="hash") for field in await redis.hkeys(name)
                ]
            windows = {f"{kind}{seconds}" for kind in "rt" for seconds in WINDOWS}
            assert leases == []
            assert set(fields) <= windows

        async def close(self) -> None:
            await self.redis.aclose()

    schedules = settings(derandomize=True, database=None, deadline=None, max_examples=36, stateful_step_count=40)

    run_state_machine_as_test(InRedis, settings=schedules)
