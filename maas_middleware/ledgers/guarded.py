"""A ledger that goes on when its store does not."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import anyio
from msgspec.structs import replace

from ..errors import StoreUnavailable
from ..limiting import Charge, Demand, Lease, Ledger, Subject, Verdict
from ._breaker import Breaker, reason_of
from ._fallback import ClosedLedger, LocalLease, LocalLedger
from ._replays import Replays, Settlement

logger = logging.getLogger("maas_middleware")

LONGEST_REST_SECONDS = 5.0
REPLAYED_AT_ONCE = 10

T = TypeVar("T")
Ask = Callable[[Callable[[], Awaitable[None]], float], Awaitable[None]]


class GuardedLedger:
    """Asks a ledger on a store, within a budget, and while that fails, counts on a fallback or refuses.

    The first failure opens a breaker. While it is open no call goes to the store, except one probe at a time, which is
    an `admit` or a `renew`; a probe that succeeds closes it. Each change is one line in the log. What the fallback has
    counted it still counts in the next outage.

    A settlement that the store does not take is charged on the fallback at once, and waits to be replayed: a few at a
    time, at the end of calls that succeed, begun in the first half of the budget. No task runs for it. It counts in
    the store from its replay on. The store's mark, which is kept for ten minutes, sees to it that nothing is charged
    twice: so what may have reached the store, since the call failed half-way, is replayed for nine minutes and then
    given up, while what was never sent waits as long as it has to. Settlements are sent only while the breaker is
    closed; only those under way when the store fails are of the first kind. A lease must not be settled for a second
    time more than nine minutes after the first.

    A lease of the fallback is settled in both. In the store its request stays counted where the charge would give it
    back: the store has not counted it, or, where its answer came too late, may have.

    Args:
        fallback: counts while the store is away, with limits divided by `replicas`; None refuses requests.
        replicas: how many processes count on fallbacks of their own.
        budget: seconds that a call may take, replays included. A call to the store that takes longer is cancelled;
            so a ledger must not shield itself from that. Where the store answered another call meanwhile, it is this
            process that is slow: the call is tried once more, with a budget of its own.
        probe_after: seconds from a failure to the first probe; twice as long after each probe that failed, up to five.
        maximum_replays: settlements that wait at most; of more, the oldest is lost.
        clock: seconds, never going back.
        on_change: called with True when the breaker opens, and with False when it closes.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        fallback: Ledger | None,
        replicas: int = 1,
        budget: float = 0.25,
        probe_after: float = 1.0,
        maximum_replays: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        self._ledger = ledger
        self._local: Ledger = ClosedLedger() if fallback is None else LocalLedger(fallback, replicas)
        self._policy = "requests are refused" if fallback is None else "this process counts on its own"
        self._budget = budget
        self._probe_after = probe_after
        self._clock = clock
        self._on_change = on_change
        self._breaker = Breaker(rest=probe_after, longest_rest=LONGEST_REST_SECONDS, clock=clock, changed=self._changed)
        self._replays = Replays(maximum=maximum_replays, clock=clock)
        self._replaying = False
        self._replays_at = clock()

    @property
    def degraded(self) -> bool:
        """Whether the store is left alone at the moment."""
        return self._breaker.is_open

    @property
    def waiting(self) -> int:
        """How many settlements wait to be replayed."""
        return len(self._replays)

    @property
    def lost(self) -> int:
        """How many settlements were given up so far."""
        return self._replays.lost

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        """Admit or refuse, on the fallback where the store fails.

        Raises:
            StoreUnavailable: the store fails, and there is no fallback.
        """
        deadline, was_sent = self._deadline(), not self._breaker.refuses
        try:
            verdict = await self._ask(lambda: self._ledger.admit(subject, demand), deadline)
        except StoreUnavailable:
            return await self._admit_locally(subject, demand, was_sent=was_sent)
        await self._replay(deadline)
        return verdict

    async def _admit_locally(self, subject: Subject, demand: Demand, *, was_sent: bool) -> Verdict:
        is_admitted = False
        try:
            verdict = await self._local.admit(subject, demand)
            is_admitted = verdict.lease is not None
            return verdict
        finally:
            if was_sent and not is_admitted:  # the store may have admitted it, and its answer came too late
                nobodys = Lease(demand.lease_id, subject, 0, 0)
                self._replays.add(Settlement(nobodys, Charge(0, request=False), self._clock()))

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        """End the lease and charge what was used, in the store now or later."""
        if lease in self._replays:
            return
        deadline = self._deadline()
        is_local = isinstance(lease, LocalLease)
        settlement = Settlement(lease, replace(charge, request=True) if is_local else charge)
        is_charged = await self._settle_in_store(settlement, deadline)
        if is_local or not is_charged:
            await self._local.settle(lease, charge)
        if not self.degraded:
            await self._replay(deadline)

    async def renew(self, lease: Lease, /) -> None:
        """Keep a lease alive where it is known; one of the store lapses while that is away, and is then revived."""
        if lease in self._replays:
            return
        deadline = self._deadline()
        await self._local.renew(lease)
        try:
            await self._ask(lambda: self._ledger.renew(lease), deadline)
        except StoreUnavailable:
            return
        await self._replay(deadline)

    async def peek(self, subject: Subject, /) -> Verdict:
        """Tell how the limits stand, on the fallback where the store fails.

        Raises:
            StoreUnavailable: the store fails, and there is no fallback.
        """
        if self.degraded:  # a store that can be read is not yet one that counts
            return await self._local.peek(subject)
        deadline = self._deadline()
        try:
            verdict = await self._ask(lambda: self._ledger.peek(subject), deadline)
        except StoreUnavailable:
            return await self._local.peek(subject)
        await self._replay(deadline)
        return verdict

    async def aclose(self, seconds: float = 2.0) -> None:
        """Replay what the store takes within so many seconds, and close the ledger if it can be closed."""
        with anyio.move_on_after(seconds, shield=True):
            while (settlement := self._replays.next()) and await self._send(settlement, _within, self._deadline()):
                pass
        if self._replays:
            logger.warning("%d settlements are lost: the counter store does not take them", self.waiting)
        if close := getattr(self._ledger, "aclose", None):
            with anyio.move_on_after(seconds, shield=True):
                await close()

    def _deadline(self) -> float:
        return anyio.current_time() + self._budget

    async def _settle_in_store(self, settlement: Settlement, deadline: float) -> bool:
        if not self.degraded:
            return await self._send(settlement, self._ask, deadline)
        self._replays.add(settlement)
        with suppress(StoreUnavailable):
            await self._ask(lambda: self._ledger.renew(settlement.lease), deadline)
            return await self._send(settlement, _within, deadline)
        return False

    async def _replay(self, deadline: float) -> None:
        if self._replaying or not self._replays or self._clock() < self._replays_at:
            return
        self._replaying = True
        try:
            for _ in range(REPLAYED_AT_ONCE):
                settlement = self._replays.next()
                has_time = deadline - anyio.current_time() > self._budget / 2
                if settlement is None or not has_time:
                    return
                if not await self._send(settlement, _within, deadline):
                    self._replays_at = self._clock() + self._probe_after
                    return
        finally:
            self._replaying = False

    async def _send(self, settlement: Settlement, ask: Ask, deadline: float) -> bool:
        if settlement.sent_at is None:
            settlement.sent_at = self._clock()
        is_charged = False
        try:
            await ask(lambda: self._ledger.settle(settlement.lease, settlement.charge), deadline)
            is_charged = True
        except Exception:
            logger.debug("a settlement has to wait", exc_info=True)
        finally:  # also when it is cancelled
            if is_charged:
                self._replays.remove(settlement)
            else:
                self._replays.add(settlement)
        return is_charged

    async def _ask(self, operation: Callable[[], Awaitable[T]], deadline: float) -> T:
        if self._breaker.refuses:
            raise StoreUnavailable
        for _ in range(2):
            try:
                with self._breaker.watching():
                    return await _within(operation, deadline)
            except Exception:
                if self._breaker.is_open:
                    break
                deadline = self._deadline()  # the store answers others: once more
        raise StoreUnavailable from None

    def _changed(self, error: Exception | None) -> None:
        if error is None:
            logger.warning("the counter store answers again; %d settlements wait to be replayed", self.waiting)
        else:
            is_expected = isinstance(error, StoreUnavailable | TimeoutError)
            trace = None if is_expected else error
            logger.warning("the counter store fails (%s): %s", reason_of(error), self._policy, exc_info=trace)
        if self._on_change is not None:
            self._on_change(self.degraded)


async def _within(operation: Callable[[], Awaitable[T]], deadline: float) -> T:
    with anyio.CancelScope(deadline=deadline):
        return await operation()
    raise TimeoutError
