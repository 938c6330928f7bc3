"""A ledger over any strategy and storage of `limits`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.aio.strategies import RateLimiter
from limits.errors import StorageError

from ..errors import StoreUnavailable
from ..limiting import Budget, Charge, Demand, Lease, Limit, Subject, Verdict


class LimitsLedger:
    """Counts requests with a strategy of `limits`, on a storage that somebody has already.

    It promises less than the other ledgers. A request is counted when it is admitted, and neither given back nor
    recognised when its lease id comes again; leases do not live, so there is nothing to settle or renew. Limits on
    tokens or on concurrency cannot be kept, and are refused. All limits are tested before any is charged, but not in
    one step: of calls at once some may be refused that have been charged for another limit, and, by a fixed window,
    for the limit that refuses them. A changed limit starts with nothing used.

    `reset_ms` is what the strategy says: of a fixed window when it is full again, of others when some of it is.

    Args:
        limiter: should be over a storage made with `wrap_exceptions=True` and time-outs.
        clock: seconds since the epoch, as the storage tells them.
    """

    def __init__(self, limiter: RateLimiter, *, clock: Callable[[], float] = time.time) -> None:
        self._limiter = limiter
        self._clock = clock
        failures = limiter.storage.base_exceptions
        raw = failures if isinstance(failures, tuple) else (failures,)
        self._failures: tuple[type[Exception], ...] = (StorageError, *raw)

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        """Admit or refuse; a refused request costs nothing but in a race.

        Raises:
            StoreUnavailable: the storage fails.
            ValueError: the subject has limits on more than requests.
        """
        limits, key = _limits(subject), _key(subject)
        with self._translating():
            passes = await self._hit([_item(limit) for limit in limits], key)
            budget = await self._closest(limits, key)
        if budget is not None and not passes:
            return _refusal(budget)
        return Verdict(Lease(demand.lease_id, subject, 0, int(self._clock() * 1000)), budget, None)

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        """Do nothing: the request is counted already."""

    async def renew(self, lease: Lease, /) -> None:
        """Do nothing: a lease holds nothing."""

    async def peek(self, subject: Subject, /) -> Verdict:
        """Tell how the limits stand, consuming nothing.

        Raises:
            StoreUnavailable: the storage fails.
            ValueError: the subject has limits on more than requests.
        """
        limits, key = _limits(subject), _key(subject)
        with self._translating():
            budget = await self._closest(limits, key)
        return _refusal(budget) if budget is not None and budget.remaining < 1 else Verdict(None, budget, None)

    async def _hit(self, items: list[RateLimitItem], key: str) -> bool:
        for ask in (self._limiter.test, self._limiter.hit):
            for item in items:
                if not await ask(item, key):
                    return False
        return True

    async def _closest(self, limits: list[Limit], key: str) -> Budget | None:
        budgets = [await self._budget(limit, key) for limit in limits]
        return min(budgets, key=lambda budget: (budget.remaining, -budget.reset_ms), default=None)

    async def _budget(self, limit: Limit, key: str) -> Budget:
        reset_at, remaining = await self._limiter.get_window_stats(_item(limit), key)
        reset_ms = 0 if remaining == limit.amount else max(1, ceil((reset_at - self._clock()) * 1000))
        return Budget(limit, remaining, reset_ms, reset_ms)

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            raise StoreUnavailable from error


def _limits(subject: Subject) -> list[Limit]:
    if subject.tokens or subject.concurrency is not None:
        raise ValueError("LimitsLedger counts requests only: it cannot keep limits on tokens or on concurrency")
    return list(dict.fromkeys(subject.requests))


def _key(subject: Subject) -> str:
    return hashlib.sha256(
        subject.key.encode(errors="surrogatepass")
    ).hexdigest()  # a "/" would run into the other parts


def _item(limit: Limit) -> RateLimitItem:
    return RateLimitItemPerSecond(limit.amount, limit.seconds, namespace="maas")


def _refusal(budget: Budget) -> Verdict:
    return Verdict(None, budget, None, "requests", max(1, budget.more_ms))
