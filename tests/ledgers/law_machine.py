"""The law of the ledgers as an exact account, and a state machine that plays random schedules against real ones."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, Literal

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, multiple, rule

from maas_middleware.limiting import (
    NO_LIMITS,
    Budget,
    Charge,
    Demand,
    Lease,
    Ledger,
    Limit,
    Limits,
    Subject,
    Verdict,
    parse_limits,
)
from maas_middleware.testing.clock import FakeClock

START_MS = 1_000_003_217
LEASE_MS = 120_000
MARK_MS = 600_000
IN_FLIGHT_MS = 1000
HUGE = 2**45
PLENTY = 2**52

KEYS = ("openshift/alice", "openshift/alice", "openshift/alice", "openshift/bob")
TIERS = tuple(
    Limits(parse_limits(requests), parse_limits(tokens), concurrency)
    for requests, tokens, concurrency in (
        ("3/minute", "100/minute", None),
        ("5/7 second;8/hour", "60/7 second;400/hour", 2),
        ("4/minute;9/minute", "unlimited", 3),
        ("unlimited", "200/hour;90/minute;500/hour", None),
        ("2/second;30/day", "50/second;1000/day", None),
        ("20/minute;30/hour", "unlimited", None),
        ("unlimited", "unlimited", 1),
        ("unlimited", "unlimited", None),
    )
)
LIMITED = TIERS[:6]
WINDOWS = sorted({limit.seconds for tier in TIERS for limit in (*tier.requests, *tier.tokens)})

Kind = Literal["requests", "tokens"]


@cache
def leaves_ms(seconds: int, made_ms: int) -> int:
    """The first millisecond at which the end of its bucket, a 60th of the window, is out of the window."""
    width = Fraction(seconds * 1000, 60)
    return math.ceil((made_ms // width + 1) * width + seconds * 1000)


def strictest(limits: Sequence[Limit]) -> list[Limit]:
    """Of two limits on windows of one length only the stricter counts."""
    return list({limit.seconds: limit for limit in sorted(limits, key=lambda limit: -limit.amount)}.values())


@dataclass(frozen=True, slots=True)
class Use:
    """Something that was counted in one window of a subject."""

    window: tuple[str, Kind, int]
    amount: int
    made_ms: int

    @property
    def leaves_ms(self) -> int:
        return leaves_ms(self.window[2], self.made_ms)


class Account:
    """Remembers all that ever happened, and adds it up whenever it is asked. Gives the answers that a ledger owes."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self.uses: list[Use] = []
        self.leases: dict[tuple[str, str], tuple[Lease, int]] = {}  # and when each lapses
        self.marks: dict[tuple[str, str], tuple[Lease, int]] = {}  # and when each is forgotten

    def admit(self, subject: Subject, demand: Demand) -> Verdict:
        name = (subject.key, demand.lease_id)
        needs = max(0, demand.tokens) if demand.strict else int(demand.tokens >= 1)
        lease = self._found(self.leases, name) or self._found(self.marks, name)
        if lease is None and self._passes(subject, needs):
            tokens = max(0, min([demand.tokens, *(self.room(subject.key, limit) for limit in subject.tokens)]))
            lease = Lease(demand.lease_id, subject, tokens, self.now_ms)
            self.leases[name] = (lease, self.now_ms + LEASE_MS)
            self._charge(subject.key, "requests", subject.requests, 1)
        return self._verdict(subject, lease, needs)

    def settle(self, lease: Lease, charge: Charge) -> None:
        name = (lease.subject.key, lease.id)
        if self._found(self.marks, name):
            return
        self.marks[name] = (lease, self.now_ms + MARK_MS)
        self.leases.pop(name, None)
        self._charge(lease.subject.key, "tokens", lease.subject.tokens, max(0, charge.tokens))
        if not charge.request:
            self._give_back(lease)

    def renew(self, lease: Lease) -> None:
        name = (lease.subject.key, lease.id)
        if not self._found(self.marks, name):
            self.leases[name] = (self._found(self.leases, name) or lease, self.now_ms + LEASE_MS)

    def peek(self, subject: Subject) -> Verdict:
        return self._verdict(subject, None, 1)

    def live(self, key: str) -> list[Lease]:
        return [lease for (owner, _), (lease, lapse) in self.leases.items() if owner == key and lapse > self.now_ms]

    def edges(self, key: str) -> list[int]:
        """When something of that subject lapses, leaves or is forgotten."""
        names = [
            until_ms
            for things in (self.leases, self.marks)
            for (owner, _), (_, until_ms) in things.items()
            if owner == key
        ]
        times = {*names, *(use.leaves_ms for use in self.uses if use.window[0] == key)}
        return sorted(time_ms for time_ms in times if time_ms > self.now_ms)

    def room(self, key: str, limit: Limit) -> int:
        return limit.amount - self._used(key, "tokens", limit, self.now_ms) - self._held(key)

    def used_within(self, window: tuple[str, Kind, int], span_ms: Fraction | int) -> int:
        """What was used in so many milliseconds up to now: no buckets here."""
        return sum(use.amount for use in self.uses if use.window == window and use.made_ms > self.now_ms - span_ms)

    def _found(self, leases: dict[tuple[str, str], tuple[Lease, int]], name: tuple[str, str]) -> Lease | None:
        lease, until_ms = leases.get(name, (None, 0))
        return lease if until_ms > self.now_ms else None

    def _charge(self, key: str, kind: Kind, limits: Sequence[Limit], amount: int) -> None:
        windows = {limit.seconds for limit in limits}
        self.uses += [Use((key, kind, seconds), amount, self.now_ms) for seconds in windows if amount]

    def _give_back(self, lease: Lease) -> None:
        for seconds in {limit.seconds for limit in lease.subject.requests}:
            self.uses.remove(Use((lease.subject.key, "requests", seconds), 1, lease.admitted_ms))

    def _held(self, key: str) -> int:
        return sum(lease.tokens for lease in self.live(key))

    def _used(self, key: str, kind: Kind, limit: Limit, at_ms: int) -> int:
        window = (key, kind, limit.seconds)
        return sum(use.amount for use in self.uses if use.window == window and use.leaves_ms > at_ms)

    def _passes(self, subject: Subject, needs: int) -> bool:
        requests = [
            self._used(subject.key, "requests", limit, self.now_ms) < limit.amount for limit in subject.requests
        ]
        tokens = [self.room(subject.key, limit) >= needs or not needs for limit in subject.tokens]
        is_free = subject.concurrency is None or len(self.live(subject.key)) < subject.concurrency
        return all(requests) and all(tokens) and is_free

    def _verdict(self, subject: Subject, lease: Lease | None, needs: int) -> Verdict:
        key = subject.key
        budgets = self._budget(key, "requests", subject.requests), self._budget(key, "tokens", subject.tokens)
        if lease is not None:
            return Verdict(lease, *budgets)
        too_small = [self._reset_ms(key, "tokens", limit) for limit in subject.tokens if limit.amount < needs]
        if too_small:
            return Verdict(None, *budgets, "tokens", max(IN_FLIGHT_MS, *too_small), is_hopeless=True)
        is_full = subject.concurrency is not None and len(self.live(key)) >= subject.concurrency
        waits: list[tuple[int, Literal["requests", "tokens", "concurrency"]]] = [
            (
                max([self._wait_ms(key, "requests", limit, 1) for limit in strictest(subject.requests)], default=0),
                "requests",
            ),
            (
                max([self._wait_ms(key, "tokens", limit, needs) for limit in strictest(subject.tokens)], default=0),
                "tokens",
            ),
            (IN_FLIGHT_MS if is_full else 0, "concurrency"),
        ]
        wait_ms, name = max(waits, key=lambda wait: wait[0])
        return Verdict(None, *budgets, name if wait_ms else None, wait_ms)

    def _budget(self, key: str, kind: Kind, limits: Sequence[Limit]) -> Budget | None:
        held = self._held(key) if kind == "tokens" else 0
        budgets = [
            Budget(
                limit,
                max(0, limit.amount - self._used(key, kind, limit, self.now_ms) - held),
                self._reset_ms(key, kind, limit),
                min(self._leaving(key, kind, limit), default=IN_FLIGHT_MS if held else 0),
            )
            for limit in strictest(limits)
        ]
        return min(budgets, key=lambda budget: (budget.remaining, -budget.reset_ms), default=None)

    def _leaving(self, key: str, kind: Kind, limit: Limit) -> list[int]:
        """In how many milliseconds each use leaves the window."""
        uses = [use for use in self.uses if use.window == (key, kind, limit.seconds)]
        return sorted(use.leaves_ms - self.now_ms for use in uses if use.leaves_ms > self.now_ms)

    def _reset_ms(self, key: str, kind: Kind, limit: Limit) -> int:
        held = self._held(key) if kind == "tokens" else 0
        if_settled_now = [leaves_ms(limit.seconds, self.now_ms) - self.now_ms] if held else []
        return max([*self._leaving(key, kind, limit), *if_settled_now], default=0)

    def _wait_ms(self, key: str, kind: Kind, limit: Limit, needs: int) -> int:
        if not needs:
            return 0
        held = self._held(key) if kind == "tokens" else 0
        for wait_ms in (0, *self._leaving(key, kind, limit)):
            if limit.amount - self._used(key, kind, limit, self.now_ms + wait_ms) - held >= needs:
                return wait_ms
        return IN_FLIGHT_MS


