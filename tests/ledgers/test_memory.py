from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Awaitable, Callable
from functools import cache
from types import FrameType

import pytest

from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.limiting import Charge, Demand, Ledger, Subject, parse_limits
from maas_middleware.testing.clock import FakeClock

from .contract import LedgerContract, admitted, advance_ms, counted, remaining, spend, subject


class TestMemoryLedger(LedgerContract):
    @pytest.fixture
    def ledger(self, clock: FakeClock) -> Ledger:
        return MemoryLedger(clock=clock)


class Text(str):
    """Text that can be watched: a weak reference to it tells when nobody remembers it any more."""


async def watched_subject(ledger: Ledger, requests: str, tokens: str) -> weakref.ref[Text]:
    key = Text("watched")
    await admitted(ledger, Subject(key, parse_limits(requests), parse_limits(tokens)), "lease of watched")
    return weakref.ref(key)


async def watched_mark(ledger: Ledger) -> weakref.ref[Text]:
    lease_id = Text("watched")
    await spend(ledger, subject(), lease_id)
    return weakref.ref(lease_id)


async def test_real_clock_is_the_default() -> None:
    ledger = MemoryLedger()
    alice = subject("2/day", "100/day")

    await spend(ledger, alice, "one", 30)

    assert await remaining(ledger, alice) == (1, 70)


async def test_lease_lives_as_long_as_it_is_told() -> None:
    clock = FakeClock()
    ledger = MemoryLedger(clock=clock, lease_seconds=5)
    lease = await admitted(ledger, subject(tokens="100/minute"), "one", 30)
    clock.advance(4)
    await ledger.renew(lease)

    advance_ms(clock, 4999)
    before = await counted(ledger)
    advance_ms(clock, 1)

    assert before == (0, 30)
    assert await counted(ledger) == (0, 0)


async def test_over_the_cap_the_least_recently_used_subject_is_forgotten() -> None:
    ledger = MemoryLedger(clock=FakeClock(), maximum_subjects=3)
    subjects = {key: subject("5/minute", key=key) for key in "abcd"}
    for key in "abcab":
        await spend(ledger, subjects[key], f"{key} {await remaining(ledger, subjects[key])}")

    await spend(ledger, subjects["d"], "one too many")

    assert [await remaining(ledger, subjects[key]) for key in "abcd"] == [(3, None), (3, None), (5, None), (4, None)]


@pytest.mark.parametrize(
    ("requests", "tokens", "left"),
    [("2/minute", "100/minute", (1, 70)), ("5/minute", "50/minute", (4, 20)), ("2/minute", "50/minute", (1, 20))],
)
async def test_changed_limits_are_in_force_at_once(requests: str, tokens: str, left: tuple[int, int]) -> None:
    ledger, parsed = MemoryLedger(clock=FakeClock()), cache(parse_limits)
    before = Subject("alice", parsed("5/minute"), parsed("100/minute"))
    await spend(ledger, before, "one", 30)

    after = Subject("alice", parsed(requests), parsed(tokens))

    assert (await remaining(ledger, after), await remaining(ledger, before)) == (left, (4, 70))


@pytest.mark.parametrize("operation", ["admit", "settle", "renew"])
async def test_every_call_keeps_its_subject_from_being_forgotten(operation: str) -> None:
    ledger = MemoryLedger(clock=FakeClock(), maximum_subjects=2)
    alice, bob = subject("5/minute", key="alice"), subject("5/minute", key="bob")
    lease = await admitted(ledger, alice, "one")
    await spend(ledger, bob, "two")
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "admit": lambda: ledger.admit(alice, Demand("one", 1)),
        "settle": lambda: ledger.settle(lease, Charge(0)),
        "renew": lambda: ledger.renew(lease),
    }

    await calls[operation]()
    await spend(ledger, subject("5/minute", key="carol"), "three")

    assert (await remaining(ledger, alice), await remaining(ledger, bob)) == ((4, None), (5, None))


async def test_call_in_flight_of_a_forgotten_subject_is_still_charged() -> None:
    ledger = MemoryLedger(clock=FakeClock(), maximum_subjects=1)
    alice = subject("5/minute", "100/minute")
    lease = await admitted(ledger, alice, "in flight", 50)
    await spend(ledger, subject(key="bob"), "pushes her out")
    forgotten = await remaining(ledger, alice)

    await ledger.renew(lease)
    await ledger.settle(lease, Charge(30, request=False))

    assert forgotten == (5, 100)
    assert await remaining(ledger, alice) == (5, 70)


