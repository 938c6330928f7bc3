"""The connections to one origin: bounded, the newest used again first, waited for in turn."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import httpx

from ._connection import Connection
from ._waiting import until

Lost = Callable[[Connection], None]
Connect = Callable[[Lost, float | None], Awaitable[Connection]]


class Pool:
    """Gives connections out and takes them back; each costs the same, however many there are.

    Whoever has acquired a connection owns one of the places, and gives it back once: with `release` or `discard`.

    Args:
        connect: opens a connection, in so many seconds.
        maximum: places, for connections that are used, idle or being opened.
        maximum_idle: connections that are kept.
        idle_seconds: how long they are kept, by `clock`.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        maximum: int | None,
        maximum_idle: int | None,
        idle_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._maximum = maximum
        self._maximum_idle = maximum_idle
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._taken = 0
        self._open: set[Connection] = set()
        self._idle: OrderedDict[Connection, float] = OrderedDict()  # and when they expire
        self._waiting: OrderedDict[asyncio.Future[Connection | None], None] = OrderedDict()
        self._expiry: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def is_empty(self) -> bool:
        return self._taken == 0

    async def acquire(self, pool_seconds: float | None, connect_seconds: float | None) -> Connection:
        """An idle connection, or a new one.

        Raises:
            httpx.PoolTimeout: all are used for so many seconds.
            httpx.ConnectError, httpx.ConnectTimeout: a new one could not be opened.
        """
        while self._idle:
            connection, expires = self._idle.popitem()
            if expires > self._clock():
                return connection
            connection.close()  # the event loop was too busy to do it in time
            self._vacate()
        if self._maximum is None or self._taken < self._maximum:
            self._taken += 1
        elif (served := await self._wait(pool_seconds)) is not None:
            return served
        return await self._open_in_place(connect_seconds)

    async def replace(self, connection: Connection, connect_seconds: float | None) -> Connection:
        """A new connection in the place of one that is no good any more."""
        connection.abort()
        return await self._open_in_place(connect_seconds)

    def release(self, connection: Connection) -> None:
        """Take back a connection that may be used again."""
        if (waiter := self._next_waiter()) is not None:
            waiter.set_result(connection)
        elif self._maximum_idle is None or len(self._idle) < self._maximum_idle:
            self._idle[connection] = self._clock() + self._idle_seconds
            if self._expiry is None:
                self._expiry = self._loop.call_later(self._idle_seconds, self._expire)
        else:
            connection.close()
            self._vacate()

    def discard(self, connection: Connection) -> None:
        """Take back a connection that may not be used again."""
        connection.abort()
        self._vacate()

    async def aclose(self) -> None:
        """Close all connections, and wait until they are; nothing is given out any more."""
        self._is_closed = True
        while (waiter := self._next_waiter()) is not None:
            waiter.set_exception(httpx.ConnectError("The transport is closed"))
        gone = [connection.gone for connection in self._open]
        for connection in list(self._open):
            connection.abort()
        if gone:
            await asyncio.wait(gone)

    async def _open_in_place(self, seconds: float | None) -> Connection:
        try:
            connection = await self._connect(self._lost, seconds)
            if self._is_closed or connection.is_closing:
                connection.abort()
                raise httpx.ConnectError("The connection or the transport is closed")
        except BaseException:
            self._vacate()
            raise
        self._open.add(connection)
        return connection

    async def _wait(self, seconds: float | None) -> Connection | None:
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiting[waiter] = None
        try:
            return await until(waiter, seconds, httpx.PoolTimeout)
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._pass_on(waiter.result())
            raise
        finally:
            self._waiting.pop(waiter, None)

    def _pass_on(self, connection: Connection | None) -> None:
        if connection is None:
            self._vacate()
        else:
            self.release(connection)

    def _vacate(self) -> None:
        if (waiter := self._next_waiter()) is not None:
            waiter.set_result(None)  # who owns the place now
        else:
            self._taken -= 1

    def _next_waiter(self) -> asyncio.Future[Connection | None] | None:
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():
                return waiter
        return None

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if self._idle.pop(connection, None) is not None:
            self._vacate()

    def _expire(self) -> None:
        self._expiry = None
        now = self._clock()
        while self._idle:
            connection, expires = next(iter(self._idle.items()))
            if expires > now:
                self._expiry = self._loop.call_later(expires - now, self._expire)
                return
            del self._idle[connection]
            connection.close()
            self._vacate()
