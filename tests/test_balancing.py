from __future__ import annotations

import logging
import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from maas_middleware.balancing import Balancer, Upstream
from maas_middleware.catalogue import Model
from maas_middleware.testing.clock import FakeClock

A, B, C = "http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://10.0.0.3:8000"
PAIR = Model("pair", upstreams=(A, B))
LONE = Model("lone", upstreams=(A,))
MOUNTED = Model("mounted")


def full() -> float:
    """Jitter that leaves an ejection as long as it may be."""
    return 1.0


def begun(balancer: Balancer, model: Model, tried: Sequence[Upstream] = ()) -> Upstream:
    """An upstream that a request is under way to."""
    upstream = balancer.choose(model, tried)
    assert upstream is not None
    upstream.begin()
    return upstream


def fail(balancer: Balancer, model: Model, times: int = 1) -> Upstream:
    for _ in range(times):
        upstream = begun(balancer, model)
        upstream.failed()
        upstream.end()
    return upstream


def succeed(balancer: Balancer, model: Model) -> Upstream:
    upstream = begun(balancer, model)
    upstream.succeeded()
    upstream.end()
    return upstream


def urls(balancer: Balancer, model: Model, count: int) -> list[str]:
    """Where so many requests go, one after the other."""
    return [succeed(balancer, model).url for _ in range(count)]


# choosing


def test_idle_upstreams_take_turns() -> None:
    model = Model("m", upstreams=(A, B, C))

    assert urls(Balancer(), model, 6) == [A, B, C, A, B, C]


def test_request_goes_to_the_upstream_with_the_fewest_under_way() -> None:
    balancer = Balancer()
    first, second, third = (begun(balancer, PAIR) for _ in range(3))

    assert [first.url, second.url, third.url] == [A, B, A]
    first.end()
    third.end()
    assert [begun(balancer, PAIR).url for _ in range(2)] == [A, B]


def test_requests_to_other_models_of_an_upstream_count() -> None:
    balancer = Balancer()
    for _ in range(2):
        begun(balancer, LONE)

    assert [begun(balancer, PAIR).url for _ in range(5)] == [B, B, A, B, A]


def test_upstream_that_was_tried_is_not_chosen_again() -> None:
    balancer = Balancer()
    first = begun(balancer, PAIR)
    second = begun(balancer, PAIR, [first])

    assert {first.url, second.url} == {A, B}
    assert balancer.choose(PAIR, [first, second]) is None
    assert balancer.choose(PAIR, {first, second}) is None
    assert balancer.choose(LONE, [Balancer().choose(LONE) or first]) is not None


def test_model_without_upstreams_has_none_to_choose() -> None:
    assert Balancer().choose(MOUNTED) is None


def test_upstream_that_was_tried_for_another_model_is_not_chosen_either() -> None:
    balancer = Balancer()
    tried = begun(balancer, LONE)

    assert [begun(balancer, PAIR, [tried]).url for _ in range(3)] == [B, B, B]


def test_server_that_a_model_names_twice_is_one() -> None:
    balancer = Balancer()
    upstream = begun(balancer, Model("m", upstreams=(f"{A}/", A)))

    assert upstream.url == A
    assert balancer.choose(Model("m", upstreams=(f"{A}/", A)), [upstream]) is None


def test_names_of_models_without_upstreams_take_no_memory() -> None:
    balancer = Balancer()
    names = [str(number) for number in range(2000)]

    tracemalloc.start()
    try:
        assert all(balancer.is_ready(Model(name)) for name in names)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert taken < 100_000


# ejection


def test_upstream_is_ejected_at_the_third_failure_in_a_row() -> None:
    balancer = Balancer()

    states = [fail(balancer, LONE).is_ejected for _ in range(3)]

    assert states == [False, False, True]
    assert urls(balancer, PAIR, 3) == [B, B, B]


def test_success_interrupts_the_row_of_failures() -> None:
    balancer = Balancer(failures=2)

    fail(balancer, LONE)
    succeed(balancer, LONE)
    upstream = fail(balancer, LONE)

    assert not upstream.is_ejected
    assert fail(balancer, LONE).is_ejected


def test_request_without_a_verdict_changes_nothing() -> None:
    balancer = Balancer(failures=2)

    fail(balancer, LONE)
    begun(balancer, LONE).end()

    assert fail(balancer, LONE).is_ejected


def test_one_request_probes_when_the_ejection_is_over() -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock, jitter=full, failures=1)
    assert fail(balancer, PAIR).url == A

    clock.advance(4.999)
    before = [begun(balancer, PAIR).url for _ in range(2)]
    clock.advance(0.001)
    after = [begun(balancer, PAIR) for _ in range(3)]

    assert before == [B, B]
    assert [upstream.url for upstream in after] == [A, B, B]
    assert after[0].is_ejected


