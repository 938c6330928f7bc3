"""Ledgers in the memory of one process."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import count, cycle, islice
from time import perf_counter, process_time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    RateLimiter,
    SlidingWindowCounterRateLimiter,
)

from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.limiting import Charge, Demand, Subject, parse_limits

from ..table import Goal, Table

OURS = "MemoryLedger, admit + settle"
STRATEGIES: dict[str, type[RateLimiter]] = {
    "limits, fixed window": FixedWindowRateLimiter,
    "limits, moving window": MovingWindowRateLimiter,
    "limits, sliding counter": SlidingWindowCounterRateLimiter,
}
NOTES = (
    "MemoryLedger: a limit on requests and one on tokens; leases, marks of what is settled, the state of both limits.",
    "limits: two hits, of 1 and of 150 tokens; nothing is leased or settled, and the state is not asked for.",
    "The loop has a turn after each call, for what was left to do later; the cost of an empty turn is taken off.",
    "A sweep of the moving window takes many turns, in threads: only what fell into those measured is told.",
)
AMOUNT = 10**9  # so that nothing is refused
TOKENS = 150
MOST_SECONDS = 0.1

Call = Callable[[int], Awaitable[None]]


async def measure(numbers: Sequence[int], rounds: int, calls: int) -> Table:
    """Measure with so many users, in turn and at random.

    Args:
        calls: of each thing in each round, but none for longer than a tenth of a second.
    """
    settings = {_setting(users, order): (users, order) for users in numbers for order in _orders(users)}
    first = next(iter(settings))
    table = Table(f"us of CPU, ratio to {first}", list(settings), {OURS: Goal("us", 10)}, NOTES)
    contenders = {users: [await _filled(name, users) for name in (OURS, *STRATEGIES)] for users in numbers}
    turns = {users: cycle(range(users)) for users in numbers}
    chance = random.Random(0)
    gc.collect()
    for _ in range(rounds):
        bases: dict[str, float] = {}
        for setting, (users, order) in settings.items():
            for name, call in zip((OURS, *STRATEGIES), contenders[users], strict=True):
                chosen = (
                    list(islice(turns[users], calls)) if order == "in turn" else chance.choices(range(users), k=calls)
                )
                empty = await _spent(_nothing, chosen)
                spent = max(0.01, await _spent(call, chosen) - empty)
                table.add(name, setting, spent, bases.setdefault(name, spent))
    return table


def _orders(users: int) -> tuple[str, ...]:
    return ("in turn", "random") if users > 1 else ("in turn",)


def _setting(users: int, order: str) -> str:
    return f"{users:,} {order}" if users > 1 else "1 user"


async def _filled(name: str, users: int) -> Call:
    """The call that is measured, once every user has made it."""
    call = _ours(users) if name == OURS else _theirs(STRATEGIES[name], users)
    for user in range(users):
        await call(user)
    await _end_tasks()
    return call


def _ours(users: int) -> Call:
    ledger = MemoryLedger()
    requests, tokens = parse_limits(f"{AMOUNT}/minute"), parse_limits(f"{AMOUNT}/minute")
    subjects = [Subject(f"user-{user}", requests, tokens) for user in range(users)]
    ids = count()

    async def call(user: int) -> None:
        verdict = await ledger.admit(subjects[user], Demand(str(next(ids)), 200))
        assert verdict.lease is not None
        await ledger.settle(verdict.lease, Charge(TOKENS))

    return call


def _theirs(strategy: type[RateLimiter], users: int) -> Call:
    limiter = strategy(MemoryStorage())
    requests = RateLimitItemPerMinute(AMOUNT, namespace="requests")
    tokens = RateLimitItemPerMinute(AMOUNT, namespace="tokens")
    keys = [f"user-{user}" for user in range(users)]

    async def call(user: int) -> None:
        assert await limiter.hit(requests, keys[user])
        assert await limiter.hit(tokens, keys[user], cost=TOKENS)

    return call


async def _nothing(user: int) -> None:
    pass


async def _spent(call: Call, users: Iterable[int]) -> float:
    """Microseconds of the processor a call, which depend less on what else the machine does."""
    done, deadline = 0, perf_counter() + MOST_SECONDS
    started = process_time()
    for user in users:
        await call(user)
        await asyncio.sleep(0)
        done += 1
        if perf_counter() > deadline:
            break
    spent = (process_time() - started) / done * 1e6
    await _end_tasks()
    return spent


async def _end_tasks() -> None:
    """End what a call left running, so that the next contender does not pay for it."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
