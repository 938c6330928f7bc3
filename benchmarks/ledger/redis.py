"""The ledger in a Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from time import perf_counter
from typing import Any

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import RateLimiter
from redis.asyncio import BlockingConnectionPool, Redis

from maas_middleware.ledgers._storage import MAXIMUM_CONNECTIONS
from maas_middleware.ledgers.redis import RedisLedger
from maas_middleware.limiting import Charge, Demand, Lease, Subject, parse_limits

from ..table import Goal, Table
from .memory import AMOUNT, STRATEGIES, TOKENS

PING = "redis-py, PING"
USERS = 1000
TASKS = (1, 16, 64)
PATIENCE = 10  # seconds: whoever shares the machine must not end the run
GOAL = Goal("PING", 2.5)
NOTES = (
    "RedisLedger: a limit on requests and one on tokens, for each of 1,000 users in turn; a call is one round trip.",
    "limits: two hits, of 1 and of 150 tokens, which are two round trips; nothing is leased or settled.",
    f"All have {MAXIMUM_CONNECTIONS} connections of redis-py at most; each is compared with the PINGs just before it.",
)

Call = Callable[[int], Awaitable[object]]


async def measure(url: str, rounds: int, calls: int) -> Table:
    """Measure one call at a time, and 16 and 64 tasks at once.

    Args:
        calls: of each thing in each round.
    """
    goals = {f"RedisLedger, {operation}": GOAL for operation in ("admit", "renew", "peek", "settle")}
    settings = {f"{tasks} task{'s' if tasks > 1 else ''}": tasks for tasks in TASKS}
    table = Table("us, ratio to PING", list(settings), goals, NOTES)
    pool = _pool(url)
    client: Any = Redis(connection_pool=pool)
    ledger = RedisLedger(url, timeout=PATIENCE)

    async def ping(call: int) -> object:
        return await client.execute_command("PING")

    contenders = [(PING, ping), *_ours(ledger, calls), *_theirs(url, pool)]
    try:
        for past in range(-1, rounds):  # the first connects, and sends the scripts
            for setting, tasks in settings.items():
                for name, call in contenders:
                    compared = await _spent(ping, tasks, calls)
                    spent = await _spent(call, tasks, calls)
                    if past >= 0:
                        table.add(name, setting, spent, compared)
    finally:
        await client.aclose(close_connection_pool=True)
        await ledger.aclose()
    return table


def _pool(url: str) -> BlockingConnectionPool:
    return BlockingConnectionPool.from_url(
        url, protocol=2, max_connections=MAXIMUM_CONNECTIONS, timeout=PATIENCE, socket_connect_timeout=PATIENCE
    )


def _ours(ledger: RedisLedger, calls: int) -> Iterator[tuple[str, Call]]:
    requests, tokens = parse_limits(f"{AMOUNT}/minute"), parse_limits(f"{AMOUNT}/minute")
    subjects = [Subject(f"user-{user}", requests, tokens) for user in range(USERS)]
    leases: list[Lease] = []
    ids, turns = count(), count()

    async def admit(call: int) -> None:
        verdict = await ledger.admit(subjects[next(turns) % USERS], Demand(str(next(ids)), 200))
        assert verdict.lease is not None
        leases.append(verdict.lease)

    async def renew(call: int) -> None:
        await ledger.renew(leases[call])

    async def peek(call: int) -> None:
        await ledger.peek(leases[call].subject)

    async def settle(call: int) -> None:
        await ledger.settle(leases.pop(), Charge(TOKENS))

    for operation in (admit, renew, peek, settle):
        yield f"RedisLedger, {operation.__name__}", operation


def _theirs(url: str, pool: BlockingConnectionPool) -> Iterator[tuple[str, Call]]:
    options: dict[str, Any] = {"implementation": "redispy", "connection_pool": pool}
    for name, strategy in STRATEGIES.items():
        yield name, _hits(strategy(RedisStorage(f"async+{url}", **options)), name)


def _hits(limiter: RateLimiter, name: str) -> Call:
    requests = RateLimitItemPerMinute(AMOUNT, namespace="requests")
    tokens = RateLimitItemPerMinute(AMOUNT, namespace="tokens")
    turns = count()

    async def call(_: int) -> None:
        user = f"user-{next(turns) % USERS}"
        assert await limiter.hit(requests, name, user)
        assert await limiter.hit(tokens, name, user, cost=TOKENS)

    return call


async def _spent(call: Call, tasks: int, calls: int) -> float:
    """Microseconds a call, all tasks together."""

    async def some(first: int) -> None:
        for number in range(first, calls, tasks):
            await call(number)

    started = perf_counter()
    async with asyncio.TaskGroup() as group:
        for first in range(tasks):
            group.create_task(some(first))
    return (perf_counter() - started) / calls * 1e6
