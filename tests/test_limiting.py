from __future__ import annotations

from typing import Literal

import pytest

from maas_middleware.admission import after_failure, after_use
from maas_middleware.limiting import (
    Budget,
    Charge,
    Demand,
    Lease,
    Limit,
    Subject,
    Verdict,
    ietf_headers,
    parse_limits,
    rate_limit_headers,
    retry_headers,
)

REQUESTS = Budget(Limit(5, 60), 4, 61_000, 40_001)
TOKENS = Budget(Limit(100, 60), 70, 500, 300)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        pytest.param(Subject("alice"), "key", id="subject"),
        pytest.param(Demand("one", 30), "tokens", id="demand"),
        pytest.param(Lease("one", Subject("alice"), 30, 0), "tokens", id="lease"),
        pytest.param(Charge(30), "tokens", id="charge"),
        pytest.param(REQUESTS, "remaining", id="budget"),
        pytest.param(Verdict(None, REQUESTS, TOKENS), "lease", id="verdict"),
    ],
)
def test_what_ledgers_are_told_and_answer_cannot_be_changed(value: object, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(value, name, None)


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        pytest.param("1/second", (Limit(1, 1),), id="second"),
        pytest.param("5/minute", (Limit(5, 60),), id="minute"),
        pytest.param("5/hour", (Limit(5, 3600),), id="hour"),
        pytest.param("5/day", (Limit(5, 86_400),), id="day"),
        pytest.param("5 per minute", (Limit(5, 60),), id="per"),
        pytest.param("100 per 2 minutes", (Limit(100, 120),), id="multiple"),
        pytest.param("5/1 minute", (Limit(5, 60),), id="multiple-of-one"),
        pytest.param("5/0 minutes", (Limit(5, 60),), id="multiple-of-zero-is-one-to-limits"),
        pytest.param("5/24 hours", (Limit(5, 86_400),), id="day-in-hours"),
        pytest.param("5/86400 seconds", (Limit(5, 86_400),), id="day-in-seconds"),
        pytest.param(" 5 / MINUTE ", (Limit(5, 60),), id="spaces-and-case"),
        pytest.param("100/minute;5000/day", (Limit(100, 60), Limit(5000, 86_400)), id="semicolon"),
        pytest.param("100/minute, 5000/day", (Limit(100, 60), Limit(5000, 86_400)), id="comma"),
        pytest.param("5/minute;3/minute", (Limit(5, 60), Limit(3, 60)), id="one-window-twice"),
        pytest.param("unlimited", (), id="unlimited"),
        pytest.param(" unlimited\n", (), id="unlimited-in-spaces"),
    ],
)
def test_limits_are_read(text: str, limits: tuple[Limit, ...]) -> None:
    assert parse_limits(text) == limits


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("1/month", "has a window of more than a day", id="month"),
        pytest.param("1/year", "has a window of more than a day", id="year"),
        pytest.param("5/2 days", "has a window of more than a day", id="days"),
        pytest.param("5/25 hours", "has a window of more than a day", id="hours"),
        pytest.param("5/86401 seconds", "has a window of more than a day", id="a-second-more-than-a-day"),
        pytest.param("5/minute;1/month", "has a window of more than a day", id="month-as-the-second"),
        pytest.param("0/minute", "would let nothing pass", id="nothing"),
        pytest.param("5/minute;0/day", "would let nothing pass", id="nothing-as-the-second"),
        pytest.param("0/0 minutes", "would let nothing pass", id="nothing-in-no-time"),
    ],
)
def test_limit_that_cannot_be_kept_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        parse_limits(text)

    assert str(refused.value) == f"{text!r} {sentence}"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("nonsense", id="word"),
        pytest.param("5", id="number"),
        pytest.param("/minute", id="no-amount"),
        pytest.param("5/", id="no-window"),
        pytest.param("-5/minute", id="negative-amount"),
        pytest.param("5/-1 minutes", id="negative-window"),
        pytest.param("5.5/minute", id="fraction"),
        pytest.param("1e3/minute", id="exponent"),
        pytest.param("5/fortnight", id="unknown-window"),
        pytest.param("5/minute junk", id="rest"),
        pytest.param("5/minute;", id="nothing-after-the-semicolon"),
        pytest.param("\u0665/minute", id="arabic-digit"),
        pytest.param("UNLIMITED", id="unlimited-in-capitals"),
        pytest.param("unlimited;5/minute", id="unlimited-and-a-limit"),
    ],
)
def test_nonsense_is_refused_with_an_example_of_what_is_meant(text: str) -> None:
    with pytest.raises(ValueError, match="is not a limit such as 5/minute") as refused:
        parse_limits(text)

    assert str(refused.value) == f"{text!r} is not a limit such as 5/minute or 100/minute;5000/day"
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    ("verdict", "budget"),
    [
        pytest.param(Verdict(None, REQUESTS, TOKENS, "requests", 1), REQUESTS, id="requests"),
        pytest.param(Verdict(None, REQUESTS, TOKENS, "tokens", 1), TOKENS, id="tokens"),
        pytest.param(Verdict(None, REQUESTS, TOKENS), None, id="nothing"),
        pytest.param(Verdict(None, None, None), None, id="unlimited"),
    ],
)
def test_verdict_names_the_budget_that_stands_in_the_way(verdict: Verdict, budget: Budget | None) -> None:
    assert verdict.refusing is budget


