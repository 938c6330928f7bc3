"""The leases of requests that are under way: granted all or none, kept alive, settled once."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import anyio

from .admission import Admission, admitted, asked, refused
from .errors import StoreUnavailable
from .limiting import Charge, Demand, Lease, Ledger, Subject, Verdict

logger = logging.getLogger("maas_middleware")

LEDGER_SECONDS = 1.0
RENEWAL_SECONDS = 30.0
_GIVEN_BACK = Charge(0, request=False)
T = TypeVar("T")


async def in_time(operation: Awaitable[T], seconds: float = LEDGER_SECONDS) -> T:
    """Wait for the ledger, also when the request is cancelled meanwhile: neither a lease nor a charge may get lost.

    Raises:
        StoreUnavailable: it takes longer.
    """
    try:
        with anyio.fail_after(seconds, shield=True):
            return await operation
    except TimeoutError:
        raise StoreUnavailable from None


async def peek(ledger: Ledger, subjects: Sequence[Subject], seconds: float = LEDGER_SECONDS) -> Admission:
    """How all budgets of a request stand, and which would refuse it.

    Raises:
        StoreUnavailable: one of them cannot be reached, or takes longer than so many seconds.
    """
    return asked([(subject, await in_time(ledger.peek(subject), seconds)) for subject in subjects])


class Leases:
    """The leases of all requests that a process serves.

    There is no task that keeps them from lapsing, also those of calls that are silent for long: whenever a request or a
    piece of an answer passes, those that are due are renewed. Until then nobody has seen them lapse in this process,
    and the ledger brings them back.

    Args:
        timeout: seconds that a call of the ledger may take.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float], timeout: float) -> None:
        self._ledger = ledger
        self._clock = clock
        self._timeout = timeout
        # not inherited: what a subclass adds may wait
        self._never_waits = vars(type(ledger)).get("never_waits", False)
        self._next_look = math.inf  # nothing is due before
        self._due: OrderedDict[int, tuple[float, Lease]] = OrderedDict()  # by identity, soonest first

    async def admit(self, subjects: Sequence[Subject], demand: Demand) -> Admission:
        """Ask one budget after the other. Where one refuses, those before it get back what they gave.

        Raises:
            StoreUnavailable: one of them cannot be reached, or takes too long.
        """
        first = subjects[0]
        verdict = await self._ask(first, demand)
        if verdict.lease is None:
            return refused([], (first, verdict))
        if len(subjects) > 1:
            return await self._admit_behind((first, verdict), verdict.lease, subjects[1:], demand)
        self._keep((verdict.lease,))
        return Admission(verdict, (verdict.lease,))

    async def _admit_behind(
        self, first: tuple[Subject, Verdict], lease: Lease, others: Sequence[Subject], demand: Demand
    ) -> Admission:
        answers, leases = [first], [lease]
        try:
            for subject in others:
                verdict = await self._ask(subject, demand)
                if verdict.lease is None:
                    break
                answers.append((subject, verdict))
                leases.append(verdict.lease)
        finally:
            if len(leases) <= len(others):
                await self.settle(leases, _GIVEN_BACK)
        if len(leases) > len(others):
            self._keep(leases)
            return admitted(answers)
        try:
            now = [(before, await self._in_time(self._ledger.peek(before))) for before, _ in answers]
        except StoreUnavailable:
            now = []  # it is refused all the same
        return refused(now, (subject, verdict))

    def _ask(self, subject: Subject, demand: Demand) -> Awaitable[Verdict]:
        return self._in_time(self._ledger.admit(subject, demand))

    def _in_time(self, call: Awaitable[T]) -> Awaitable[T]:
        return call if self._never_waits else in_time(call, self._timeout)

    def _keep(self, leases: Iterable[Lease]) -> None:
        due_at = self._clock() + RENEWAL_SECONDS
        for lease in leases:
            self._due[id(lease)] = (due_at, lease)
        if due_at < self._next_look:
            self._next_look = due_at

    async def settle(self, leases: Sequence[Lease], charge: Charge) -> None:
        """End what a request holds. A ledger in trouble is logged: it must not break an answer off."""
        for lease in leases:
            self._due.pop(id(lease), None)
        if self._never_waits or len(leases) == 1:
            for lease in leases:
                await self._attempt(self._ledger.settle(lease, charge))
            return
        async with anyio.create_task_group() as calls:  # all of them begin, even if asyncio cancels this task
            for lease in leases:
                calls.start_soon(self._attempt, self._ledger.settle(lease, charge))

    @property
    def may_be_due(self) -> bool:
        """Whether `renew_due` may find something to do."""
        return self._clock() >= self._next_look

    async def renew_due(self) -> None:
        """Renew the lease that was not renewed for the longest time, if that is half a minute or more.

        No more than one, because it is somebody else's request that waits for it.
        """
        due_at, lease = next(iter(self._due.values()), (math.inf, None))
        if lease is None or due_at > self._clock():
            self._next_look = due_at
            return
        del self._due[id(lease)]
        self._keep([lease])
        await self._attempt(self._ledger.renew(lease))

    async def _attempt(self, operation: Awaitable[None]) -> None:
        try:
            await self._in_time(operation)
        except Exception:
            logger.exception("the ledger failed")
