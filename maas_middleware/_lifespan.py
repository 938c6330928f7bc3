"""Resources that open and close with an app that may or may not have a lifespan of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("maas_middleware")

_LAST_MESSAGES = ("lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed")


async def run_lifespan(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, close: Callable[[], Awaitable[None]]
) -> None:
    """Serve the lifespan scope of an app, and close our resources when it has shut down, before the server hears of it.

    What the inner app leaves unanswered is answered in its place: an app without a lifespan raises or returns before
    the startup, and one that only starts up returns before the shutdown. A server that ends without a shutdown cancels
    this, and our resources are closed all the same.

    Args:
        close: is called again where it was cancelled before its end, so what it has closed has to bear that.
    """
    inner = _Inner(receive, send, close)
    try:
        await _converse(app, scope, inner)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await _close_at_last(inner)
        raise


async def _close_at_last(inner: _Inner) -> None:
    """Close, and again whenever asyncio cancels this task meanwhile, which no scope is a shield against."""
    task = asyncio.current_task()
    assert task is not None
    while True:
        cancelled = task.cancelling()
        try:
            await inner.close()
        except asyncio.CancelledError:
            if task.cancelling() == cancelled:  # nobody asked for it: it came from what is closed
                raise
        else:
            return


async def _converse(app: ASGIApp, scope: Scope, inner: _Inner) -> None:
    try:
        await app(scope, inner.receive, inner.send)
    except Exception:
        if inner.answered:
            await inner.close()
            raise
        logger.debug("the inner app has no lifespan", exc_info=True)
    await inner.finish()


class _Inner:
    """The inner app's side of the conversation."""

    def __init__(self, receive: Receive, send: Send, close: Callable[[], Awaitable[None]]) -> None:
        self.answered = False
        self._receive = receive
        self._send = send
        self._close = close
        self._closed = False
        self._received: set[str] = set()

    async def receive(self) -> Message:
        message = await self._receive()
        self._received.add(message["type"])
        return message

    async def send(self, message: Message) -> None:
        self.answered = True
        if message["type"] in _LAST_MESSAGES:
            await self.close()
        await self._send(message)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await self._close()
        except asyncio.CancelledError:
            self._closed = False  # and so it is called again
            raise

    async def finish(self) -> None:
        if not self.answered:
            await self._receive_until("lifespan.startup")
            await self.send({"type": "lifespan.startup.complete"})
        if not self._closed:
            await self._receive_until("lifespan.shutdown")
            await self.send({"type": "lifespan.shutdown.complete"})

    async def _receive_until(self, kind: str) -> None:
        while kind not in self._received:
            await self.receive()


class _Requests:
    """Those that are under way, each of them inside a `with`."""

    def __init__(self) -> None:
        self._count = 0
        self._none_left: anyio.Event | None = None

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if self._count == 0 and self._none_left is not None:
            self._none_left.set()

    async def wait_for_end(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            if self._count > 0:
                self._none_left = anyio.Event()
                await self._none_left.wait()
        if self._count > 0:
            logger.warning("%d requests are under way while everything closes", self._count)


class Service:
    """A dispatch and its resources, round the lifespan of the app inside.

    Servers that stop cancel the requests that take too long, and end the lifespan while those still settle: nothing is
    closed before they are through.

    Args:
        starting: are waited for one after the other before the app starts, so they have to end by themselves.
        running: run while the lifespan lasts, and are cancelled before anything is closed. What they raise ends it.
        closing: is called at the end, each of them whatever happens to another, the last first; all of them again where
            that was cancelled.
        patience: seconds that requests have to end in before that.
    """

    def __init__(
        self,
        dispatch: ASGIApp,
        inner: ASGIApp,
        *,
        starting: Sequence[Callable[[], Awaitable[None]]] = (),
        running: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
        closing: Sequence[Callable[[], Awaitable[None]]] = (),
        patience: float = 5.0,
    ) -> None:
        self._dispatch = dispatch
        self._inner = inner
        self._starting = starting
        self._running = running
        self._closing = closing
        self._patience = patience
        self._requests = _Requests()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            with self._requests:
                await self._dispatch(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        for start in self._starting:
            await start()
        background, ended = anyio.CancelScope(), anyio.Event()
        error: Exception | None = None

        async def run() -> None:
            try:
                with background:
                    async with anyio.create_task_group() as group:
                        for service in self._running:
                            group.start_soon(service)
            finally:
                ended.set()

        async def close() -> None:
            await self._requests.wait_for_end(self._patience)
            background.cancel()
            await ended.wait()
            await self.aclose()

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            try:
                await run_lifespan(self._inner, scope, receive, send, close=close)
            except Exception as raised:
                error = raised  # so that it leaves without a group round it
            background.cancel()
        if error is not None:
            raise error

    async def aclose(self) -> None:
        """Close what the service holds open."""
        async with AsyncExitStack() as stack:
            for close in self._closing:
                stack.push_async_callback(close)
