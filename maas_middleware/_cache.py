"""A bounded cache whose entries grow old, and whose loads are shared by all who ask at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[V]):
    """A value, and the seconds for which it may be given again; 0 is not at all."""

    value: V
    seconds: float


class SingleFlightCache(Generic[K, V]):
    """Keeps what was loaded, and never loads one key twice at a time.

    Args:
        maximum: how many entries are kept; above it the one that was not asked for the longest goes.
        deadline: seconds after which a load is broken off.
        clock: seconds; entries grow old by it.
    """

    def __init__(self, *, maximum: int, deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._maximum = maximum
        self._deadline = deadline
        self._clock = clock
        self._entries: dict[K, _Entry[V]] = {}
        self._flights: dict[tuple[asyncio.AbstractEventLoop, K], _Flight[V]] = {}

    async def get(self, key: K, load: Callable[[], Awaitable[Loaded[V]]]) -> V:
        """Return the value of a key; the first of those who miss it loads it for all of them.

        The load goes on when the client of whoever started it leaves. What it raises reaches everyone who waits for
        it, and is not kept.

        Raises:
            TimeoutError: the load took longer than the deadline.
        """
        # an event wakes only its own loop, so that each loop has its own flights
        place = (asyncio.get_running_loop(), key)
        while True:
            entry = self._entries.pop(key, None)
            if entry is not None and self._clock() < entry.expires_at:
                self._entries[key] = entry
                return entry.value
            if (flight := self._flights.get(place)) is None:
                return await self._lead(place, load)
            await flight.landed.wait()
            if flight.error is not None:
                raise flight.error
            if flight.loaded is not None:
                return flight.loaded.value
            # its task was torn down, shield and all: somebody else has to load

    async def _lead(self, place: tuple[asyncio.AbstractEventLoop, K], load: Callable[[], Awaitable[Loaded[V]]]) -> V:
        flight = self._flights[place] = _Flight[V]()
        try:
            with anyio.fail_after(self._deadline, shield=True):
                flight.loaded = await load()
        except Exception as error:
            flight.error = error
            raise
        finally:
            del self._flights[place]
            flight.landed.set()
        self._keep(place[1], flight.loaded)
        return flight.loaded.value

    def _keep(self, key: K, loaded: Loaded[V]) -> None:
        if loaded.seconds <= 0:
            return
        while len(self._entries) >= self._maximum:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = _Entry(loaded.value, self._clock() + loaded.seconds)


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    value: V
    expires_at: float


class _Flight(Generic[V]):
    def __init__(self) -> None:
        self.landed = anyio.Event()
        self.loaded: Loaded[V] | None = None
        self.error: Exception | None = None
