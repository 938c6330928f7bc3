"""Acts that are limited in number, apart from the limits of a tier, and what a refusal says."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any, Protocol

from .admission import JITTER
from .errors import RateLimitExceeded
from .limiting import Limit, retry_headers

Jitter = Callable[[], float]

_IPV6_PREFIX = 64  # what one customer has at least (RFC 6177)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What stands in the way of an act.

    Attributes:
        limit: the one with the longest wait.
        retry_after_ms: when the next act can pass; 1000 where only acts that are under way stand in the way.
    """

    limit: Limit
    retry_after_ms: int


class Throttle(Protocol):
    """Counts acts of one kind by key, in moving windows, and never fails: what it counts on is its own concern."""

    async def hit(self, key: str, /) -> Refusal | None:
        """Count an act. One that is refused costs nothing."""
        ...

    async def peek(self, key: str, count: int = 1, /) -> Refusal | None:
        """Tell whether so many acts would pass now, and count none."""
        ...


async def check_throttle(
    throttle: Throttle | None, key: str | None, limit: str, *, jitter: Jitter = random.random
) -> None:
    """Count an act; without a throttle or a key everything passes.

    Args:
        limit: what the limit is called in the answer.
        jitter: a number from 0 to 1; up to 5 % is added to the wait, so that not all clients come back in one instant.

    Raises:
        RateLimitExceeded: it is one too many.
    """
    if throttle is not None and key is not None:
        _pass(await throttle.hit(key), limit, jitter)


def _pass(refusal: Refusal | None, limit: str, jitter: Jitter) -> None:
    if refusal is not None:
        raise exceeded(refusal, limit, jitter())


def exceeded(refusal: Refusal, limit: str, jitter: float) -> RateLimitExceeded:
    """The answer to an act that is refused: which limit stands in the way, and when to come back.

    Args:
        jitter: from 0 to 1, as that of `check_throttle`.
    """
    retry = retry_headers(refusal.retry_after_ms + int(refusal.retry_after_ms * JITTER * jitter))
    details = {
        "limit": limit,
        "quota": refusal.limit.amount,
        "window_seconds": refusal.limit.seconds,
        "retry_after_seconds": int(dict(retry)[b"retry-after"]),
    }
    return RateLimitExceeded(details=details, headers=tuple(retry))


class Attempts:
    """Acts of which only those that fail count, and of which no more are under way than may still fail.

    Whoever makes an attempt counts its failure with the same throttle, before anything else is awaited. Those under way
    are known to this process alone: each of several replicas lets as many begin.

    Args:
        jitter: as that of `check_throttle`.
    """

    def __init__(self, throttle: Throttle | None, limit: str, *, jitter: Jitter = random.random) -> None:
        self._throttle = throttle
        self._limit = limit
        self._jitter = jitter
        self._under_way = Counter[str]()

    @asynccontextmanager
    async def attempt(self, key: str | None) -> AsyncIterator[None]:
        """Round one attempt; without a throttle or a key every one may begin.

        Raises:
            RateLimitExceeded: so many have failed already, or are under way, that it could be one too many.
        """
        if self._throttle is None or key is None:
            yield
            return
        self._under_way[key] += 1
        try:
            # their number is taken before the question is sent: one that fails meanwhile is in it, or in the answer
            _pass(await self._throttle.peek(key, self._under_way[key]), self._limit, self._jitter)
            yield
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]


def address_of(scope: MutableMapping[str, Any]) -> str | None:
    """Whom a request without an accepted credential is counted for: the client's address, of IPv6 its /64.

    Behind proxies it is theirs, unless `ForwardedMiddleware` is outside. None where the server knows no IP address, as
    on a Unix socket.
    """
    try:
        address = ip_address((scope.get("client") or [""])[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or IPv6Network((int(address), _IPV6_PREFIX), strict=False))
    return str(address)
