"""Which of a model's servers a request is sent to, which are left out for a while, and how often others are tried."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from operator import attrgetter

from .catalogue import Model

logger = logging.getLogger("maas_middleware")

_RETRIES_SECONDS = 10.0
_PROBE_DUE, _HEALTHY, _EJECTED = range(3)  # in the order in which they are chosen


class Upstream:
    """A model server as one request uses it: `begin`, at most one of `succeeded` and `failed`, and `end`.

    What is known of the server is shared by all requests of the process, also those to other models that name its URL.
    A request belongs to the server from `begin` on, so nothing may be awaited between `choose` and `begin`.
    """

    __slots__ = ("_name", "_server")

    def __init__(self, server: _Server, name: str) -> None:
        self._server = server
        self._name = name

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        return self._server.url

    @property
    def is_ejected(self) -> bool:
        """Whether it is left out: until its ejection is over, and from then on while a probe is under way."""
        return self._server.standing == _EJECTED

    def begin(self) -> None:
        """Count the request that is sent there. After an ejection the first one is the probe."""
        server = self._server
        server.outstanding += 1
        if server.standing == _PROBE_DUE:
            server.probe = self

    def succeeded(self) -> None:
        """It answered, and not with 502, 503 or 504: what it failed before is forgotten."""
        server = self._server
        server.failures = 0
        if server.ejected_until is not None:
            server.restore()
            logger.warning("%s answers again", self._name)

    def failed(self) -> None:
        """It was not reached, broke off or was silent before the first byte, or answered 502, 503 or 504."""
        server = self._server
        if server.has_failed_again(self):
            logger.warning("%s failed, and is left out for %.1f s", self._name, server.eject())

    def end(self) -> None:
        """The request is over. A probe that told nothing, because its client left, is followed by another one."""
        server = self._server
        server.outstanding -= 1
        if server.probe is self:
            server.probe = None


@dataclass(frozen=True, slots=True)
class _EjectionPolicy:
    clock: Callable[[], float]
    jitter: Callable[[], float]
    failures: int
    first: float
    longest: float


class _Server:
    """What this process knows of a model server."""

    __slots__ = ("_backoff", "_policy", "ejected_until", "failures", "outstanding", "probe", "turn", "url")

    def __init__(self, url: str, policy: _EjectionPolicy) -> None:
        self.url = url
        self.outstanding = 0
        self.failures = 0  # in a row
        self.ejected_until: float | None = None  # stays until it answers
        self.probe: Upstream | None = None
        self.turn = 0  # when it was chosen last
        self._policy = policy
        self._backoff = 0.0

    @property
    def standing(self) -> int:
        if self.ejected_until is None:
            return _HEALTHY
        return _EJECTED if self.probe is not None or self._policy.clock() < self.ejected_until else _PROBE_DUE

    @property
    def load(self) -> tuple[int, int, int]:
        return self.standing, self.outstanding, self.turn

    def has_failed_again(self, upstream: Upstream) -> bool:
        """Whether a failure is a reason to eject. While it is ejected only the probe's is: the others are old news."""
        if self.ejected_until is not None:
            return self.probe is upstream
        self.failures += 1
        return self.failures >= self._policy.failures

    def eject(self) -> float:
        policy = self._policy
        self._backoff = min(self._backoff * 2 or policy.first, policy.longest)
        seconds = self._backoff * (1 + policy.jitter()) / 2  # so that not all processes ask at the same moment
        self.ejected_until, self.probe = policy.clock() + seconds, None
        return seconds

    def restore(self) -> None:
        self.ejected_until, self._backoff = None, 0.0


class _RetryBudget:
    """A share of the recent requests, and a few more. The balance tends to what an idle model has."""

    __slots__ = ("_at", "_balance", "_clock", "_idle", "_ratio")

    def __init__(self, clock: Callable[[], float], ratio: float, idle: float) -> None:
        self._clock = clock
        self._ratio = ratio
        self._idle = self._balance = idle
        self._at = clock()

    def deposit(self) -> None:
        self._balance = self._settled() + self._ratio

    def take(self) -> bool:
        balance = self._settled()
        self._balance = balance - 1 if balance >= 1 else balance
        return balance >= 1

    def _settled(self) -> float:
        before, self._at = self._at, self._clock()
        return self._idle + (self._balance - self._idle) * math.exp((before - self._at) / _RETRIES_SECONDS)


@dataclass(frozen=True, slots=True)
class _Pool:
    """A model's servers with the names that logs may tell, for addresses are nobody's business."""

    servers: dict[_Server, str]
    retries: _RetryBudget


class Balancer:
    """The upstreams of all models of a process, and what it has learnt of them from requests.

    An upstream that fails so many times in a row is ejected: left out for a while. Then one request is the probe; if it
    fails too, the next ejection is twice as long. Where a model has no upstream left, the ejected ones are asked all
    the same: refusing what might work would be worse.

    Retries are a share of a model's requests, so that they do not multiply an outage: of the `retry_ratio` that each
    request adds a third is left after ten seconds, and what is lacking of `minimum_retries` comes back as fast.

    Args:
        clock: seconds, never going back.
        jitter: from 0 to 1, whenever one is ejected.
        failures: how many in a row eject an upstream.
        ejection, maximum_ejection: seconds of the first and the longest; each is shortened by up to a half at random.
        retry_ratio, minimum_retries: of the requests of a model, and what an idle one may make at once.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        failures: int = 3,
        ejection: float = 5.0,
        maximum_ejection: float = 60.0,
        retry_ratio: float = 0.2,
        minimum_retries: float = 10.0,
    ) -> None:
        self._clock = clock
        self._policy = _EjectionPolicy(clock, jitter, failures, ejection, maximum_ejection)
        self._retry_ratio = retry_ratio
        self._minimum_retries = minimum_retries
        self._servers: dict[str, _Server] = {}
        self._pools: dict[str, _Pool] = {}
        self._turn = 0

    def choose(self, model: Model, tried: Collection[Upstream] = ()) -> Upstream | None:
        """The upstream with the fewest requests under way, in turn where several have; one that is due a probe first.

        None where all were tried, or the model has none. Call it without `tried` once for each request, for that gives
        the model its share of retries.

        Args:
            tried: those that the request was sent to already.
        """
        pool = self._pool(model)
        if not tried:
            pool.retries.deposit()
        past = [upstream._server for upstream in tried]
        server = min((one for one in pool.servers if one not in past), key=attrgetter("load"), default=None)
        if server is None:
            return None
        self._turn += 1
        server.turn = self._turn
        return Upstream(server, pool.servers[server])

    def may_retry(self, model: Model) -> bool:
        """Take one retry from those of the model, if there is one left."""
        return self._pool(model).retries.take()

    def is_ready(self, model: Model) -> bool:
        """Whether a model has an upstream that is not ejected, or none at all because an inner app serves it."""
        return not model.upstreams or any(server.standing != _EJECTED for server in self._pool(model).servers)

    def _pool(self, model: Model) -> _Pool:
        pool = self._pools.get(model.id)
        if pool is None:
            retries = _RetryBudget(self._clock, self._retry_ratio, self._minimum_retries)
            pool = _Pool(self._named_servers(model), retries)
            if model.upstreams:  # others are not kept: where an inner app decides, a model may have any name
                self._pools[model.id] = pool
        return pool

    def _named_servers(self, model: Model) -> dict[_Server, str]:
        urls = (url.rstrip("/") for url in model.upstreams)
        return {
            self._servers.setdefault(url, _Server(url, self._policy)): f"upstreams[{index}] of model {model.id}"
            for index, url in enumerate(urls)
        }