@pytest.mark.parametrize(
    ("requests", "tokens", "counts_ms"),
    [
        pytest.param("5/minute", "unlimited", 120_000, id="live-lease"),
        pytest.param("unlimited", "unlimited", 120_000, id="live-lease-without-limits"),
        pytest.param("5/minute;5/hour", "100/minute", 3_660_000, id="used-within-an-hour"),
        pytest.param("9/day", "100/minute", 87_840_000, id="used-within-a-day"),
    ],
)
async def test_subject_is_dropped_once_nothing_of_it_counts(requests: str, tokens: str, counts_ms: int) -> None:
    clock = FakeClock(86_400.0 * 60)
    ledger = MemoryLedger(clock=clock)
    watched = await watched_subject(ledger, requests, tokens)

    advance_ms(clock, counts_ms - 1)
    await spend(ledger, subject(), "before")
    before = watched()
    clock.advance(1)
    await spend(ledger, subject(), "after")

    assert before == "watched"
    del before
    assert watched() is None


async def test_last_of_several_live_leases_keeps_its_subject() -> None:
    clock = FakeClock()
    ledger = MemoryLedger(clock=clock)
    await admitted(ledger, subject(), "crashed", 10)
    stream = await admitted(ledger, subject(), "stream", 20)
    clock.advance(100)
    await ledger.renew(stream)

    clock.advance(100)
    await spend(ledger, subject(key="bob"), "two")

    assert await counted(ledger) == (0, 20)


async def test_window_that_was_left_out_keeps_its_subject() -> None:
    clock = FakeClock()
    ledger = MemoryLedger(clock=clock)
    hour, minute = subject("5/hour", "100/hour"), subject("5/minute", "100/minute")
    await spend(ledger, hour, "one", 30)
    await spend(ledger, minute, "two", 30)

    clock.advance(3000)
    await spend(ledger, subject(key="bob"), "three")

    assert await remaining(ledger, hour) == (4, 70)


async def test_crowd_of_idle_subjects_is_dropped_two_a_call() -> None:
    clock = FakeClock()
    ledger = MemoryLedger(clock=clock)
    crowd = []
    for number in range(20):
        key = Text(f"{number}")
        await spend(ledger, subject("5/minute", key=key), f"lease {number}")
        crowd.append(weakref.ref(key))
    del key
    clock.advance(601)

    left = []
    for number in range(6):
        await spend(ledger, subject(), f"call {number}")
        left.append(sum(each() is not None for each in crowd))

    assert left == [16, 12, 8, 4, 0, 0]


async def test_peek_remembers_nobody() -> None:
    ledger = MemoryLedger(clock=FakeClock())
    key = Text("watched")
    watched = weakref.ref(key)

    await ledger.peek(subject("5/minute", key=key))
    del key

    assert watched() is None


async def test_marks_are_dropped_after_ten_minutes() -> None:
    clock = FakeClock()
    ledger = MemoryLedger(clock=clock)
    watched = await watched_mark(ledger)

    clock.advance(599)
    await spend(ledger, subject(), "before")
    before = watched()
    clock.advance(1)
    await spend(ledger, subject(), "after")

    assert before == "watched"
    del before
    assert watched() is None


async def test_over_their_cap_the_oldest_mark_is_forgotten() -> None:
    ledger = MemoryLedger(clock=FakeClock(), maximum_marks=2)
    alice = subject("9/minute", "1000/minute")
    leases = [await spend(ledger, alice, f"{number}", 1) for number in range(3)]

    for lease in reversed(leases):
        await ledger.settle(lease, Charge(100))

    assert await counted(ledger) == (3, 103)


def steps(ledger: Ledger, subject: Subject, lease_id: str) -> int:
    """How many functions are called to admit and settle a request."""
    count = 0

    def counting(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    async def request() -> None:
        await spend(ledger, subject, lease_id, 5)

    gc.disable()  # others may be called on its behalf
    sys.setprofile(counting)
    try:
        with pytest.raises(StopIteration):
            request().send(None)
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


async def test_work_of_a_call_does_not_depend_on_the_number_of_subjects_and_leases() -> None:
    clock = FakeClock()
    quiet, crowded = MemoryLedger(clock=clock), MemoryLedger(clock=clock)
    alice = subject("100000/minute", "100000/minute;1000000/day")
    for ledger in (quiet, crowded):
        await admitted(ledger, alice, "first")
    for number in range(3000):
        await spend(crowded, subject("5/minute", key=f"{number}"), f"{number}")
        await admitted(crowded, alice, f"in flight {number}")

    alone, in_a_crowd = (steps(ledger, alice, "measured") for ledger in (quiet, crowded))
    clock.advance(3600)
    await crowded.peek(alice)  # drops the leases, once
    alone_later, in_an_idle_crowd = (steps(ledger, alice, "later") for ledger in (quiet, crowded))

    assert in_a_crowd == alone
    assert in_an_idle_crowd < 2 * alone_later
