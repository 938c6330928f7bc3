from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Literal, TypeVar

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream, TaskStatus
from anyio.lowlevel import checkpoint
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule, run_state_machine_as_test
from msgspec.structs import replace

from maas_middleware.errors import StoreUnavailable
from maas_middleware.ledgers._fallback import share
from maas_middleware.ledgers.guarded import GuardedLedger
from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.ledgers.redis import RedisLedger
from maas_middleware.limiting import Charge, Demand, Lease, Ledger, Limit, Subject, Verdict
from maas_middleware.testing.clock import FakeClock

from .contract import LedgerContract, admitted, counted, spend, subject
from .redis_server import RedisServer, running_redis

T = TypeVar("T")

ALICE = subject("100/minute", "1000/minute")
BUDGET = 60.0


def pass_time_on_the_loop(seconds: float) -> None:
    """Let time-outs end that would end so much later."""
    loop = asyncio.get_running_loop()
    now = loop.time
    vars(loop)["time"] = lambda: now() + seconds


async def no_answer() -> None:
    """What waits for this waits until its budget is used up, which is now."""
    pass_time_on_the_loop(BUDGET)
    await anyio.Event().wait()


class Store:
    """A ledger on a store that is away: it fails at once, or does not answer, before or after it has done the work."""

    def __init__(self, clock: FakeClock) -> None:
        self.counters = MemoryLedger(clock=clock)
        self.error: Exception | None = None
        self.stalls: Literal["before", "after"] | None = None
        self.stalled: Callable[[], Awaitable[None]] = no_answer
        self.settling: Callable[[], Awaitable[None]] | None = None
        self.rejects = ""
        self.calls: list[str] = []
        self.closed = 0

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        return await self._do("admit", lambda: self.counters.admit(subject, demand))

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        if lease.id == self.rejects:
            raise StoreUnavailable
        if self.settling is not None:
            self.calls.append("settling")
            await self.settling()
        await self._do("settle", lambda: self.counters.settle(lease, charge))

    async def renew(self, lease: Lease, /) -> None:
        await self._do("renew", lambda: self.counters.renew(lease))

    async def peek(self, subject: Subject, /) -> Verdict:
        return await self._do("peek", lambda: self.counters.peek(subject))

    async def aclose(self) -> None:
        await checkpoint()
        self.closed += 1

    async def _do(self, name: str, operation: Callable[[], Awaitable[T]]) -> T:
        self.calls.append(name)
        if self.error is not None:
            raise self.error
        if self.stalls == "before":
            await self.stalled()
        answer = await operation()
        if self.stalls == "after":
            await self.stalled()
        return answer

    def goes(self) -> None:
        self.error = StoreUnavailable()

    def comes_back(self) -> None:
        self.error, self.stalls = None, None


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(86_400.0 * 60)


@pytest.fixture
def store(clock: FakeClock) -> Store:
    return Store(clock)


@pytest.fixture
def fallback(clock: FakeClock) -> MemoryLedger:
    return MemoryLedger(clock=clock)


@pytest.fixture
def ledger(store: Store, fallback: MemoryLedger, clock: FakeClock) -> GuardedLedger:
    return GuardedLedger(store, fallback=fallback, replicas=4, budget=BUDGET, clock=clock)


@pytest.fixture
def closed(store: Store, clock: FakeClock) -> GuardedLedger:
    return GuardedLedger(store, fallback=None, budget=BUDGET, clock=clock)


async def open_breaker(ledger: GuardedLedger, store: Store) -> None:
    store.goes()
    await ledger.renew(Lease("of nobody", subject(key="nobody"), 0, 0))
    assert ledger.degraded
    store.calls.clear()


async def close_breaker(ledger: GuardedLedger, store: Store, clock: FakeClock) -> None:
    store.comes_back()
    clock.advance(5)
    await ledger.renew(Lease("of nobody", subject(key="nobody"), 0, 0))
    assert not ledger.degraded
    store.calls.clear()


class TestGuardedLedger(LedgerContract):
    """Nothing can be told from the ledger inside as long as its store is there."""

    @pytest.fixture
    def ledger(self, clock: FakeClock) -> Ledger:
        return GuardedLedger(MemoryLedger(clock=clock), fallback=MemoryLedger(clock=clock), replicas=4, clock=clock)


# the fallback


async def test_while_the_store_is_away_a_replica_lets_its_share_of_each_limit_pass(
    ledger: GuardedLedger, store: Store
) -> None:
    alice = subject("10/minute;7/hour", "100/minute")
    store.goes()

    verdicts = [await ledger.admit(alice, Demand(f"{number}", 20)) for number in range(3)]

    assert [verdict.lease and verdict.lease.tokens for verdict in verdicts] == [20, None, None]
    assert verdicts[1].requests is not None
    assert verdicts[1].requests.limit == Limit(1, 3600)
    assert verdicts[0].tokens is not None
    assert (verdicts[0].tokens.limit, verdicts[0].tokens.remaining) == (Limit(25, 60), 5)
    assert verdicts[1].refused_by == "requests"


async def test_share_of_a_small_limit_is_one_and_of_no_limit_none(ledger: GuardedLedger, store: Store) -> None:
    store.goes()

    small = [(await ledger.admit(subject("3/minute"), Demand(f"{number}", 5))).lease for number in range(2)]
    unlimited = await ledger.admit(subject(key="openshift/bob"), Demand("bob's", 5))

    assert [lease is not None for lease in small] == [True, False]
    assert unlimited.lease is not None
    assert (unlimited.lease.tokens, unlimited.requests, unlimited.tokens) == (5, None, None)