def test_probe_that_succeeds_brings_the_upstream_back() -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock, failures=1)
    fail(balancer, PAIR)
    clock.advance(5)

    probe = begun(balancer, PAIR)
    probe.succeeded()

    assert not probe.is_ejected
    assert [begun(balancer, PAIR).url for _ in range(3)] == [B, A, B]


def test_probe_whose_client_left_is_followed_by_another() -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock, failures=1)
    fail(balancer, PAIR)
    clock.advance(5)

    begun(balancer, PAIR).end()
    probe, other = begun(balancer, PAIR), begun(balancer, PAIR)

    assert (probe.url, other.url) == (A, B)
    assert probe.is_ejected


def test_end_of_another_request_does_not_end_the_probe() -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock, failures=1)
    stream = begun(balancer, LONE)
    stream.succeeded()
    fail(balancer, LONE)
    clock.advance(5)

    probe = begun(balancer, PAIR)
    stream.end()

    assert probe.is_ejected
    assert [begun(balancer, PAIR).url for _ in range(3)] == [B, B, B]


def test_end_of_a_failed_probe_does_not_end_the_next_one() -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock, failures=1)
    fail(balancer, LONE)
    clock.advance(5)
    first = begun(balancer, LONE)
    first.failed()
    clock.advance(10)

    second = begun(balancer, LONE)
    first.end()

    assert second.is_ejected


def test_each_failed_probe_doubles_the_ejection_up_to_the_maximum() -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock, jitter=full, failures=3, ejection=5, maximum_ejection=30)
    upstream = fail(balancer, LONE, 3)

    for seconds in (5, 10, 20, 30, 30):
        clock.advance(seconds - 0.001)
        assert upstream.is_ejected
        clock.advance(0.001)
        assert not upstream.is_ejected
        upstream = fail(balancer, LONE)
    clock.advance(30)
    succeed(balancer, LONE)
    fail(balancer, LONE, 2)
    assert not upstream.is_ejected
    fail(balancer, LONE)

    clock.advance(4.999)
    assert upstream.is_ejected
    clock.advance(0.001)
    assert not upstream.is_ejected


def test_ejection_is_bounded_from_the_first_one_on() -> None:
    clock = FakeClock()
    upstream = fail(Balancer(clock=clock, jitter=full, failures=1, ejection=9, maximum_ejection=2), LONE)

    clock.advance(2)

    assert not upstream.is_ejected


def test_upstream_that_was_away_for_long_is_asked_every_minute() -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock)
    upstream = fail(balancer, LONE, 3)

    for _ in range(10):
        clock.advance(60)
        assert not upstream.is_ejected
        fail(balancer, LONE)
        assert upstream.is_ejected


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 4), (0.5, 6), (1.0, 8)])
def test_jitter_shortens_an_ejection_by_up_to_a_half(jitter: float, seconds: float) -> None:
    clock = FakeClock()
    upstream = fail(Balancer(clock=clock, jitter=lambda: jitter, failures=1, ejection=8), LONE)

    clock.advance(seconds - 0.001)
    assert upstream.is_ejected
    clock.advance(0.001)
    assert not upstream.is_ejected


def test_failures_of_requests_that_were_under_way_do_not_prolong_an_ejection() -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock, jitter=full, failures=3)
    requests = [begun(balancer, LONE) for _ in range(20)]

    for request in requests[:15]:
        request.failed()
        request.end()
    clock.advance(5)
    assert not requests[0].is_ejected
    probe = begun(balancer, LONE)
    for request in requests[15:]:
        request.failed()
        request.end()

    assert probe.is_ejected
    probe.failed()
    clock.advance(10)
    assert not probe.is_ejected


def test_any_success_ends_an_ejection() -> None:
    balancer = Balancer(failures=1)
    request = begun(balancer, LONE)
    upstream = fail(balancer, LONE)

    request.succeeded()
    request.end()

    assert not upstream.is_ejected
    assert urls(balancer, PAIR, 2) == [B, A]


def test_probe_that_fails_when_another_request_succeeded_is_one_failure() -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock, failures=2)
    fail(balancer, LONE, 2)
    clock.advance(5)
    probe, other = begun(balancer, LONE), begun(balancer, LONE)

    other.succeeded()
    probe.failed()

    assert not probe.is_ejected


def test_upstreams_are_used_all_the_same_where_all_are_ejected() -> None:
    balancer = Balancer(failures=1)
    ejected = [fail(balancer, PAIR), fail(balancer, PAIR)]

    chosen = [begun(balancer, PAIR) for _ in range(4)]

    assert [upstream.url for upstream in ejected] == [A, B]
    assert all(upstream.is_ejected for upstream in ejected)
    assert [upstream.url for upstream in chosen] == [A, B, A, B]


