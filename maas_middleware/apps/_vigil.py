"""The deadlines of an exchange, and whether its client is still there."""

from __future__ import annotations

import asyncio
import math

import anyio
from starlette.types import Message, Receive

from .._asgi import ClientLeft
from ..errors import RequestTimeout, UpstreamTimeout

CLOSING_SECONDS = 5.0
# what is answered sooner needs nobody who watches the client, and that is most of what is not streamed
_UNWATCHED_SECONDS = 0.05


class Vigil:
    """Watches one exchange, and cancels `scope` with what is then the `reason` to end it.

    There is always one wait with a deadline: for the client's body, for the upstream, or for a client that does not
    read. One timer looks after all of them, and after it fired it is set anew: a chunk costs no more than noting the
    time. Where an exchange outlives its request's body, a task reads on in `receive` to learn that the client left.
    Begins in the event loop, and has to be closed there.

    Args:
        first_byte_timeout: seconds from now until the first byte; what the client takes to send its body is added.
        idle_timeout: seconds for every other wait.
        total_timeout: seconds from now until the end.
    """

    __slots__ = (
        *("scope", "reason", "_receive", "_loop", "_time", "_first_byte_at", "_idle", "_end", "_deadline", "_late"),
        *("_body_since", "_is_receiving", "_body_is_over", "_timer", "_armed", "_watching"),
    )

    def __init__(
        self, receive: Receive, *, first_byte_timeout: float, idle_timeout: float, total_timeout: float | None
    ) -> None:
        self.scope = anyio.CancelScope()
        self.reason: Exception | None = None
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        now = self._time()
        self._first_byte_at = now + first_byte_timeout
        self._idle = idle_timeout
        self._end = math.inf if total_timeout is None else now + total_timeout
        self._deadline = self._first_byte_at
        self._late: type[Exception] = UpstreamTimeout
        self._body_since: float | None = None
        self._is_receiving = False
        self._body_is_over = False
        self._watching: asyncio.Task[None] | None = None
        self._arm(min(now + _UNWATCHED_SECONDS, self._deadline))

    @property
    def is_overdue(self) -> bool:
        """Whether the whole exchange took too long, and not only a part of it."""
        return self._time() >= self._end

    async def receive(self) -> Message:
        """The next message of the request's body, for which the upstream is not to blame.

        Raises:
            ClientLeft: it is the last message.
        """
        self._body_since = self._time()
        self._wait_until(self._body_since + self._idle, RequestTimeout)
        self._is_receiving = True
        try:
            message = await self._receive()
        finally:
            self._is_receiving = False
        if message["type"] == "http.disconnect":
            self.stop(ClientLeft())  # a transport may read the body in a task of its own
            raise ClientLeft
        self._body_is_over = not message.get("more_body", False)
        self.await_first_byte()
        return message

    def end_of_body(self) -> None:
        """Nobody will read on, whether the client has sent all or not: an upstream may answer early."""
        self._body_is_over = True

    def await_first_byte(self) -> None:
        if self._body_since is not None:
            self._first_byte_at += self._time() - self._body_since
            self._body_since = None
        self._wait_until(self._first_byte_at, UpstreamTimeout)

    def await_upstream(self) -> None:
        """Wait for the next piece.

        Raises:
            UpstreamTimeout: the whole exchange took too long.
        """
        now = self._time()
        if now >= self._end:
            raise UpstreamTimeout
        self._wait_until(now + self._idle, UpstreamTimeout)

    def await_client(self) -> None:
        """Wait until the client reads: whoever reads nothing must not hold an upstream."""
        self._wait_until(self._time() + self._idle, ClientLeft)

    def stop(self, reason: Exception) -> None:
        """End the exchange; the first reason counts."""
        self.reason = self.reason or reason
        self.scope.cancel()

    async def aclose(self) -> None:
        self._timer.cancel()
        if self._watching is not None:
            await end_task(self._watching)

    def _wait_until(self, deadline: float, late: type[Exception]) -> None:
        self._deadline, self._late = deadline, late
        if deadline < self._armed:
            self._timer.cancel()
            self._arm(deadline)

    def _arm(self, at: float) -> None:
        self._armed = at
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        now, due = self._time(), self._deadline
        if self._late is not ClientLeft:  # who reads at all is told of the end when the next piece is due
            due = min(due, self._end)
        if now >= due:
            self.stop(self._late())
            return
        if self._watching is None:
            if self._body_is_over and not self._is_receiving:  # `receive` has one reader at a time
                # not in a task group, which costs every request more than all the rest of it here; `aclose` awaits it
                self._watching = self._loop.create_task(self._watch())
            else:
                due = min(due, now + _UNWATCHED_SECONDS)
        self._arm(due)

    async def _watch(self) -> None:
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            self.stop(ClientLeft())
        except Exception as error:
            self.stop(error)


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task that nobody else awaits, and wait until it is over."""
    task.cancel()
    with anyio.CancelScope(shield=True):
        await asyncio.wait((task,), timeout=CLOSING_SECONDS)
