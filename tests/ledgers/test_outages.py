"""A Redis that goes away and comes back while requests are made, and the guard that has to make the best of it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import anyio
import pytest

from maas_middleware.errors import StoreUnavailable
from maas_middleware.ledgers.guarded import GuardedLedger
from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.ledgers.redis import RedisLedger
from maas_middleware.limiting import Charge, Demand
from maas_middleware.testing.clock import FakeClock

from .contract import counted, subject
from .redis_server import RedisServer, running_redis

T = TypeVar("T")
Policy = Literal["local", "closed"]
Trouble = Callable[[RedisServer, Callable[[], object]], AbstractContextManager[None]]

BUDGET, TIMEOUT = 0.5, 0.4
MARGIN = 1.0
LAPSED_SECONDS = 121
CALLERS = 8
BEFORE, DURING = 40, 240
STEP_SECONDS = 0.02

ALICE = subject("1000000/day", "1000000000/day")


class Traffic:
    """Requests from several callers at once, and what became of them. A little time passes with each."""

    def __init__(self, ledger: GuardedLedger, clock: FakeClock, policy: Policy) -> None:
        self.made = 0
        self.settled = 0
        self.slowest = 0.0
        self.settles_again = True
        self._ledger = ledger
        self._clock = clock
        self._policy = policy
        self._reached: dict[int, anyio.Event] = {}

    async def keep_coming(self, until: anyio.Event) -> None:
        while not until.is_set():
            await self.request()

    async def until_made(self, more: int) -> None:
        await self._reached.setdefault(self.made + more, anyio.Event()).wait()

    async def request(self) -> None:
        self.made += 1
        tokens, demand = self.made % 7, Demand(f"{self.made}", 5)
        self._clock.advance(STEP_SECONDS)
        if event := self._reached.get(self.made):
            event.set()
        try:
            verdict = await self._timed(self._ledger.admit(ALICE, demand))
            await self._timed(self._ledger.peek(ALICE))
        except StoreUnavailable:
            assert self._policy == "closed"
            return
        finally:
            await anyio.lowlevel.checkpoint()
        assert verdict.lease is not None
        await self._timed(self._ledger.renew(verdict.lease))
        await self._timed(self._ledger.settle(verdict.lease, Charge(tokens)))
        if self.settles_again:
            await self._timed(self._ledger.settle(verdict.lease, Charge(1000)))
        self.settled += tokens

    async def _timed(self, call: Awaitable[T]) -> T:
        started = anyio.current_time()
        try:
            return await call
        finally:
            self.slowest = max(self.slowest, anyio.current_time() - started)


@contextmanager
def frozen(server: RedisServer, start_again: Callable[[], object]) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@contextmanager
def frozen_and_scripts_forgotten(server: RedisServer, start_again: Callable[[], object]) -> Iterator[None]:
    with frozen(server, start_again):
        yield
    server.do("SCRIPT", "FLUSH")


@contextmanager
def connections_cut(server: RedisServer, start_again: Callable[[], object]) -> Iterator[None]:
    server.do("CLIENT", "KILL", "TYPE", "normal")
    yield
    server.do("CLIENT", "KILL", "TYPE", "normal")


@contextmanager
def out_of_memory(server: RedisServer, start_again: Callable[[], object]) -> Iterator[None]:
    server.do("CONFIG", "SET", "maxmemory", "1")
    yield
    server.do("CONFIG", "SET", "maxmemory", "0")


@contextmanager
def read_only(server: RedisServer, start_again: Callable[[], object]) -> Iterator[None]:
    server.do("REPLICAOF", "127.0.0.1", "1")
    yield
    server.do("REPLICAOF", "NO", "ONE")


@contextmanager
def killed(server: RedisServer, start_again: Callable[[], object]) -> Iterator[None]:
    server.kill()
    yield
    start_again()


@asynccontextmanager
async def guarded(url: str, policy: Policy) -> AsyncIterator[tuple[GuardedLedger, Traffic, list[bool]]]:
    clock, changes = FakeClock(), list[bool]()
    fallback = MemoryLedger() if policy == "local" else None
    store = RedisLedger(url, timeout=TIMEOUT)
    ledger = GuardedLedger(store, fallback=fallback, budget=BUDGET, clock=clock, on_change=changes.append)
    yield ledger, Traffic(ledger, clock, policy), changes
    await ledger.aclose()


async def live_through(trouble: AbstractContextManager[None], ledger: GuardedLedger, traffic: Traffic) -> None:
    """Have requests made before, during and after the trouble, until nothing waits any more."""
    over = anyio.Event()
    async with anyio.create_task_group() as callers:
        for _ in range(CALLERS):
            callers.start_soon(traffic.keep_coming, over)
        await traffic.until_made(BEFORE)
        with trouble:
            await traffic.until_made(DURING)
        over.set()
    for _ in range(1000):
        if not ledger.degraded and not ledger.waiting:
            return
        await traffic.request()
    raise AssertionError("it does not recover")


async def in_store(url: str) -> int:
    """The tokens that the store has counted, once all leases have lapsed."""
    ledger = RedisLedger(url, clock=lambda: time.time() + LAPSED_SECONDS, timeout=10)
    _, tokens = await counted(ledger, seconds=86_400)
    await ledger.aclose()
    return tokens


@pytest.mark.parametrize("policy", ["local", "closed"])
@pytest.mark.parametrize("trouble", [frozen, frozen_and_scripts_forgotten, out_of_memory, read_only, killed])
async def test_what_is_settled_while_redis_is_away_is_charged_once_and_no_call_takes_longer_than_it_may(
    trouble: Trouble, policy: Policy, tmp_path: Path
) -> None:
    on_disk = partial(running_redis, "--appendonly", "yes", "--appendfsync", "always", "--dir", str(tmp_path))
    with ExitStack() as servers:
        server = servers.enter_context(on_disk())
        async with guarded(server.url, policy) as (ledger, traffic, changes):
            again = partial(servers.enter_context, on_disk(port=server.port))
            await live_through(trouble(server, again), ledger, traffic)

            assert traffic.slowest < BUDGET + MARGIN
            assert (changes[0], changes[-1]) == (True, False)
            assert ledger.lost == 0
            assert await in_store(server.url) == traffic.settled > 0


@pytest.mark.parametrize("policy", ["local", "closed"])
async def test_cut_connections_cost_nobody_anything_twice(policy: Policy) -> None:
    with running_redis() as server:
        async with guarded(server.url, policy) as (ledger, traffic, _):
            await live_through(connections_cut(server, lambda: None), ledger, traffic)

            assert traffic.slowest < BUDGET + MARGIN
            assert ledger.lost == 0
            assert await in_store(server.url) == traffic.settled > 0


async def test_forgotten_scripts_are_no_outage() -> None:
    with running_redis() as server:
        async with guarded(server.url, "closed") as (_, traffic, changes):
            for _ in range(5):
                server.do("SCRIPT", "FLUSH")
                async with anyio.create_task_group() as callers:
                    for _ in range(CALLERS):
                        callers.start_soon(traffic.request)

            assert changes == []
            assert await in_store(server.url) == traffic.settled == sum(number % 7 for number in range(41))


@pytest.mark.parametrize("policy", ["local", "closed"])
async def test_redis_that_comes_back_with_nothing_counts_from_then_on(policy: Policy) -> None:
    with ExitStack() as servers:
        server = servers.enter_context(running_redis())
        async with guarded(server.url, policy) as (ledger, traffic, changes):
            traffic.settles_again = False  # a store that forgets what was settled would charge it
            again = partial(servers.enter_context, running_redis(port=server.port))
            await live_through(killed(server, again), ledger, traffic)
            settled, held = traffic.settled, await in_store(server.url)
            for _ in range(20):
                await traffic.request()

            assert traffic.slowest < BUDGET + MARGIN
            assert (changes[0], changes[-1]) == (True, False)
            assert 0 <= held <= settled
            assert await in_store(server.url) - held == traffic.settled - settled > 0