def test_ejected_upstream_is_left_for_a_request_that_tried_the_others() -> None:
    balancer = Balancer(failures=1)
    fail(balancer, PAIR)
    first = begun(balancer, PAIR)

    second = begun(balancer, PAIR, [first])

    assert (first.url, second.url) == (B, A)


def test_lone_upstream_that_keeps_failing_is_still_asked() -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock, failures=1)

    for _ in range(100):
        assert fail(balancer, LONE).url == A
        assert not balancer.is_ready(LONE)
        clock.advance(0.1)


def test_balancer_brings_a_clock_and_jitter() -> None:
    upstream = fail(Balancer(failures=1, ejection=1e-9), LONE)

    assert not upstream.is_ejected
    assert fail(Balancer(failures=1, ejection=3600, maximum_ejection=3600), LONE).is_ejected


# readiness


def test_model_is_ready_as_long_as_one_upstream_is_not_ejected() -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock, jitter=full, failures=1)

    assert balancer.is_ready(PAIR)
    fail(balancer, PAIR)
    assert (balancer.is_ready(PAIR), balancer.is_ready(LONE)) == (True, False)
    fail(balancer, PAIR)
    assert not balancer.is_ready(PAIR)
    clock.advance(5)
    assert balancer.is_ready(LONE)
    begun(balancer, LONE)
    assert not balancer.is_ready(LONE)


def test_model_without_upstreams_is_ready() -> None:
    assert Balancer().is_ready(MOUNTED)


# retries


def granted(balancer: Balancer, model: Model) -> int:
    """How many retries there are now, which takes them."""
    count = 0
    while balancer.may_retry(model):
        count += 1
    return count


def test_idle_model_has_a_few_retries_that_come_back() -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock)

    assert granted(balancer, PAIR) == 10
    clock.advance(1.06)
    assert granted(balancer, PAIR) == 1
    clock.advance(10)
    assert granted(balancer, PAIR) == 6
    clock.advance(3600)
    assert granted(balancer, PAIR) == 10


def test_requests_give_a_share_of_retries() -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock, minimum_retries=0, retry_ratio=0.25)

    assert granted(balancer, PAIR) == 0
    clock.advance(3600)
    urls(balancer, PAIR, 7)
    assert granted(balancer, PAIR) == 1
    urls(balancer, PAIR, 1)
    assert granted(balancer, PAIR) == 1


def test_a_fifth_of_the_requests_may_be_tried_again() -> None:
    balancer = Balancer(clock=FakeClock())

    urls(balancer, PAIR, 1003)

    assert granted(balancer, PAIR) == 10 + 200


def test_retries_that_nobody_takes_are_lost() -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock, minimum_retries=2)
    urls(balancer, PAIR, 1000)

    clock.advance(10)

    assert granted(balancer, PAIR) == int(2 + 200 / math.e)


def test_retry_gives_no_retries() -> None:
    balancer = Balancer(clock=FakeClock(), minimum_retries=0, retry_ratio=1.0)
    first = begun(balancer, PAIR)

    begun(balancer, PAIR, [first])

    assert granted(balancer, PAIR) == 1


def test_models_do_not_take_the_retries_of_others() -> None:
    balancer = Balancer(clock=FakeClock())

    assert granted(balancer, PAIR) == 10
    assert granted(balancer, LONE) == 10


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(
    ratio=st.sampled_from([0.0, 0.2, 1.0]),
    idle=st.sampled_from([0.0, 1.0, 10.0]),
    schedule=st.lists(st.tuples(st.sampled_from([0.0, 0.0, 0.1, 3.0, 40.0]), st.integers(0, 30), st.integers(0, 15))),
)
def test_retries_are_a_few_and_a_share_of_the_requests_in_any_window(
    ratio: float, idle: float, schedule: list[tuple[float, int, int]]
) -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock, retry_ratio=ratio, minimum_retries=idle)
    steps = []
    for seconds, requests, retries in schedule:
        clock.advance(seconds)
        for _ in range(requests):
            balancer.choose(PAIR)
        steps.append((clock.now, requests, sum(balancer.may_retry(PAIR) for _ in range(retries))))

    for first, (begin, _, _) in enumerate(steps):
        recent = sum(requests * math.exp((at - begin) / 10) for at, requests, _ in steps[:first])
        for last in range(first, len(steps)):
            window = steps[first : last + 1]
            few = idle * (1 + (window[-1][0] - begin) / 10)
            share = ratio * (recent + sum(requests for _, requests, _ in window))
            assert sum(taken for _, _, taken in window) <= few + share + 1e-6


# logs


