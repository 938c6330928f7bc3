from __future__ import annotations

import gc
import weakref
from typing import Any

import anyio
import pytest

from maas_middleware.errors import RateLimitExceeded
from maas_middleware.ledgers.throttles import MovingWindowThrottle
from maas_middleware.limiting import Limit
from maas_middleware.throttling import Attempts, Refusal, Throttle, address_of, check_throttle, exceeded


def throttle_of(limits: str = "2/minute") -> MovingWindowThrottle:
    return MovingWindowThrottle(limits, name="acts")


def headers_of(error: RateLimitExceeded) -> dict[bytes, bytes]:
    return dict(error.headers)


def test_refusal_says_what_stands_in_the_way_and_when_to_come_back() -> None:
    error = exceeded(Refusal(Limit(5, 3600), 12_001), "mints", 0.0)

    assert (error.status, error.type, error.code) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert error.message == "Rate limit exceeded"
    assert error.details == {"limit": "mints", "quota": 5, "window_seconds": 3600, "retry_after_seconds": 13}
    assert error.headers == ((b"retry-after-ms", b"12001"), (b"retry-after", b"13"))


def test_wait_of_more_than_a_minute_is_not_for_clients_to_sit_out() -> None:
    error = exceeded(Refusal(Limit(5, 3600), 60_001), "mints", 0.0)

    assert headers_of(error)[b"x-should-retry"] == b"false"


