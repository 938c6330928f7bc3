"""Real servers on free ports, for the time of a test."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import anyio
from anyio.from_thread import start_blocking_portal
from starlette.types import ASGIApp

if TYPE_CHECKING:
    from uvicorn import Server

_OPTIONS: dict[str, Any] = {
    "log_config": None,  # logs go where the test has them
    "log_level": "warning",
    "proxy_headers": False,  # whose word counts is for `trusted_proxies` to say
    "timeout_graceful_shutdown": 1,
}


@asynccontextmanager
async def serving(app: ASGIApp, **config: Any) -> AsyncIterator[str]:
    """Serve an app by uvicorn in the test's own event loop; yields its base URL, such as `http://127.0.0.1:40001`.

    At the end of the block requests that run have a second to end, and then the app is shut down.

    Args:
        config: options of `uvicorn.Config`, such as `ssl_certfile` or `lifespan="off"`.

    Raises:
        RuntimeError: the app's startup failed; the log of uvicorn says why.
        ImportError: uvicorn is missing.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sets it where the protocol is named
        ready, ended = anyio.Event(), anyio.Event()
        server = _server(app, {**_OPTIONS, **config}, ready, ended)
        error: BaseException | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(_run, server, listener)
            try:
                await ready.wait()
                if not server.started:
                    raise RuntimeError("the app's startup failed; the log of uvicorn says why")
                scheme = "https" if server.config.is_ssl else "http"
                yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
            except BaseException as raised:  # even `pytest.skip`, which is no Exception
                error = raised  # so that it leaves without a group round it
            ended.set()
        if error is not None:
            raise error


@contextmanager
def serving_in_thread(app: ASGIApp, **config: Any) -> Iterator[str]:
    """Serve an app as `serving` does, in a thread with an event loop of its own: for tests that are no coroutines."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving(app, **config)) as url:
        yield url


async def _run(server: Server, listener: socket.socket) -> None:
    with suppress(SystemExit):  # of a startup that failed; it would end the event loop
        await server.serve([listener])


def _server(app: ASGIApp, config: dict[str, Any], ready: anyio.Event, ended: anyio.Event) -> Server:
    try:
        import uvicorn
    except ImportError:
        raise ImportError("uvicorn is missing: pip install 'maas-middleware[gateway]'") from None

    class BlockServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            try:
                await super().startup(sockets)
            finally:
                ready.set()

        async def main_loop(self) -> None:
            await self.on_tick(0)
            await ended.wait()

        def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override] # Ctrl-C is the test's
            return nullcontext()

    loaded = uvicorn.Config(app, **config)
    loaded.load()
    return BlockServer(loaded)
