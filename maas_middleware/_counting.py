"""From Settings to the ledger that counts."""

from __future__ import annotations

from .ledgers.guarded import GuardedLedger
from .ledgers.memory import MemoryLedger
from .ledgers.redis import RedisLedger
from .settings import ConfigurationError, Problem, Settings, counters_of

# of the guard's budget, so that the log names what Redis did instead of that budget
_SHARE_OF_REDIS = 0.8


def ledger_of(settings: Settings) -> MemoryLedger | GuardedLedger:
    """The ledger that the counters are kept by, with what is done when they cannot be reached.

    Raises:
        ConfigurationError: the URL is wrong, or what it needs is not installed.
    """
    url = counters_of(settings)
    if url == "memory://":
        return MemoryLedger()
    try:
        ledger = RedisLedger(url, timeout=settings.counters_timeout * _SHARE_OF_REDIS)
    except ValueError as error:
        place = "counters" if settings.counters_file is None else "counters_file"
        raise ConfigurationError([Problem(place, str(error))]) from None
    return GuardedLedger(
        ledger,
        fallback=MemoryLedger() if settings.on_counters_failure == "local" else None,
        replicas=settings.replicas,
        budget=settings.counters_timeout,
    )
