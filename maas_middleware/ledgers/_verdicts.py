"""What is told of counted windows, wherever they are counted. All times are whole milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

from ..limiting import Budget, Lease, Limit, Subject, Verdict

IN_FLIGHT_WAIT_MS = 1000


class Window(Protocol):
    """A limit, and what was used within its last so many seconds. `held` is what leases in flight hold."""

    @property
    def limit(self) -> Limit: ...

    @property
    def used(self) -> int: ...

    def full_ms(self, now_ms: int, held: int) -> int:
        """When all of it has left, assuming that what is held is settled now."""
        ...

    def frees_ms(self, now_ms: int, held: int) -> int:
        """When the oldest of it leaves; in a second where there is only what is held."""
        ...

    def passes_ms(self, now_ms: int, held: int, needs: int) -> int:
        """When there is room for what is needed; in a second where that depends on what is held."""
        ...


def strictest(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """Of the limits on windows of one length the smallest; the larger limits first."""
    descending = sorted(limits, key=lambda limit: limit.amount, reverse=True)
    return tuple({limit.seconds: limit for limit in descending}.values())


def admission(lease: Lease, requests: Sequence[Window], tokens: Sequence[Window], now_ms: int, held: int) -> Verdict:
    """The verdict on a request that is admitted."""
    return Verdict(lease, _budget(requests, now_ms, 0), _budget(tokens, now_ms, held))


def outlook(
    subject: Subject,
    requests: Sequence[Window],
    tokens: Sequence[Window],
    needs: int,
    now_ms: int,
    held: int,
    live: int,
) -> Verdict:
    """The verdict on a request that needs so many tokens, where so many leases live and it would be one more."""
    budgets = _budget(requests, now_ms, 0), _budget(tokens, now_ms, held)
    hopeless = [window.full_ms(now_ms, held) for window in tokens if needs > window.limit.amount]
    if hopeless:
        return Verdict(None, *budgets, "tokens", max(IN_FLIGHT_WAIT_MS, max(hopeless) - now_ms), is_hopeless=True)
    is_crowded = subject.concurrency is not None and live >= subject.concurrency
    waits: dict[Literal["requests", "tokens", "concurrency"], int] = {
        "requests": _wait_ms(requests, now_ms, 0, 1),
        "tokens": _wait_ms(tokens, now_ms, held, needs) if needs else 0,
        "concurrency": IN_FLIGHT_WAIT_MS if is_crowded else 0,
    }
    longest = max(waits, key=waits.__getitem__)
    return Verdict(None, *budgets, longest if waits[longest] else None, waits[longest])


def _budget(windows: Sequence[Window], now_ms: int, held: int) -> Budget | None:
    """The limit closest to exhaustion, of equals the one that takes longest to be full; None is unlimited."""
    if not windows:
        return None
    closest = windows[0]
    if len(windows) > 1:
        closest = min(windows, key=lambda window: (_left(window, held), -window.full_ms(now_ms, held)))
    reset_ms, more_ms = closest.full_ms(now_ms, held) - now_ms, closest.frees_ms(now_ms, held) - now_ms
    return Budget(closest.limit, _left(closest, held), reset_ms, more_ms)


def _left(window: Window, held: int) -> int:
    left = window.limit.amount - window.used - held
    return left if left > 0 else 0


def _wait_ms(windows: Iterable[Window], now_ms: int, held: int, needs: int) -> int:
    return max([window.passes_ms(now_ms, held, needs) for window in windows], default=now_ms) - now_ms
