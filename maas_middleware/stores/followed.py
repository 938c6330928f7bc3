"""A store of tokens that others write, too, and what is known of its revocations within a second."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import anyio

from ..errors import StoreUnavailable
from ..revocations import CHANGES_AT_ONCE, ChangeLog, KnownRevocations
from ..token_store import TokenKind, TokenRecord, TokenStore
from ..tokens import Claims

logger = logging.getLogger("maas_middleware")


class FollowableTokenStore(TokenStore, ChangeLog, Protocol):
    """A store of tokens whose revocations can be followed."""


class FollowedTokenStore:
    """A store of tokens that tells from memory what is revoked, and looks at the store for what others revoked there.

    What was revoked anywhere is refused here within `bound` seconds of its commit, and at once where it was revoked
    through this object. `run` looks at the store all the time. Without it requests do: where the last look is
    `interval` old one of them looks, and waits for it; the others do not, unless the last look was over `bound` ago.
    Each `reload_after` everything is read again, else only what has changed.

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
        wall_clock: seconds since the epoch; by it revocations of expired tokens are forgotten.
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
        self._reload_after = reload_after
        self._grace = max(grace, bound)
        self._timeout = timeout
        self._clock = clock
        self._wall_clock = wall_clock
        self._continues = on_failure == "continue"
        self._known = KnownRevocations()
        self._known_at = -math.inf
        self._failed_at: float | None = None  # None: the last look did not fail
        self._reload_at = (-math.inf, -math.inf)  # by the clock, and by the wall clock, which goes on in a suspended VM
        self._runs = 0
        self._flights: dict[asyncio.AbstractEventLoop, _Flight] = {}  # an event wakes only its own loop
        self._outage = _Outage()

    @property
    def degraded(self) -> bool:
        """Whether the last look at the store failed."""
        return self._failed_at is not None

    @property
    def usable(self) -> bool:
        """Whether `is_revoked` tells anything, as far as the store was looked at; see `refresh`."""
        if self._failed_at is None:
            return True
        return self._known_at > -math.inf and (self._continues or not self._is_over(self._clock()))

    async def is_revoked(self, claims: Claims, /) -> bool:
        """Whether the token was revoked, by its id or with all of its owner's. Mostly a look-up in memory.

        Raises:
            StoreUnavailable: see the class.
        """
        if self._clock() - self._known_at >= self._due_after:
            await self.refresh()
            if not self.usable:
                raise StoreUnavailable
        return self._known.covers(claims)

    async def refresh(self) -> None:
        """Look at the store, or wait for a look, where a request would have to; it may have failed afterwards."""
        loop, asked_at = asyncio.get_running_loop(), self._clock()
        while self._is_due(asked_at):
            flight = self._flights.get(loop)
            if flight is None:
                await self._lead(loop, shield=True)
            elif flight.is_awaited and asked_at - self._known_at > self._bound:
                await flight.landed.wait()
            else:
                return

    async def run(self) -> None:
        """Look at the store again and again, until it is cancelled. It raises nothing."""
        loop = asyncio.get_running_loop()
        self._runs += 1
        try:
            while True:
                next_at = anyio.current_time() + self._interval
                if loop not in self._flights:
                    await self._lead(loop, shield=False)
                if self.degraded:
                    next_at = anyio.current_time() + self._interval
                await anyio.sleep_until(next_at)
        finally:
            self._runs -= 1

    @property
    def _due_after(self) -> float:
        return self._bound if self._runs else self._interval

    def _is_due(self, asked_at: float) -> bool:
        is_resting = self._has_failed_within(self._interval, asked_at)
        return asked_at - self._known_at >= self._due_after and not is_resting

    def _has_failed_within(self, seconds: float, now: float) -> bool:
        return self._failed_at is not None and now - self._failed_at < seconds

    def _is_over(self, now: float) -> bool:
        return now - self._known_at > self._grace

    async def _lead(self, loop: asyncio.AbstractEventLoop, *, shield: bool) -> None:
        began_at = self._clock()
        is_failing = self._has_failed_within(self._interval + self._bound, began_at)
        flight = self._flights[loop] = _Flight(is_awaited=not is_failing)
        try:
            with anyio.fail_after(self._timeout, shield=shield):
                await self._look(began_at)
        except Exception as error:  # whatever it is, the next look may succeed
            self._failed_at = self._clock()
            self._outage.tell(error, is_over=self._is_over(self._failed_at), refuses=not self.usable)
        else:
            self._known_at = max(began_at, self._known_at)
            self._failed_at = None
            self._outage.end()
        finally:
            del self._flights[loop]
            flight.landed.set()

    async def _look(self, began_at: float) -> None:
        now = self._wall_clock()
        if began_at >= self._reload_at[0] or now >= self._reload_at[1]:
            self._known.load(await self._store.snapshot(), now)
            self._reload_at = (began_at + self._reload_after, now + self._reload_after)
            return
        is_complete = False
        while not is_complete:
            changes = tuple(await self._store.changes(self._known.sequence))
            self._known.follow(changes)
            is_complete = len(changes) < CHANGES_AT_ONCE

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
        self.is_awaited = is_awaited
        self.landed = anyio.Event()


class _Outage:
    """What the log has of a store that fails, each thing once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, error: Exception, *, is_over: bool, refuses: bool) -> None:
        is_bug = not isinstance(error, StoreUnavailable | TimeoutError)
        what = "bug" if is_bug else "failure"
        if not self._told & {what, "bug"}:
            trace = error if is_bug else None
            logger.warning("the token store fails (%s): revocations are not followed", _name(error), exc_info=trace)
        self._told.add(what)
        if is_over and "end of the grace" not in self._told:
            policy = "requests with access tokens are refused" if refuses else "going on with it"
            logger.error("what is known of revocations is too old: %s", policy)
            self._told.add("end of the grace")

    def end(self) -> None:
        if self._told:
            logger.warning("the token store answers again: revocations are followed")
        self._told.clear()


def _name(error: BaseException) -> str:
    """The kind of what began it; its text may tell where the store is."""
    while error.__cause__ is not None and not isinstance(error, TimeoutError):
        error = error.__cause__
    return type(error).__name__
