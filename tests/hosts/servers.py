"""The servers that people run a host app on, each in the test's own event loop."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import hypercorn.asyncio
import hypercorn.config
from granian.constants import Interfaces
from granian.server.embed import Server
from starlette.types import ASGIApp

from tests.servers import serving

Serving = Callable[[ASGIApp, str], AbstractAsyncContextManager[str]]


def on_httptools(app: ASGIApp, root_path: str = "") -> AbstractAsyncContextManager[str]:
    return serving(app, http="httptools", root_path=root_path)


def on_h11(app: ASGIApp, root_path: str = "") -> AbstractAsyncContextManager[str]:
    return serving(app, http="h11", root_path=root_path)


@asynccontextmanager
async def on_hypercorn(app: ASGIApp, root_path: str = "") -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listener.detach()}"]  # it closes it
    config.root_path = root_path
    config.loglevel = "WARNING"
    config.graceful_timeout = 1
    ended = anyio.Event()

    async def serve() -> None:
        await hypercorn.asyncio.serve(app, config, shutdown_trigger=ended.wait)  # type: ignore[arg-type]  # types of its own

    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            ended.set()


@asynccontextmanager
async def on_granian(app: ASGIApp, root_path: str = "") -> AsyncIterator[str]:
    logging.getLogger("_granian").setLevel(logging.ERROR)  # a warning says that this form is experimental
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = Server(
        app,
        port=port,
        interface=Interfaces.ASGI,
        url_path_prefix=root_path or None,
        log_enabled=False,
    )
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve)
        await _listening(port)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop()  # type: ignore[no-untyped-call]


async def _listening(port: int) -> None:
    while True:  # granian does not tell
        try:
            stream = await anyio.connect_tcp("127.0.0.1", port)
        except OSError:
            await anyio.lowlevel.checkpoint()
        else:
            await stream.aclose()
            return


SERVERS: dict[str, Serving] = {
    "httptools": on_httptools,
    "h11": on_h11,
    "granian": on_granian,
    "hypercorn": on_hypercorn,
}
