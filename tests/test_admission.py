from __future__ import annotations

import json

import pytest

from maas_middleware.admission import Admission, admitted, asked, limit_exceeded, refused
from maas_middleware.envelopes import envelope
from maas_middleware.limiting import Budget, Lease, Limit, Subject, Verdict

ALICE = Subject("openshift/alice", (Limit(5, 60),), (Limit(100, 60),), concurrency=4)
ON_MODEL = Subject("alice on the model", (Limit(3, 60),), (Limit(50, 3600),))
MODEL = Subject("the model", (Limit(9, 60),), (Limit(900, 60),), concurrency=2, shared=True)

PLENTY = Verdict(None, Budget(Limit(5, 60), 4, 61_000, 61_000), Budget(Limit(100, 60), 70, 500, 300))
LITTLE = Verdict(None, Budget(Limit(3, 60), 1, 9_000, 9_000), Budget(Limit(50, 3600), 20, 800, 800))
LEAST = Verdict(None, Budget(Limit(9, 60), 0, 7_000, 7_000), Budget(Limit(900, 60), 1, 100, 100))


def leased(verdict: Verdict, subject: Subject, tokens: int) -> Verdict:
    return Verdict(Lease("one", subject, tokens, 0), verdict.requests, verdict.tokens)


def refusing(verdict: Verdict, by: str, wait_ms: int, *, is_hopeless: bool = False) -> Verdict:
    return Verdict(None, verdict.requests, verdict.tokens, by, wait_ms, is_hopeless)  # type: ignore[arg-type]


def test_answer_of_a_single_budget_is_shown_as_it_is() -> None:
    verdict = leased(PLENTY, ALICE, 30)

    assert admitted([(ALICE, verdict)]) == Admission(verdict, (verdict.lease,), None)  # type: ignore[arg-type]


def test_of_a_users_budgets_the_one_closest_to_exhaustion_is_shown_and_never_the_models() -> None:
    answers = [leased(PLENTY, ALICE, 30), leased(LITTLE, ON_MODEL, 20), leased(LEAST, MODEL, 1)]

    whole = admitted(list(zip((ALICE, ON_MODEL, MODEL), answers, strict=True)))

    assert whole.shown == Verdict(answers[1].lease, LITTLE.requests, LITTLE.tokens)
    assert whole.leases == tuple(answer.lease for answer in answers)
    assert whole.refusal is None


def test_requests_and_tokens_may_be_shown_of_different_budgets() -> None:
    few_requests = Verdict(None, Budget(Limit(3, 60), 1, 1, 1), None)
    few_tokens = Verdict(None, None, Budget(Limit(50, 60), 2, 1, 1))

    shown = asked([(ALICE, few_requests), (ON_MODEL, few_tokens)]).shown

    assert shown == Verdict(None, few_requests.requests, few_tokens.tokens)


def test_of_equal_budgets_the_one_that_takes_longer_to_be_full_is_shown() -> None:
    sooner = Verdict(None, Budget(Limit(5, 60), 1, 100, 100), Budget(Limit(100, 60), 7, 100, 100))
    later = Verdict(None, Budget(Limit(6, 60), 1, 900, 900), Budget(Limit(200, 60), 7, 900, 900))

    assert asked([(ALICE, sooner), (ON_MODEL, later)]).shown == later
    assert asked([(ALICE, later), (ON_MODEL, sooner)]).shown == later


def test_unlimited_users_are_told_nothing_of_the_model() -> None:
    nobodys = Verdict(Lease("one", ALICE, 30, 0), None, None)

    assert admitted([(ALICE, nobodys), (MODEL, leased(LEAST, MODEL, 1))]).shown == nobodys


def test_budget_with_the_longest_wait_refuses() -> None:
    answers = [(ALICE, refusing(PLENTY, "tokens", 300)), (MODEL, refusing(LEAST, "requests", 7_000))]

    whole = asked(answers)

    assert (whole.leases, whole.refusal) == ((), answers[1])
    assert whole.shown == Verdict(None, PLENTY.requests, PLENTY.tokens, "requests", 7_000)


def test_budget_of_the_user_that_refuses_is_shown_beside_the_others() -> None:
    refusal = (ON_MODEL, refusing(LEAST, "tokens", 300))

    whole = refused([(ALICE, PLENTY)], refusal)

    assert (whole.leases, whole.refusal) == ((), refusal)
    assert whole.shown == Verdict(None, LEAST.requests, LEAST.tokens, "tokens", 300)


def test_ledger_that_does_not_say_why_refuses_all_the_same() -> None:
    answer = (ALICE, Verdict(None, None, None))

    assert refused([], answer) == Admission(answer[1], (), answer)


@pytest.mark.parametrize(
    ("subject", "verdict", "details"),
    [
        pytest.param(
            ALICE,
            refusing(PLENTY, "requests", 41_500),
            {"limit": "requests", "tier": "free", "quota": 5, "window_seconds": 60, "retry_after_seconds": 42},
            id="requests",
        ),
        pytest.param(
            ALICE,
            refusing(PLENTY, "concurrency", 1000),
            {"limit": "concurrency", "tier": "free", "quota": 4, "retry_after_seconds": 1},
            id="concurrency",
        ),
        pytest.param(
            MODEL,
            refusing(LEAST, "tokens", 100),
            {
                "limit": "tokens",
                "tier": "free",
                "scope": "model",
                "quota": 900,
                "window_seconds": 60,
                "retry_after_seconds": 1,
            },
            id="model-as-a-whole",
        ),
        pytest.param(
            ALICE,
            refusing(PLENTY, "tokens", 1000, is_hopeless=True),
            {
                "limit": "tokens",
                "tier": "free",
                "quota": 100,
                "window_seconds": 60,
                "reason": "request_exceeds_limit",
                "retry_after_seconds": 1,
            },
            id="larger-than-the-limit",
        ),
    ],
)
def test_refusal_says_what_stands_in_the_way(subject: Subject, verdict: Verdict, details: dict[str, object]) -> None:
    error = limit_exceeded(subject, verdict, "free", 0.0)

    assert json.loads(envelope(error, None))["error"]["details"] == details
    assert (b"x-should-retry", b"false") in error.headers if verdict.is_hopeless else len(error.headers) == 2


def test_jitter_adds_up_to_a_twentieth_of_the_wait() -> None:
    waits = [
        dict(limit_exceeded(ALICE, refusing(PLENTY, "requests", 41_500), "free", jitter).headers)[b"retry-after-ms"]
        for jitter in (0.0, 0.5, 1.0)
    ]

    assert waits == [b"41500", b"42537", b"43575"]
