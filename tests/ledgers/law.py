"""The law of the ledger as a model, and as a state machine that plays random schedules against a real one."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Literal

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, invariant, multiple, rule

from maas_middleware.limiting import Budget, Charge, Demand, Lease, Ledger, Limit, Subject, Verdict, parse_limits
from maas_middleware.testing.clock import FakeClock

LEASE_MS = 120_000
MARK_MS = 600_000
PLENTY = 10**9
KEYS = ("openshift/alice", "openshift/bob")
TIERS = tuple(
    (parse_limits(requests), parse_limits(tokens))
    for requests, tokens in (
        ("3/minute", "100/minute"),
        ("5/7 second;8/hour", "60/7 second;400/hour"),
        ("4/minute", "unlimited"),
        ("unlimited", "200/hour;90/minute"),
    )
)
CAPS = (None, None, 1, 3)
WINDOWS = (7, 60, 3600)

Kind = Literal["requests", "tokens"]


@dataclass(frozen=True, slots=True)
class Use:
    """Something that was counted in one window."""

    key: str
    kind: Kind
    seconds: int
    amount: int
    made_ms: int

    @property
    def leaves_ms(self) -> int:
        return leaves_ms(self.seconds, self.made_ms)


@cache
def leaves_ms(seconds: int, made_ms: int) -> int:
    """The first millisecond at which the end of its bucket, a 60th of the window, is out of the window."""
    width = Fraction(seconds * 1000, 60)
    return math.ceil((made_ms // width + 1) * width + seconds * 1000)


class Reference:
    """Keeps everything that ever happened, and adds it up when it is asked."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.uses: list[Use] = []
        self.leases: dict[tuple[str, str], tuple[int, int]] = {}  # tokens, and when it lapses

    def charge(self, key: str, kind: Kind, limits: tuple[Limit, ...], amount: int) -> None:
        self.uses += [Use(key, kind, seconds, amount, self.now_ms) for seconds in {limit.seconds for limit in limits}]

    def give_back(self, lease: Lease) -> None:
        for seconds in {limit.seconds for limit in lease.subject.requests}:
            self.uses.remove(Use(lease.subject.key, "requests", seconds, 1, lease.admitted_ms))

    def hold(self, lease: Lease) -> None:
        self.leases[lease.subject.key, lease.id] = (lease.tokens, self.now_ms + LEASE_MS)

    def release(self, lease: Lease) -> None:
        self.leases.pop((lease.subject.key, lease.id), None)

    def is_live(self, lease: Lease) -> bool:
        return self.leases.get((lease.subject.key, lease.id), (0, 0))[1] > self.now_ms

    def held(self, key: str, kind: Kind) -> int:
        live = [tokens for (owner, _), (tokens, lapse) in self.leases.items() if owner == key and lapse > self.now_ms]
        return sum(live) if kind == "tokens" else 0

    def used(self, key: str, kind: Kind, seconds: int, at_ms: int) -> int:
        return sum(use.amount for use in self._of(key, kind, seconds) if use.leaves_ms > at_ms)

    def room(self, key: str, kind: Kind, limits: tuple[Limit, ...]) -> int | None:
        return min([self._left(key, kind, limit, self.now_ms) for limit in limits], default=None)

    def live(self, key: str) -> int:
        return sum(lapse > self.now_ms for (owner, _), (_, lapse) in self.leases.items() if owner == key)

    def is_crowded(self, subject: Subject) -> bool:
        return subject.concurrency is not None and self.live(subject.key) + 1 > subject.concurrency

    def verdict(self, subject: Subject, lease: Lease | None, needs: int = 1) -> Verdict:
        budgets = (
            self._budget(subject.key, "requests", subject.requests),
            self._budget(subject.key, "tokens", subject.tokens),
        )
        if lease is not None:
            return Verdict(lease, *budgets)
        too_small = [limit for limit in subject.tokens if limit.amount < needs]
        if too_small:
            full_ms = max(self._reset_ms(subject.key, "tokens", limit.seconds) for limit in too_small)
            return Verdict(None, *budgets, "tokens", max(1000, full_ms), is_hopeless=True)
        requests_wait = self._wait_ms(subject.key, "requests", subject.requests, 1)
        tokens_wait = self._wait_ms(subject.key, "tokens", subject.tokens, needs) if needs else 0
        crowd_wait = 1000 if self.is_crowded(subject) else 0
        wait_ms = max(requests_wait, tokens_wait, crowd_wait)
        if not wait_ms:
            return Verdict(None, *budgets)
        if requests_wait == wait_ms:
            return Verdict(None, *budgets, "requests", wait_ms)
        return Verdict(None, *budgets, "tokens" if tokens_wait == wait_ms else "concurrency", wait_ms)

    def _of(self, key: str, kind: Kind, seconds: int) -> list[Use]:
        return [use for use in self.uses if (use.key, use.kind, use.seconds) == (key, kind, seconds)]

    def _left(self, key: str, kind: Kind, limit: Limit, at_ms: int) -> int:
        return limit.amount - self.used(key, kind, limit.seconds, at_ms) - self.held(key, kind)

    def _budget(self, key: str, kind: Kind, limits: tuple[Limit, ...]) -> Budget | None:
        budgets = [
            Budget(
                limit,
                max(0, self._left(key, kind, limit, self.now_ms)),
                self._reset_ms(key, kind, limit.seconds),
                self._more_ms(key, kind, limit.seconds),
            )
            for limit in limits
        ]
        return min(budgets, key=lambda budget: (budget.remaining, -budget.reset_ms), default=None)

    def _reset_ms(self, key: str, kind: Kind, seconds: int) -> int:
        in_flight = Use(key, kind, seconds, self.held(key, kind), self.now_ms)
        uses = [use for use in (*self._of(key, kind, seconds), in_flight) if use.amount]
        return max([0, *(use.leaves_ms - self.now_ms for use in uses)])

    def _more_ms(self, key: str, kind: Kind, seconds: int) -> int:
        leaving = [use.leaves_ms for use in self._of(key, kind, seconds) if use.amount and use.leaves_ms > self.now_ms]
        in_flight_ms = 1000 if self.held(key, kind) else 0
        return min(leaving) - self.now_ms if leaving else in_flight_ms

    def _wait_ms(self, key: str, kind: Kind, limits: tuple[Limit, ...], needs: int) -> int:
        return max([self._passes_ms(key, kind, limit, needs) - self.now_ms for limit in limits], default=0)

    def _passes_ms(self, key: str, kind: Kind, limit: Limit, needs: int) -> int:
        leaving = sorted(use.leaves_ms for use in self._of(key, kind, limit.seconds) if use.leaves_ms > self.now_ms)
        passing = [at_ms for at_ms in (self.now_ms, *leaving) if self._left(key, kind, limit, at_ms) >= needs]
        return min(passing, default=self.now_ms + 1000)


