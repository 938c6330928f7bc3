"""Throttles on the moving windows of `limits`, in this process or in a Redis that replicas share."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from math import ceil
from typing import TypeVar

import anyio
from limits import RateLimitItem, RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage
from limits.aio.storage.memory import Entry
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError

from ..errors import StoreUnavailable
from ..limiting import Limit, parse_limits
from ..throttling import Refusal
from ._breaker import Breaker, reason_of
from ._storage import open_storage

logger = logging.getLogger("maas_middleware")

MAXIMUM_KEYS = 100_000
FORGOTTEN_AT_ONCE = 10  # more than one, so that what is old goes faster than what is new comes
UNDER_WAY_WAIT_MS = 1000
FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 1.0, 5.0

T = TypeVar("T")


class MovingWindowThrottle:
    """Counts acts by key with the moving windows of `limits`. All limits are tested before any is charged.

    Not in one step, though: of acts at once that the second of two limits refuses, the first may count some.

    Args:
        limits: in the notation of `limits`, or as `Limit`s; () or `unlimited` refuses nothing.
        name: keeps its counters apart from those of other throttles in the same Redis.
        storage: where replicas count together; None, and while it fails: in this process, with the whole limits.
        maximum_keys: of each window in this process; above it those go that have not been hit for the longest time.
        clock: seconds since the epoch, as `limits` reads them.

    Raises:
        ValueError: with a sentence, where the text is not in that notation.
    """

    def __init__(
        self,
        limits: Sequence[Limit] | str,
        *,
        name: str,
        storage: ThrottleStorage | None = None,
        maximum_keys: int = MAXIMUM_KEYS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        parsed = dict.fromkeys(parse_limits(limits) if isinstance(limits, str) else limits)
        self._storage = storage if parsed else None  # asking nothing would pass for an answer
        self._local = _Windows(
            [_Window(MovingWindowRateLimiter(MemoryWindows(maximum_keys)), limit, name, clock) for limit in parsed]
        )
        self._shared = self._local
        if storage is not None:
            self._shared = _Windows([_Window(storage.limiter, limit, name, clock) for limit in parsed])

    async def hit(self, key: str, /) -> Refusal | None:
        """Count an act, unless one of the limits refuses it."""
        digest = _digest(key)
        return await self._ask(self._storage, lambda windows: windows.hit(digest))

    async def peek(self, key: str, count: int = 1, /) -> Refusal | None:
        """Tell whether so many acts would pass now, and count none."""
        digest = _digest(key)
        is_alone = self._storage is not None and self._storage.degraded  # what can be read is not yet what counts
        return await self._ask(None if is_alone else self._storage, lambda windows: windows.peek(digest, count))

    async def _ask(
        self, storage: ThrottleStorage | None, operation: Callable[[_Windows], Awaitable[Refusal | None]]
    ) -> Refusal | None:
        if storage is not None:
            try:
                return await storage.ask(lambda: operation(self._shared))
            except StoreUnavailable:
                pass
        return await operation(self._local)


class ThrottleStorage:
    """A Redis in which throttles count for all processes that use it, and what is done while it fails.

    The first failure opens a breaker. While that is open nothing is asked of Redis, except one probe at a time, and
    each process counts on its own; a probe that succeeds closes it. Each change is one line in the log.

    The windows are on the clocks of the processes, which have to agree as closely as a window is to be exact.
    Connections are made when they are needed, and belong to one event loop.

    Args:
        url: `redis://` or `rediss://`, as that of `RedisLedger`.
        key_prefix: of all keys.
        timeout: seconds that one hit or peek may take.
        clock: seconds, never going back, for the time between probes.

    Raises:
        ValueError: with a sentence, where redis-py is missing or the url is wrong.
    """

    def __init__(
        self,
        url: str,
        *,
        key_prefix: str = "maas",
        timeout: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage = open_storage(url, key_prefix=key_prefix, timeout=timeout)
        self._timeout = timeout
        self._breaker = Breaker(
            rest=FIRST_REST_SECONDS, longest_rest=LONGEST_REST_SECONDS, clock=clock, changed=_log_change
        )
        self.limiter = MovingWindowRateLimiter(self._storage)

    @property
    def degraded(self) -> bool:
        """Whether Redis is left alone at the moment, and each process counts on its own."""
        return self._breaker.is_open

    async def ask(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run what uses the limiter.

        Raises:
            StoreUnavailable: Redis gives no answer in time, or refuses, or is left alone.
        """
        if self._breaker.refuses:
            raise StoreUnavailable
        try:
            with self._breaker.watching():
                with anyio.fail_after(self._timeout):  # redis-py may swallow the one cancellation of asyncio.timeout
                    return await operation()
        except Exception as error:
            raise StoreUnavailable from error

    async def aclose(self) -> None:
        """Close the connections; calls in flight fail."""
        await self._storage.aclose()


