"""The leases of a request that takes from several budgets, over the ledger in memory."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import anyio
import pytest

from maas_middleware._leases import RENEWAL_SECONDS, Leases, peek
from maas_middleware.errors import StoreUnavailable
from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.limiting import Charge, Demand, Lease, Ledger, Limit, Subject, Verdict
from maas_middleware.testing.clock import FakeClock

ALICE = Subject("openshift/alice", (Limit(5, 60),), (Limit(100, 60),))
BOB = Subject("openshift/bob", (Limit(5, 60),), (Limit(100, 60),))
MODEL = Subject("the model", (Limit(2, 60),), (Limit(1000, 60),), shared=True)


class Troubled(MemoryLedger):
    """A ledger that cannot be reached about some subjects, and lets others run first."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.unreachable: set[str] = set()
        self.slow: set[str] = set()
        self.unreachable_by_peek: set[str] = set()
        self.renewed: list[tuple[str, str]] = []
        self.reached: Callable[[], None] | None = None

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        await self._reach(subject)
        return await super().admit(subject, demand)

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        await self._reach(lease.subject)
        await super().settle(lease, charge)

    async def renew(self, lease: Lease, /) -> None:
        self.renewed.append((lease.subject.key, lease.id))
        await self._reach(lease.subject)
        await super().renew(lease)

    async def peek(self, subject: Subject, /) -> Verdict:
        if subject.key in self.unreachable_by_peek:
            raise StoreUnavailable
        return await super().peek(subject)

    async def _reach(self, subject: Subject) -> None:
        if self.reached is not None:
            self.reached()
        if subject.key in self.slow:
            await anyio.Event().wait()
        await anyio.lowlevel.checkpoint()
        if subject.key in self.unreachable:
            raise StoreUnavailable


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(86_400.0 * 60)


@pytest.fixture
def ledger(clock: FakeClock) -> Troubled:
    return Troubled(clock)


@pytest.fixture
def leases(ledger: Troubled, clock: FakeClock) -> Leases:
    return Leases(ledger, clock, 0.2)


async def left(ledger: Ledger, subject: Subject) -> tuple[int, int]:
    verdict = await ledger.peek(subject)
    assert verdict.requests is not None
    assert verdict.tokens is not None
    return verdict.requests.remaining, verdict.tokens.remaining


async def test_every_budget_gives_and_gets_back_its_own(ledger: Troubled, leases: Leases) -> None:
    admission = await leases.admit([ALICE, MODEL], Demand("one", 150))

    assert [(lease.subject, lease.tokens) for lease in admission.leases] == [(ALICE, 100), (MODEL, 150)]
    await leases.settle(admission.leases, Charge(30))
    assert (await left(ledger, ALICE), await left(ledger, MODEL)) == ((4, 70), (1, 970))


async def test_budgets_before_the_one_that_refuses_get_everything_back(ledger: Troubled, leases: Leases) -> None:
    for lease_id in ("one", "two"):
        await leases.admit([BOB, MODEL], Demand(lease_id, 10))

    admission = await leases.admit([ALICE, MODEL], Demand("three", 10))

    assert (admission.leases, admission.shown.lease) == ((), None)
    assert admission.refusal is not None
    assert (admission.refusal[0], admission.refusal[1].refused_by) == (MODEL, "requests")
    assert admission.shown.requests is not None
    assert admission.shown.requests.remaining == 5
    assert (await left(ledger, ALICE), await left(ledger, MODEL)) == ((5, 100), (0, 980))


async def test_budgets_behind_the_one_that_refuses_are_not_asked(ledger: Troubled, leases: Leases) -> None:
    await leases.admit([ALICE], Demand("one", 100))
    ledger.unreachable = {MODEL.key}

    admission = await leases.admit([ALICE, MODEL], Demand("two", 10))

    assert admission.refusal is not None
    assert (admission.refusal[0], admission.refusal[1].refused_by) == (ALICE, "tokens")


@pytest.mark.parametrize("trouble", ["unreachable", "slow"])
async def test_budgets_before_one_that_fails_get_everything_back(
    trouble: str, ledger: Troubled, leases: Leases
) -> None:
    setattr(ledger, trouble, {MODEL.key})

    with pytest.raises(StoreUnavailable):
        await leases.admit([ALICE, MODEL], Demand("one", 10))

    assert await left(ledger, ALICE) == (5, 100)


async def test_settlement_that_one_budget_refuses_reaches_the_others(
    ledger: Troubled, leases: Leases, caplog: pytest.LogCaptureFixture
) -> None:
    admission = await leases.admit([ALICE, MODEL], Demand("one", 10))
    ledger.unreachable = {ALICE.key}

    await leases.settle(admission.leases, Charge(30))

    assert await left(ledger, MODEL) == (1, 970)
    assert [record.getMessage() for record in caplog.records] == ["the ledger failed"]


async def test_leases_of_every_budget_are_renewed_when_due_and_no_more_once_settled(
    ledger: Troubled, leases: Leases, clock: FakeClock
) -> None:
    first = await leases.admit([ALICE, MODEL], Demand("one", 10))
    clock.advance(RENEWAL_SECONDS / 2)
    await leases.admit([BOB], Demand("two", 10))

    await leases.renew_due()
    early = list(ledger.renewed)
    clock.advance(RENEWAL_SECONDS / 2)
    for _ in range(3):
        await leases.renew_due()
    await leases.settle(first.leases, Charge(1))
    clock.advance(RENEWAL_SECONDS)
    for _ in range(3):
        await leases.renew_due()

    assert early == []
    assert ledger.renewed == [(ALICE.key, "one"), (MODEL.key, "one"), (BOB.key, "two")]


