"""From Settings to what counts: the ledger, and the throttles beside it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .ledgers.guarded import GuardedLedger
from .ledgers.memory import MemoryLedger
from .ledgers.redis import RedisLedger
from .ledgers.throttles import MovingWindowThrottle, ThrottleStorage
from .settings import ConfigurationError, Problem, Settings, counters_of
from .throttling import Throttle

# of the guard's budget, so that the log names what Redis did instead of that budget
_SHARE_OF_REDIS = 0.8


def ledger_of(settings: Settings, clock: Callable[[], float] = time.monotonic) -> MemoryLedger | GuardedLedger:
    """The ledger that the counters are kept by, with what is done when they cannot be reached.

    Raises:
        ConfigurationError: the URL is wrong, or what it needs is not installed.
    """
    url = counters_of(settings)
    if url == "memory://":
        return MemoryLedger(clock=clock)
    try:
        ledger = RedisLedger(url, timeout=settings.counters_timeout * _SHARE_OF_REDIS)
    except ValueError as error:
        raise _wrong_counters(settings, error) from None
    return GuardedLedger(
        ledger,
        fallback=MemoryLedger(clock=clock) if settings.on_counters_failure == "local" else None,
        replicas=settings.replicas,
        budget=settings.counters_timeout,
    )


def _wrong_counters(settings: Settings, error: ValueError) -> ConfigurationError:
    return ConfigurationError([Problem("counters" if settings.counters_file is None else "counters_file", str(error))])


@dataclass(frozen=True)
class Throttles:
    """What limits mints, failed credentials and control requests; None where nothing does."""

    mints: Throttle | None
    failed_credentials: Throttle | None
    control_requests: Throttle | None
    closing: tuple[Callable[[], Awaitable[None]], ...]


def throttles_of(settings: Settings) -> Throttles:
    """The throttles, which count where the counters are kept.

    Raises:
        ConfigurationError: as `ledger_of`.
    """
    url = counters_of(settings)
    try:
        storage = None if url == "memory://" else ThrottleStorage(url, timeout=settings.counters_timeout)
    except ValueError as error:
        raise _wrong_counters(settings, error) from None

    def throttle(name: str, limits: str) -> Throttle | None:
        is_off = limits.strip() == "unlimited"
        return None if is_off else MovingWindowThrottle(limits, name=name, storage=storage)

    return Throttles(
        mints=throttle("mints", settings.throttles.mints),
        failed_credentials=throttle("failed_credentials", settings.throttles.failed_credentials),
        control_requests=throttle("control_requests", settings.throttles.control_requests),
        closing=() if storage is None else (storage.aclose,),
    )