def test_log_tells_which_upstream_of_which_model_and_no_address(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    balancer = Balancer(clock=clock, jitter=full, failures=1)
    caplog.set_level(logging.DEBUG, "maas_middleware")

    succeed(balancer, PAIR)
    fail(balancer, PAIR)
    fail(balancer, Model("other", upstreams=(B,)))
    clock.advance(5)
    fail(balancer, PAIR)
    clock.advance(10)
    succeed(balancer, PAIR)
    succeed(balancer, PAIR)

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "upstreams[1] of model pair failed, and is left out for 5.0 s"),
        ("WARNING", "upstreams[1] of model pair failed, and is left out for 10.0 s"),
        ("WARNING", "upstreams[1] of model pair answers again"),
    ]


# any schedule

FAILURES, FIRST, LONGEST = 2, 4.0, 16.0
MODELS = (
    Model("three", upstreams=(A, B, C)),
    Model("two", upstreams=(B, C)),
    Model("one", upstreams=(C,)),
)


NUMBERS = st.integers(0, 7)


@dataclass(eq=False)
class Request:
    model: Model
    upstream: Upstream
    tried: list[Upstream]
    has_told: bool = False


@dataclass
class Health:
    """What a server has to be taken for, after what the requests told."""

    row: int = 0
    ejected_at: float | None = None
    seconds: float = FIRST / 2
    probe: Request | None = None

    def is_over(self, now: float) -> bool:
        return self.ejected_at is not None and self.probe is None and now >= self.ejected_at + self.seconds

    def is_ejected(self, now: float) -> bool:
        return self.ejected_at is not None and not self.is_over(now)


class BalancerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(0.0)
        self.balancer = Balancer(
            clock=self.clock, jitter=full, failures=FAILURES, ejection=FIRST, maximum_ejection=LONGEST
        )
        self.under_way: list[Request] = []
        self.health = {url: Health() for url in (A, B, C)}

    def outstanding(self, url: str) -> int:
        return sum(request.upstream.url == url for request in self.under_way)

    def request(self, number: int) -> Request:
        return self.under_way[number % len(self.under_way)]

    def send(self, model: Model, tried: list[Upstream]) -> None:
        past = {upstream.url for upstream in tried}
        left = [url for url in model.upstreams if url not in past]
        upstream = self.balancer.choose(model, tried)
        if upstream is None:
            assert not left
            return
        assert upstream.url in left
        now, health = self.clock.now, self.health[upstream.url]
        due = [url for url in left if self.health[url].is_over(now)]
        usable = [url for url in left if not self.health[url].is_ejected(now)]
        assert upstream.url in (due or usable or left)
        assert self.outstanding(upstream.url) == min(map(self.outstanding, due or usable or left))
        request = Request(model, upstream, [*tried, upstream])
        upstream.begin()
        self.under_way.append(request)
        if due:
            health.probe = request

    @rule(model=st.sampled_from(MODELS))
    def begin(self, model: Model) -> None:
        self.send(model, [])

    @precondition(lambda self: self.under_way)
    @rule(number=NUMBERS)
    def retry(self, number: int) -> None:
        request = self.request(number)
        self.send(request.model, request.tried)

    @precondition(lambda self: self.under_way)
    @rule(number=NUMBERS)
    def succeed(self, number: int) -> None:
        request = self.request(number)
        if not request.has_told:
            request.has_told = True
            request.upstream.succeeded()
            self.health[request.upstream.url] = Health()

    @precondition(lambda self: self.under_way)
    @rule(number=NUMBERS)
    def fail(self, number: int) -> None:
        request = self.request(number)
        if not request.has_told:
            request.has_told = True
            request.upstream.failed()
            self.expect_after_failure(request, self.health[request.upstream.url])

    def expect_after_failure(self, request: Request, health: Health) -> None:
        is_probe, health.row = health.probe is request, health.row + 1
        if is_probe or (health.ejected_at is None and health.row == FAILURES):
            health.seconds = min(2 * health.seconds, LONGEST)
            health.ejected_at, health.probe = self.clock.now, None

    @precondition(lambda self: self.under_way)
    @rule(number=NUMBERS)
    def end(self, number: int) -> None:
        request = self.request(number)
        health = self.health[request.upstream.url]
        self.under_way.remove(request)
        request.upstream.end()
        if health.probe is request:
            health.probe = None

    @rule(seconds=st.sampled_from([1.0, FIRST, LONGEST]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def takes_servers_for_what_they_are(self) -> None:
        for request in self.under_way:
            upstream = request.upstream
            assert upstream.is_ejected == self.health[upstream.url].is_ejected(self.clock.now)
        for model in MODELS:
            ejected = [self.health[url].is_ejected(self.clock.now) for url in model.upstreams]
            assert self.balancer.is_ready(model) is not all(ejected)


def test_invariants_hold_for_any_schedule() -> None:
    schedules = settings(derandomize=True, database=None, deadline=None, max_examples=100, stateful_step_count=50)

    run_state_machine_as_test(BalancerMachine, settings=schedules)