class Recorder:
    """A ledger that knows what it was asked about; it refuses if it is told how."""

    def __init__(self, ledger: Ledger, refusal: Verdict | None = None) -> None:
        self.subjects: list[Subject] = []
        self._ledger = ledger
        self._refusal = refusal

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        self.subjects.append(subject)
        return self._refusal or await self._ledger.admit(subject, demand)

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        self.subjects.append(lease.subject)
        await self._ledger.settle(lease, charge)

    async def renew(self, lease: Lease, /) -> None:
        self.subjects.append(lease.subject)
        await self._ledger.renew(lease)

    async def peek(self, subject: Subject, /) -> Verdict:
        self.subjects.append(subject)
        return await self._ledger.peek(subject)


async def test_fallback_is_asked_about_the_share_of_everything(store: Store, clock: FakeClock) -> None:
    recorder = Recorder(MemoryLedger(clock=clock))
    ledger = GuardedLedger(store, fallback=recorder, replicas=4, clock=clock)
    store.goes()

    lease = await admitted(ledger, Subject("alice", (Limit(9, 60),), (Limit(100, 60), Limit(2, 7)), 9, True), "one")
    await ledger.renew(lease)
    await ledger.settle(lease, Charge(1))
    await ledger.peek(lease.subject)

    assert recorder.subjects == [Subject("alice", (Limit(2, 60),), (Limit(25, 60), Limit(1, 7)), 2, True)] * 4


@pytest.mark.parametrize(
    ("concurrency", "shared_out"),
    [pytest.param(None, None, id="no-cap"), pytest.param(3, 1, id="small-cap"), pytest.param(8, 2, id="cap")],
)
async def test_share_of_the_concurrency(
    concurrency: int | None, shared_out: int | None, store: Store, clock: FakeClock
) -> None:
    recorder = Recorder(MemoryLedger(clock=clock))
    ledger = GuardedLedger(store, fallback=recorder, replicas=4, clock=clock)
    store.goes()

    await ledger.admit(Subject("alice", concurrency=concurrency), Demand("one", 1))

    assert [subject.concurrency for subject in recorder.subjects] == [shared_out]


@pytest.mark.parametrize(
    ("tokens", "of_the_share", "of_the_limit"),
    [
        pytest.param(1000, True, False, id="fits-the-whole-limit"),
        pytest.param(1001, True, True, id="fits-no-limit"),
        pytest.param(1001, False, False, id="never-was"),
    ],
)
async def test_what_only_a_share_is_too_small_for_is_not_hopeless(
    tokens: int, of_the_share: bool, of_the_limit: bool, store: Store, clock: FakeClock
) -> None:
    refusal = Verdict(None, None, None, "tokens", 1000, is_hopeless=of_the_share)
    ledger = GuardedLedger(store, fallback=Recorder(MemoryLedger(clock=clock), refusal), replicas=4, clock=clock)
    store.goes()

    verdict = await ledger.admit(ALICE, Demand("one", tokens, strict=True))

    assert verdict == replace(refusal, is_hopeless=of_the_limit)


async def test_lease_of_the_fallback_knows_the_callers_own_subject(ledger: GuardedLedger, store: Store) -> None:
    store.goes()

    lease = await admitted(ledger, ALICE, "one", 10)

    assert lease.subject == ALICE
    assert (lease.id, lease.tokens) == ("one", 10)


async def test_peek_tells_of_the_share_while_the_store_is_away(ledger: GuardedLedger, store: Store) -> None:
    store.goes()
    failing = await ledger.peek(ALICE)

    later = await ledger.peek(ALICE)

    assert failing == later
    assert later.requests is not None
    assert (later.requests.limit, later.requests.remaining) == (Limit(25, 60), 25)


async def test_without_a_fallback_requests_are_refused_with_a_time_to_come_back(
    closed: GuardedLedger, store: Store
) -> None:
    store.goes()

    with pytest.raises(StoreUnavailable) as admitting:
        await closed.admit(ALICE, Demand("one", 1))
    with pytest.raises(StoreUnavailable):
        await closed.peek(ALICE)

    assert (admitting.value.status, dict(admitting.value.headers)) == (503, {b"retry-after": b"2"})


async def test_without_a_fallback_a_running_request_ends_well_and_is_charged_later(
    closed: GuardedLedger, store: Store, clock: FakeClock
) -> None:
    lease = await admitted(closed, ALICE, "one", 10)
    store.goes()

    await closed.renew(lease)
    await closed.settle(lease, Charge(30))
    away = await counted(store.counters)
    await close_breaker(closed, store, clock)

    assert away == (1, 10)
    assert await counted(store.counters) == (1, 30)


# the breaker


async def test_after_the_first_failure_the_store_is_left_alone(ledger: GuardedLedger, store: Store) -> None:
    store.goes()

    for number in range(3):
        await spend(ledger, ALICE, f"{number}", 5)
        await ledger.peek(ALICE)

    assert store.calls == ["admit"]
    assert ledger.degraded


@pytest.mark.parametrize("stalls", ["before", "after"])
async def test_store_that_does_not_answer_costs_no_more_than_the_budget(
    stalls: Literal["before", "after"], ledger: GuardedLedger, store: Store
) -> None:
    store.stalls = stalls

    with anyio.fail_after(BUDGET * 1.1):
        verdict = await ledger.admit(ALICE, Demand("one", 5))

    assert verdict.lease is not None
    assert ledger.degraded