def admitted(leased: int, tokens: Budget | None) -> Verdict:
    return Verdict(Lease("one", Subject("alice", (), ()), leased, 0), REQUESTS, tokens)


@pytest.mark.parametrize(
    ("used", "remaining"),
    [
        pytest.param(20, 70, id="what-was-estimated"),
        pytest.param(10, 80, id="less"),
        pytest.param(40, 50, id="more"),
        pytest.param(0, 90, id="nothing"),
        pytest.param(90, 0, id="all-that-was-left"),
        pytest.param(91, 0, id="debt-is-never-negative"),
    ],
)
def test_what_was_used_takes_the_place_of_the_estimate(used: int, remaining: int) -> None:
    verdict = admitted(20, TOKENS)

    settled = after_use(verdict, used)

    assert settled == Verdict(verdict.lease, REQUESTS, Budget(Limit(100, 60), remaining, 500, 300))
    assert verdict == admitted(20, TOKENS)


@pytest.mark.parametrize(
    ("used", "remaining", "more_ms"),
    [
        pytest.param(10, 90, 61_000, id="counts-from-now-on"),
        pytest.param(101, 0, 61_000, id="overrun"),
    ],
)
def test_use_that_is_the_only_one_is_the_next_to_leave(used: int, remaining: int, more_ms: int) -> None:
    verdict = admitted(30, Budget(Limit(100, 60), 70, 61_000, 1000))

    settled = after_use(verdict, used)

    assert settled.tokens == Budget(Limit(100, 60), remaining, 61_000, more_ms)


@pytest.mark.parametrize("used", [pytest.param(0, id="nothing"), pytest.param(-5, id="never-more-than-the-limit")])
def test_limit_of_which_nothing_is_used_is_completely_full(used: int) -> None:
    verdict = admitted(30, Budget(Limit(100, 60), 70, 61_000, 1000))

    assert after_use(verdict, used).tokens == Budget(Limit(100, 60), 100, 0, 0)


@pytest.mark.parametrize(
    ("requests", "given_back"),
    [
        pytest.param(Budget(Limit(5, 60), 2, 9000, 800), Budget(Limit(5, 60), 3, 9000, 800), id="one-of-several"),
        pytest.param(Budget(Limit(5, 60), 4, 9000, 800), Budget(Limit(5, 60), 5, 0, 0), id="the-only-one"),
        pytest.param(Budget(Limit(5, 60), 5, 9000, 800), Budget(Limit(5, 60), 5, 0, 0), id="never-more-than-the-limit"),
        pytest.param(None, None, id="unlimited"),
    ],
)
def test_request_that_is_served_with_nothing_is_given_back(requests: Budget | None, given_back: Budget | None) -> None:
    verdict = Verdict(Lease("one", Subject("alice", (), ()), 30, 0), requests, TOKENS)

    assert after_failure(verdict) == Verdict(verdict.lease, given_back, Budget(Limit(100, 60), 100, 0, 0))


def test_refusal_has_nothing_to_give_back() -> None:
    verdict = Verdict(None, REQUESTS, TOKENS, "tokens", 500)

    assert after_failure(verdict) is verdict


@pytest.mark.parametrize(
    "verdict",
    [
        pytest.param(Verdict(None, REQUESTS, TOKENS, "tokens", 500), id="refused"),
        pytest.param(admitted(30, None), id="tokens-unlimited"),
    ],
)
def test_verdict_without_an_estimate_of_tokens_stays_as_it_is(verdict: Verdict) -> None:
    assert after_use(verdict, 50) is verdict


def test_headers_tell_the_limits_of_both_kinds() -> None:
    assert rate_limit_headers(Verdict(None, REQUESTS, TOKENS)) == [
        (b"x-ratelimit-limit-requests", b"5"),
        (b"x-ratelimit-remaining-requests", b"4"),
        (b"x-ratelimit-reset-requests", b"1m1s"),
        (b"x-ratelimit-limit-tokens", b"100"),
        (b"x-ratelimit-remaining-tokens", b"70"),
        (b"x-ratelimit-reset-tokens", b"500ms"),
    ]


