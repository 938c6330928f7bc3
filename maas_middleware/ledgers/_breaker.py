"""Whether something that failed should be asked again yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import MaaSError


def reason_of(error: BaseException) -> str:
    """What began it, in words that do not tell where a store is."""
    cause = cause_of(error)
    name = type(cause).__name__
    if isinstance(cause, OSError | MaaSError) or "Connection" in name or "Timeout" in name:
        return name
    return f"{name}: {str(cause)[:200]}"


def cause_of(error: BaseException) -> BaseException:
    """The exception that began it, where that is not the cancellation by which a time-out works."""
    while error.__cause__ is not None and not isinstance(error, TimeoutError):
        error = error.__cause__
    return error


class Breaker:
    """Opens at the first failure, and closes when a probe succeeds. There is one probe at a time.

    A call that was under way when it opened changes nothing any more, however it ends. A call that took too long while
    another one was answered is no failure: it is this process that is slow.

    Args:
        rest: seconds from the failure to the first probe; each probe that fails doubles them, up to `longest_rest`.
        changed: called with the failure when it has opened, and with None when it has closed.
    """

    def __init__(
        self,
        *,
        rest: float,
        longest_rest: float,
        clock: Callable[[], float],
        changed: Callable[[Exception | None], None],
    ) -> None:
        self.is_open = False
        self._first_rest = rest
        self._longest_rest = longest_rest
        self._clock = clock
        self._changed = changed
        self._rest = rest
        self._probes_at = 0.0
        self._probing = False
        self._answered_at = -math.inf

    @property
    def refuses(self) -> bool:
        """Whether a call should not even be tried now."""
        return self.is_open and (self._probing or self._clock() < self._probes_at)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Round a call that it does not refuse; an exception is a failure, a cancellation tells nothing."""
        is_probe, began_at = self.is_open, self._clock()
        self._probing |= is_probe
        try:
            yield
        except Exception as error:
            is_slow = isinstance(cause_of(error), TimeoutError) and self._answered_at > began_at
            if is_probe or not is_slow:
                self._fail(error, is_probe)
            raise
        else:
            self._answered_at = self._clock()
            if is_probe:
                self.is_open = False
                self._changed(None)
        finally:
            if is_probe:
                self._probing = False

    def _fail(self, error: Exception, was_probe: bool) -> None:
        if was_probe:
            self._rest = min(self._rest * 2, self._longest_rest)
        elif not self.is_open:
            self._rest = self._first_rest
            self.is_open = True
            self._changed(error)
        else:
            return
        self._probes_at = self._clock() + self._rest
