"""From Settings to the ledger that counts."""

from __future__ import annotations

from .ledgers.guarded import GuardedLedger
from .ledgers.memory import MemoryLedger
from .ledgers.redis import RedisLedger
from .settings import ConfigurationError, Problem, Settings, counters_of

# less than the guard's budget, so that the log names what Redis did instead of that budget
_REDIS_SECONDS = 0.2


def ledger_of(settings: Settings) -> MemoryLedger | GuardedLedger:
    """The ledger that the counters are kept by, with what is done when they cannot be reached.

    Raises:
        ConfigurationError: the URL is wrong, or what it needs is not installed.
    """
    url = counters_of(settings)
    if url == "memory://":
        return MemoryLedger()
    try:
        ledger = RedisLedger(url, timeout=_REDIS_SECONDS)
    except ValueError as error:
        place = "counters" if settings.counters_file is None else "counters_file"
        raise ConfigurationError([Problem(place, str(error))]) from None
    is_local = settings.on_counters_failure == "local"
    return GuardedLedger(ledger, fallback=MemoryLedger() if is_local else None, replicas=settings.replicas)