class LedgerMachine(RuleBasedStateMachine):
    """Makes every call on each of several ledgers, which have to answer as the account does, and as one another.

    A subclass gives `make_ledgers`.
    """

    leases: Bundle[Lease] = Bundle("leases")
    subjects = st.builds(
        lambda key, tier: tier.subject(key), st.sampled_from(KEYS), st.sampled_from([*TIERS, *LIMITED * 2])
    )
    estimates = st.sampled_from([-5, 0, 1, 10, 10, 30, 30, 60, 60, 95, 250, HUGE])

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(START_MS / 1000)
        self.account = Account()
        self.runner = asyncio.Runner()
        self.ledgers = self.make_ledgers(self.clock)
        self.ids = 0
        self.counted: set[Lease] = set()  # the leases that may give their request back

    def make_ledgers(self, clock: FakeClock) -> Sequence[Ledger]:
        raise NotImplementedError

    async def look_inside(self) -> None:
        """After the last call: nothing may be left that does not count."""

    async def close(self) -> None:
        """At the end, also where something has failed."""

    def teardown(self) -> None:
        try:
            for key in set(KEYS):
                for seconds in WINDOWS:
                    self.look(NO_LIMITS.subject(key), seconds)
            self.runner.run(self.look_inside())
        finally:
            self.runner.run(self.close())
            self.runner.close()

    @rule(target=leases, subject=subjects, tokens=estimates, strict=st.booleans())
    def admit(self, subject: Subject, tokens: int, strict: bool) -> Lease | MultipleResults[Lease]:
        verdict = self._admit(subject, Demand(self._next_id(), tokens, strict))
        return multiple() if verdict.lease is None else verdict.lease

    @rule(target=leases, lease=leases, tokens=estimates)
    def admit_again(self, lease: Lease, tokens: int) -> Lease | MultipleResults[Lease]:
        """Retried: the same lease while it lives or is remembered, and else a request like any other."""
        verdict = self._admit(lease.subject, Demand(lease.id, tokens))
        return multiple() if verdict.lease in (None, lease) else verdict.lease

    @rule(target=leases, subject=subjects, tokens=st.sampled_from([0, 20, 20, HUGE]))
    def admit_elsewhere(self, subject: Subject, tokens: int) -> Lease:
        """By the fallback, of which these ledgers know nothing until the lease is renewed or settled here."""
        return Lease(self._next_id(), subject, tokens, self.account.now_ms)

    @rule(
        subject=subjects, calls=st.integers(1, 8), tokens=st.integers(1, 60), step_ms=st.sampled_from([0, 1, 150, 2000])
    )
    def spend(self, subject: Subject, calls: int, tokens: int, step_ms: int) -> None:
        """Call after call, until one is refused."""
        for _ in range(calls):
            verdict = self._admit(subject, Demand(self._next_id(), 30))
            if verdict.lease is None:
                return
            self.settle(verdict.lease, tokens, True)
            self.pass_time(step_ms)

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        self.account.renew(lease)
        self._call(lambda ledger: ledger.renew(lease))

    @rule(lease=leases, tokens=st.sampled_from([-7, 0, 1, 25, 60, 300, HUGE]), request=st.booleans())
    def settle(self, lease: Lease, tokens: int, request: bool) -> None:
        """For the first time or again, in time or late. A request that was not counted here is not given back."""
        charge = Charge(tokens, request or lease not in self.counted)
        if not charge.request:
            self.counted.remove(lease)
        self.account.settle(lease, charge)
        self._call(lambda ledger: ledger.settle(lease, charge))

    @rule(
        subject=subjects,
        calls=st.lists(
            st.tuples(st.sampled_from([0, 1, 2, 9]), st.sampled_from([0, 0, 150, 1100])), min_size=3, max_size=8
        ),
        later_ms=st.sampled_from([0, 150, 900, 55_000]),
    )
    def fail(self, subject: Subject, calls: list[tuple[int, int]], later_ms: int) -> None:
        """Of several calls most fail, in the order of a number beside them, and cost nothing; not so those of a 9."""
        ends = []
        for order, step_ms in calls:
            verdict = self._admit(subject, Demand(self._next_id(), 0))
            if verdict.lease is not None:
                ends.append((order, verdict.lease))
            self.pass_time(step_ms)
        self.pass_time(later_ms)
        for order, lease in sorted(ends, key=lambda end: end[0]):
            self.settle(lease, 0, order == 9)
            self._peek(subject)
        for _ in ends:
            self.come_to_an_edge(subject, 0)

    @rule(lease=leases)
    def settle_as_late_as_it_is_remembered(self, lease: Lease) -> None:
        """Up to the end of the mark it changes nothing; after it the lease is one that nobody knows."""
        self.settle(lease, 1, True)
        _, until_ms = self.account.marks[lease.subject.key, lease.id]
        self.pass_time(until_ms - 1 - self.account.now_ms)
        self.settle(lease, 25, True)
        self._peek(lease.subject)
        self.pass_time(1)
        self.settle(lease, 25, True)
        self._peek(lease.subject)

    @rule(lease=consumes(leases))
    def crash(self, lease: Lease) -> None:
        """Its process is gone: it is never heard of again."""

    @rule(
        milliseconds=st.sampled_from([1, 16, 17, 117, 1000, 7117, 20_000, 59_999, 61_000, LEASE_MS - 1, LEASE_MS])
        | st.sampled_from([MARK_MS - 1, MARK_MS, 3_660_000, 87_840_000])
        | st.integers(1, 130_000)
        | st.integers(1, 5000)
    )
    def pass_time(self, milliseconds: int) -> None:
        self.account.now_ms += milliseconds
        self.clock.now = self.account.now_ms / 1000

    @rule(subject=subjects, tokens=estimates, strict=st.booleans())
    def come_back_when_told(self, subject: Subject, tokens: int, strict: bool) -> None:
        """The wait is exact where only settled use stands in the way, and no wait helps what is hopeless."""
        demand = Demand(self._next_id(), tokens, strict)
        for lease in self.account.live(subject.key):
            self.settle(lease, lease.tokens // 2, True)
        told = self._admit(subject, demand)
        if told.lease is not None:
            return
        self.pass_time(told.retry_after_ms - 1)
        early = self._admit(subject, demand)
        self.pass_time(1)
        in_time = self._admit(subject, demand)

        assert early.lease is None
        assert early.is_hopeless or early.retry_after_ms == 1
        assert (in_time.lease is None) == in_time.is_hopeless == told.is_hopeless

    @rule(subject=subjects, number=st.integers(0, 30))
    def come_to_an_edge(self, subject: Subject, number: int) -> None:
        """To the millisecond before something lapses, leaves or is forgotten, and to that in which it does."""
        edges = self.account.edges(subject.key)
        if edges:
            self.pass_time(edges[number % len(edges)] - 1 - self.account.now_ms)
            self._peek(subject)
            self.pass_time(1)
            self._peek(subject)

    @rule(subject=subjects, seconds=st.sampled_from(WINDOWS))
    def look(self, subject: Subject, seconds: int) -> None:
        """What is counted is no less than was used within the window, and no more than within one bucket more."""
        self._peek(subject)
        plenty = (Limit(PLENTY, seconds),)
        verdict = self._peek(Subject(subject.key, plenty, plenty))
        held = sum(lease.tokens for lease in self.account.live(subject.key))
        self._within_bounds(verdict.requests, (subject.key, "requests", seconds), 0)
        self._within_bounds(verdict.tokens, (subject.key, "tokens", seconds), held)

    def _within_bounds(self, budget: Budget | None, window: tuple[str, Kind, int], held: int) -> None:
        assert budget is not None
        used, window_ms = PLENTY - budget.remaining - held, window[2] * 1000
        assert self.account.used_within(window, window_ms) <= used
        assert used <= self.account.used_within(window, Fraction(window_ms * 61, 60) + 1)

    def _next_id(self) -> str:
        self.ids += 1
        return f"{self.ids}"

    def _admit(self, subject: Subject, demand: Demand) -> Verdict:
        known = {lease for lease, _ in (*self.account.leases.values(), *self.account.marks.values())}
        room = min([self.account.room(subject.key, limit) for limit in subject.tokens], default=PLENTY)
        owed = self.account.admit(subject, demand)
        assert self._call(lambda ledger: ledger.admit(subject, demand)) == [owed] * len(self.ledgers)
        if owed.lease is not None and owed.lease not in known:
            self.counted.add(owed.lease)
            assert owed.lease.tokens <= max(0, room)
            assert demand.tokens < 1 or room >= (demand.tokens if demand.strict else 1)
            for limit in subject.requests:
                window: tuple[str, Kind, int] = (subject.key, "requests", limit.seconds)
                assert self.account.used_within(window, limit.seconds * 1000) <= limit.amount
        return owed

    def _peek(self, subject: Subject) -> Verdict:
        owed = self.account.peek(subject)
        assert self._call(lambda ledger: ledger.peek(subject)) == [owed] * len(self.ledgers)
        return owed

    def _call(self, ask: Callable[[Ledger], Coroutine[Any, Any, Any]]) -> list[Any]:
        run = self.runner.get_loop().run_until_complete
        return [run(ask(ledger)) for ledger in self.ledgers]
