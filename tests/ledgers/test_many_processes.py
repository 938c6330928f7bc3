from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from maas_middleware.ledgers.redis import RedisLedger

from .contract import counted, spend, subject
from .counting import Job, Worker, at_once, working
from .redis_server import RedisServer, running_redis

PROCESSES = 8
LEASE_SECONDS = 120
DAY = 86_400


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def workers(server: RedisServer) -> Iterator[list[Worker]]:
    with working(server.url, PROCESSES) as workers:
        yield workers


@asynccontextmanager
async def looking(server: RedisServer, *, ahead: float = 0) -> AsyncIterator[RedisLedger]:
    """A ledger whose clock is so many seconds ahead of the server's."""
    ledger = RedisLedger(server.url, clock=lambda: time.time() + ahead, timeout=10)
    yield ledger
    await ledger.aclose()


async def used(server: RedisServer, key: str) -> tuple[int, int]:
    """The requests and tokens that the store has counted; tokens in flight count."""
    async with looking(server) as ledger:
        return await counted(ledger, key, seconds=DAY)


async def in_flight(server: RedisServer, key: str) -> tuple[int, int]:
    """How many leases there are, and how many fields the hash of the subject has because of them."""
    name = f"maas:{{{hashlib.sha256(key.encode()).hexdigest()}}}"
    async with Redis.from_url(server.url) as redis:
        fields = [field for field in await redis.hkeys(name) if field[:1] in (b"l", b"h")]
        return await redis.zcard(f"{name}:l"), len(fields)


async def test_eight_processes_admit_as_many_requests_as_the_limit_exactly(
    server: RedisServer, workers: list[Worker]
) -> None:
    tallies = at_once(workers, Job("requests", "400/day;1000/day", "1000000/day", estimate=100, used=(0, 300)))

    assert sum(tally.admitted for tally in tallies) == 400
    assert await used(server, "requests") == (400, sum(tally.settled_tokens for tally in tallies))
    assert await in_flight(server, "requests") == (0, 0)


async def test_eight_processes_go_over_a_token_limit_by_no_more_than_the_overrun_of_the_last_request(
    server: RedisServer, workers: list[Worker]
) -> None:
    tallies = at_once(workers, Job("tokens", "10000/day", "20030/day", estimate=100, used=(100, 100)))

    settled, overruns = (
        sum(tally.settled_tokens for tally in tallies),
        [each for tally in tallies for each in tally.overruns],
    )
    assert (settled, overruns) == (20_100, [70])
    assert await used(server, "tokens") == (sum(tally.admitted for tally in tallies), settled)
    assert await in_flight(server, "tokens") == (0, 0)


async def test_eight_processes_go_over_a_token_limit_by_no_more_than_what_went_over_its_lease(
    server: RedisServer, workers: list[Worker]
) -> None:
    tallies = at_once(workers, Job("overruns", "10000/day", "10000/day", estimate=100, used=(0, 150)))

    settled, overrun = sum(tally.settled_tokens for tally in tallies), sum(sum(tally.overruns) for tally in tallies)
    assert 10_000 <= settled <= 10_000 + overrun
    assert await used(server, "overruns") == (sum(tally.admitted for tally in tallies), settled)
    assert await in_flight(server, "overruns") == (0, 0)


async def test_strict_requests_of_eight_processes_never_go_over_a_token_limit(
    server: RedisServer, workers: list[Worker]
) -> None:
    tallies = at_once(workers, Job("strict", "10000/day", "10000/day", estimate=100, strict=True, used=(0, 100)))

    settled = sum(tally.settled_tokens for tally in tallies)
    assert 10_000 - 100 < settled <= 10_000
    assert [tally.overruns for tally in tallies] == [[]] * PROCESSES
    assert await used(server, "strict") == (sum(tally.admitted for tally in tallies), settled)
    assert await in_flight(server, "strict") == (0, 0)


async def test_no_more_calls_of_eight_processes_are_in_flight_than_the_cap(
    server: RedisServer, workers: list[Worker]
) -> None:
    tallies = at_once(workers, Job("crowd", "80/day", "1000000/day", concurrency=5))

    assert sum(tally.admitted for tally in tallies) == 80
    assert 1 < max(tally.most_at_once for tally in tallies) <= 5
    assert await in_flight(server, "crowd") == (0, 0)


async def test_leases_of_a_killed_process_lapse_and_its_requests_stay_counted(server: RedisServer) -> None:
    job = Job("killed", "1000000/day", "1000000000/day", estimate=50, used=(7, 7), keeps=3, endless=True)
    with working(server.url, 1) as (worker,):
        worker.start(job)
        for _ in range(20):
            worker.told()
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait(timeout=5)

    requests, _ = await used(server, "killed")
    live, fields = await in_flight(server, "killed")
    async with looking(server, ahead=LEASE_SECONDS + 1) as later:
        requests_later, settled = await counted(later, "killed", seconds=DAY)
        await spend(later, subject("1000000/day", "1000000000/day", key="killed"), "next", 0)

    assert fields - 1 == live >= 12  # what was kept, what it was in the middle of, and the sum of it
    assert settled % 7 == 0
    assert requests_later == requests == live + settled // 7
    assert settled >= 20 * 7
    assert await in_flight(server, "killed") == (0, 0)
