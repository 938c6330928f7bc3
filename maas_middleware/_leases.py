"""The leases of requests that are under way: granted all or none, kept alive, settled once."""

from __future__ import annotations

import logging
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
        self._due: OrderedDict[tuple[str, str], tuple[float, Lease]] = OrderedDict()  # soonest first

    async def admit(self, subjects: Sequence[Subject], demand: Demand) -> Admission:
        """Ask one budget after the other. Where one refuses, those before it get back what they gave.

        Raises:
            StoreUnavailable: one of them cannot be reached, or takes too long.
        """
        answers: list[tuple[Subject, Verdict]] = []
        leases: list[Lease] = []
        try:
            for subject in subjects:
                verdict = await in_time(self._ledger.admit(subject, demand), self._timeout)
                answers.append((subject, verdict))
                if verdict.lease is None:
                    break
                leases.append(verdict.lease)
        finally:
            if len(leases) < len(subjects):
                await self.settle(leases, _GIVEN_BACK)
        if len(leases) == len(subjects):
            self._keep(leases)
            return admitted(answers)
        *before, refusal = answers
        try:
            now = [(subject, await in_time(self._ledger.peek(subject), self._timeout)) for subject, _ in before]
        except StoreUnavailable:
            now = []  # it is refused all the same
        return refused([*now, refusal], refusal)

    def _keep(self, leases: Iterable[Lease]) -> None:
        due_at = self._clock() + RENEWAL_SECONDS
        for lease in leases:
            self._due[lease.subject.key, lease.id] = (due_at, lease)

    async def settle(self, leases: Sequence[Lease], charge: Charge) -> None:
        """End what a request holds. A ledger in trouble is logged: it must not break an answer off."""
        for lease in leases:
            self._due.pop((lease.subject.key, lease.id), None)
        if len(leases) == 1:
            await self._attempt(self._ledger.settle(leases[0], charge))
            return
        async with anyio.create_task_group() as calls:  # all of them begin, even if asyncio cancels this task
            for lease in leases:
                calls.start_soon(self._attempt, self._ledger.settle(lease, charge))

    async def renew_due(self) -> None:
        """Renew the lease that was not renewed for the longest time, if that is half a minute or more.

        No more than one, because it is somebody else's request that waits for it.
        """
        due_at, lease = next(iter(self._due.values()), (0.0, None))
        if lease is not None and due_at <= self._clock():
            del self._due[lease.subject.key, lease.id]
            self._keep([lease])
            await self._attempt(self._ledger.renew(lease))

    async def _attempt(self, operation: Awaitable[None]) -> None:
        try:
            await in_time(operation, self._timeout)
        except Exception:
            logger.exception("the ledger failed")