@pytest.mark.parametrize(("jitter", "wait_ms"), [(0.0, 10_000), (0.5, 10_250), (1.0, 10_500)])
def test_jitter_only_makes_the_wait_longer(jitter: float, wait_ms: int) -> None:
    error = exceeded(Refusal(Limit(5, 60), 10_000), "control_requests", jitter)

    assert headers_of(error)[b"retry-after-ms"] == b"%d" % wait_ms
    assert error.details is not None
    assert error.details["retry_after_seconds"] == -(-wait_ms // 1000)


async def test_check_counts_and_refuses_what_is_one_too_many() -> None:
    throttle = throttle_of("2/hour")
    await check_throttle(throttle, "alice", "mints", jitter=lambda: 1.0)
    await check_throttle(throttle, "alice", "mints")
    await check_throttle(throttle, "bob", "mints")

    with pytest.raises(RateLimitExceeded) as refusal:
        await check_throttle(throttle, "alice", "mints", jitter=lambda: 1.0)

    assert refusal.value.details is not None
    assert refusal.value.details["limit"] == "mints"
    assert 3_700_000 < int(headers_of(refusal.value)[b"retry-after-ms"]) <= 3_780_002  # an hour, and 5 % of it


async def test_without_a_throttle_or_a_key_everything_passes() -> None:
    throttle = throttle_of("1/minute")

    for _ in range(3):
        await check_throttle(None, "alice", "mints")
        await check_throttle(throttle, None, "mints")

    assert await throttle.peek("alice") is None


async def test_no_more_attempts_are_under_way_than_may_fail() -> None:
    throttle = throttle_of("3/minute")
    attempts = Attempts(throttle, "failed_credentials", jitter=lambda: 1.0)
    began, refusals, over = list[str](), list[RateLimitExceeded](), anyio.Event()

    async def attempt() -> None:
        try:
            async with attempts.attempt("here"):
                began.append("here")
                await over.wait()
        except RateLimitExceeded as refusal:
            refusals.append(refusal)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(attempt)
            while len(refusals) < 7:
                await anyio.lowlevel.checkpoint()
            async with attempts.attempt("there"):
                over.set()

    assert (len(began), len(refusals)) == (3, 7)
    assert {headers_of(refusal)[b"retry-after-ms"] for refusal in refusals} == {b"1050"}
    assert refusals[0].details == {
        "limit": "failed_credentials",
        "quota": 3,
        "window_seconds": 60,
        "retry_after_seconds": 2,
    }


async def test_attempt_that_does_not_fail_costs_nothing_however_it_ends() -> None:
    attempts = Attempts(throttle_of("1/minute"), "failed_credentials")

    for _ in range(5):
        async with attempts.attempt("here"):
            pass
        with pytest.raises(ZeroDivisionError):
            async with attempts.attempt("here"):
                raise ZeroDivisionError


class Address(str):
    """A key that can be told when nobody holds it any more."""


async def test_nothing_is_kept_of_attempts_that_ended() -> None:
    attempts = Attempts(throttle_of("1/minute"), "failed_credentials")
    address = Address("here")
    kept = weakref.ref(address)

    async with attempts.attempt(address):
        pass
    del address
    gc.collect()

    assert kept() is None


async def test_refused_attempt_makes_no_room_smaller() -> None:
    throttle = throttle_of("1/minute")
    attempts = Attempts(throttle, "failed_credentials")
    async with attempts.attempt("here"):
        for _ in range(3):
            with pytest.raises(RateLimitExceeded):
                async with attempts.attempt("here"):
                    raise AssertionError("it may not begin")

    async with attempts.attempt("here"):
        pass


async def test_no_attempt_begins_where_too_many_have_failed() -> None:
    throttle = throttle_of("2/minute")
    attempts = Attempts(throttle, "failed_credentials", jitter=lambda: 0.0)
    await throttle.hit("here")
    async with attempts.attempt("here"):
        await throttle.hit("here")

    with pytest.raises(RateLimitExceeded) as refusal:
        async with attempts.attempt("here"):
            raise AssertionError("it may not begin")

    assert 50_000 < int(headers_of(refusal.value)[b"retry-after-ms"]) <= 60_001


class Answering:
    """A throttle that answers a question with what was so when it was asked, as one far away does."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self.asked = anyio.Event()
        self.gate = anyio.Event()

    async def hit(self, key: str, /) -> Refusal | None:
        return await self._throttle.hit(key)

    async def peek(self, key: str, count: int = 1, /) -> Refusal | None:
        refusal = await self._throttle.peek(key, count)
        self.asked.set()
        await self.gate.wait()
        return refusal


async def test_attempt_that_fails_while_another_one_asks_makes_no_room_for_it() -> None:
    throttle = throttle_of("1/minute")
    slow = Answering(throttle)
    attempts = Attempts(slow, "failed_credentials")
    refused: list[bool] = []

    async def second() -> None:
        try:
            async with attempts.attempt("here"):
                refused.append(False)
        except RateLimitExceeded:
            refused.append(True)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            slow.gate.set()
            async with attempts.attempt("here"):
                slow.gate, slow.asked = anyio.Event(), anyio.Event()
                group.start_soon(second)
                await slow.asked.wait()
            await throttle.hit("here")
            slow.gate.set()

    assert refused == [True]


@pytest.mark.parametrize("key", [pytest.param(None, id="no-key"), pytest.param("here", id="no-throttle")])
async def test_attempts_without_a_throttle_or_a_key_may_all_begin(key: str | None) -> None:
    attempts = Attempts(None if key else throttle_of("1/minute"), "failed_credentials")

    async with attempts.attempt(key), attempts.attempt(key), attempts.attempt(key):
        pass


@pytest.mark.parametrize(
    ("client", "address"),
    [
        pytest.param(("203.0.113.7", 40000), "203.0.113.7", id="ipv4"),
        pytest.param(["203.0.113.7", 0], "203.0.113.7", id="forwarded"),
        pytest.param(("::ffff:203.0.113.7", 40000), "203.0.113.7", id="ipv4-mapped"),
        pytest.param(("::FFFF:CB00:7107", 40000), "203.0.113.7", id="ipv4-mapped-in-hexadecimal"),
        pytest.param(("2001:db8:1:2:3:4:5:6", 40000), "2001:db8:1:2::/64", id="ipv6"),
        pytest.param(("2001:DB8:1:2:ffff:ffff:ffff:ffff", 1), "2001:db8:1:2::/64", id="ipv6-of-the-same-64"),
        pytest.param(("2001:db8:1:3::", 1), "2001:db8:1:3::/64", id="ipv6-of-the-next-64"),
        pytest.param(("fe80::1%eth0", 1), "fe80::/64", id="ipv6-with-a-zone"),
        pytest.param(("::1", 1), "::/64", id="ipv6-loopback"),
        pytest.param(None, None, id="unix-socket"),
        pytest.param((None, None), None, id="nothing"),
        pytest.param(("", 0), None, id="empty"),
        pytest.param(("testclient", 50000), None, id="a-name"),
        pytest.param(("/run/maas.sock", 0), None, id="a-path"),
    ],
)
def test_address_is_that_of_whoever_can_be_told_from_others(client: Any, address: str | None) -> None:
    assert address_of({"type": "http", "client": client}) == address


def test_scope_without_a_client_has_no_address() -> None:
    assert address_of({"type": "http"}) is None