class MemoryWindows(MemoryStorage):
    """Windows of one length in this process, the last hit last.

    To drop what is old, the storage of `limits` starts a task at a hit, which nobody waits for and which takes a thread
    for each key and a lock of one event loop. Here a hit drops some itself.
    """

    def __init__(self, maximum_keys: int) -> None:
        super().__init__()
        self.events = self._by_age = OrderedDict[str, list[Entry]]()
        self._maximum_keys = maximum_keys

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Add entries, unless they would be too many."""
        _, used = await self.get_moving_window(key, limit, expiry)
        if used + amount > limit:
            return False
        entry = Entry(expiry)
        self._by_age[key] = [entry] * amount + self._by_age.get(key, [])[:used]
        self._by_age.move_to_end(key)
        self._forget(entry.atime)
        return True

    def _forget(self, now: float) -> None:
        for entries in list(islice(self._by_age.values(), FORGOTTEN_AT_ONCE)):
            if len(self._by_age) <= self._maximum_keys and entries[0].expiry > now:
                return
            self._by_age.popitem(last=False)


class _Window:
    """One limit of a throttle."""

    def __init__(self, limiter: MovingWindowRateLimiter, limit: Limit, name: str, clock: Callable[[], float]) -> None:
        self._limiter = limiter
        self._limit = limit
        self._item: RateLimitItem = RateLimitItemPerSecond(limit.amount, limit.seconds, namespace=f"throttle:{name}")
        self._clock = clock

    async def hit(self, digest: str) -> Refusal | None:
        if await self._limiter.hit(self._item, digest):
            return None
        return await self.peek(digest, 1) or Refusal(self._limit, 1)  # it is free since

    async def peek(self, digest: str, count: int) -> Refusal | None:
        resets_at, remaining = await self._limiter.get_window_stats(self._item, digest)
        if remaining >= count:
            return None
        if remaining > 0:
            return Refusal(self._limit, UNDER_WAY_WAIT_MS)
        # an entry counts up to and with the last instant of its window
        return Refusal(self._limit, max(0, ceil((resets_at - self._clock()) * 1000)) + 1)


class _Windows:
    """The limits of a throttle, in one place."""

    def __init__(self, windows: Sequence[_Window]) -> None:
        self._windows = windows

    async def hit(self, digest: str) -> Refusal | None:
        if len(self._windows) > 1 and (refusal := await self.peek(digest, 1)) is not None:
            return refusal
        for window in self._windows:
            if (refusal := await window.hit(digest)) is not None:
                return refusal
        return None

    async def peek(self, digest: str, count: int) -> Refusal | None:
        refusals = [await window.peek(digest, count) for window in self._windows]
        return max(filter(None, refusals), key=lambda refusal: refusal.retry_after_ms, default=None)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()  # a "/" would run into the other parts


def _log_change(error: Exception | None) -> None:
    if error is None:
        logger.warning("the throttles' store answers again")
        return
    is_expected = isinstance(error, StorageError | OSError)
    trace = None if is_expected else error
    logger.warning("the throttles' store fails (%s): this process counts on its own", reason_of(error), exc_info=trace)
