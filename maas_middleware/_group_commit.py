"""Writing what many requests leave behind: one write at a time, each for all that came before it began."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import anyio

from .errors import StoreUnavailable

logger = logging.getLogger("maas_middleware")

_RETRY_SECONDS = 0.1


class GroupCommit:
    """Decides who writes, and when. A write goes on when whoever began it is cancelled.

    Args:
        write: writes everything that is waiting when it begins; what it could not write has to wait on.
        has_work: whether something waits.
        timeout: seconds that a write may take.
        subject: what is written, for the log.
    """

    def __init__(
        self, write: Callable[[], Awaitable[None]], has_work: Callable[[], bool], *, timeout: float, subject: str
    ) -> None:
        self._write = write
        self._has_work = has_work
        self._timeout = timeout
        self._subject = subject
        self._flight: _Flight | None = None
        self._flights = 0
        self._successor: object | None = None
        self._is_failing = False

    @property
    def is_failing(self) -> bool:
        """Whether the last write failed."""
        return self._is_failing

    async def flush(self) -> None:
        """Return when everything is written that waits now.

        Raises:
            StoreUnavailable: not everything could be written.
        """
        before = self._flights
        while self._has_work():
            flight = self._flight
            if flight is None:
                flight = await self._lead(self._timeout)
            else:
                await flight.landed.wait()
            if flight.number > before and flight.is_over:  # earlier ones began when not everything waited yet
                if flight.has_failed:
                    raise StoreUnavailable
                return

    async def leave(self) -> None:
        """Return when somebody will surely write what waits now: one waits for the next write, others need not.

        That one is not cancelled. A write that fails is not repeated here.
        """
        if self._successor is not None or not self._has_work():
            return
        successor = self._successor = object()
        try:
            async with anyio.create_task_group() as group:  # it goes on even if asyncio cancels this task
                group.start_soon(self._succeed, successor)
        finally:
            self._resign(successor)  # where it was torn down before it began

    async def drain(self, seconds: float) -> None:
        """Write until nothing waits, for no longer than so many seconds."""
        with anyio.move_on_after(seconds, shield=True) as scope:
            while self._has_work():
                if self._flight is not None:
                    await self._flight.landed.wait()
                    continue
                await self._lead(min(self._timeout, scope.deadline - anyio.current_time()))
                if self._is_failing:
                    await anyio.sleep(_RETRY_SECONDS)

    async def _succeed(self, successor: object) -> None:
        with anyio.CancelScope(shield=True):
            while self._flight is not None:
                await self._flight.landed.wait()
            self._resign(successor)
            await self._fly(self._begin(), self._timeout)  # nobody was let in between

    def _resign(self, successor: object) -> None:
        if self._successor is successor:
            self._successor = None

    async def _lead(self, seconds: float) -> _Flight:
        flight = self._begin()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._fly, flight, seconds)
        finally:
            self._land(flight)  # where it was torn down before it began
        return flight

    def _begin(self) -> _Flight:
        self._flights += 1
        self._flight = _Flight(self._flights)
        return self._flight

    async def _fly(self, flight: _Flight, seconds: float) -> None:
        try:
            with anyio.fail_after(seconds, shield=True):
                await self._write()
            flight.is_over = True
            self._succeeded()
        except Exception as error:
            flight.is_over = flight.has_failed = True
            self._failed(error)
        finally:
            self._land(flight)

    def _land(self, flight: _Flight) -> None:
        if self._flight is flight:
            self._flight = None
        flight.landed.set()

    def _succeeded(self) -> None:
        if self._is_failing:
            self._is_failing = False
            logger.warning("%s is written again", self._subject)

    def _failed(self, error: Exception) -> None:
        if not self._is_failing:
            self._is_failing = True
            logger.warning("%s cannot be written, and is kept for now: %s", self._subject, type(error).__name__)


class _Flight:
    def __init__(self, number: int) -> None:
        self.number = number
        self.landed = anyio.Event()
        self.is_over = False  # False also where its task was torn down, shield and all
        self.has_failed = False