async def test_call_that_swallows_its_cancellation_is_cancelled_again(ledger: GuardedLedger, store: Store) -> None:
    swallowed = 0

    async def clinging() -> None:
        nonlocal swallowed
        pass_time_on_the_loop(BUDGET)
        while swallowed < 5:
            try:
                await anyio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
        await anyio.Event().wait()

    store.stalls, store.stalled = "before", clinging

    with anyio.fail_after(BUDGET * 1.1):
        verdict = await ledger.admit(ALICE, Demand("one", 5))

    assert verdict.lease is not None
    assert swallowed == 5


async def test_one_probe_goes_out_when_the_rest_is_over(ledger: GuardedLedger, store: Store, clock: FakeClock) -> None:
    await open_breaker(ledger, store)

    clock.advance(0.999)
    await ledger.admit(ALICE, Demand("early", 1))
    early = list(store.calls)
    clock.advance(0.001)
    await ledger.admit(ALICE, Demand("probe", 1))
    await ledger.admit(ALICE, Demand("after", 1))

    assert (early, store.calls) == ([], ["admit"])


async def test_rest_doubles_up_to_five_seconds_and_starts_again_after_a_success(
    ledger: GuardedLedger, store: Store, clock: FakeClock
) -> None:
    async def rest() -> float:
        waited, calls = 0.0, len(store.calls)
        while len(store.calls) == calls:
            clock.advance(0.5)
            waited += 0.5
            await ledger.renew(Lease("one", ALICE, 0, 0))
        return waited

    await open_breaker(ledger, store)

    growing = [await rest() for _ in range(5)]
    await close_breaker(ledger, store, clock)
    await open_breaker(ledger, store)

    assert growing == [1, 2, 4, 5, 5]
    assert await rest() == 1


async def test_only_one_caller_waits_for_the_probe(ledger: GuardedLedger, store: Store, clock: FakeClock) -> None:
    await open_breaker(ledger, store)
    clock.advance(1)
    answers = anyio.Event()
    store.comes_back()
    store.stalls, store.stalled = "before", answers.wait
    verdicts: dict[str, Verdict] = {}

    async def call(name: str) -> None:
        verdicts[name] = await ledger.admit(ALICE, Demand(name, 1))

    async with anyio.create_task_group() as calls:
        calls.start_soon(call, "probe")
        await anyio.wait_all_tasks_blocked()
        await call("other")
        others = (list(verdicts), ledger.degraded)
        answers.set()

    assert others == (["other"], True)
    assert store.calls == ["admit"]
    assert not ledger.degraded
    assert verdicts["probe"].requests is not None
    assert verdicts["probe"].requests.limit == Limit(100, 60)


async def test_cancelled_probe_tells_nothing_and_the_next_call_probes(
    ledger: GuardedLedger, store: Store, clock: FakeClock
) -> None:
    await open_breaker(ledger, store)
    clock.advance(1)
    store.comes_back()
    store.stalls, store.stalled = "before", anyio.Event().wait

    async with anyio.create_task_group() as calls:
        calls.start_soon(ledger.admit, ALICE, Demand("cancelled", 1))
        await anyio.wait_all_tasks_blocked()
        calls.cancel_scope.cancel()
    degraded = ledger.degraded
    store.comes_back()
    await ledger.admit(ALICE, Demand("next", 1))

    assert degraded
    assert not ledger.degraded


async def test_success_of_a_call_from_before_does_not_close_it(ledger: GuardedLedger, store: Store) -> None:
    answers = anyio.Event()
    store.stalls, store.stalled = "before", answers.wait

    async with anyio.create_task_group() as calls:
        calls.start_soon(ledger.admit, ALICE, Demand("slow", 1))
        await anyio.wait_all_tasks_blocked()
        await open_breaker(ledger, store)
        answers.set()

    assert ledger.degraded


async def test_failure_of_a_call_from_before_puts_no_probe_off(
    ledger: GuardedLedger, store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    fails = anyio.Event()

    async def failing() -> None:
        await fails.wait()
        raise StoreUnavailable

    store.stalls, store.stalled = "before", failing
    async with anyio.create_task_group() as calls:
        calls.start_soon(ledger.admit, ALICE, Demand("slow", 1))
        await anyio.wait_all_tasks_blocked()
        await open_breaker(ledger, store)
        clock.advance(0.5)
        fails.set()
    clock.advance(0.5)
    await ledger.admit(ALICE, Demand("probe", 1))

    assert store.calls == ["admit"]
    assert len(caplog.records) == 1


async def test_store_that_can_only_be_read_is_not_taken_for_one_that_counts(
    ledger: GuardedLedger, store: Store, clock: FakeClock
) -> None:
    await open_breaker(ledger, store)
    store.comes_back()
    clock.advance(5)

    await ledger.peek(ALICE)

    assert (ledger.degraded, store.calls) == (True, [])


# what is logged


async def test_each_change_of_state_is_one_line(
    ledger: GuardedLedger, store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    lease = await admitted(ledger, ALICE, "one")
    store.error = StoreUnavailable()
    store.error.__cause__ = ConnectionRefusedError("redis://:secret@store")

    for number in range(5):
        await ledger.admit(ALICE, Demand(f"{number}", 1))
        clock.advance(1)
    await ledger.settle(lease, Charge(5))
    await close_breaker(ledger, store, clock)
    await ledger.admit(ALICE, Demand("again", 1))

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "the counter store fails (ConnectionRefusedError): this process counts on its own"),
        ("WARNING", "the counter store answers again; 1 settlements wait to be replayed"),
    ]
    assert "secret" not in caplog.text


