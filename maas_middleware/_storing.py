"""From Settings to the stores of tokens and of recorded use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from .recorder import UsageRecorder
from .settings import ConfigurationError, Problem, Settings, store_of
from .stores.followed import FollowedTokenStore
from .stores.memory import MemoryTokenStore, MemoryUsageStore
from .stores.sql import SQLDatabase, SQLTokenStore, SQLUsageStore
from .usage_store import UsageStore

logger = logging.getLogger("maas_middleware")

Step = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Stores:
    """What is kept, and where.

    Attributes:
        starting: what is done before the service serves.
        running: what runs while it lives.
        closing: what closes at its end, the last first.
    """

    tokens: MemoryTokenStore | FollowedTokenStore
    usage: UsageStore
    recorder: UsageRecorder
    starting: tuple[Step, ...]
    running: tuple[Step, ...]
    closing: tuple[Step, ...]

    @property
    def is_shared(self) -> bool:
        """Whether tokens outlive the process."""
        return isinstance(self.tokens, FollowedTokenStore)

    async def is_usable(self) -> bool:
        """Whether it is known which tokens are revoked, or that does not matter."""
        if isinstance(self.tokens, MemoryTokenStore):
            return True
        await self.tokens.refresh()
        return self.tokens.usable

    @property
    def degraded(self) -> bool:
        """Whether the store cannot be read or written at the moment."""
        return self.recorder.is_failing or (isinstance(self.tokens, FollowedTokenStore) and self.tokens.degraded)


def stores_of(settings: Settings) -> Stores:
    """The stores as they are configured; nothing is connected yet.

    Raises:
        ConfigurationError: the URL is wrong, or what it needs is not installed.
    """
    url = store_of(settings)
    if url == "memory://":
        tokens, usage = MemoryTokenStore(), MemoryUsageStore()
        recorder = UsageRecorder(usage, tokens=tokens)
        return Stores(tokens, usage, recorder, (), (recorder.run,), (recorder.aclose,))
    try:
        database = SQLDatabase(url, timeout=settings.store_timeout)
    except ValueError as error:
        place = "store" if settings.store_file is None else "store_file"
        raise ConfigurationError([Problem(place, str(error))]) from None
    followed = FollowedTokenStore(
        SQLTokenStore(database),
        grace=settings.tokens.revocation_grace,
        on_failure=settings.tokens.on_store_failure,
        timeout=settings.store_timeout,
    )
    kept = SQLUsageStore(database)
    recorder = UsageRecorder(kept, tokens=followed, timeout=settings.store_timeout + 1)
    return Stores(
        followed,
        kept,
        recorder,
        starting=(database.open, followed.refresh),
        running=(followed.run, recorder.run),
        closing=(database.aclose, recorder.aclose),
    )


def warn_of_what_ends(stores: Stores, *, has_counters: bool) -> None:
    """Log what is in the memory of this process alone; `has_counters` where these are not."""
    kept = [] if stores.is_shared else ["tokens", "revocations", "recorded use"]
    of_many = ""
    if not has_counters:
        kept.append("counters")
        of_many = "; several processes, such as workers or API servers, multiply the limits"
    if kept:
        *others, last = kept
        what = f"{', '.join(others)} and {last}" if others else last
        logger.warning("%s: kept by this process alone, gone when it ends%s", what, of_many)
