"""What every ledger promises, one by one. The test module of a ledger inherits `LedgerContract`."""

from __future__ import annotations

import math
from fractions import Fraction

import anyio
import pytest

from maas_middleware.limiting import Budget, Charge, Demand, Lease, Ledger, Limit, Subject, Verdict, parse_limits
from maas_middleware.testing.clock import FakeClock

LEASE_SECONDS = 120
PLENTY = 10**9
LARGEST = 2**53


def subject(
    requests: str = "unlimited",
    tokens: str = "unlimited",
    *,
    key: str = "openshift/alice",
    concurrency: int | None = None,
) -> Subject:
    return Subject(key, parse_limits(requests), parse_limits(tokens), concurrency)


async def admitted(ledger: Ledger, subject: Subject, lease_id: str, tokens: int = 1) -> Lease:
    verdict = await ledger.admit(subject, Demand(lease_id, tokens))
    assert verdict.lease is not None
    return verdict.lease


async def admitted_strictly(ledger: Ledger, subject: Subject, lease_id: str, tokens: int) -> Lease:
    verdict = await ledger.admit(subject, Demand(lease_id, tokens, strict=True))
    assert verdict.lease is not None
    return verdict.lease


async def spend(ledger: Ledger, subject: Subject, lease_id: str, tokens: int = 0) -> Lease:
    """One request from its admission to its settlement."""
    lease = await admitted(ledger, subject, lease_id)
    await ledger.settle(lease, Charge(tokens))
    return lease


async def counted(ledger: Ledger, key: str = "openshift/alice", *, seconds: int = 60) -> tuple[int, int]:
    """The requests, and the tokens settled or leased, that count in a window of so many seconds."""
    plenty = (Limit(PLENTY, seconds),)
    verdict = await ledger.peek(Subject(key, plenty, plenty))
    assert verdict.requests is not None
    assert verdict.tokens is not None
    return PLENTY - verdict.requests.remaining, PLENTY - verdict.tokens.remaining


async def remaining(ledger: Ledger, subject: Subject) -> tuple[int | None, int | None]:
    verdict = await ledger.peek(subject)
    return (
        None if verdict.requests is None else verdict.requests.remaining,
        None if verdict.tokens is None else verdict.tokens.remaining,
    )


def advance_ms(clock: FakeClock, milliseconds: int) -> None:
    clock.advance(milliseconds / 1000)


