"""Reading everything that is revoked, which may take longer than a call of a store does."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import anyio
from anyio.lowlevel import checkpoint

from ..revocations import FOLLOWABLE_SECONDS, ChangeLog, KnownRevocations
from ._outage import Outage

Moment = tuple[float, float]  # by the clock, and by the wall clock, which goes on while a machine is suspended

NEVER: Moment = (-math.inf, -math.inf)


def age(since: Moment, now: Moment) -> float:
    """Seconds, by the clock that tells more of them."""
    return max(now[0] - since[0], now[1] - since[1])


class Loader:
    """Reads everything that is revoked into what is known, page by page. Whatever fails, it goes on with that page.

    Args:
        now: tells the moment.
        again_after: seconds from the beginning of one reading to that of the next.
        share: seconds for which `go_on` reads.
        timeout: seconds that one page may take there.
    """

    def __init__(
        self,
        log: ChangeLog,
        known: KnownRevocations,
        *,
        now: Callable[[], Moment],
        again_after: float,
        share: float,
        timeout: float,
        outage: Outage,
    ) -> None:
        self._log = log
        self._known = known
        self._now = now
        self._again_after = again_after
        self._share = share
        self._timeout = timeout
        self._outage = outage
        self._load = _Load(NEVER)
        self._goes_on_in: asyncio.AbstractEventLoop | None = None  # one that ended is in nobody's way

    def begin(self) -> None:
        """Whatever was read, read everything once more."""
        self._load = _Load(self._now())

    async def finish(self) -> Moment:
        """Read what there is left to read, so that what is known can be followed; tells since when.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        if age(self._load.began_at, self._now()) >= FOLLOWABLE_SECONDS:
            self.begin()
        load = self._load
        while not load.is_complete:
            await load.read_page(self._log, self._known)
        self._known.follow_from(load.sequence or 0)
        return load.began_at

    async def go_on(self, *, shield: bool) -> None:
        """Read for a while, if it is time and nobody does. What fails is told in the log."""
        loop, began_at = asyncio.get_running_loop(), self._now()
        if self._goes_on_in is loop:
            return
        if self._load.is_complete and age(self._load.began_at, began_at) >= self._again_after:
            self.begin()
        self._goes_on_in = loop
        try:
            await self._read_until_share_is_used(self._load, began_at, shield=shield)
        except Exception as error:  # whatever it is, new revocations are followed
            self._outage.tell_of_reloading(error)
        else:
            self._outage.end_of_reloading()
        finally:
            self._goes_on_in = None

    async def _read_until_share_is_used(self, load: _Load, began_at: Moment, *, shield: bool) -> None:
        while not load.is_complete and age(began_at, self._now()) < self._share:
            with anyio.fail_after(self._timeout, shield=shield):
                await load.read_page(self._log, self._known)


class _Load:
    def __init__(self, began_at: Moment) -> None:
        self.began_at = began_at
        self.sequence: int | None = None  # what follows on everything that is read follows on this one
        self.is_complete = False
        self._next: str | None = None

    async def read_page(self, log: ChangeLog, known: KnownRevocations) -> None:
        page = await log.snapshot(self._next)
        known.load(page)
        self._next = page.next
        if self.sequence is None:  # later pages may miss what was revoked after the first
            self.sequence = page.sequence
        if page.next is None:
            self.is_complete = True
            for _ in known.forget(self.began_at[1]):
                await checkpoint()