async def test_log_says_that_requests_are_refused(
    closed: GuardedLedger, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.stalls = "before"

    with pytest.raises(StoreUnavailable):
        await closed.admit(ALICE, Demand("one", 1))

    assert [record.getMessage() for record in caplog.records] == [
        "the counter store fails (TimeoutError): requests are refused"
    ]


async def test_bug_of_a_ledger_is_a_failure_with_one_traceback(
    ledger: GuardedLedger, store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    store.error = ZeroDivisionError("a bug")

    for number in range(3):
        await spend(ledger, ALICE, f"{number}", 5)
        clock.advance(1)

    assert [record.exc_info and record.exc_info[1] for record in caplog.records] == [store.error]


async def test_changes_are_told(store: Store, fallback: MemoryLedger, clock: FakeClock) -> None:
    changes: list[bool] = []
    ledger = GuardedLedger(store, fallback=fallback, clock=clock, on_change=changes.append)

    await open_breaker(ledger, store)
    await ledger.admit(ALICE, Demand("one", 1))
    await close_breaker(ledger, store, clock)

    assert changes == [True, False]


# settlements


@pytest.fixture
async def lease(ledger: GuardedLedger) -> Lease:
    """One of the store, before anything happened."""
    return await admitted(ledger, ALICE, "of the store", 10)


async def test_what_is_settled_while_the_store_is_away_is_charged_here_and_later_there_once(
    lease: Lease, ledger: GuardedLedger, store: Store, fallback: MemoryLedger, clock: FakeClock
) -> None:
    await open_breaker(ledger, store)

    await ledger.settle(lease, Charge(30))
    away = (await counted(fallback), await counted(store.counters), ledger.waiting)
    await close_breaker(ledger, store, clock)
    await ledger.peek(ALICE)

    assert away == ((0, 30), (1, 10), 1)
    assert await counted(store.counters) == (1, 30)
    assert await counted(fallback) == (0, 30)
    assert ledger.waiting == 0


async def test_lease_of_the_fallback_is_charged_in_both(
    ledger: GuardedLedger, store: Store, fallback: MemoryLedger, clock: FakeClock
) -> None:
    store.goes()
    lease = await admitted(ledger, ALICE, "local", 10)

    await ledger.settle(lease, Charge(30))
    away = await counted(fallback)
    await close_breaker(ledger, store, clock)

    assert away == (1, 30)
    assert await counted(store.counters) == (0, 30)


async def test_lease_of_the_fallback_that_ends_after_the_recovery_is_charged_in_both(
    ledger: GuardedLedger, store: Store, fallback: MemoryLedger, clock: FakeClock
) -> None:
    store.goes()
    lease = await admitted(ledger, ALICE, "local", 10)
    await close_breaker(ledger, store, clock)

    await ledger.settle(lease, Charge(30))

    assert await counted(fallback) == (1, 30)
    assert await counted(store.counters) == (0, 30)
    assert store.calls == ["settle"]


async def test_request_is_given_back_only_where_it_was_counted(
    lease: Lease, ledger: GuardedLedger, store: Store, fallback: MemoryLedger, clock: FakeClock
) -> None:
    await spend(ledger, ALICE, "another of the store", 0)
    store.goes()
    local = await admitted(ledger, ALICE, "local", 10)
    await spend(ledger, ALICE, "another local", 0)
    before = (await counted(store.counters), await counted(fallback))

    await ledger.settle(lease, Charge(0, request=False))
    given_back_here = await counted(fallback)
    await ledger.settle(local, Charge(0, request=False))
    await close_breaker(ledger, store, clock)

    assert before == ((2, 10), (2, 10))
    assert given_back_here == (2, 10)
    assert await counted(fallback) == (1, 0)
    assert await counted(store.counters) == (1, 0)


async def test_settling_again_does_nothing_while_the_first_waits(
    lease: Lease, ledger: GuardedLedger, store: Store, fallback: MemoryLedger, clock: FakeClock
) -> None:
    await open_breaker(ledger, store)

    await ledger.settle(lease, Charge(30))
    await ledger.settle(lease, Charge(500))
    await close_breaker(ledger, store, clock)
    await ledger.settle(lease, Charge(500))

    assert await counted(fallback) == (0, 30)
    assert await counted(store.counters) == (1, 30)


@pytest.mark.parametrize("stalls", ["before", "after"])
async def test_settlement_that_was_broken_off_is_charged_once_whether_it_had_arrived_or_not(
    stalls: Literal["before", "after"], lease: Lease, ledger: GuardedLedger, store: Store, clock: FakeClock
) -> None:
    store.stalls = stalls

    await ledger.settle(lease, Charge(30))
    waiting = ledger.waiting
    await close_breaker(ledger, store, clock)

    assert (waiting, ledger.waiting) == (1, 0)
    assert await counted(store.counters) == (1, 30)


@pytest.mark.parametrize("stalls", ["before", "after"])
async def test_settlement_is_not_lost_when_its_caller_is_cancelled(
    stalls: Literal["before", "after"], lease: Lease, ledger: GuardedLedger, store: Store
) -> None:
    store.stalls, store.stalled = stalls, anyio.Event().wait

    async with anyio.create_task_group() as calls:
        calls.start_soon(ledger.settle, lease, Charge(30))
        await anyio.wait_all_tasks_blocked()
        calls.cancel_scope.cancel()
    store.comes_back()
    await ledger.peek(ALICE)

    assert not ledger.degraded
    assert await counted(store.counters) == (1, 30)


async def test_admission_whose_answer_was_too_late_is_settled_by_its_lease(
    ledger: GuardedLedger, store: Store, clock: FakeClock
) -> None:
    store.stalls = "after"
    lease = await admitted(ledger, ALICE, "late", 10)
    held = await counted(store.counters)

    await ledger.settle(lease, Charge(30))
    await close_breaker(ledger, store, clock)

    assert held == (1, 10)
    assert await counted(store.counters) == (1, 30)


async def test_settlement_whose_turn_it_is_to_probe_goes_to_the_store_itself(
    lease: Lease, ledger: GuardedLedger, store: Store, fallback: MemoryLedger, clock: FakeClock
) -> None:
    await open_breaker(ledger, store)
    store.comes_back()
    clock.advance(1)

    await ledger.settle(lease, Charge(30))

    assert store.calls == ["renew", "settle"]
    assert not ledger.degraded
    assert (await counted(store.counters), await counted(fallback)) == ((1, 30), (0, 0))
    assert ledger.waiting == 0


async def test_no_settlement_is_sent_to_a_store_that_fails(
    lease: Lease, ledger: GuardedLedger, store: Store, clock: FakeClock
) -> None:
    await open_breaker(ledger, store)
    clock.advance(1)

    await ledger.settle(lease, Charge(30))

    assert store.calls == ["renew"]
    assert ledger.waiting == 1


async def test_what_never_reached_the_store_waits_as_long_as_it_has_to(
    lease: Lease, ledger: GuardedLedger, store: Store, clock: FakeClock
) -> None:
    await open_breaker(ledger, store)
    await ledger.settle(lease, Charge(30))

    clock.advance(86_400)
    await close_breaker(ledger, store, clock)

    assert await counted(store.counters) == (0, 30)
    assert ledger.lost == 0


@pytest.mark.parametrize(
    ("seconds", "charged", "lost"),
    [pytest.param(539.9, 30, 0, id="while-it-is-marked"), pytest.param(540.0, 0, 1, id="no-more")],
)
async def test_what_may_have_reached_the_store_is_replayed_while_the_mark_is_safe(
    seconds: float,
    charged: int,
    lost: int,
    ledger: GuardedLedger,
    store: Store,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    alice = subject(tokens="1000/hour")
    lease = await admitted(ledger, alice, "one", 0)
    store.stalls = "before"
    await ledger.settle(lease, Charge(30))

    clock.advance(seconds - 5)
    await close_breaker(ledger, store, clock)

    assert await counted(store.counters, seconds=3600) == (0, charged)
    assert (ledger.waiting, ledger.lost) == (0, lost)
    assert caplog.text.count("a settlement is lost") == lost


async def test_age_of_a_settlement_is_that_of_its_first_sending(
    ledger: GuardedLedger, store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        lease = await admitted(ledger, subject(tokens="1000/hour"), f"{number}", 0)
        store.stalls = "before"
        await ledger.settle(lease, Charge(30))
        store.rejects = lease.id
        for _ in range(108):
            await close_breaker(ledger, store, clock)

    assert await counted(store.counters, seconds=3600) == (0, 0)
    assert (ledger.waiting, ledger.lost) == (0, 2)
    assert caplog.text.count("a settlement is lost, and perhaps more: the store may have charged it long ago") == 2


async def test_failed_settlement_opens_the_breaker(lease: Lease, ledger: GuardedLedger, store: Store) -> None:
    store.goes()

    await ledger.settle(lease, Charge(30))
    await ledger.admit(ALICE, Demand("next", 1))

    assert ledger.degraded
    assert store.calls == ["admit", "settle"]


# replays


async def settle_away(ledger: GuardedLedger, count: int) -> None:
    for number in range(count):
        away = subject(tokens="1000/minute", key=f"away {number}")
        await ledger.settle(Lease(f"away {number}", away, 0, 0), Charge(1))


async def test_a_few_are_replayed_with_each_call_that_succeeds(
    ledger: GuardedLedger, store: Store, clock: FakeClock
) -> None:
    await open_breaker(ledger, store)
    await settle_away(ledger, 35)
    await close_breaker(ledger, store, clock)
    waiting = [ledger.waiting]

    one = await admitted(ledger, ALICE, "one")
    waiting.append(ledger.waiting)
    await ledger.settle(one, Charge(0))
    waiting.append(ledger.waiting)
    await ledger.peek(ALICE)
    waiting.append(ledger.waiting)

    assert waiting == [25, 15, 5, 0]
    assert {await counted(store.counters, f"away {number}") for number in range(35)} == {(0, 1)}


async def test_call_of_the_second_half_of_its_budget_replays_nothing(
    lease: Lease, ledger: GuardedLedger, store: Store, clock: FakeClock
) -> None:
    async def slow() -> None:
        pass_time_on_the_loop(BUDGET * 0.6)

    await open_breaker(ledger, store)
    await ledger.settle(lease, Charge(30))
    store.comes_back()
    clock.advance(1)
    store.stalls, store.stalled = "before", slow

    await ledger.renew(Lease("of nobody", subject(key="nobody"), 0, 0))
    waiting = ledger.waiting
    store.comes_back()
    await ledger.peek(ALICE)

    assert (waiting, ledger.waiting) == (1, 0)


async def test_callers_who_come_during_a_replay_do_not_wait_for_it(
    lease: Lease, ledger: GuardedLedger, store: Store, clock: FakeClock
) -> None:
    await open_breaker(ledger, store)
    await ledger.settle(lease, Charge(30))
    answers = anyio.Event()
    store.comes_back()
    clock.advance(1)
    store.settling = answers.wait

    async with anyio.create_task_group() as calls:
        calls.start_soon(ledger.admit, ALICE, Demand("replaying", 1))
        await anyio.wait_all_tasks_blocked()
        verdict = await ledger.admit(ALICE, Demand("other", 1))
        calls_meanwhile = list(store.calls)
        answers.set()

    assert verdict.lease is not None
    assert calls_meanwhile == ["admit", "settling", "admit"]
    assert await counted(store.counters) == (3, 32)


async def test_settlement_that_the_store_cannot_take_does_not_keep_the_others(
    ledger: GuardedLedger, store: Store, clock: FakeClock
) -> None:
    await open_breaker(ledger, store)
    await settle_away(ledger, 4)
    store.rejects = "away 0"

    await close_breaker(ledger, store, clock)
    await ledger.peek(ALICE)
    resting = ledger.waiting
    clock.advance(1)
    await ledger.peek(ALICE)

    assert (resting, ledger.waiting) == (4, 1)
    assert not ledger.degraded
    assert [await counted(store.counters, f"away {number}") for number in range(4)] == [(0, 0)] + [(0, 1)] * 3


async def test_of_too_many_the_oldest_is_lost_and_that_is_logged_once(
    store: Store, fallback: MemoryLedger, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = GuardedLedger(store, fallback=fallback, maximum_replays=3, clock=clock)
    for _ in range(2):
        await open_breaker(ledger, store)
        await settle_away(ledger, 5)
        await close_breaker(ledger, store, clock)

    assert [await counted(store.counters, f"away {number}") for number in range(5)] == [(0, 0)] * 2 + [(0, 1)] * 3
    assert ledger.lost == 4
    assert caplog.text.count("a settlement is lost, and perhaps more: too many wait") == 2


# renewals


async def test_lease_of_the_store_is_revived_when_the_store_is_back(
    lease: Lease, ledger: GuardedLedger, store: Store, fallback: MemoryLedger, clock: FakeClock
) -> None:
    await open_breaker(ledger, store)
    clock.advance(130)
    await ledger.renew(lease)
    lapsed = await counted(store.counters)
    await close_breaker(ledger, store, clock)

    await ledger.renew(lease)

    assert lapsed == (0, 0)
    assert await counted(fallback) == (0, 0)
    assert await counted(store.counters) == (0, 10)


async def test_lease_of_the_fallback_is_kept_alive_there_and_in_the_store_when_it_is_back(
    ledger: GuardedLedger, store: Store, fallback: MemoryLedger, clock: FakeClock
) -> None:
    store.goes()
    lease = await admitted(ledger, ALICE, "local", 10)
    clock.advance(100)
    await ledger.renew(lease)
    clock.advance(100)
    away = await counted(fallback)
    await close_breaker(ledger, store, clock)

    await ledger.renew(lease)

    assert away == (0, 10)
    assert await counted(fallback) == (0, 10)
    assert await counted(store.counters) == (0, 10)


async def test_settled_lease_is_not_renewed_while_its_settlement_waits(
    lease: Lease, ledger: GuardedLedger, store: Store, clock: FakeClock
) -> None:
    await open_breaker(ledger, store)
    await ledger.settle(lease, Charge(30))
    store.comes_back()
    clock.advance(5)

    await ledger.renew(lease)

    assert store.calls == []


# the end


async def test_closing_replays_what_waits_and_closes_the_ledger(
    lease: Lease, ledger: GuardedLedger, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await open_breaker(ledger, store)
    await ledger.settle(lease, Charge(30))
    await settle_away(ledger, 30)
    store.comes_back()
    caplog.clear()

    await ledger.aclose()

    assert await counted(store.counters) == (1, 30)
    assert {await counted(store.counters, f"away {number}") for number in range(30)} == {(0, 1)}
    assert (ledger.waiting, store.closed) == (0, 1)
    assert caplog.records == []


async def test_closing_goes_on_when_the_server_cancels_it(lease: Lease, ledger: GuardedLedger, store: Store) -> None:
    await open_breaker(ledger, store)
    await ledger.settle(lease, Charge(30))
    store.comes_back()
    store.stalls, store.stalled = "before", checkpoint

    with anyio.CancelScope() as scope:
        scope.cancel()
        await ledger.aclose()

    assert await counted(store.counters) == (1, 30)
    assert store.closed == 1


@pytest.mark.parametrize("stalls", [None, "before", "after"])
async def test_closing_gives_up_on_a_store_that_is_away_and_says_what_is_lost(
    stalls: Literal["before", "after"] | None, ledger: GuardedLedger, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await open_breaker(ledger, store)
    await settle_away(ledger, 30)
    if stalls is not None:
        store.error, store.stalls = None, stalls
    caplog.clear()

    await ledger.aclose(BUDGET * 10)

    assert store.calls == ["settle"]
    assert [record.getMessage() for record in caplog.records] == [
        "30 settlements are lost: the counter store does not take them"
    ]
    assert store.closed == 1


async def test_closing_takes_no_longer_than_it_may(ledger: GuardedLedger, store: Store) -> None:
    async def slow() -> None:
        pass_time_on_the_loop(1.0)
        await checkpoint()
        await checkpoint()

    await open_breaker(ledger, store)
    await settle_away(ledger, 30)
    store.comes_back()
    store.stalls, store.stalled = "before", slow

    await ledger.aclose(3.5)

    assert (len(store.calls), ledger.waiting, store.closed) == (4, 27, 1)


async def test_ledger_that_cannot_be_closed_is_left_as_it_is(clock: FakeClock) -> None:
    ledger = GuardedLedger(MemoryLedger(clock=clock), fallback=None, clock=clock)

    await ledger.aclose()

    assert (await ledger.admit(ALICE, Demand("one", 1))).lease is not None


# the law


class Outages(RuleBasedStateMachine):
    """Admits, renews, settles (also twice) and is cancelled at random, while the store comes and goes."""

    leases: Bundle[Lease] = Bundle("leases")
    settled: Bundle[Lease] = Bundle("settled")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(86_400.0 * 60)
        self.store = Store(self.clock)
        self.ledger = GuardedLedger(
            self.store, fallback=MemoryLedger(clock=self.clock), budget=BUDGET, maximum_replays=100, clock=self.clock
        )
        self.runner = asyncio.Runner()
        self.admissions = 0
        self.charged = dict.fromkeys(("openshift/alice", "openshift/bob"), 0)

    @rule(target=leases, key=st.sampled_from(["openshift/alice", "openshift/bob"]))
    def admit(self, key: str) -> Lease:
        self.admissions += 1
        alice = subject("10000/day", "1000000/day", key=key)
        return self.runner.run(admitted(self.ledger, alice, f"{self.admissions}", 7))

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        self.runner.run(self.ledger.renew(lease))

    @rule(target=settled, lease=consumes(leases), tokens=st.sampled_from([0, 1, 25, 300]), request=st.booleans())
    def settle(self, lease: Lease, tokens: int, request: bool) -> Lease:
        self.charged[lease.subject.key] += tokens
        self.runner.run(self.ledger.settle(lease, Charge(tokens, request)))
        return lease

    @rule(target=settled, lease=consumes(leases), tokens=st.sampled_from([1, 25]))
    def settle_and_leave(self, lease: Lease, tokens: int) -> Lease:
        async def leave() -> None:
            async with anyio.create_task_group() as calls:
                calls.start_soon(self.ledger.settle, lease, Charge(tokens))
                await checkpoint()
                calls.cancel_scope.cancel()

        self.charged[lease.subject.key] += tokens
        self.runner.run(leave())
        return lease

    @rule(lease=settled)
    def settle_again(self, lease: Lease) -> None:
        self.runner.run(self.ledger.settle(lease, Charge(500)))

    @rule(trouble=st.sampled_from(["error", "before", "after"]))
    def store_goes(self, trouble: Literal["error", "before", "after"]) -> None:
        self.store.comes_back()
        if trouble == "error":
            self.store.goes()
        else:
            self.store.stalls = trouble

    @rule()
    def store_comes_back(self) -> None:
        self.store.comes_back()

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def teardown(self) -> None:
        self.store.comes_back()
        while self.ledger.degraded or self.ledger.waiting:
            self.clock.advance(5)
            self.runner.run(self.ledger.renew(Lease("last", subject(key="nobody"), 0, 0)))
        self.clock.advance(121)

        for key, tokens in self.charged.items():
            assert self.runner.run(counted(self.store.counters, key, seconds=86_400))[1] == tokens
        assert self.ledger.lost == 0
        self.runner.close()


def test_law_holds_for_any_outage() -> None:
    schedules = settings(derandomize=True, database=None, deadline=None, max_examples=60, stateful_step_count=40)

    run_state_machine_as_test(Outages, settings=schedules)


# a real store


class Relay:
    """Stands between a ledger and a server; what the server answers can be held back."""

    def __init__(self) -> None:
        self.port = 0
        self.answers = anyio.Event()
        self.answers.set()

    async def serve(self, server: RedisServer, *, task_status: TaskStatus[None]) -> None:
        async def meet(client: SocketStream) -> None:
            upstream = await anyio.connect_tcp("127.0.0.1", server.port)
            async with client, upstream, anyio.create_task_group() as directions:
                directions.start_soon(pump, client, upstream, directions.cancel_scope)
                directions.start_soon(pump, upstream, client, directions.cancel_scope, self)

        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            self.port = listener.extra(SocketAttribute.local_port)
            task_status.started()
            await listener.serve(meet)


async def pump(
    source: SocketStream, target: SocketStream, scope: anyio.CancelScope, relay: Relay | None = None
) -> None:
    try:
        async for piece in source:
            if relay is not None:
                await relay.answers.wait()
            await target.send(piece)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    scope.cancel()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@asynccontextmanager
async def relayed(
    server: RedisServer, fallback: Ledger, clock: FakeClock
) -> AsyncIterator[tuple[GuardedLedger, Relay]]:
    relay = Relay()
    async with anyio.create_task_group() as tasks:
        await tasks.start(relay.serve, server)
        store = RedisLedger(f"redis://127.0.0.1:{relay.port}", timeout=10)
        ledger = GuardedLedger(store, fallback=fallback, replicas=4, budget=0.5, clock=clock)
        yield ledger, relay
        await ledger.aclose()
        tasks.cancel_scope.cancel()


async def test_late_answers_of_redis_cost_nobody_anything_twice(server: RedisServer, clock: FakeClock) -> None:
    server.do("FLUSHALL")
    fallback = MemoryLedger(clock=clock)
    direct = RedisLedger(server.url)
    async with relayed(server, fallback, clock) as (ledger, relay):
        first = await admitted(ledger, ALICE, "before", 10)
        relay.answers = anyio.Event()

        late = await admitted(ledger, ALICE, "late", 20)
        held = await counted(direct)
        await ledger.settle(late, Charge(25))
        await ledger.settle(first, Charge(7))
        away = (ledger.waiting, await counted(fallback))
        relay.answers.set()
        clock.advance(1)
        await spend(ledger, ALICE, "after", 0)

        assert held == (2, 30)
        assert away == (2, (1, 32))
        assert (ledger.degraded, ledger.waiting) == (False, 0)
        assert await counted(direct) == (3, 32)
    await direct.aclose()


async def test_settlement_that_redis_took_without_an_answer_is_charged_once(
    server: RedisServer, clock: FakeClock
) -> None:
    server.do("FLUSHALL")
    direct = RedisLedger(server.url)
    async with relayed(server, MemoryLedger(clock=clock), clock) as (ledger, relay):
        lease = await admitted(ledger, ALICE, "one", 10)
        relay.answers = anyio.Event()

        await ledger.settle(lease, Charge(25))
        taken = (ledger.waiting, await counted(direct))
        relay.answers.set()
        clock.advance(1)
        await spend(ledger, ALICE, "after", 0)

        assert taken == (1, (1, 25))
        assert (ledger.waiting, await counted(direct)) == (0, (2, 25))
    await direct.aclose()


async def test_redis_that_freezes_and_comes_back_with_its_scripts_forgotten(
    server: RedisServer, clock: FakeClock
) -> None:
    server.do("FLUSHALL")
    fallback = MemoryLedger(clock=clock)
    ledger = GuardedLedger(RedisLedger(server.url), fallback=fallback, replicas=4, budget=0.5, clock=clock)
    lease = await admitted(ledger, ALICE, "one", 10)

    server.freeze()
    try:
        await spend(ledger, ALICE, "local", 5)
        await ledger.settle(lease, Charge(25))
        degraded = ledger.degraded
    finally:
        server.thaw()
    server.do("SCRIPT", "FLUSH")
    clock.advance(1)
    await spend(ledger, ALICE, "after", 0)

    assert (degraded, ledger.degraded, ledger.waiting) == (True, False, 0)
    assert (await counted(ledger))[1] == 30
    await ledger.aclose()


# a process that is slow


def answering_others(
    store: Store, ledger: GuardedLedger, clock: FakeClock, times: int
) -> Callable[[], Awaitable[None]]:
    """What a call waits for in vain so many times, while the store answers others."""

    async def wait() -> None:
        nonlocal times
        times -= 1
        store.stalls = None
        clock.advance(0.01)
        await ledger.peek(ALICE)
        clock.advance(0.01)
        store.stalls = "before" if times else None
        await no_answer()

    return wait


async def test_call_that_takes_too_long_while_others_are_answered_is_tried_once_more(
    store: Store, ledger: GuardedLedger, clock: FakeClock
) -> None:
    store.stalls, store.stalled = "before", answering_others(store, ledger, clock, 1)

    lease = await admitted(ledger, ALICE, "one", 10)

    assert (ledger.degraded, lease.tokens) == (False, 10)
    assert store.calls == ["admit", "peek", "admit"]
    assert await counted(store.counters) == (1, 10)


async def test_call_that_takes_too_long_twice_is_left_to_the_fallback_and_opens_nothing(
    store: Store, ledger: GuardedLedger, fallback: MemoryLedger, clock: FakeClock
) -> None:
    store.stalls, store.stalled = "before", answering_others(store, ledger, clock, 2)

    await admitted(ledger, ALICE, "one", 10)

    assert (ledger.degraded, store.calls) == (False, ["admit", "peek", "admit", "peek"])
    assert (await counted(store.counters), await counted(fallback)) == ((0, 0), (1, 10))


async def test_failure_that_is_no_time_out_opens_whatever_else_is_answered(
    store: Store, ledger: GuardedLedger, clock: FakeClock
) -> None:
    async def answer_another_and_fail() -> None:
        store.stalls = None
        clock.advance(0.01)
        await ledger.peek(ALICE)
        raise StoreUnavailable

    store.stalls, store.stalled = "before", answer_another_and_fail

    await admitted(ledger, ALICE, "one", 10)

    assert (ledger.degraded, store.calls) == (True, ["admit", "peek"])


# an admission whose answer came too late, and that is refused


@pytest.mark.parametrize("policy", ["closed", "local"])
async def test_admission_that_was_answered_too_late_and_is_refused_holds_nothing(
    policy: str, store: Store, ledger: GuardedLedger, closed: GuardedLedger, fallback: MemoryLedger, clock: FakeClock
) -> None:
    alice = subject("4/minute", "1000/minute")
    await admitted(fallback, share(alice, 4), "all that a replica may")
    guarded = closed if policy == "closed" else ledger
    store.stalls = "after"

    with suppress(StoreUnavailable):
        assert (await guarded.admit(alice, Demand("late", 10))).lease is None
    held = await counted(store.counters)
    store.comes_back()
    clock.advance(2)
    await admitted(guarded, alice, "next", 1)

    assert (held, guarded.waiting) == ((1, 10), 0)
    assert await counted(store.counters) == (1, 1)


async def test_admission_that_was_never_sent_leaves_nothing_to_replay(
    store: Store, closed: GuardedLedger, clock: FakeClock
) -> None:
    store.goes()
    for lease_id in ("one", "two"):
        with pytest.raises(StoreUnavailable):
            await closed.admit(ALICE, Demand(lease_id, 10))

    assert (store.calls, closed.waiting) == (["admit"], 1)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(ConnectionRefusedError("at 10.0.0.1:6379"), "ConnectionRefusedError", id="address"),
        pytest.param(OSError("at 10.0.0.1:6379"), "OSError", id="name-service"),
        pytest.param(TimeoutError("at 10.0.0.1:6379"), "TimeoutError", id="time-out"),
        pytest.param(ValueError("WRONGTYPE of a key"), "ValueError: WRONGTYPE of a key", id="what-the-store-says"),
    ],
)
async def test_log_tells_what_the_store_says_but_not_where_it_is(
    error: Exception, reason: str, store: Store, ledger: GuardedLedger, caplog: pytest.LogCaptureFixture
) -> None:
    store.error = StoreUnavailable()
    store.error.__cause__ = error

    await admitted(ledger, ALICE, "one", 10)

    assert caplog.messages == [f"the counter store fails ({reason}): this process counts on its own"]
