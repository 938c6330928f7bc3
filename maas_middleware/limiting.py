"""Counting requests and tokens: the values, the protocol of every ledger, and the headers that tell a client."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import msgspec
from limits import parse_many

from .durations import format_duration

DAY_SECONDS = 86_400
_duration = lru_cache(maxsize=256)(format_duration)  # windows of one length are full in the same millisecond
_OF_REQUESTS, _OF_TOKENS = (
    tuple(b"x-ratelimit-%s-%s" % (part, kind) for part in (b"limit", b"remaining", b"reset"))
    for kind in (b"requests", b"tokens")
)

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


class Subject(msgspec.Struct, frozen=True, gc=False):
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
class Limits:
    """What may be asked for: limits on requests and on tokens, all of them binding, and on calls in flight.

    Empty, or None for `concurrency`, means unlimited.
    """

    requests: tuple[Limit, ...] = ()
    tokens: tuple[Limit, ...] = ()
    concurrency: int | None = None

    def subject(self, key: str, *, shared: bool = False) -> Subject:
        """The budget of that key under these limits."""
        return Subject(key, self.requests, self.tokens, self.concurrency, shared)


NO_LIMITS = Limits()


class Demand(msgspec.Struct, frozen=True, gc=False):
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


class Lease(msgspec.Struct, frozen=True, gc=False):
    """What an admitted request holds until it is settled: one request, and `tokens` (at most what was left)."""

    id: str
    subject: Subject
    tokens: int
    admitted_ms: int


class Charge(msgspec.Struct, frozen=True, gc=False):
    """What a request came to: tokens, and whether the request itself stays counted."""

    tokens: int
    request: bool = True


class Budget(msgspec.Struct, frozen=True, gc=False):
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


class Verdict(msgspec.Struct, frozen=True, gc=False):
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
    """Counts. Every admitted request is settled at most once, whatever happens to it.

    Calls have a deadline, and are shielded from the end of their request. A class that says `never_waits = True` in its
    own body promises that none of its methods ever waits for anything, and is called without.
    """

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


def limit_headers(verdict: Verdict, *, ietf: bool) -> Headers:
    """All that a client is told of its limits; the fields of the IETF draft only where they are wanted."""
    return rate_limit_headers(verdict) + (ietf_headers(verdict) if ietf else [])


def rate_limit_headers(verdict: Verdict) -> Headers:
    """`x-ratelimit-limit-*`, `-remaining-*` and `-reset-*` for requests and tokens; none for what is unlimited."""
    headers: Headers = []
    for (limit, remaining, reset), budget in ((_OF_REQUESTS, verdict.requests), (_OF_TOKENS, verdict.tokens)):
        if budget is not None:
            headers.append((limit, b"%d" % budget.limit.amount))
            headers.append((remaining, b"%d" % budget.remaining))
            headers.append((reset, _duration(budget.reset_ms).encode()))
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


def retry_headers(retry_after_ms: int, *, is_hopeless: bool = False) -> Headers:
    """`retry-after-ms` and `retry-after` in whole seconds; `x-should-retry: false` over a minute or without hope.

    The openai SDK reads them in this order, and would otherwise sleep for up to two minutes.
    """
    headers = [
        (b"retry-after-ms", b"%d" % retry_after_ms),
        (b"retry-after", b"%d" % max(1, -(-retry_after_ms // 1000))),
    ]
    return [*headers, (b"x-should-retry", b"false")] if is_hopeless or retry_after_ms > 60_000 else headers
