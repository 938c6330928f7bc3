"""Where a process counts while the store is away."""

from __future__ import annotations

from functools import lru_cache

from msgspec.structs import replace

from ..errors import StoreUnavailable
from ..limiting import Charge, Demand, Lease, Ledger, Limit, Subject, Verdict


def share(subject: Subject, replicas: int) -> Subject:
    """The subject with the part of each limit that falls to one of so many replicas: rounded down, at least 1."""
    concurrency = subject.concurrency
    return replace(
        subject,
        requests=_shares(subject.requests, replicas),
        tokens=_shares(subject.tokens, replicas),
        concurrency=None if concurrency is None else max(1, concurrency // replicas),
    )


@lru_cache(maxsize=1024)
def _shares(limits: tuple[Limit, ...], replicas: int) -> tuple[Limit, ...]:
    return tuple(Limit(max(1, limit.amount // replicas), limit.seconds) for limit in limits)


class LocalLease(Lease, frozen=True, gc=False):
    """One that this process granted on its own, with the caller's subject. The store has not counted its request."""


class LocalLedger:
    """Counts on another ledger, in which subjects have one replica's share of their limits."""

    def __init__(self, ledger: Ledger, replicas: int) -> None:
        self._ledger = ledger
        self._replicas = replicas

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        """Admit or refuse. What is larger than a share, but not than the limit, is not hopeless."""
        verdict = await self._ledger.admit(share(subject, self._replicas), demand)
        if (lease := verdict.lease) is not None:
            return replace(verdict, lease=LocalLease(lease.id, subject, lease.tokens, lease.admitted_ms))
        is_hopeless = any(demand.needs > limit.amount for limit in subject.tokens)
        return replace(verdict, is_hopeless=verdict.is_hopeless and is_hopeless)

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        """End the lease and charge what was used; a request that was not counted here is not given back."""
        is_ours = isinstance(lease, LocalLease)
        await self._ledger.settle(self._own(lease), charge if is_ours else replace(charge, request=True))

    async def renew(self, lease: Lease, /) -> None:
        """Keep a lease alive that was granted here."""
        if isinstance(lease, LocalLease):
            await self._ledger.renew(self._own(lease))

    async def peek(self, subject: Subject, /) -> Verdict:
        """Tell how the shares stand."""
        return await self._ledger.peek(share(subject, self._replicas))

    def _own(self, lease: Lease) -> Lease:
        return replace(lease, subject=share(lease.subject, self._replicas))


class ClosedLedger:
    """Counts nothing and lets nothing pass."""

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        """Refuse.

        Raises:
            StoreUnavailable: always.
        """
        raise StoreUnavailable

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        """Do nothing."""

    async def renew(self, lease: Lease, /) -> None:
        """Do nothing."""

    async def peek(self, subject: Subject, /) -> Verdict:
        """Refuse.

        Raises:
            StoreUnavailable: always.
        """
        raise StoreUnavailable
