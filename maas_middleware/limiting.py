"""Counting requests and tokens: the values, the protocol of every ledger, and the headers that tell a client."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from limits import parse_many

from .durations import format_duration
from .errors import RateLimitExceeded

DAY_SECONDS = 86_400

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `amount` units in any `seconds` (1 to 86,400)."""

    amount: int
    seconds: int


def parse_limits(text: str) -> tuple[Limit, ...]:
    """Read the notation of `limits`: `5/minute`, `100 per 2 minutes`, `100/minute;5000/day`. `unlimited` is ().

    Raises:
        ValueError: with a sentence, also for a window of more than a day and for an amount below 1.
    """
    if text.strip() == "unlimited":
        return ()
    try:
        items = parse_many(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a limit such as 5/minute or 100/minute;5000/day") from None
    limits = tuple(Limit(item.amount, item.get_expiry()) for item in items)
    if any(limit.seconds > DAY_SECONDS for limit in limits):
        raise ValueError(f"{text!r} has a window of more than a day")
    if any(limit.amount < 1 for limit in limits):
        raise ValueError(f"{text!r} would let nothing pass")
    return limits


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose budget, and the limits on it now. The key alone finds the counters: changed limits keep what was used.

    Attributes:
        concurrency: how many leases may live at once; None is no cap.
        shared: whether it is many users' together, so that nobody is told how much of it is left.
    """

    key: str
    requests: tuple[Limit, ...] = ()
    tokens: tuple[Limit, ...] = ()
    concurrency: int | None = None
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """One request that asks to be admitted.

    Attributes:
        lease_id: unique for the request; the same id gets the same answer again.
        tokens: the estimate of what it will use, prompt and output together; 0 for what uses none.
        strict: whether the whole estimate has to be left; else one token is enough.
    """

    lease_id: str
    tokens: int
    strict: bool = False

    @property
    def needs(self) -> int:
        """How many tokens have to be left."""
        return max(0, self.tokens if self.strict else min(1, self.tokens))


@dataclass(frozen=True, slots=True)
class Lease:
    """What an admitted request holds until it is settled: one request, and `tokens` (at most what was left)."""

    id: str
    subject: Subject
    tokens: int
    admitted_ms: int


@dataclass(frozen=True, slots=True)
class Charge:
    """What a request came to: tokens, and whether the request itself stays counted."""

    tokens: int
    request: bool = True


@dataclass(frozen=True, slots=True)
class Budget:
    """One limit as it stands.

    Attributes:
        remaining: how much is left; 0 also after an overrun.
        reset_ms: milliseconds until it is completely full again.
        more_ms: milliseconds until some of what is used is free again: 0 where nothing is used, 1000 where only calls
            in flight hold some of it.
    """

    limit: Limit
    remaining: int
    reset_ms: int
    more_ms: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """A ledger's answer.

    Attributes:
        lease: None where the request was refused, and in the answer of `peek`.
        requests: of the limits on requests the one closest to exhaustion; None means unlimited.
        tokens: the same for tokens.
        refused_by: what stands in the way, None where the next request passes.
        retry_after_ms: when the next request can pass; exact where only settled use stands in the way,
            1000 where other calls in flight do, 0 where nothing does.
        is_hopeless: whether waiting cannot help: the request alone is larger than the limit on tokens. The wait is
            then the one until the limit is completely full again.
    """

    lease: Lease | None
    requests: Budget | None
    tokens: Budget | None
    refused_by: Literal["requests", "tokens", "concurrency"] | None = None
    retry_after_ms: int = 0
    is_hopeless: bool = False

    @property
    def refusing(self) -> Budget | None:
        """The budget that stands in the way, if it is one of requests or tokens."""
        return {"requests": self.requests, "tokens": self.tokens}.get(self.refused_by or "")


class Ledger(Protocol):
    """Counts. Every admitted request is settled at most once, whatever happens to it."""

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        """Check every limit, and only then charge one request and lease the tokens, atomically.

        Requests pass while `used + 1 <= limit`; tokens pass while as many are left as the demand needs, and the lease
        is `min(estimate, left)`; and fewer leases have to live than `concurrency`. A demand of no tokens needs none to
        be left, and its refusal does not speak of tokens. Of several limits in the way the verdict names the one with
        the longest wait, of equals requests before tokens before concurrency. A refused request costs nothing.

        Raises:
            StoreUnavailable: the counters cannot be reached and the policy is to refuse.
        """
        ...

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        """End the lease and add what was really used, past the limit if need be. The second call does nothing.

        A lease that has lapsed, or was admitted by another ledger, is charged all the same.
        """
        ...

    async def renew(self, lease: Lease, /) -> None:
        """Keep a lease alive, or bring it back: it lapses 120 seconds after its last renewal."""
        ...

    async def peek(self, subject: Subject, /) -> Verdict:
        """Tell how the limits stand and whether the next request that needs one token would pass, consuming nothing."""
        ...


def after_use(verdict: Verdict, used: int) -> Verdict:
    """The verdict of an admitted request once it is known what it used, which its lease was an estimate of."""
    if verdict.lease is None or verdict.tokens is None:
        return verdict
    budget = verdict.tokens
    before = budget.remaining + verdict.lease.tokens
    left = max(0, min(before - used, budget.limit.amount))
    if left == budget.limit.amount:
        return replace(verdict, tokens=Budget(budget.limit, left, 0, 0))
    more_ms = budget.more_ms
    if before == budget.limit.amount:  # it is the only use, and counts from now on
        more_ms = budget.reset_ms
    return replace(verdict, tokens=replace(budget, remaining=left, more_ms=more_ms))


def after_failure(verdict: Verdict) -> Verdict:
    """The verdict of an admitted request that is given back, since it was served with nothing."""
    verdict = after_use(verdict, 0)
    budget = verdict.requests
    if verdict.lease is None or budget is None:
        return verdict
    left = min(budget.remaining + 1, budget.limit.amount)
    is_full = left == budget.limit.amount
    given_back = Budget(budget.limit, left, 0, 0) if is_full else replace(budget, remaining=left)
    return replace(verdict, requests=given_back)


def limit_exceeded(verdict: Verdict, tier: str, jitter: float) -> RateLimitExceeded:
    """The refusal that says which limit stands in the way and when to come back; without `x-ratelimit-*`.

    Args:
        jitter: from 0 to 1; up to 5 % is added to the wait, so that not all clients come back in one instant.
    """
    retry = retry_headers(verdict.retry_after_ms + int(verdict.retry_after_ms * 0.05 * jitter))
    details: dict[str, object] = {"limit": verdict.refused_by, "tier": tier}
    if (budget := verdict.refusing) is not None:
        details |= {"quota": budget.limit.amount, "window_seconds": budget.limit.seconds}
    details["retry_after_seconds"] = int(dict(retry)[b"retry-after"])
    return RateLimitExceeded(details=details, headers=tuple(retry))


def limit_headers(verdict: Verdict, *, ietf: bool) -> Headers:
    """All that a client is told of its limits; the fields of the IETF draft only where they are wanted."""
    return [*rate_limit_headers(verdict), *(ietf_headers(verdict) if ietf else ())]


def rate_limit_headers(verdict: Verdict) -> Headers:
    """`x-ratelimit-limit-*`, `-remaining-*` and `-reset-*` for requests and tokens; none for what is unlimited."""
    headers: Headers = []
    for name, budget in ((b"requests", verdict.requests), (b"tokens", verdict.tokens)):
        if budget is not None:
            headers += [
                (b"x-ratelimit-limit-" + name, b"%d" % budget.limit.amount),
                (b"x-ratelimit-remaining-" + name, b"%d" % budget.remaining),
                (b"x-ratelimit-reset-" + name, format_duration(budget.reset_ms).encode()),
            ]
    return headers


def ietf_headers(verdict: Verdict) -> Headers:
    """`ratelimit-policy` and `ratelimit` for requests and tokens; none where both are unlimited.

    `t` is in whole seconds, rounded up: until more is left, or, of the limit that refuses, until the next request can
    pass, so that `retry-after` never points earlier. Where nothing is used there is none.

    draft-ietf-httpapi-ratelimit-headers-10; `qu="tokens"` is not registered.
    """
    policies, states = [], []
    for name, budget, unit in (("requests", verdict.requests, ""), ("tokens", verdict.tokens, ';qu="tokens"')):
        if budget is None:
            continue
        more_ms = verdict.retry_after_ms if name == verdict.refused_by else budget.more_ms
        policies.append(f'"{name}";q={budget.limit.amount};w={budget.limit.seconds}{unit}')
        states.append(f'"{name}";r={budget.remaining}' + (f";t={-(-more_ms // 1000)}" if more_ms else ""))
    if not policies:
        return []
    return [(b"ratelimit-policy", ",".join(policies).encode()), (b"ratelimit", ",".join(states).encode())]


def retry_headers(retry_after_ms: int) -> Headers:
    """`retry-after-ms`, `retry-after` in whole seconds, and `x-should-retry: false` where the wait is over a minute.

    The openai SDK reads them in this order, and would otherwise sleep for up to two minutes.
    """
    headers = [
        (b"retry-after-ms", b"%d" % retry_after_ms),
        (b"retry-after", b"%d" % max(1, -(-retry_after_ms // 1000))),
    ]
    return [*headers, (b"x-should-retry", b"false")] if retry_after_ms > 60_000 else headers