class LedgerMachine(RuleBasedStateMachine):
    """Admits, renews, settles (also twice) and crashes at random, and compares all that the ledger says.

    A subclass gives `make_ledger`.
    """

    leases: Bundle[Lease] = Bundle("leases")
    settled: Bundle[tuple[Lease, int]] = Bundle("settled")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(1_000_003.217)
        self.ledger = self.make_ledger(self.clock)
        self.runner = asyncio.Runner()
        self.reference = Reference()
        self.reference.now_ms = 1_000_003_217
        self.admitted = 0

    def make_ledger(self, clock: FakeClock) -> Ledger:
        raise NotImplementedError

    def teardown(self) -> None:
        self.runner.close()

    @rule(
        target=leases,
        key=st.sampled_from(KEYS),
        tier=st.sampled_from(TIERS),
        cap=st.sampled_from(CAPS),
        tokens=st.sampled_from([0, 1, 10, 30, 60, 250]),
        strict=st.booleans(),
    )
    def admit(
        self, key: str, tier: tuple[tuple[Limit, ...], tuple[Limit, ...]], cap: int | None, tokens: int, strict: bool
    ) -> Lease | MultipleResults[Lease]:
        subject = Subject(key, *tier, cap)
        demand = Demand(f"{self.admitted + 1}", tokens, strict)
        requests = self.reference.room(key, "requests", subject.requests)
        left = self.reference.room(key, "tokens", subject.tokens)
        needs = tokens if strict else min(1, tokens)
        passes = (requests is None or requests >= 1) and (left is None or left >= needs or tokens == 0)
        passes = passes and not self.reference.is_crowded(subject)
        self.admitted += 1

        verdict = self.runner.run(self.ledger.admit(subject, demand))

        assert (verdict.lease is not None) == passes
        if verdict.lease is None:
            assert verdict == self.reference.verdict(subject, None, needs)
            return multiple()
        leased = tokens if left is None else max(0, min(tokens, left))
        assert verdict.lease == Lease(demand.lease_id, subject, leased, self.reference.now_ms)
        self.reference.charge(key, "requests", subject.requests, 1)
        self.reference.hold(verdict.lease)
        assert verdict == self.reference.verdict(subject, verdict.lease)
        return verdict.lease

    @rule(lease=leases)
    def admit_again(self, lease: Lease) -> None:
        if self.reference.is_live(lease):
            self._admit_again(lease)

    @rule(lease_and_time=settled)
    def admit_again_after_the_end(self, lease_and_time: tuple[Lease, int]) -> None:
        lease, settled_ms = lease_and_time
        if self.reference.now_ms < settled_ms + MARK_MS:
            self._admit_again(lease)

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        self.runner.run(self.ledger.renew(lease))

        self.reference.hold(lease)

    @rule(lease_and_time=settled)
    def renew_after_the_end(self, lease_and_time: tuple[Lease, int]) -> None:
        lease, settled_ms = lease_and_time
        if self.reference.now_ms < settled_ms + MARK_MS:
            self.runner.run(self.ledger.renew(lease))

    @rule(
        target=settled,
        lease=consumes(leases),
        tokens=st.sampled_from([0, 1, 25, 60, 300]),
        request=st.sampled_from([True, True, False]),
    )
    def settle(self, lease: Lease, tokens: int, request: bool) -> tuple[Lease, int]:
        self.runner.run(self.ledger.settle(lease, Charge(tokens, request)))

        self.reference.release(lease)
        self.reference.charge(lease.subject.key, "tokens", lease.subject.tokens, tokens)
        if not request:
            self.reference.give_back(lease)
        return lease, self.reference.now_ms

    @rule(lease_and_time=settled, request=st.booleans())
    def settle_again(self, lease_and_time: tuple[Lease, int], request: bool) -> None:
        lease, settled_ms = lease_and_time
        if self.reference.now_ms < settled_ms + MARK_MS:
            self.runner.run(self.ledger.settle(lease, Charge(500, request)))

    @rule(lease=consumes(leases))
    def crash(self, lease: Lease) -> None:
        """Its process is gone: it is never heard of again."""

    @rule(
        milliseconds=st.sampled_from([1, 16, 17, 117, 1000, 7117, 59_999, 61_000, LEASE_MS - 1, LEASE_MS, 3_600_000])
        | st.integers(1, 130_000)
    )
    def pass_time(self, milliseconds: int) -> None:
        self.clock.advance(milliseconds / 1000)
        self.reference.now_ms += milliseconds

    @invariant()
    def ledger_holds_the_sum_of_what_was_settled_and_leased(self) -> None:
        for key in KEYS:
            for seconds in WINDOWS:
                plenty = (Limit(PLENTY, seconds),)
                verdict = self.runner.run(self.ledger.peek(Subject(key, plenty, plenty)))
                assert verdict == self.reference.verdict(Subject(key, plenty, plenty), None)

    @invariant()
    def limits_stand_as_they_should(self) -> None:
        for key in KEYS:
            for tier, cap in zip(TIERS, CAPS, strict=True):
                subject = Subject(key, *tier, cap)
                assert self.runner.run(self.ledger.peek(subject)) == self.reference.verdict(subject, None)

    def _admit_again(self, lease: Lease) -> None:
        verdict = self.runner.run(self.ledger.admit(lease.subject, Demand(lease.id, 77)))

        assert verdict == self.reference.verdict(lease.subject, lease)