class LedgerContract:
    """A subclass gives the fixture `ledger`, which has to tell time by `clock`, with leases of 120 seconds.

    The clock starts at the beginning of a bucket of all windows used here: what is used then counts for 61 buckets.
    """

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock(86_400.0 * 60)

    @pytest.fixture
    def ledger(self, clock: FakeClock) -> Ledger:
        raise NotImplementedError

    # admission

    async def test_first_request_is_admitted_and_told_what_is_left(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject("5/minute", "100/minute")

        verdict = await ledger.admit(alice, Demand("one", 30))

        assert verdict == Verdict(
            lease=Lease("one", alice, 30, int(clock() * 1000)),
            requests=Budget(Limit(5, 60), 4, 61_000, 61_000),
            tokens=Budget(Limit(100, 60), 70, 61_000, 1000),
        )

    async def test_requests_pass_up_to_their_limit(self, ledger: Ledger) -> None:
        alice = subject("3/minute")

        leases = [(await ledger.admit(alice, Demand(f"{number}", 1))).lease for number in range(5)]

        assert [lease is not None for lease in leases] == [True, True, True, False, False]

    async def test_calls_at_once_never_pass_more_than_the_limit(self, ledger: Ledger) -> None:
        alice = subject("10/minute")
        verdicts: list[Verdict] = []

        async def call(number: int) -> None:
            verdicts.append(await ledger.admit(alice, Demand(f"{number}", 1)))

        async with anyio.create_task_group() as calls:
            for number in range(50):
                calls.start_soon(call, number)

        assert sum(verdict.lease is not None for verdict in verdicts) == 10
        assert await counted(ledger) == (10, 10)

    async def test_refused_request_costs_nothing(self, ledger: Ledger) -> None:
        alice = subject("1/minute", "100/minute")
        await spend(ledger, alice, "first", 10)

        refused = [await ledger.admit(alice, Demand(f"refused {number}", 50)) for number in range(3)]

        assert {(verdict.lease, verdict.refused_by) for verdict in refused} == {(None, "requests")}
        assert await counted(ledger) == (1, 10)

    async def test_request_refused_for_its_tokens_is_not_charged_as_a_request(self, ledger: Ledger) -> None:
        alice = subject("5/minute", "100/minute")
        await spend(ledger, alice, "first", 100)

        verdict = await ledger.admit(alice, Demand("second", 1))

        assert (verdict.lease, verdict.refused_by) == (None, "tokens")
        assert await counted(ledger) == (1, 100)

    async def test_request_refused_for_its_requests_leases_no_tokens(self, ledger: Ledger) -> None:
        alice = subject("1/minute", "100/minute")
        await admitted(ledger, alice, "first", 10)

        verdict = await ledger.admit(alice, Demand("second", 50))

        assert (verdict.lease, verdict.refused_by) == (None, "requests")
        assert await counted(ledger) == (1, 10)

    @pytest.mark.parametrize(
        ("requests", "tokens"),
        [
            pytest.param("1/minute;9/day", "unlimited", id="shorter-window-of-requests"),
            pytest.param("9/minute;1/day", "unlimited", id="longer-window-of-requests"),
            pytest.param("unlimited", "10/minute;90/day", id="shorter-window-of-tokens"),
            pytest.param("unlimited", "90/minute;10/day", id="longer-window-of-tokens"),
        ],
    )
    async def test_two_limits_are_both_checked_before_either_is_charged(
        self, requests: str, tokens: str, ledger: Ledger
    ) -> None:
        alice = subject(requests, tokens)
        await spend(ledger, alice, "first", 10)
        before = [await counted(ledger, seconds=seconds) for seconds in (60, 86_400)]

        verdict = await ledger.admit(alice, Demand("second", 1))

        assert verdict.lease is None
        assert [await counted(ledger, seconds=seconds) for seconds in (60, 86_400)] == before

    async def test_of_two_limits_on_one_window_the_stricter_binds_and_is_charged_once(self, ledger: Ledger) -> None:
        alice = subject("2/minute;9/minute", "50/minute;40/minute")

        verdict = await ledger.admit(alice, Demand("first", 30))

        assert verdict.requests == Budget(Limit(2, 60), 1, 61_000, 61_000)
        assert verdict.tokens == Budget(Limit(40, 60), 10, 61_000, 1000)
        assert await counted(ledger) == (1, 30)

    async def test_without_limits_everything_passes(self, ledger: Ledger) -> None:
        alice = subject()

        verdicts = [await ledger.admit(alice, Demand(f"{number}", 1000)) for number in range(20)]

        assert all(verdict.lease and verdict.lease.tokens == 1000 for verdict in verdicts)
        assert {(verdict.requests, verdict.tokens) for verdict in verdicts} == {(None, None)}

    async def test_subjects_are_counted_apart(self, ledger: Ledger) -> None:
        alice, bob = subject("1/minute", "100/minute"), subject("1/minute", "100/minute", key="openshift/bob")
        await spend(ledger, alice, "one", 100)

        verdict = await ledger.admit(bob, Demand("one", 100))

        assert verdict.lease is not None
        assert (verdict.lease.subject, verdict.lease.tokens) == (bob, 100)
        assert await counted(ledger, "openshift/alice") == (1, 100)

    # demands of no tokens

    @pytest.mark.parametrize("settled", [pytest.param(100, id="all-used"), pytest.param(150, id="overrun")])
    async def test_demand_of_no_tokens_needs_none_to_be_left(self, settled: int, ledger: Ledger) -> None:
        alice = subject("5/minute", "100/minute")
        await spend(ledger, alice, "first", settled)

        verdict = await ledger.admit(alice, Demand("second", 0))

        assert verdict.lease is not None
        assert (verdict.lease.tokens, verdict.refused_by, verdict.retry_after_ms) == (0, None, 0)
        assert await counted(ledger) == (2, settled)

    async def test_demand_of_no_tokens_passes_while_calls_in_flight_hold_them_all(self, ledger: Ledger) -> None:
        alice = subject("5/minute", "100/minute")
        await admitted(ledger, alice, "in flight", 100)

        lease = await admitted(ledger, alice, "second", 0)

        assert lease.tokens == 0
        assert await counted(ledger) == (2, 100)

    @pytest.mark.parametrize(
        "tokens",
        [pytest.param("9/minute", id="tokens-are-left"), pytest.param("1/day", id="tokens-take-longer")],
    )
    async def test_refused_demand_of_no_tokens_is_told_of_requests_alone(self, tokens: str, ledger: Ledger) -> None:
        alice = subject("1/minute", tokens)
        await spend(ledger, alice, "first", 1)

        verdict = await ledger.admit(alice, Demand("second", 0))

        assert (verdict.lease, verdict.refused_by, verdict.retry_after_ms) == (None, "requests", 61_000)
        assert (await counted(ledger))[0] == 1

    async def test_what_a_demand_of_no_tokens_used_after_all_is_charged(self, ledger: Ledger) -> None:
        alice = subject("5/minute", "100/minute")
        lease = await admitted(ledger, alice, "one", 0)

        await ledger.settle(lease, Charge(30))

        assert await counted(ledger) == (1, 30)

    async def test_demand_of_less_than_no_tokens_is_one_of_none(self, ledger: Ledger) -> None:
        limited, unlimited = subject("5/minute", "100/minute"), subject(key="bob")

        assert (await admitted(ledger, limited, "one", -5)).tokens == 0
        assert (await admitted(ledger, unlimited, "one", -5)).tokens == 0

    # demands that have to fit

    @pytest.mark.parametrize(
        ("left", "passes"), [pytest.param(59, False, id="too-little"), pytest.param(60, True, id="just-enough")]
    )
    async def test_strict_demand_needs_all_of_its_tokens_to_be_left(
        self, left: int, passes: bool, ledger: Ledger
    ) -> None:
        alice = subject("5/minute", "100/minute;1000/day")
        await spend(ledger, alice, "first", 100 - left)

        verdict = await ledger.admit(alice, Demand("strict", 60, strict=True))

        assert (verdict.lease is not None, verdict.refused_by) == (passes, None if passes else "tokens")
        assert await counted(ledger) == (1 + passes, 100 - left + 60 * passes)

    async def test_strict_demand_waits_until_all_of_it_fits(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject(tokens="100/minute")
        for number in range(3):
            await spend(ledger, alice, f"{number}", 30)
            clock.advance(10)
        one, most = Demand("one", 60), Demand("most", 60, strict=True)

        refused = await ledger.admit(alice, most)
        assert (refused.lease, refused.refused_by, refused.retry_after_ms) == (None, "tokens", 41_000)
        advance_ms(clock, 40_999)
        early = await ledger.admit(alice, most)
        advance_ms(clock, 1)
        in_time = await ledger.admit(alice, most)

        assert (early.lease, early.retry_after_ms, early.is_hopeless) == (None, 1, False)
        assert in_time.lease is not None
        assert in_time.lease.tokens == 60
        assert (await ledger.admit(subject(tokens="100/minute", key="bob"), one)).lease is not None

    async def test_strict_demand_waits_a_second_for_calls_in_flight(self, ledger: Ledger) -> None:
        alice = subject(tokens="100/minute")
        await admitted(ledger, alice, "in flight", 50)

        verdict = await ledger.admit(alice, Demand("strict", 60, strict=True))

        assert (verdict.refused_by, verdict.retry_after_ms, verdict.is_hopeless) == ("tokens", 1000, False)

    async def test_strict_demand_of_no_tokens_needs_none_to_be_left(self, ledger: Ledger) -> None:
        alice = subject(tokens="100/minute")
        await spend(ledger, alice, "overrun", 150)

        assert (await admitted_strictly(ledger, alice, "none", 0)).tokens == 0
        assert (await admitted_strictly(ledger, alice, "less than none", -5)).tokens == 0

    @pytest.mark.parametrize(
        ("tokens", "wait_ms"),
        [
            pytest.param("100/minute;1000/day", 61_000, id="shorter-window"),
            pytest.param("1000/minute;100/day", 87_840_000, id="longer-window"),
            pytest.param("100/minute;100/day", 87_840_000, id="both"),
        ],
    )
    async def test_demand_over_a_limit_is_hopeless_and_waits_until_that_is_full(
        self, tokens: str, wait_ms: int, ledger: Ledger
    ) -> None:
        alice = subject("9/minute", tokens)
        await spend(ledger, alice, "first", 1)

        verdict = await ledger.admit(alice, Demand("too large", 101, strict=True))

        assert (verdict.lease, verdict.refused_by, verdict.is_hopeless) == (None, "tokens", True)
        assert verdict.retry_after_ms == wait_ms
        assert await counted(ledger) == (1, 1)

    async def test_hopeless_demand_waits_at_least_a_second(self, ledger: Ledger) -> None:
        verdict = await ledger.admit(subject(tokens="100/minute"), Demand("too large", 101, strict=True))

        assert (verdict.refused_by, verdict.retry_after_ms, verdict.is_hopeless) == ("tokens", 1000, True)

    async def test_hopeless_is_told_before_all_that_time_can_help(self, ledger: Ledger) -> None:
        alice = subject("1/day", "100/minute", concurrency=1)
        await admitted(ledger, alice, "in flight", 1)

        verdict = await ledger.admit(alice, Demand("too large", 101, strict=True))

        assert (verdict.refused_by, verdict.retry_after_ms, verdict.is_hopeless) == ("tokens", 61_000, True)

    async def test_demand_as_large_as_the_limit_is_not_hopeless(self, ledger: Ledger) -> None:
        alice = subject(tokens="100/minute")
        await spend(ledger, alice, "first", 1)

        verdict = await ledger.admit(alice, Demand("large", 100, strict=True))

        assert (verdict.refused_by, verdict.retry_after_ms, verdict.is_hopeless) == ("tokens", 61_000, False)

    # concurrency

    async def test_leases_pass_up_to_the_cap(self, ledger: Ledger) -> None:
        alice = subject("9/minute", "1000/minute", concurrency=2)

        verdicts = [await ledger.admit(alice, Demand(f"{number}", 10)) for number in range(3)]

        assert [verdict.lease is not None for verdict in verdicts] == [True, True, False]
        assert (verdicts[2].refused_by, verdicts[2].retry_after_ms, verdicts[2].refusing) == ("concurrency", 1000, None)
        assert await counted(ledger) == (2, 20)

    @pytest.mark.parametrize("cap", [0, -1])
    async def test_cap_of_no_leases_lets_nothing_pass(self, cap: int, ledger: Ledger) -> None:
        verdict = await ledger.admit(subject(concurrency=cap), Demand("one", 1))

        assert (verdict.lease, verdict.refused_by, verdict.retry_after_ms) == (None, "concurrency", 1000)

    async def test_calls_at_once_never_hold_more_leases_than_the_cap(self, ledger: Ledger) -> None:
        alice = subject(concurrency=7)
        verdicts: list[Verdict] = []

        async def call(number: int) -> None:
            verdicts.append(await ledger.admit(alice, Demand(f"{number}", 0)))

        async with anyio.create_task_group() as calls:
            for number in range(50):
                calls.start_soon(call, number)

        assert sum(verdict.lease is not None for verdict in verdicts) == 7

    @pytest.mark.parametrize("tokens", [pytest.param(0, id="needs-none"), pytest.param(10, id="needs-some")])
    async def test_settled_lease_makes_room_for_the_next(self, tokens: int, ledger: Ledger) -> None:
        alice = subject(concurrency=1)
        first = await admitted(ledger, alice, "first", tokens)
        crowded = await ledger.admit(alice, Demand("second", tokens))

        await ledger.settle(first, Charge(tokens, request=False))

        assert crowded.lease is None
        assert (await ledger.admit(alice, Demand("second", tokens))).lease is not None

    async def test_lapsed_lease_makes_room_for_the_next(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject(concurrency=1)
        await admitted(ledger, alice, "crashed")

        advance_ms(clock, LEASE_SECONDS * 1000 - 1)
        before = await ledger.admit(alice, Demand("next", 1))
        advance_ms(clock, 1)

        assert before.lease is None
        assert (await ledger.admit(alice, Demand("next", 1))).lease is not None

    async def test_renewal_brings_a_lapsed_lease_back_over_the_cap(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject(concurrency=1)
        stalled = await admitted(ledger, alice, "stalled")
        clock.advance(LEASE_SECONDS)
        second = await admitted(ledger, alice, "second")
        await ledger.renew(stalled)

        await ledger.settle(second, Charge(1))
        crowded = await ledger.peek(alice)
        await ledger.settle(stalled, Charge(1))

        assert (crowded.refused_by, crowded.retry_after_ms) == ("concurrency", 1000)
        assert (await ledger.peek(alice)).refused_by is None

    async def test_same_lease_id_takes_one_place(self, ledger: Ledger) -> None:
        alice = subject(concurrency=1)
        lease = await admitted(ledger, alice, "one")

        again = await ledger.admit(alice, Demand("one", 1))

        assert (again.lease, again.refused_by) == (lease, None)

    async def test_cap_that_came_later_counts_the_leases_before_it(self, ledger: Ledger) -> None:
        await admitted(ledger, subject(), "uncapped 1")
        await admitted(ledger, subject(), "uncapped 2")

        refused = await ledger.admit(subject(concurrency=2), Demand("capped", 1))

        assert refused.refused_by == "concurrency"
        assert (await ledger.admit(subject(concurrency=3), Demand("capped", 1))).lease is not None

    async def test_longest_wait_is_named_of_all_that_stands_in_the_way(self, ledger: Ledger) -> None:
        by_requests = subject("1/minute", "10/minute", key="requests", concurrency=1)
        by_tokens = subject("1/minute", "10/hour", key="tokens", concurrency=1)
        by_leases = subject("9/minute", "10/minute", key="leases", concurrency=1)
        for each in (by_requests, by_tokens, by_leases):
            await spend(ledger, each, "settled", 10 if each is by_tokens else 0)
            await ledger.renew(Lease("in flight", each, 0 if each is by_tokens else 10, 0))

        verdicts = [await ledger.peek(each) for each in (by_requests, by_tokens, by_leases)]

        assert [(verdict.refused_by, verdict.retry_after_ms) for verdict in verdicts] == [
            ("requests", 61_000),
            ("tokens", 3_660_000),
            ("tokens", 1000),  # as long as the wait for leases
        ]

    async def test_equal_waits_name_requests_first(self, ledger: Ledger) -> None:
        alice = subject("1/minute", "10/minute")
        await spend(ledger, alice, "one", 10)

        assert (await ledger.peek(alice)).refused_by == "requests"

    # large numbers

    async def test_tokens_are_counted_exactly_up_to_2_to_the_53(self, ledger: Ledger) -> None:
        alice = Subject("openshift/alice", (Limit(LARGEST, 60),), (Limit(LARGEST, 60),))
        await spend(ledger, alice, "settled", LARGEST - 10)

        lease = await admitted(ledger, alice, "in flight", LARGEST)
        full = await ledger.peek(alice)
        await ledger.settle(lease, Charge(9))
        last = await admitted(ledger, alice, "last", LARGEST)

        assert (lease.tokens, last.tokens) == (10, 1)
        assert (full.refused_by, full.retry_after_ms) == ("tokens", 61_000)
        assert full.requests == Budget(Limit(LARGEST, 60), LARGEST - 2, 61_000, 61_000)
        assert full.tokens == Budget(Limit(LARGEST, 60), 0, 61_000, 61_000)

    async def test_numbers_of_any_size_are_taken(self, ledger: Ledger) -> None:
        alice = Subject("openshift/alice", (), (Limit(10**30, 60), Limit(100, 3600)))
        for number in range(3):
            lease = await admitted(ledger, subject(), f"{number}", 10**30)
            await ledger.settle(lease, Charge(10**30))
            await ledger.settle(Lease(f"foreign {number}", alice, 10**30, -(10**30)), Charge(10**30, request=False))
            await ledger.settle(Lease(f"negative {number}", alice, 0, 0), Charge(-(10**30)))

        verdict = await ledger.peek(alice)

        assert (verdict.refused_by, verdict.retry_after_ms) == ("tokens", 3_660_000)
        assert await remaining(ledger, subject(tokens="100/hour")) == (None, 0)

    @pytest.mark.parametrize("text", ["", " ", "{a}", "a:b/c", "ü", "\ud800", "\0", "x" * 10_000])
    async def test_any_text_may_be_a_key_and_a_lease_id(self, text: str, ledger: Ledger) -> None:
        lease = await admitted(ledger, subject("5/minute", "100/minute", key=text), text, 30)

        await ledger.settle(lease, Charge(20))
        await ledger.settle(lease, Charge(20))

        assert lease.id == text
        assert await counted(ledger, text) == (1, 20)

    # leases

    @pytest.mark.parametrize(
        ("estimate", "leased"),
        [
            pytest.param(-5, 0, id="less-than-nothing"),
            pytest.param(0, 0, id="nothing"),
            pytest.param(59, 59, id="less-than-is-left"),
            pytest.param(60, 60, id="as-much-as-is-left"),
            pytest.param(5000, 60, id="more-than-is-left"),
        ],
    )
    async def test_reservation_never_exceeds_what_the_window_holds(
        self, estimate: int, leased: int, ledger: Ledger
    ) -> None:
        alice = subject("5/minute", "100/minute")
        await spend(ledger, alice, "first", 40)

        lease = await admitted(ledger, alice, "second", estimate)

        assert lease.tokens == leased
        assert await remaining(ledger, alice) == (3, 60 - leased)

    async def test_reservation_never_exceeds_what_any_window_holds(self, ledger: Ledger) -> None:
        alice = subject(tokens="100/minute;120/hour;1000/day")
        await spend(ledger, alice, "first", 50)

        lease = await admitted(ledger, alice, "second", 500)

        assert lease.tokens == 50

    async def test_free_tier_can_be_used_by_the_example_of_the_guide(self, ledger: Ledger) -> None:
        free = subject("5/minute", "100/minute")

        lease = await admitted(ledger, free, "max_tokens: 100, and a prompt", 112)

        assert lease.tokens == 100

    async def test_tokens_in_flight_are_not_leased_twice(self, ledger: Ledger) -> None:
        alice = subject(tokens="100/minute")

        leases = [await admitted(ledger, alice, f"{number}", 40) for number in range(3)]
        refused = await ledger.admit(alice, Demand("fourth", 40))

        assert [lease.tokens for lease in leases] == [40, 40, 20]
        assert (refused.lease, refused.refused_by) == (None, "tokens")

    async def test_without_token_limits_the_lease_is_the_estimate(self, ledger: Ledger) -> None:
        lease = await admitted(ledger, subject("5/minute"), "one", 1_000_000)

        assert lease.tokens == 1_000_000

    async def test_lease_lapses_and_its_request_stays_counted(self, ledger: Ledger, clock: FakeClock) -> None:
        await admitted(ledger, subject("5/hour", "100/hour"), "crashed", 70)

        advance_ms(clock, LEASE_SECONDS * 1000 - 1)
        before = await counted(ledger, seconds=3600)
        advance_ms(clock, 1)

        assert before == (1, 70)
        assert await counted(ledger, seconds=3600) == (1, 0)

    async def test_renewed_lease_lives_on(self, ledger: Ledger, clock: FakeClock) -> None:
        lease = await admitted(ledger, subject(tokens="100/hour"), "long", 70)

        for _ in range(5):
            clock.advance(LEASE_SECONDS - 1)
            await ledger.renew(lease)
        clock.advance(LEASE_SECONDS - 1)

        assert await counted(ledger, seconds=3600) == (0, 70)

    async def test_each_lease_lapses_in_its_own_time(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject(tokens="1000/hour")
        renewed = await admitted(ledger, alice, "renewed", 1)
        clock.advance(40)
        await admitted(ledger, alice, "crashed", 10)
        clock.advance(40)
        await admitted(ledger, alice, "young", 100)
        await ledger.renew(renewed)

        held = []
        for _ in range(3):
            clock.advance(40)
            held.append((await counted(ledger, seconds=3600))[1])

        assert held == [111, 101, 0]

    async def test_renewal_brings_a_lapsed_lease_back(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject("5/hour", "100/hour")
        stalled = await admitted(ledger, alice, "stalled", 70)
        clock.advance(LEASE_SECONDS)
        lapsed = await counted(ledger, seconds=3600)

        await ledger.renew(stalled)
        revived = await counted(ledger, seconds=3600)
        await ledger.settle(stalled, Charge(40))

        assert (lapsed, revived) == ((1, 0), (1, 70))
        assert await counted(ledger, seconds=3600) == (1, 40)

    async def test_lease_that_was_brought_back_lapses_again(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject(tokens="100/hour")
        stalled = await admitted(ledger, alice, "stalled", 10)
        clock.advance(LEASE_SECONDS)
        await admitted(ledger, alice, "young", 50)
        clock.advance(1)
        await ledger.renew(stalled)

        clock.advance(LEASE_SECONDS - 1)
        before = await counted(ledger, seconds=3600)
        clock.advance(1)

        assert before == (0, 10)
        assert await counted(ledger, seconds=3600) == (0, 0)

    async def test_renewal_never_changes_what_a_live_lease_holds(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject(tokens="100/hour")
        stale = await admitted(ledger, alice, "one", 70)
        clock.advance(LEASE_SECONDS)
        fresh = await admitted(ledger, alice, "one", 20)

        await ledger.renew(stale)
        held = await counted(ledger, seconds=3600)
        await ledger.settle(fresh, Charge(5))

        assert held == (0, 20)
        assert await counted(ledger, seconds=3600) == (0, 5)

    async def test_renewing_a_settled_lease_changes_nothing(self, ledger: Ledger) -> None:
        lease = await spend(ledger, subject("5/minute", "100/minute"), "done", 30)

        await ledger.renew(lease)

        assert await counted(ledger) == (1, 30)

    async def test_renewing_a_lease_of_another_ledger_holds_its_tokens_but_counts_no_request(
        self, ledger: Ledger
    ) -> None:
        lease = Lease("admitted by the fallback", subject("5/minute", "100/minute"), 30, 0)

        await ledger.renew(lease)
        await ledger.renew(lease)

        assert await counted(ledger) == (0, 30)

    # the same lease id

    async def test_same_lease_id_gets_the_same_answer_while_it_lives(self, ledger: Ledger) -> None:
        alice = subject("5/minute", "100/minute")

        first = await ledger.admit(alice, Demand("one", 30))
        second = await ledger.admit(alice, Demand("one", 30))

        assert second == first
        assert await counted(ledger) == (1, 30)

    async def test_same_lease_id_gets_the_same_lease_when_nothing_is_left(self, ledger: Ledger) -> None:
        alice = subject("1/minute", "100/minute")
        lease = await admitted(ledger, alice, "one", 500)

        again = await ledger.admit(alice, Demand("one", 500))

        assert (again.lease, again.refused_by, again.retry_after_ms) == (lease, None, 0)

    async def test_same_lease_id_gets_the_same_lease_once_it_is_settled(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject("5/minute", "100/minute")
        lease = await admitted(ledger, alice, "one", 50)
        clock.advance(10)
        await ledger.settle(lease, Charge(30))
        clock.advance(10)

        again = await ledger.admit(alice, Demand("one", 30))

        assert (again.lease, again.refused_by) == (lease, None)
        assert await counted(ledger) == (1, 30)

    async def test_refused_lease_id_can_be_admitted_later(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject("1/minute")
        await spend(ledger, alice, "first")
        refused = await ledger.admit(alice, Demand("second", 1))

        advance_ms(clock, refused.retry_after_ms)
        verdict = await ledger.admit(alice, Demand("second", 1))

        assert refused.lease is None
        assert verdict.lease is not None

    async def test_one_lease_id_may_be_used_for_several_subjects(self, ledger: Ledger) -> None:
        user, model = subject("5/minute", "100/minute"), subject("9/minute", "900/minute", key="model")
        of_user = await admitted(ledger, user, "request", 30)
        of_model = await admitted(ledger, model, "request", 30)

        await ledger.settle(of_user, Charge(20))
        await ledger.settle(of_model, Charge(20))

        assert await counted(ledger, "openshift/alice") == (1, 20)
        assert await counted(ledger, "model") == (1, 20)

    # settlement

    @pytest.mark.parametrize(
        "used", [pytest.param(12, id="less"), pytest.param(30, id="exact"), pytest.param(0, id="0")]
    )
    async def test_settlement_replaces_the_reservation_by_what_was_used(self, used: int, ledger: Ledger) -> None:
        lease = await admitted(ledger, subject("5/minute", "100/minute"), "one", 30)

        await ledger.settle(lease, Charge(used))

        assert await counted(ledger) == (1, used)

    async def test_settlement_is_charged_in_every_window(self, ledger: Ledger) -> None:
        await spend(ledger, subject("5/minute;9/day", "100/minute;500/hour;1000/day"), "one", 30)

        assert await counted(ledger, seconds=60) == (1, 30)
        assert (await counted(ledger, seconds=3600))[1] == 30
        assert await counted(ledger, seconds=86_400) == (1, 30)

    async def test_overrun_is_charged_past_the_limit(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject(tokens="100/minute")
        await spend(ledger, alice, "overrun", 190)
        clock.advance(30)
        before = await ledger.peek(alice)
        await ledger.settle(Lease("late", alice, 0, 0), Charge(20))

        clock.advance(31)
        after = await ledger.peek(alice)

        assert before.tokens == Budget(Limit(100, 60), 0, 31_000, 31_000)
        assert after.tokens == Budget(Limit(100, 60), 80, 30_000, 30_000)

    async def test_second_settlement_does_nothing(self, ledger: Ledger) -> None:
        lease = await spend(ledger, subject("5/minute", "100/minute"), "one", 30)

        await ledger.settle(lease, Charge(30))
        await ledger.settle(lease, Charge(99, request=False))

        assert await counted(ledger) == (1, 30)

    @pytest.mark.parametrize(
        ("wait_ms", "tokens"),
        [pytest.param(599_999, 30, id="marked"), pytest.param(600_000, 60, id="mark-has-expired")],
    )
    async def test_settled_lease_is_remembered_for_ten_minutes(
        self, wait_ms: int, tokens: int, ledger: Ledger, clock: FakeClock
    ) -> None:
        alice = subject("5/hour", "100/hour")
        lease = await admitted(ledger, alice, "one", 30)
        await ledger.settle(lease, Charge(30))

        advance_ms(clock, wait_ms)
        await ledger.renew(lease)
        held = await counted(ledger, seconds=3600)
        again = await ledger.admit(alice, Demand("one", 1))
        await ledger.settle(lease, Charge(30))

        assert held == (1, tokens)
        assert again.lease == lease
        assert await counted(ledger, seconds=3600) == (1, tokens)

    async def test_settlements_at_once_charge_once(self, ledger: Ledger) -> None:
        lease = await admitted(ledger, subject("5/minute", "100/minute"), "one", 30)

        async with anyio.create_task_group() as calls:
            for _ in range(20):
                calls.start_soon(ledger.settle, lease, Charge(7))

        assert await counted(ledger) == (1, 7)

    async def test_lapsed_lease_is_charged_all_the_same(self, ledger: Ledger, clock: FakeClock) -> None:
        lease = await admitted(ledger, subject("5/hour", "100/hour"), "outage", 30)

        clock.advance(LEASE_SECONDS + 1)
        await ledger.settle(lease, Charge(25))
        await ledger.settle(lease, Charge(25))

        assert await counted(ledger, seconds=3600) == (1, 25)

    async def test_lease_of_another_ledger_is_charged_all_the_same(self, ledger: Ledger) -> None:
        lease = Lease("admitted by the fallback", subject("5/minute", "100/minute"), 30, 0)

        await ledger.settle(lease, Charge(25))

        assert await counted(ledger) == (0, 25)

    async def test_tokens_count_from_their_settlement(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject(tokens="100/minute")
        lease = await admitted(ledger, alice, "stream", 30)
        clock.advance(50)
        await ledger.settle(lease, Charge(30))

        clock.advance(60)

        assert await counted(ledger) == (0, 30)

    async def test_request_is_given_back(self, ledger: Ledger) -> None:
        alice = subject("5/minute;9/day", "100/minute")
        failed, _ = await admitted(ledger, alice, "failed", 30), await admitted(ledger, alice, "other", 30)

        await ledger.settle(failed, Charge(0, request=False))

        assert await counted(ledger) == (1, 30)
        assert await counted(ledger, seconds=86_400) == (1, 30)

    async def test_request_is_given_back_up_to_the_last_moment_that_it_counts(
        self, ledger: Ledger, clock: FakeClock
    ) -> None:
        failed = await admitted(ledger, subject("9/minute"), "failed", 0)
        advance_ms(clock, 60_999)
        before = await counted(ledger)

        await ledger.settle(failed, Charge(0, request=False))

        assert before == (1, 0)
        assert await counted(ledger) == (0, 0)

    @pytest.mark.parametrize("order", ["012", "021", "102", "120", "201", "210"])
    @pytest.mark.parametrize("twice", [pytest.param(False, id="once-each"), pytest.param(True, id="twice-each")])
    async def test_requests_are_given_back_in_any_order(
        self, order: str, twice: bool, ledger: Ledger, clock: FakeClock
    ) -> None:
        alice = subject("9/minute;99/day")
        leases = []
        for number in range(4):  # in buckets of their own; the last stays counted
            leases.append(await admitted(ledger, alice, f"{number}"))
            if twice:
                await admitted(ledger, alice, f"{number} stays")
            clock.advance(5)

        firsts = []
        for each in order:
            await ledger.settle(leases[int(each)], Charge(0, request=False))
            verdict = await ledger.peek(alice)
            assert verdict.requests is not None
            firsts.append(verdict.requests.more_ms)
        left = (await counted(ledger))[0]
        await ledger.settle(leases[3], Charge(0, request=False))
        verdict = await ledger.peek(alice)
        assert verdict.requests is not None

        oldest = [min(set(range(4)) - {int(each) for each in order[: at + 1]}) for at in range(3)]
        assert firsts == [41_000 if twice else 41_000 + 5000 * number for number in oldest]
        assert left == (5 if twice else 1)
        assert verdict.requests.remaining == 9 - (4 if twice else 0)
        assert verdict.requests.reset_ms == (56_000 if twice else 0)

    async def test_what_is_left_after_giving_back_leaves_in_its_own_time(
        self, ledger: Ledger, clock: FakeClock
    ) -> None:
        alice = subject("9/minute")
        leases = []
        for number in range(5):
            leases.append(await admitted(ledger, alice, f"{number}"))
            clock.advance(5)
        for number in (1, 3, 4):  # between the others, beside the newest, and the newest
            await ledger.settle(leases[number], Charge(0, request=False))
        await admitted(ledger, alice, "newest", 0)

        counts = []
        for _ in range(4):
            counts.append((await counted(ledger))[0])
            clock.advance((await ledger.peek(alice)).requests.more_ms / 1000)  # type: ignore[union-attr]

        assert counts == [3, 2, 1, 0]

    async def test_request_that_has_left_its_window_is_not_given_back(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject("5/minute")
        failed = await admitted(ledger, alice, "failed")
        clock.advance(61)
        await spend(ledger, alice, "second")

        await ledger.settle(failed, Charge(0, request=False))

        assert await counted(ledger) == (1, 0)

    async def test_request_that_leaves_unnoticed_is_not_given_back(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject("9/minute")
        leases = []
        for number in range(3):
            leases.append(await admitted(ledger, alice, f"{number}"))
            clock.advance(10)
        clock.advance(41)  # the first two are out of it

        for lease in leases[:2]:
            await ledger.settle(lease, Charge(0, request=False))

        assert await counted(ledger) == (1, 1)

    async def test_request_is_given_back_where_only_the_ledger_knows_when_it_was_admitted(
        self, ledger: Ledger, clock: FakeClock
    ) -> None:
        alice = subject("5/minute", "100/minute")
        await admitted(ledger, alice, "late answer", 30)
        clock.advance(30)

        await ledger.settle(Lease("late answer", alice, 0, 0), Charge(0, request=False))

        assert await counted(ledger) == (0, 0)

    async def test_giving_back_never_makes_a_counter_negative(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject("5/minute", "100/minute")

        await ledger.settle(Lease("elsewhere", alice, 30, int(clock() * 1000)), Charge(-7, request=False))

        assert await counted(ledger) == (0, 0)

    # windows

    async def test_window_end_is_not_moved_by_hits(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject("2/minute")
        await spend(ledger, alice, "first")
        await spend(ledger, alice, "second")

        for number in range(60):
            clock.advance(1)
            assert (await ledger.admit(alice, Demand(f"hit {number}", 1))).lease is None
        clock.advance(1)

        assert (await ledger.admit(alice, Demand("last", 1))).lease is not None

    async def test_no_burst_over_the_edge_of_a_window(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject("20/minute")
        passed: list[float] = []

        for number in range(1300):
            advance_ms(clock, 100)
            if (await ledger.admit(alice, Demand(f"{number}", 1))).lease is not None:
                passed.append(clock())

        assert len(passed) == 60
        assert all(later - earlier > 60 for earlier, later in zip(passed, passed[20:], strict=False))

    @pytest.mark.parametrize("seconds", [1, 7, 60, 100, 3600, 86_400])
    @pytest.mark.parametrize("into", [0, 1, 16, 17, 999, 1439])
    async def test_use_counts_until_the_end_of_its_bucket_leaves_the_window(
        self, seconds: int, into: int, ledger: Ledger, clock: FakeClock
    ) -> None:
        alice = Subject("openshift/alice", (Limit(5, seconds),), (Limit(100, seconds),))
        advance_ms(clock, into)
        width = Fraction(seconds * 1000, 60)
        now_ms = round(clock() * 1000)
        counts_ms = math.ceil((now_ms // width + 1) * width + seconds * 1000) - now_ms
        await spend(ledger, alice, "one", 30)

        advance_ms(clock, counts_ms - 1)
        before = await counted(ledger, seconds=seconds)
        advance_ms(clock, 1)

        assert before == (1, 30)
        assert await counted(ledger, seconds=seconds) == (0, 0)

    # peek

    async def test_peek_consumes_nothing(self, ledger: Ledger) -> None:
        alice = subject("5/minute", "100/minute")
        await spend(ledger, alice, "one", 30)

        verdicts = [await ledger.peek(alice) for _ in range(20)]

        assert set(verdicts) == {
            Verdict(None, Budget(Limit(5, 60), 4, 61_000, 61_000), Budget(Limit(100, 60), 70, 61_000, 61_000)),
        }

    async def test_peek_at_somebody_new_finds_everything_left(self, ledger: Ledger) -> None:
        verdict = await ledger.peek(subject("5/minute", "100/minute"))

        assert verdict == Verdict(None, Budget(Limit(5, 60), 5, 0, 0), Budget(Limit(100, 60), 100, 0, 0))

    async def test_peek_tells_that_the_next_request_would_be_refused(self, ledger: Ledger) -> None:
        alice = subject("1/minute", "100/minute")
        await spend(ledger, alice, "one", 30)

        verdict = await ledger.peek(alice)
        refused = await ledger.admit(alice, Demand("two", 1))

        assert (verdict.refused_by, verdict.retry_after_ms) == ("requests", 61_000)
        assert verdict == refused
        assert verdict.refusing == Budget(Limit(1, 60), 0, 61_000, 61_000)

    # when it passes again

    @pytest.mark.parametrize(
        ("requests", "tokens"),
        [
            pytest.param("3/minute", "unlimited", id="requests"),
            pytest.param("unlimited", "70/minute", id="tokens"),
            pytest.param("3/7 second", "70/7 second", id="odd-window"),
            pytest.param("3/second", "unlimited", id="buckets-of-a-fraction-of-a-millisecond"),
            pytest.param("2/minute;3/hour", "65/minute;70/day", id="several-windows"),
            pytest.param("3/hour", "60/minute", id="requests-wait-longer"),
            pytest.param("1/minute", "70/hour", id="tokens-wait-longer"),
        ],
    )
    @pytest.mark.parametrize("step", [0, 1, 16, 17, 170])
    async def test_retry_after_is_exact(
        self, requests: str, tokens: str, step: int, ledger: Ledger, clock: FakeClock
    ) -> None:
        alice = subject(requests, tokens)
        for number in range(4):
            verdict = await ledger.admit(alice, Demand(f"{number}", 0))
            await ledger.settle(verdict.lease or Lease(f"{number}", alice, 0, 0), Charge(20))
            advance_ms(clock, step)
        refused = await ledger.admit(alice, Demand("refused", 1))

        advance_ms(clock, refused.retry_after_ms - 1)
        early = await ledger.admit(alice, Demand("early", 1))
        advance_ms(clock, 1)
        in_time = await ledger.admit(alice, Demand("in time", 1))

        assert refused.lease is None
        assert (early.lease, early.retry_after_ms) == (None, 1)
        assert in_time.lease is not None

    async def test_retry_after_names_the_kind_that_waits_longer(self, ledger: Ledger) -> None:
        by_tokens, by_requests = subject("1/minute", "10/hour", key="a"), subject("1/hour", "10/minute", key="b")
        await spend(ledger, by_tokens, "one", 10)
        await spend(ledger, by_requests, "one", 10)

        verdicts = [await ledger.peek(by_tokens), await ledger.peek(by_requests)]

        assert [(verdict.refused_by, verdict.retry_after_ms) for verdict in verdicts] == [
            ("tokens", 3_660_000),
            ("requests", 3_660_000),
        ]

    async def test_retry_after_is_a_second_where_calls_in_flight_stand_in_the_way(self, ledger: Ledger) -> None:
        alice = subject("5/minute", "100/minute")
        await admitted(ledger, alice, "in flight", 100)

        verdict = await ledger.admit(alice, Demand("second", 1))

        assert (verdict.lease, verdict.refused_by, verdict.retry_after_ms) == (None, "tokens", 1000)

    async def test_retry_after_is_a_second_where_it_needs_more_than_the_settled_use_to_leave(
        self, ledger: Ledger
    ) -> None:
        alice = subject(tokens="100/minute")
        await admitted(ledger, alice, "in flight", 100)
        await ledger.settle(Lease("late", alice, 0, 0), Charge(50))

        verdict = await ledger.peek(alice)

        assert (verdict.refused_by, verdict.retry_after_ms) == ("tokens", 1000)

    async def test_retry_after_waits_for_settled_use_that_makes_room_beside_calls_in_flight(
        self, ledger: Ledger
    ) -> None:
        alice = subject(tokens="100/minute")
        await spend(ledger, alice, "settled", 60)
        await admitted(ledger, alice, "in flight", 40)

        verdict = await ledger.peek(alice)

        assert (verdict.refused_by, verdict.retry_after_ms) == ("tokens", 61_000)

    async def test_reset_is_the_time_until_everything_is_left_again(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject("5/7 second", "100/7 second")
        await spend(ledger, alice, "one", 30)
        advance_ms(clock, 1234)
        await spend(ledger, alice, "two", 30)
        verdict = await ledger.peek(alice)
        assert verdict.requests is not None
        assert verdict.tokens is not None

        advance_ms(clock, verdict.requests.reset_ms - 1)
        before = await remaining(ledger, alice)
        advance_ms(clock, 1)

        assert verdict.requests.reset_ms == verdict.tokens.reset_ms
        assert before == (4, 70)
        assert await remaining(ledger, alice) == (5, 100)

    async def test_reset_assumes_that_calls_in_flight_settle_now(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject("5/minute", "100/minute")
        await admitted(ledger, alice, "in flight", 30)
        clock.advance(30)

        verdict = await ledger.peek(alice)

        assert verdict.requests == Budget(Limit(5, 60), 4, 31_000, 31_000)
        assert verdict.tokens == Budget(Limit(100, 60), 70, 61_000, 1000)

    async def test_more_is_free_when_the_oldest_use_leaves(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject("5/7 second", "100/7 second")
        await spend(ledger, alice, "one", 30)
        advance_ms(clock, 1234)
        await spend(ledger, alice, "two", 20)
        await admitted(ledger, alice, "in flight", 10)
        verdict = await ledger.peek(alice)
        assert verdict.requests is not None
        assert verdict.tokens is not None

        advance_ms(clock, verdict.tokens.more_ms - 1)
        before = await remaining(ledger, alice)
        advance_ms(clock, 1)

        assert verdict.requests.more_ms == verdict.tokens.more_ms < verdict.requests.reset_ms
        assert before == (2, 40)
        assert await remaining(ledger, alice) == (3, 70)

    async def test_more_may_be_free_in_a_second_where_only_calls_in_flight_hold_any(
        self, ledger: Ledger, clock: FakeClock
    ) -> None:
        alice = subject(tokens="100/minute")
        await admitted(ledger, alice, "in flight", 30)
        in_flight = await ledger.peek(alice)
        await admitted(ledger, alice, "needs none", 0)
        await ledger.settle(Lease("late", alice, 0, 0), Charge(5))
        clock.advance(50)

        settled = await ledger.peek(alice)

        assert in_flight.tokens == Budget(Limit(100, 60), 70, 61_000, 1000)
        assert settled.tokens == Budget(Limit(100, 60), 65, 61_000, 11_000)

    async def test_reset_is_0_where_all_was_given_back(self, ledger: Ledger) -> None:
        alice = subject("5/minute", "100/minute")
        lease = await admitted(ledger, alice, "failed", 30)

        await ledger.settle(lease, Charge(0, request=False))

        assert await ledger.peek(alice) == await ledger.peek(subject("5/minute", "100/minute", key="nobody"))

    async def test_limit_closest_to_exhaustion_is_shown(self, ledger: Ledger, clock: FakeClock) -> None:
        alice = subject("3/minute;4/day", "100/minute;150/day")

        first = await ledger.admit(alice, Demand("first", 0))
        for number in range(2):
            clock.advance(61)
            await spend(ledger, alice, f"{number}", 40)
        clock.advance(61)
        last = await ledger.peek(alice)

        assert first.requests == Budget(Limit(3, 60), 2, 61_000, 61_000)
        assert first.tokens == Budget(Limit(100, 60), 100, 0, 0)
        assert (last.requests and last.requests.limit, last.requests and last.requests.remaining) == (
            Limit(4, 86_400),
            1,
        )
        assert (last.tokens and last.tokens.limit, last.tokens and last.tokens.remaining) == (Limit(150, 86_400), 70)

    async def test_of_two_exhausted_limits_the_one_that_takes_longer_is_shown(self, ledger: Ledger) -> None:
        alice = subject("1/minute;1/day;1/hour", "10/day;10/minute")
        await spend(ledger, alice, "one", 10)

        verdict = await ledger.peek(alice)

        assert verdict.requests == Budget(Limit(1, 86_400), 0, 87_840_000, 87_840_000)
        assert verdict.tokens == Budget(Limit(10, 86_400), 0, 87_840_000, 87_840_000)

    # limits that change

    @pytest.mark.parametrize(
        ("requests", "tokens", "left"),
        [
            pytest.param("20/minute", "1000/minute", (18, 940), id="more"),
            pytest.param("3/minute", "70/minute", (1, 10), id="less"),
            pytest.param("2/minute", "60/minute", (0, 0), id="as-much-as-was-used"),
            pytest.param("1/minute", "30/minute", (0, 0), id="less-than-was-used"),
        ],
    )
    async def test_changed_amount_keeps_what_was_used(
        self, requests: str, tokens: str, left: tuple[int, int], ledger: Ledger
    ) -> None:
        before = subject("5/minute", "100/minute")
        await spend(ledger, before, "settled", 30)
        await admitted(ledger, before, "in flight", 30)

        assert await remaining(ledger, subject(requests, tokens)) == left

    async def test_window_that_stays_keeps_what_was_used_when_others_come_and_go(self, ledger: Ledger) -> None:
        await spend(ledger, subject("5/minute;9/day", "100/minute;900/hour"), "one", 30)

        await spend(ledger, subject("8/hour;5/minute", "100/minute;800/day"), "two", 40)

        assert await counted(ledger, seconds=60) == (2, 70)

    async def test_window_of_a_new_length_starts_with_no_history(self, ledger: Ledger) -> None:
        await spend(ledger, subject("5/minute", "100/minute"), "one", 30)

        assert await remaining(ledger, subject("50/hour", "1000/hour")) == (50, 1000)

    async def test_flapping_between_tiers_is_no_free_quota(self, ledger: Ledger, clock: FakeClock) -> None:
        minute, hour = subject("3/minute", "100/minute"), subject("4/hour", "500/hour")
        passed = [0, 0]

        for number in range(20):
            clock.advance(1)
            for tier, limits in enumerate((minute, hour)):
                verdict = await ledger.admit(limits, Demand(f"{tier} {number}", 1))
                passed[tier] += verdict.lease is not None

        assert passed == [3, 4]

    async def test_limits_that_were_lifted_and_come_back_find_what_was_used(
        self, ledger: Ledger, clock: FakeClock
    ) -> None:
        alice = subject("5/minute", "100/minute")
        await spend(ledger, alice, "one", 30)
        await spend(ledger, subject(), "unlimited", 1000)
        clock.advance(30)

        assert await ledger.peek(alice) == Verdict(
            None, Budget(Limit(5, 60), 4, 31_000, 31_000), Budget(Limit(100, 60), 70, 31_000, 31_000)
        )

    async def test_tokens_in_flight_count_against_limits_that_came_later(self, ledger: Ledger) -> None:
        await admitted(ledger, subject("5/minute"), "unlimited", 80)

        assert await remaining(ledger, subject("5/minute", "100/minute")) == (4, 20)

    async def test_lease_is_settled_under_the_limits_of_its_admission(self, ledger: Ledger) -> None:
        lease = await admitted(ledger, subject("5/minute", "100/minute"), "one", 30)
        await spend(ledger, subject("5/minute", "500/hour"), "two", 7)

        await ledger.settle(lease, Charge(20))

        assert (await counted(ledger, seconds=60))[1] == 20
        assert (await counted(ledger, seconds=3600))[1] == 7
