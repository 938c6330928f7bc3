"""Settlements that a store has not taken yet."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ..limiting import Charge, Lease

logger = logging.getLogger("maas_middleware")

# a store remembers for 600 seconds what it has settled; the rest is for a replay that is slow to arrive
REPLAYABLE_SECONDS = 540.0


@dataclass(slots=True)
class Settlement:
    """What is to be charged, and when the store may have taken it for the first time; None is never."""

    lease: Lease
    charge: Charge
    sent_at: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What the store knows the lease by."""
        return self.lease.subject.key, self.lease.id


class Replays:
    """A bounded queue. What cannot be replayed is counted in `lost`, and logged once until the queue is empty again."""

    def __init__(self, *, maximum: int, clock: Callable[[], float]) -> None:
        self.lost = 0
        self._maximum = maximum
        self._clock = clock
        self._waiting: OrderedDict[tuple[str, str], Settlement] = OrderedDict()
        self._told = False

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, lease: Lease) -> bool:
        return (lease.subject.key, lease.id) in self._waiting

    def add(self, settlement: Settlement) -> None:
        """Put it last, also where it waits already; of too many the first is lost."""
        self._waiting[settlement.key] = settlement
        self._waiting.move_to_end(settlement.key)
        if len(self._waiting) > self._maximum:
            self._lose("too many wait")

    def next(self) -> Settlement | None:
        """The one to replay now; those that the store may have taken, and forgotten since, are lost."""
        while self._waiting:
            settlement = next(iter(self._waiting.values()))
            if settlement.sent_at is None or self._clock() < settlement.sent_at + REPLAYABLE_SECONDS:
                return settlement
            self._lose("the store may have charged it long ago")
        return None

    def remove(self, settlement: Settlement) -> None:
        """It is charged."""
        self._waiting.pop(settlement.key, None)
        self._told = self._told and bool(self._waiting)

    def _lose(self, reason: str) -> None:
        self._waiting.popitem(last=False)
        self.lost += 1
        if not self._told:
            logger.warning("a settlement is lost, and perhaps more: %s", reason)
        self._told = bool(self._waiting)
