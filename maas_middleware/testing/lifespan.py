"""An app's lifespan, run for the time of a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@asynccontextmanager
async def started(app: ASGIApp) -> AsyncIterator[ASGIApp]:
    """Start an app up, and shut it down at the end of the block.

    Yields the app as its server calls it: each request has a copy of the state that the lifespan left. An app that has
    no lifespan, and raises or returns instead, is served all the same.

    Raises:
        RuntimeError: the startup or the shutdown failed; with what the app said about it.
        Exception: what the app's lifespan raised in between.
    """
    life = _Life(app)
    error: BaseException | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(life.run)
        try:
            await life.start_up()
            yield life.serve
        except BaseException as raised:  # even `pytest.skip`, which is no Exception
            error = raised  # so that it leaves without a group round it
        problem = await life.shut_down()
        group.cancel_scope.cancel()
    if (error := error or problem) is not None:
        raise error


class _Life:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._state: dict[str, Any] = {}
        self._started, self._asked_to_end, self._ended = anyio.Event(), anyio.Event(), anyio.Event()
        self._problem: Exception | None = None
        self._requests: list[Message] = [{"type": "lifespan.startup"}]

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "state": {**self._state, **scope.get("state", {})}}, receive, send)

    async def run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as raised:
            if self._started.is_set():
                self._problem = self._problem or raised
        self._started.set()
        self._ended.set()

    async def start_up(self) -> None:
        await self._started.wait()
        if self._problem is not None:
            raise self._problem

    async def shut_down(self) -> Exception | None:
        if self._started.is_set():  # else it is stuck there, and the block was cancelled
            self._asked_to_end.set()
            await self._ended.wait()
        return self._problem

    async def _receive(self) -> Message:
        if self._requests:
            return self._requests.pop()
        await self._asked_to_end.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        _, step, outcome = message["type"].split(".")
        if outcome == "failed":
            self._problem = RuntimeError(f"the app's {step} failed: {message.get('message', '')}")
        if step == "shutdown" or outcome == "failed":
            self._ended.set()
        self._started.set()