@pytest.mark.parametrize(
    ("verdict", "names"),
    [
        pytest.param(Verdict(None, None, TOKENS), {b"tokens"}, id="requests-unlimited"),
        pytest.param(Verdict(None, REQUESTS, None), {b"requests"}, id="tokens-unlimited"),
        pytest.param(Verdict(None, None, None), set(), id="both-unlimited"),
    ],
)
def test_headers_say_nothing_about_what_is_unlimited(verdict: Verdict, names: set[bytes]) -> None:
    assert {name.rsplit(b"-", 1)[1] for name, _ in rate_limit_headers(verdict)} == names


def test_ietf_headers_tell_policies_and_when_more_is_left() -> None:
    assert ietf_headers(Verdict(None, REQUESTS, TOKENS)) == [
        (b"ratelimit-policy", b'"requests";q=5;w=60,"tokens";q=100;w=60;qu="tokens"'),
        (b"ratelimit", b'"requests";r=4;t=41,"tokens";r=70;t=1'),
    ]


@pytest.mark.parametrize(
    ("verdict", "policy", "state"),
    [
        pytest.param(
            Verdict(None, None, TOKENS),
            b'"tokens";q=100;w=60;qu="tokens"',
            b'"tokens";r=70;t=1',
            id="requests-unlimited",
        ),
        pytest.param(
            Verdict(None, REQUESTS, None), b'"requests";q=5;w=60', b'"requests";r=4;t=41', id="tokens-unlimited"
        ),
    ],
)
def test_ietf_headers_say_nothing_about_what_is_unlimited(verdict: Verdict, policy: bytes, state: bytes) -> None:
    assert ietf_headers(verdict) == [(b"ratelimit-policy", policy), (b"ratelimit", state)]


def test_without_limits_there_are_no_ietf_headers() -> None:
    assert ietf_headers(Verdict(None, None, None)) == []


@pytest.mark.parametrize(
    ("more_ms", "state"),
    [
        pytest.param(0, b'"requests";r=4', id="nothing-is-used"),
        pytest.param(1, b'"requests";r=4;t=1', id="rounded-up"),
        pytest.param(12_000, b'"requests";r=4;t=12', id="whole-seconds"),
        pytest.param(12_001, b'"requests";r=4;t=13', id="a-millisecond-more"),
    ],
)
def test_ietf_headers_round_up_to_seconds(more_ms: int, state: bytes) -> None:
    verdict = Verdict(None, Budget(Limit(5, 60), 4, 61_000, more_ms), None)

    assert dict(ietf_headers(verdict))[b"ratelimit"] == state


@pytest.mark.parametrize(
    ("refused_by", "state"),
    [
        pytest.param("requests", b'"requests";r=0;t=31,"tokens";r=0;t=1', id="requests"),
        pytest.param("tokens", b'"requests";r=0;t=1,"tokens";r=0;t=31', id="tokens"),
    ],
)
def test_ietf_headers_never_promise_more_before_a_retry(
    refused_by: Literal["requests", "tokens"], state: bytes
) -> None:
    requests, tokens = Budget(Limit(5, 60), 0, 61_000, 1000), Budget(Limit(100, 60), 0, 61_000, 1000)
    verdict = Verdict(None, requests, tokens, refused_by, 30_001)

    assert dict(ietf_headers(verdict))[b"ratelimit"] == state
    assert dict(retry_headers(verdict.retry_after_ms))[b"retry-after"] == b"31"


@pytest.mark.parametrize(
    ("milliseconds", "seconds"),
    [
        pytest.param(0, b"1", id="at-least-a-second"),
        pytest.param(1, b"1", id="rounded-up"),
        pytest.param(1000, b"1", id="whole-second"),
        pytest.param(1001, b"2", id="a-millisecond-more"),
        pytest.param(60_000, b"60", id="a-minute"),
    ],
)
def test_retry_headers_tell_the_wait_and_never_less(milliseconds: int, seconds: bytes) -> None:
    assert retry_headers(milliseconds) == [
        (b"retry-after-ms", b"%d" % milliseconds),
        (b"retry-after", seconds),
    ]


def test_client_is_told_not_to_retry_after_more_than_a_minute() -> None:
    assert retry_headers(60_001) == [
        (b"retry-after-ms", b"60001"),
        (b"retry-after", b"61"),
        (b"x-should-retry", b"false"),
    ]