async def test_nothing_may_be_due_before_half_a_minute_has_passed(
    ledger: Troubled, leases: Leases, clock: FakeClock
) -> None:
    before = leases.may_be_due
    await leases.admit([ALICE], Demand("one", 10))
    clock.advance(RENEWAL_SECONDS - 1)
    early = leases.may_be_due
    await leases.admit([BOB], Demand("two", 10))
    clock.advance(1)

    seen = []
    for _ in range(3):
        seen.append(leases.may_be_due)
        await leases.renew_due()
    clock.advance(RENEWAL_SECONDS - 2)
    later = leases.may_be_due
    clock.advance(1)

    assert (before, early, seen, later) == (False, False, [True, True, False], False)
    assert leases.may_be_due
    assert ledger.renewed == [(ALICE.key, "one")]


async def test_where_all_is_settled_nothing_is_due_any_more(ledger: Troubled, leases: Leases, clock: FakeClock) -> None:
    admission = await leases.admit([ALICE], Demand("one", 10))
    await leases.settle(admission.leases, Charge(1))
    clock.advance(RENEWAL_SECONDS)

    await leases.renew_due()
    idle = leases.may_be_due
    await leases.admit([BOB], Demand("two", 10))
    clock.advance(RENEWAL_SECONDS)

    assert not idle
    assert leases.may_be_due
    assert ledger.renewed == []


class Impatient(MemoryLedger):
    """A ledger that notes whether it is called under a deadline."""

    never_waits = True

    def __init__(self) -> None:
        super().__init__()
        self.deadlines: list[float] = []

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        self.deadlines.append(anyio.current_effective_deadline())
        return await super().admit(subject, demand)

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        self.deadlines.append(anyio.current_effective_deadline())
        await super().settle(lease, charge)


class Patient(Impatient):
    """One that does not say that it never waits."""


@pytest.mark.parametrize(("ledger_class", "has_deadlines"), [(Impatient, False), (Patient, True)])
async def test_only_a_class_that_says_itself_that_it_never_waits_is_called_without_a_deadline(
    ledger_class: type[Impatient], has_deadlines: bool
) -> None:
    ledger = ledger_class()
    leases = Leases(ledger, lambda: 0.0, 5.0)

    for subjects in ([ALICE], [ALICE, MODEL]):
        admission = await leases.admit(subjects, Demand(str(len(subjects)), 10))
        await leases.settle(admission.leases, Charge(10))

    assert [math.isfinite(deadline) for deadline in ledger.deadlines] == [has_deadlines] * 6
    assert (await left(ledger, ALICE), await left(ledger, MODEL)) == ((3, 80), (1, 990))


async def test_memory_ledger_never_waits() -> None:
    ledger = MemoryLedger()
    lease = (await ledger.admit(ALICE, Demand("one", 10))).lease
    assert lease is not None
    calls = [ledger.admit(ALICE, Demand("one", 10)), ledger.renew(lease), ledger.settle(lease, Charge(1))]

    for call in (*calls, ledger.peek(ALICE)):
        with pytest.raises(StopIteration):
            call.send(None)
    assert vars(MemoryLedger)["never_waits"] is True


async def test_renewal_that_fails_is_tried_again_in_its_turn(
    ledger: Troubled, leases: Leases, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for subject in (ALICE, BOB):
        await leases.admit([subject], Demand("one", 1))
    ledger.unreachable = {ALICE.key}
    clock.advance(RENEWAL_SECONDS)
    for _ in range(3):
        await leases.renew_due()
    clock.advance(RENEWAL_SECONDS)
    await leases.renew_due()

    assert [key for key, _ in ledger.renewed] == [ALICE.key, BOB.key, ALICE.key]
    assert caplog.messages == ["the ledger failed"] * 2


async def test_all_leases_of_a_request_are_settled_when_asyncio_cancels_the_first(
    ledger: Troubled, leases: Leases, clock: FakeClock
) -> None:
    admission = await leases.admit([ALICE, BOB, MODEL], Demand("one", 10))
    entered = anyio.Event()
    ledger.reached = entered.set
    settling = asyncio.create_task(leases.settle(admission.leases, Charge(30)))
    await entered.wait()

    settling.cancel()
    await asyncio.wait([settling])
    clock.advance(RENEWAL_SECONDS)
    await leases.renew_due()

    assert [await left(ledger, subject) for subject in (ALICE, BOB, MODEL)] == [(4, 70), (4, 70), (1, 970)]
    assert ledger.renewed == []


async def test_refusal_stays_one_where_nobody_can_tell_what_is_left(ledger: Troubled, leases: Leases) -> None:
    for lease_id in ("one", "two"):
        await leases.admit([BOB, MODEL], Demand(lease_id, 10))
    ledger.unreachable_by_peek = {ALICE.key}

    admission = await leases.admit([ALICE, MODEL], Demand("three", 10))

    assert admission.refusal is not None
    assert admission.refusal[0] is MODEL
    assert (admission.leases, admission.shown.refused_by) == ((), "requests")


async def test_question_asks_all_budgets_and_takes_nothing(ledger: Troubled, leases: Leases) -> None:
    for lease_id in ("one", "two"):
        await leases.admit([BOB, MODEL], Demand(lease_id, 10))

    admission = await peek(ledger, [ALICE, MODEL])

    assert (admission.leases, admission.shown.lease) == ((), None)
    assert admission.refusal is not None
    assert admission.refusal[0] is MODEL
    assert await left(ledger, ALICE) == (5, 100)
