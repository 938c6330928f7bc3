"""Comments in event streams that are silent, so that nobody on the way takes them for dead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .._event_streams import last_bytes
from ._vigil import end_task

# WHATWG HTML, "Server-sent events": a line that begins with a colon is a comment
_COMMENT = b": keep-alive\n\n"
# the stream goes on: an end that may be the beginning of a longer one does not count
_BETWEEN_EVENTS = (b"\n\n", b"\r\r", b"\n\r\n")


class KeepAlive:
    """Sends a comment for every `interval` seconds in which an event stream says nothing; only between two events.

    Args:
        send: begins the answer if need be.
        stop: is told why a comment could not be sent.
    """

    def __init__(
        self, interval: float, send: Callable[[bytes], Awaitable[None]], stop: Callable[[Exception], None]
    ) -> None:
        self._interval = interval
        self._send = send
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._last_bytes = b"\n\n"
        self._is_silent = True
        self._commenting: asyncio.Task[None] | None = None
        self._silent_since = self._loop.time()
        self._timer = self._loop.call_later(interval, self._look)

    async def interrupt(self) -> None:
        """The stream goes on: no comment is begun any more, and one that was begun is sent first."""
        self._is_silent = False
        if self._commenting is not None:
            await asyncio.wait((self._commenting,))

    def resume(self, sent: bytes) -> None:
        """Everything was sent that the stream had to say."""
        self._last_bytes = last_bytes(self._last_bytes, sent)
        self._silent_since = self._loop.time()
        self._is_silent = True

    async def aclose(self) -> None:
        self._timer.cancel()
        if self._commenting is not None:
            await end_task(self._commenting)

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._silent_since + self._interval:
            self._silent_since = now
            if self._may_comment():
                # not in a task group: those cannot be entered from a timer; `aclose` awaits it
                self._commenting = self._loop.create_task(self._comment())
        self._timer = self._loop.call_at(self._silent_since + self._interval, self._look)

    def _may_comment(self) -> bool:
        is_idle = self._commenting is None or self._commenting.done()
        return self._is_silent and is_idle and self._last_bytes.endswith(_BETWEEN_EVENTS)

    async def _comment(self) -> None:
        try:
            await self._send(_COMMENT)
        except Exception as error:
            self._stop(error)
