"""What several ledger calls about one request come to."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from .errors import RateLimitExceeded
from .limiting import Budget, Lease, Subject, Verdict, retry_headers

JITTER = 0.05


class Admission(msgspec.Struct, frozen=True):
    """The answer of all budgets of a request.

    Attributes:
        shown: what the client is told: of its own budgets the limits closest to exhaustion. Its lease is that of the
            budget whose tokens are shown.
        leases: one a budget; none where the request was refused, or was only a question.
        refusal: the budget that stands in the way for the longest time, and its answer.
    """

    shown: Verdict
    leases: tuple[Lease, ...] = ()
    refusal: tuple[Subject, Verdict] | None = None


def admitted(answers: Sequence[tuple[Subject, Verdict]]) -> Admission:
    """Put the answers of budgets that all admit together; the first is the user's own."""
    leases = tuple([verdict.lease for _, verdict in answers if verdict.lease is not None])
    return Admission(_shown(answers, None), leases)


def refused(others: Sequence[tuple[Subject, Verdict]], refusal: tuple[Subject, Verdict]) -> Admission:
    """Put the answer of a budget that refuses together with what others say."""
    return Admission(_shown([*others, refusal], refusal), refusal=refusal)


def asked(answers: Sequence[tuple[Subject, Verdict]]) -> Admission:
    """Put the answers to a question together."""
    refusing = [answer for answer in answers if answer[1].refused_by is not None]
    refusal = max(refusing, key=lambda answer: answer[1].retry_after_ms, default=None)
    return Admission(_shown(answers, refusal), refusal=refusal)


def _shown(answers: Sequence[tuple[Subject, Verdict]], refusal: tuple[Subject, Verdict] | None) -> Verdict:
    if len(answers) == 1:
        return answers[0][1]
    own = [verdict for subject, verdict in answers if not subject.shared]
    requests = [verdict.requests for verdict in own if verdict.requests is not None]
    tokens = [(verdict.tokens, verdict.lease) for verdict in own if verdict.tokens is not None]
    closest, lease = min(tokens, key=lambda pair: (pair[0].remaining, -pair[0].reset_ms), default=(None, None))
    shown = Verdict(
        lease=None if refusal is not None else lease or own[0].lease,
        requests=min(requests, key=lambda budget: (budget.remaining, -budget.reset_ms), default=None),
        tokens=closest,
    )
    if refusal is None:
        return shown
    verdict = refusal[1]
    return replace(shown, refused_by=verdict.refused_by, retry_after_ms=verdict.retry_after_ms)


def after_use(verdict: Verdict, used: int) -> Verdict:
    """The verdict of an admitted request once it is known what it used, which its lease was an estimate of."""
    if verdict.lease is None or verdict.tokens is None:
        return verdict
    budget = verdict.tokens
    before = budget.remaining + verdict.lease.tokens
    limit = budget.limit
    left = max(0, min(before - used, limit.amount))
    if left == limit.amount:
        return Verdict(verdict.lease, verdict.requests, Budget(limit, left, 0, 0))
    # where it is the only use, that counts from now on
    more_ms = budget.reset_ms if before == limit.amount else budget.more_ms
    return Verdict(verdict.lease, verdict.requests, Budget(limit, left, budget.reset_ms, more_ms))


def after_failure(verdict: Verdict) -> Verdict:
    """The verdict of an admitted request that is given back, since it was served with nothing."""
    verdict = after_use(verdict, 0)
    budget = verdict.requests
    if verdict.lease is None or budget is None:
        return verdict
    left = min(budget.remaining + 1, budget.limit.amount)
    reset_ms, more_ms = (0, 0) if left == budget.limit.amount else (budget.reset_ms, budget.more_ms)
    return replace(verdict, requests=Budget(budget.limit, left, reset_ms, more_ms))


def limit_exceeded(subject: Subject, verdict: Verdict, tier: str, jitter: float) -> RateLimitExceeded:
    """The refusal that says what stands in the way and when to come back; without `x-ratelimit-*`.

    Args:
        jitter: from 0 to 1; up to 5 % is added to the wait, so that not all clients come back in one instant.
    """
    wait_ms = verdict.retry_after_ms + int(verdict.retry_after_ms * JITTER * jitter)
    retry = retry_headers(wait_ms, is_hopeless=verdict.is_hopeless)
    details: dict[str, object] = {"limit": verdict.refused_by, "tier": tier}
    if subject.shared:
        details["scope"] = "model"
    if (budget := verdict.refusing) is not None:
        details |= {"quota": budget.limit.amount, "window_seconds": budget.limit.seconds}
    elif verdict.refused_by == "concurrency":
        details["quota"] = subject.concurrency
    if verdict.is_hopeless:
        details["reason"] = "request_exceeds_limit"
    details["retry_after_seconds"] = int(dict(retry)[b"retry-after"])
    return RateLimitExceeded(details=details, headers=tuple(retry))
