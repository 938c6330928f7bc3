"""The ledger in a Redis, which any number of processes share."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import anyio
from limits.errors import StorageError

from ..errors import StoreUnavailable
from ..limiting import Charge, Demand, Lease, Limit, Subject, Verdict
from ._storage import open_storage
from ._verdicts import IN_FLIGHT_WAIT_MS, admission, outlook, strictest
from ._windows import Spans

LARGEST = 2**53


class RedisLedger:
    """Counts in a Redis, for all processes that use it with the same prefix, and tells the time by it.

    What `MemoryLedger` says of limits that change, of lapsed and unknown leases and of settling twice holds here too.
    A call is one script on the server: it is atomic, and takes no longer because more was used. A lease that is granted
    again carries the subject of the later call. Amounts over 2**53 count as 2**53.

    All keys of a subject have one hash tag, and expire once nothing in them counts. A Redis that evicts keys (any
    `maxmemory-policy` but `noeviction`) forgets what was used.

    Connections are made when they are needed, and belong to one event loop.

    Args:
        url: `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS. The query may have options of
            redis-py, such as `?ssl_ca_certs=/path`.
        key_prefix: of all keys.
        lease_seconds: a lease lapses so long after it was granted or last renewed.
        timeout: seconds that a call may take.
        clock: seconds, in tests; None is the time of the server.

    Raises:
        ValueError: with a sentence, where redis-py is missing or the url is wrong.
    """

    def __init__(
        self,
        url: str,
        *,
        key_prefix: str = "maas",
        lease_seconds: int = 120,
        timeout: float = 0.25,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._storage = open_storage(url, key_prefix=key_prefix, timeout=timeout)
        self._lease_ms = lease_seconds * 1000
        self._timeout = timeout
        self._clock = clock
        self._spans = Spans()

    async def admit(self, subject: Subject, demand: Demand, /) -> Verdict:
        """Admit or refuse. Repeated with a lease id that is live or settled: that lease, and the limits as of now.

        Raises:
            StoreUnavailable: Redis gives no answer, or refuses.
        """
        cap = -1 if subject.concurrency is None else max(0, subject.concurrency)
        needs = demand.needs
        reply = await self._run(b"admit", subject, demand.lease_id, max(0, demand.tokens), needs, cap)
        return self._verdict(reply, subject, demand.lease_id, needs)

    async def settle(self, lease: Lease, charge: Charge, /) -> None:
        """End the lease and charge what was used. A request is given back only while its bucket still counts.

        Raises:
            StoreUnavailable: Redis gives no answer, or refuses. It may have charged, so settle again.
        """
        operation = b"settle" if charge.request else b"refund"
        await self._run(operation, lease.subject, lease.id, lease.tokens, lease.admitted_ms, charge.tokens)

    async def renew(self, lease: Lease, /) -> None:
        """Keep a lease alive, or bring it back where it has lapsed meanwhile; nothing happens to a settled one.

        Raises:
            StoreUnavailable: Redis gives no answer, or refuses.
        """
        await self._run(b"renew", lease.subject, lease.id, lease.tokens, lease.admitted_ms)

    async def peek(self, subject: Subject, /) -> Verdict:
        """Tell whether the next request that needs one token would pass (`refused_by`) and when, consuming nothing.

        Raises:
            StoreUnavailable: Redis gives no answer, or refuses.
        """
        return self._verdict(await self._run(b"peek", subject, "", 0, 1), subject, "", 1)

    async def aclose(self) -> None:
        """Close the connections; calls in flight fail."""
        await self._storage.aclose()

    async def _run(
        self, operation: bytes, subject: Subject, lease_id: str, first: int, second: int, third: int = 0
    ) -> object:
        tag = hashlib.sha256(subject.key.encode(errors="surrogatepass")).hexdigest()
        key = self._storage.bridge.prefixed_key(f"{{{tag}}}").encode()
        lease = lease_id.encode(errors="surrogatepass")
        now_ms = -1 if self._clock is None else int(self._clock() * 1000 + 0.5)
        numbers = _NUMBERS.pack(now_ms, self._lease_ms, _bounded(first), _bounded(second), _bounded(third))
        layout = _layout(subject.requests, subject.tokens)
        try:
            with anyio.fail_after(self._timeout):  # redis-py may swallow the one cancellation of asyncio.timeout
                return await self._storage.run(
                    key, key + b":l", key + b":d:" + lease, operation, lease, numbers + layout.packed
                )
        except (StorageError, OSError, ValueError) as error:
            raise StoreUnavailable from error

    def _verdict(self, reply: Any, subject: Subject, lease_id: str, needs: int) -> Verdict:
        layout = _layout(subject.requests, subject.tokens)
        try:
            now_ms, leased, admitted_ms, held, live, *counted = layout.reply.unpack(reply)
        except (TypeError, struct.error) as error:
            raise StoreUnavailable from error
        windows = [
            _Window(limit, used, first_ms, last_ms, passing_ms, self._spans[limit.seconds].leaving_ms(now_ms))
            for limit, used, first_ms, last_ms, passing_ms in zip(
                layout.limits, counted[::4], counted[1::4], counted[2::4], counted[3::4], strict=True
            )
        ]
        requests, tokens = windows[: layout.requests], windows[layout.requests :]
        if leased < 0:
            return outlook(subject, requests, tokens, needs, now_ms, held, live)
        return admission(Lease(lease_id, subject, leased, admitted_ms), requests, tokens, now_ms, held)


_NUMBERS = struct.Struct("<5q")


def _bounded(number: int) -> int:
    return max(-1, min(number, LARGEST))


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the script is told of a subject's limits, and how it answers; those on requests come first."""

    limits: tuple[Limit, ...]
    requests: int
    packed: bytes
    reply: struct.Struct


@lru_cache(maxsize=1024)
def _layout(requests: tuple[Limit, ...], tokens: tuple[Limit, ...]) -> _Layout:
    of_requests = strictest(requests)
    limits = of_requests + strictest(tokens)
    numbers = [number for limit in limits for number in (limit.seconds, _bounded(limit.amount))]
    packed = struct.pack(f"<{1 + len(numbers)}q", len(of_requests), *numbers)
    return _Layout(limits, len(of_requests), packed, struct.Struct(f"<{5 + 4 * len(limits)}q"))


@dataclass(slots=True)
class _Window:
    """A window as the script tells of it."""

    limit: Limit
    used: int
    first_ms: int
    last_ms: int
    passing_ms: int
    leaves_ms: int

    def full_ms(self, now_ms: int, held: int) -> int:
        if held > 0:
            return max(self.leaves_ms, self.last_ms)
        return self.last_ms or now_ms

    def frees_ms(self, now_ms: int, held: int) -> int:
        return self.first_ms or (now_ms + IN_FLIGHT_WAIT_MS if held > 0 else now_ms)

    def passes_ms(self, now_ms: int, held: int, needs: int) -> int:
        return now_ms + IN_FLIGHT_WAIT_MS if self.passing_ms < 0 else self.passing_ms
