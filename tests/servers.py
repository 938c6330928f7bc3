"""Real uvicorn servers on free ports, in the test's own event loop."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = anyio.Event()
        self.ended = anyio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.ready.set()

    async def main_loop(self) -> None:
        await self.ended.wait()


@asynccontextmanager
async def serving(app: ASGIApp, **config: Any) -> AsyncIterator[str]:
    """Serve an app; yields its base URL. Everything is closed at the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sets it where the protocol is named
    options: dict[str, Any] = {
        "log_level": "warning",
        "timeout_graceful_shutdown": 1,
        "lifespan": "auto",
        "proxy_headers": False,
        **config,
    }
    server = _Server(uvicorn.Config(app, **options))
    scheme = "https" if "ssl_certfile" in config else "http"
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve, [listener])
        await server.ready.wait()
        try:
            yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.ended.set()
    listener.close()


@contextmanager
def serving_in_thread(app: ASGIApp) -> Iterator[str]:
    """Serve an app for tests that have no event loop of their own; yields its base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sets it where the protocol is named
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
