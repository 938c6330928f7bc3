"""A store of tokens that others write, too, and what is known of its revocations within a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import anyio
from anyio.abc import TaskGroup

from ..errors import StoreUnavailable
from ..revocations import CHANGES_AT_ONCE, FOLLOWABLE_SECONDS, ChangeLog, KnownRevocations
from ..token_store import TokenKind, TokenRecord, TokenStore
from ..tokens import Claims
from ._loading import NEVER, Loader, Moment, age
from ._outage import Outage


class FollowableTokenStore(TokenStore, ChangeLog, Protocol):
    """A store of tokens whose revocations can be followed."""


class FollowedTokenStore:
    """A store of tokens that tells from memory what is revoked, and looks at the store for what others revoked there.

    What was revoked anywhere is refused here within `bound` seconds of its commit, and at once where it was revoked
    through this object. `run` looks at the store all the time. Without it requests do: where the last look is
    `interval` old one of them looks, and waits for it; the others do not, unless the last look was over `bound` ago.

    A look reads what has changed. The first one, and one after so long a time that changes may have been forgotten,
    reads everything before; where that takes longer than the timeout the look has failed, and the next goes on where
    it was. Each `reload_after`, and where the store was set back to an older state, everything is read again beside
    the looks, for a tenth of the time. What fails of that is told in the log, and tried again after the next look.

    While the store does not answer, what is known is used until it is older than the grace. A look that failed is
    tried again after `interval`, and nobody but who looks waits for it. Where nothing was ever known, or the grace is
    over, tokens are neither accepted nor refused: StoreUnavailable. It recovers by itself. The log has one line when
    the store begins to fail, one when the grace is over and one when it answers again.

    Args:
        interval, bound, reload_after: seconds; the interval is at most the bound.
        grace: seconds; what is not older than the bound is used always.
        on_failure: after the grace, to `refuse`, or to `continue` with what is known.
        timeout: seconds after which a look is broken off.
        clock: seconds that never go back. The age of what is known counts from the beginning of a look.
        wall_clock: seconds since the epoch. Ages count by it where it tells more, as after a machine was suspended.
    """

    def __init__(
        self,
        store: FollowableTokenStore,
        *,
        interval: float = 0.5,
        bound: float = 1.0,
        reload_after: float = 60.0,
        grace: float = 30.0,
        on_failure: Literal["refuse", "continue"] = "refuse",
        timeout: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if not 0 < interval <= bound:
            raise ValueError("the interval has to be more than 0, and not more than the bound")
        self._store = store
        self._interval = interval
        self._bound = bound
        self._grace = max(grace, bound)
        self._timeout = timeout
        self._clock = clock
        self._wall_clock = wall_clock
        self._continues = on_failure == "continue"
        self._known = KnownRevocations()
        self._known_at = self._followable_at = NEVER
        self._failed_at: float | None = None  # None: the last look did not fail
        self._runs = 0
        self._flight: _Flight | None = None
        self._outage = Outage()
        self._loader = Loader(
            store,
            self._known,
            now=self._now,
            again_after=reload_after,
            share=interval / 10,
            timeout=timeout,
            outage=self._outage,
        )

    @property
    def degraded(self) -> bool:
        """Whether the last look at the store failed."""
        return self._failed_at is not None

    @property
    def usable(self) -> bool:
        """Whether `is_revoked` tells anything, as far as the store was looked at; see `refresh`."""
        if self._failed_at is None:
            return True
        return self._known_at != NEVER and (self._continues or not self._is_over())

    async def is_revoked(self, claims: Claims, /) -> bool:
        """Whether the token was revoked, by its id or with all of its owner's. Mostly a look-up in memory.

        Raises:
            StoreUnavailable: see the class.
        """
        if age(self._known_at, self._now()) >= self._due_after:
            await self.refresh()
            if not self.usable:
                raise StoreUnavailable
        return self._known.covers(claims)

    async def refresh(self) -> None:
        """Look at the store, or wait for a look, where a request would have to; it may have failed afterwards."""
        asked_at = self._now()
        while self._is_due(asked_at):
            flight = self._flight_here
            if flight is None:
                await self._lead(shield=True)
                await self._reload(shield=True)
            elif flight.is_awaited and age(self._known_at, asked_at) > self._bound:
                await flight.landed.wait()
            else:
                return

    async def run(self) -> None:
        """Look at the store again and again, until it is cancelled. It raises nothing."""
        self._runs += 1
        try:
            async with anyio.create_task_group() as group:
                await self._look_on(group)
        finally:
            self._runs -= 1

    async def _look_on(self, group: TaskGroup) -> None:
        while True:
            next_at = anyio.current_time() + self._interval
            if self._flight_here is None:
                await self._lead(shield=False)
            group.start_soon(self._reload)
            if self.degraded:
                next_at = anyio.current_time() + self._interval
            await anyio.sleep_until(next_at)

    @property
    def _flight_here(self) -> _Flight | None:  # not the one of an event loop that may have ended
        return self._flight if self._flight and self._flight.loop is asyncio.get_running_loop() else None

    def _now(self) -> Moment:
        return self._clock(), self._wall_clock()

    @property
    def _due_after(self) -> float:
        return self._bound if self._runs else self._interval

    def _is_due(self, asked_at: Moment) -> bool:
        is_resting = self._has_failed_within(self._interval, asked_at)
        return age(self._known_at, asked_at) >= self._due_after and not is_resting

    def _has_failed_within(self, seconds: float, now: Moment) -> bool:
        return self._failed_at is not None and now[0] - self._failed_at < seconds

    def _is_over(self) -> bool:
        return age(self._known_at, self._now()) > self._grace

    async def _lead(self, *, shield: bool) -> None:
        began_at = self._now()
        is_failing = self._has_failed_within(self._interval + self._bound, began_at)
        flight = self._flight = _Flight(is_awaited=not is_failing)
        try:
            with anyio.fail_after(self._timeout, shield=shield):
                await self._look(began_at)
        except Exception as error:  # whatever it is, the next look may succeed
            self._failed_at = self._clock()
            self._outage.tell(error, is_over=self._is_over(), refuses=not self.usable)
        else:
            self._known_at = self._followable_at = began_at
            self._failed_at = None
            self._outage.end()
        finally:
            if self._flight is flight:
                self._flight = None
            flight.landed.set()

    def _is_followable(self, now: Moment) -> bool:
        return age(self._followable_at, now) < FOLLOWABLE_SECONDS

    async def _look(self, began_at: Moment) -> None:
        if not self._is_followable(began_at):
            self._followable_at = await self._loader.finish()
        is_complete = False
        while not is_complete:
            changes = tuple(await self._store.changes(self._known.asked_after))
            if self._known.is_continued_by(changes):
                self._known.follow(changes)
                is_complete = len(changes) < CHANGES_AT_ONCE
            else:
                self._known.follow_from(0)
                self._loader.begin()

    async def _reload(self, *, shield: bool = False) -> None:
        if not self.degraded and self._is_followable(self._now()):
            await self._loader.go_on(shield=shield)

    async def generation(self, owner: str, /) -> int:
        return await self._store.generation(owner)

    async def record(self, record: TokenRecord, /, *, maximum: int | None = None) -> bool:
        return await self._store.record(record, maximum=maximum)

    async def find(self, owner: str, token_id: str, /) -> TokenRecord | None:
        return await self._store.find(owner, token_id)

    async def list(
        self, owner: str, /, *, kind: TokenKind | None = None, limit: int = 100, after: str | None = None
    ) -> Sequence[TokenRecord]:
        return await self._store.list(owner, kind=kind, limit=limit, after=after)

    async def revoke(self, owner: str, token_id: str, /) -> TokenRecord | None:
        record = await self._store.revoke(owner, token_id)
        if record is not None:
            self._known.revoke(record.claims.id, record.claims.expires_at)
        return record

    async def revoke_all(self, owner: str, /) -> int:
        generation = await self._store.revoke_all(owner)
        self._known.raise_generation(owner, generation)
        return generation

    async def mark_used(self, last_used_at: Mapping[str, int], /) -> None:
        await self._store.mark_used(last_used_at)


class _Flight:
    def __init__(self, *, is_awaited: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.is_awaited = is_awaited
        self.landed = anyio.Event()
