"""The ledger in the memory of one process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from ..limiting import Charge, Demand, Lease, Subject, Verdict
from ._verdicts import admission, outlook
from ._windows import Spans, Windows

MARK_MS = 600_000
SWEPT_AT_ONCE = 2
SWEEP_REST_MS = 1000


class _Account:
    """What one subject has used, and its live leases. `turn` has to be called before anything else."""

    __slots__ = ("_lapse_ms", "_leased", "_leases", "_turns_ms", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = Windows()
        self.tokens = Windows()
        self._turns_ms = 0.0  # no bucket ends before
        self._leased = 0
        self._lapse_ms = 0  # no lease lapses before
        self._leases: dict[str, tuple[int, Lease]] | None = None  # with the time at which each lapses, soonest first

    def turn(self, subject: Subject, spans: Spans, now_ms: int) -> None:
        requests, tokens = self.requests, self.tokens
        if now_ms >= self._turns_ms or requests.limits is not subject.requests or tokens.limits is not subject.tokens:
            requests.turn(subject.requests, spans, now_ms)
            tokens.turn(subject.tokens, spans, now_ms)
            self._turns_ms = min(requests.turns_ms, tokens.turns_ms)
        if self._leases and now_ms >= self._lapse_ms:
            self._lapse(now_ms)

    def lease(self, lease_id: str) -> Lease | None:
        held = self._leases.get(lease_id) if self._leases else None
        return held[1] if held else None

    def grant(self, subject: Subject, demand: Demand, now_ms: int, lapse_ms: int) -> Lease | None:
        requests, tokens = self.requests.room(0), self.tokens.room(self._leased)
        if requests is not None and requests < 1:
            return None
        if tokens is not None and 0 < demand.tokens > tokens < demand.needs:
            return None
        if subject.concurrency is not None and self._live >= subject.concurrency:
            return None
        amount = demand.tokens if tokens is None or demand.tokens < tokens else tokens
        lease = Lease(demand.lease_id, subject, amount if amount > 0 else 0, now_ms)
        if not self._leases:
            self._leases, self._lapse_ms = {}, lapse_ms
        self._leases[lease.id] = (lapse_ms, lease)
        self._leased += lease.tokens
        self.requests.add(1)
        return lease

    def prolong(self, lease: Lease, lapse_ms: int) -> None:
        if not self._leases:
            self._leases, self._lapse_ms = {}, lapse_ms
        held = self._leases.pop(lease.id, None)
        if held is None:
            self._leased += lease.tokens
        self._leases[lease.id] = (lapse_ms, held[1] if held else lease)

    def end(self, lease_id: str) -> None:
        if self._leases and (held := self._leases.pop(lease_id, None)):
            self._leased -= held[1].tokens
            if not self._leases:
                self._leases, self._lapse_ms = None, 0

    def admission(self, lease: Lease, now_ms: int) -> Verdict:
        return admission(lease, self.requests.in_force, self.tokens.in_force, now_ms, self._leased)

    def outlook(self, subject: Subject, needs: int, now_ms: int) -> Verdict:
        windows = self.requests.in_force, self.tokens.in_force
        return outlook(subject, *windows, needs, now_ms, self._leased, self._live)

    def is_idle(self, now_ms: int) -> bool:
        if self._leases and next(reversed(self._leases.values()))[0] > now_ms:
            return False
        return self.requests.empty_ms() <= now_ms and self.tokens.empty_ms() <= now_ms

    @property
    def _live(self) -> int:
        return len(self._leases) if self._leases else 0

    def _lapse(self, now_ms: int) -> None:
        while self._leases:
            lease_id, (lapse_ms, _) = next(iter(self._leases.items()))
            if lapse_ms > now_ms:
                self._lapse_ms = lapse_ms
                return
            self.end(lease_id)


class MemoryLedger:
    """Counts for one process, and forgets with it. Other processes count on their own.

    A lease that lapsed, was granted by another ledger, or was settled more than ten minutes ago, is unknown: `settle`
    charges it all the same, and `renew` holds its tokens again. A request is given back while its bucket counts.

    Changed limits keep what was used, window by window: a new amount applies to what the window holds already; a
    window that is left out for a while keeps what was used in it before; and a window of a length that is new to the
    subject starts with no history. Of two limits on windows of one length only the stricter counts.

    Where several limits stand in the way, the verdict tells the wait for the last of them.

    Nothing is awaited inside a call, so each is atomic, and none takes longer because there are more subjects.
    The limits of a `Subject` should be the same tuple in each call: another one has to be compared first.

    Args:
        clock: seconds, never going back.
        lease_seconds: a lease lapses so long after it was granted or last renewed.
        maximum_subjects: of more subjects, the one that made no call for the longest time is forgotten. It starts
            again with nothing used; its calls in flight are still charged. So whoever can invent subjects can reset
            anybody's limits: let them be authenticated users. Before that, a subject of which nothing counts any
            more is dropped once it is the one that made no call for the longest time. One takes about 1 kB.
        maximum_marks: settled leases that are remembered for ten minutes, so that settling them again does nothing.
            Of more, the oldest is forgotten. One takes about half a kB.
    """

    never_waits = True

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        lease_seconds: int = 120,
        maximum_subjects: int = 100_000,
        maximum_marks: int = 100_000,
    ) -> None:
        self._clock = clock
        self._lease_ms = lease_seconds * 1000
        self._maximum_subjects = maximum_subjects
        self._maximum_marks = maximum_marks
        self._rests_until_ms = 0
        self._spans = Spans()
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._marks: OrderedDict[tuple[str, str], tuple[int, Lease]] = OrderedDict()

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        """Admit or refuse. Repeated with a lease id that is live or settled: that lease, and the limits as of now."""
        now_ms = self._now_ms()
        account = self._account(subject, now_ms)
        lease = account.lease(demand.lease_id) or self._settled(subject.key, demand.lease_id, now_ms)
        if lease is None:
            lease = account.grant(subject, demand, now_ms, now_ms + self._lease_ms)
        return account.admission(lease, now_ms) if lease else account.outlook(subject, demand.needs, now_ms)

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        """End the lease and charge what was used. A request is given back only while its bucket still counts."""
        now_ms = self._now_ms()
        if self._settled(lease.subject.key, lease.id, now_ms):
            return
        self._mark(lease, now_ms)
        account = self._account(lease.subject, now_ms)
        counted = account.lease(lease.id) or lease
        account.end(lease.id)
        account.tokens.add(charge.tokens)
        if not charge.request:
            account.requests.give_back(counted.admitted_ms)

    async def renew(self, lease: Lease, /) -> None:
        """Keep a lease alive, or bring it back where it has lapsed meanwhile; nothing happens to a settled one."""
        now_ms = self._now_ms()
        if not self._settled(lease.subject.key, lease.id, now_ms):
            self._account(lease.subject, now_ms).prolong(lease, now_ms + self._lease_ms)

    async def peek(self, subject: Subject, /) -> Verdict:
        """Tell whether the next request that needs one token would pass (`refused_by`) and when, consuming nothing."""
        now_ms = self._now_ms()
        account = self._accounts.get(subject.key) or _Account()
        account.turn(subject, self._spans, now_ms)
        return account.outlook(subject, 1, now_ms)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000 + 0.5)

    def _account(self, subject: Subject, now_ms: int) -> _Account:
        if now_ms >= self._rests_until_ms:
            self._sweep(now_ms)
        account = self._accounts.get(subject.key)
        if account is None:
            account = self._accounts[subject.key] = _Account()
            if len(self._accounts) > self._maximum_subjects:
                self._accounts.popitem(last=False)
        else:
            self._accounts.move_to_end(subject.key)
        account.turn(subject, self._spans, now_ms)
        return account

    def _settled(self, key: str, lease_id: str, now_ms: int) -> Lease | None:
        mark = self._marks.get((key, lease_id))
        return mark[1] if mark and mark[0] > now_ms else None

    def _mark(self, lease: Lease, now_ms: int) -> None:
        self._marks[lease.subject.key, lease.id] = (now_ms + MARK_MS, lease)
        if len(self._marks) > self._maximum_marks:
            self._marks.popitem(last=False)

    def _sweep(self, now_ms: int) -> None:
        for _ in range(SWEPT_AT_ONCE):
            idle = self._accounts and next(iter(self._accounts.values())).is_idle(now_ms)
            expired = self._marks and next(iter(self._marks.values()))[0] <= now_ms
            if idle:
                self._accounts.popitem(last=False)
            if expired:
                self._marks.popitem(last=False)
            if not idle and not expired:
                self._rests_until_ms = now_ms + SWEEP_REST_MS
