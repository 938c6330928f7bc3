"""Counting in windows. All times are whole milliseconds and all arithmetic is exact."""

from __future__ import annotations

import math

from ..limiting import Limit
from ._verdicts import IN_FLIGHT_WAIT_MS, strictest

BUCKETS = 60


class Span:
    """A length of window and its current bucket, the same for every subject.

    Windows share it, so that a call about a subject that was not seen for long touches little memory.
    """

    __slots__ = ("_length_ms", "leaves_ms", "turns_ms")

    def __init__(self, seconds: int) -> None:
        self._length_ms = seconds * 1000
        self.turns_ms = 0
        self.leaves_ms = 0

    def turn(self, now_ms: int) -> None:
        """Make the bucket of now the current one: it ends at `turns_ms`, and leaves the window at `leaves_ms`."""
        self.leaves_ms = self.leaving_ms(now_ms)
        self.turns_ms = self.leaves_ms - self._length_ms

    def leaving_ms(self, at_ms: int) -> int:
        """When the end of that time's bucket leaves the window, rounded up."""
        bucket = at_ms * BUCKETS // self._length_ms
        return self._length_ms - (-(bucket + 1) * self._length_ms // BUCKETS)


class Spans(dict[int, Span]):
    """The spans of a ledger by their length in seconds."""

    def __missing__(self, seconds: int) -> Span:
        span = self[seconds] = Span(seconds)
        return span


class Window:
    """What a subject used within the last so many seconds, in buckets of a 60th of that, and the limit on it.

    A bucket counts until its end leaves the window: what is added counts for 60 to 61 buckets, and `used` is never
    too low. No bucket is empty. `turn` has to be called before anything else.
    """

    __slots__ = ("_buckets", "_leaves_ms", "_span", "limit", "used")

    def __init__(self, limit: Limit, span: Span) -> None:
        self.limit = limit
        self.used = 0
        self._span = span
        self._leaves_ms = 0
        self._buckets: dict[int, int] = {}  # by the time at which each leaves the window

    @property
    def turns_ms(self) -> int:
        """When its current bucket ends."""
        return self._span.turns_ms

    def turn(self, now_ms: int) -> None:
        """Drop the buckets that have left the window."""
        span = self._span
        if now_ms >= span.turns_ms:
            span.turn(now_ms)
        if self._leaves_ms != span.leaves_ms:
            self._leaves_ms = span.leaves_ms
            while self._buckets and (oldest := next(iter(self._buckets))) <= now_ms:
                self.used -= self._buckets.pop(oldest)

    def add(self, amount: int) -> None:
        """Count `amount` in the current bucket."""
        self.used += amount
        self._buckets[self._leaves_ms] = self._buckets.get(self._leaves_ms, 0) + amount

    def give_back(self, at_ms: int) -> None:
        """Take 1 out of the bucket of that time, if it still counts."""
        leaves_ms = self._span.leaving_ms(at_ms)
        if leaves_ms in self._buckets:
            self.used -= 1
            self._buckets[leaves_ms] -= 1
            if not self._buckets[leaves_ms]:
                del self._buckets[leaves_ms]

    def full_ms(self, now_ms: int, held: int) -> int:
        """When all of it has left, assuming that what is held is settled now."""
        return self._leaves_ms if held > 0 else next(reversed(self._buckets), now_ms)

    def frees_ms(self, now_ms: int, held: int) -> int:
        """When the oldest of it leaves; in a second where there is only what is held."""
        return next(iter(self._buckets), now_ms + IN_FLIGHT_WAIT_MS if held > 0 else now_ms)

    def passes_ms(self, now_ms: int, held: int, needs: int) -> int:
        """When there is room for what is needed; in a second where that depends on what is held."""
        excess = self.used + held + needs - self.limit.amount
        if excess < 1:
            return now_ms
        for leaves_ms, amount in self._buckets.items():
            excess -= amount
            if excess < 1:
                return leaves_ms
        return now_ms + IN_FLIGHT_WAIT_MS


class Windows:
    """The windows of a subject's limits of one kind: on requests, or on tokens.

    `turn` has to be called before anything else. `held` is what leases in flight hold: it counts in every window.

    Attributes:
        limits: those in force.
        in_force: their windows.
    """

    __slots__ = ("_left_out", "in_force", "limits")

    def __init__(self) -> None:
        self.limits: tuple[Limit, ...] = ()
        self.in_force: tuple[Window, ...] = ()
        self._left_out: tuple[Window, ...] = ()

    def turn(self, limits: tuple[Limit, ...], spans: Spans, now_ms: int) -> None:
        """Make `limits` the ones in force and drop what has left their windows.

        A window keeps what was used in it while other windows were in force; one of a new length starts with nothing.
        """
        if limits is not self.limits:
            if limits != self.limits:
                self._put_in_force(limits, spans, now_ms)
            self.limits = limits
        for window in self.in_force:
            window.turn(now_ms)

    def add(self, amount: int) -> None:
        """Count `amount` in every window; nothing, where it is below 1."""
        if amount > 0:
            for window in self.in_force:
                window.add(amount)

    def give_back(self, at_ms: int) -> None:
        """Take 1 that was added at that time out of every window where it still counts."""
        for window in self.in_force:
            window.give_back(at_ms)

    def room(self, held: int) -> int | None:
        """What may still be used, negative after an overrun; None is unlimited."""
        room = None
        for window in self.in_force:
            left = window.limit.amount - window.used - held
            if room is None or left < room:
                room = left
        return room

    @property
    def turns_ms(self) -> float:
        """Until when no call of `turn` with the same limits would change anything."""
        return min([window.turns_ms for window in self.in_force], default=math.inf)

    def empty_ms(self) -> int:
        """When nothing that was used counts any more."""
        return max([window.full_ms(0, 0) for window in (*self.in_force, *self._left_out)], default=0)

    def _put_in_force(self, limits: tuple[Limit, ...], spans: Spans, now_ms: int) -> None:
        known = {window.limit.seconds: window for window in self._used(now_ms)}
        in_force = []
        for limit in strictest(limits):
            window = known.pop(limit.seconds, None) or Window(limit, spans[limit.seconds])
            window.limit = limit
            in_force.append(window)
        self.in_force, self._left_out = tuple(in_force), tuple(known.values())

    def _used(self, now_ms: int) -> list[Window]:
        windows = [*self.in_force, *self._left_out]
        for window in windows:
            window.turn(now_ms)
        return [window for window in windows if window.used]
