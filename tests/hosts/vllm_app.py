"""A stand-in for vLLM 0.33 that is started as it is, and puts a `--middleware` where it does.

    python -m tests.hosts.vllm_app serve MODEL --middleware maas_middleware.MaaSMiddleware

The model is simulated; arguments, middlewares, routes, errors, and the way in which it starts and ends are vLLM's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI

from .vllm_arguments import parse
from .vllm_engine import Engine
from .vllm_middleware import add_middlewares
from .vllm_routes import add_routes


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    try:
        yield
    finally:
        del app.state


def build_app(args: argparse.Namespace, engine: Engine) -> FastAPI:
    """Make the app, with its stack of middlewares already built: nothing can be added later."""
    if args.disable_fastapi_docs:
        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=_lifespan)
    else:
        app = FastAPI(lifespan=_lifespan)
    app.root_path = args.root_path
    add_routes(app, engine, force_include_usage=args.enable_force_include_usage)
    add_middlewares(app, args, engine.counts)
    app.middleware_stack = app.build_middleware_stack()
    return app


class _NoSignalServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_http(
    app: FastAPI, engine: Engine, sock: socket.socket, args: argparse.Namespace
) -> Coroutine[Any, Any, None]:
    """Serve until a signal comes; returns what is still to be done when the engine is gone."""
    config = uvicorn.Config(
        app,
        host=args.host or "",
        port=args.port,
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_uvicorn_access_log,
        timeout_keep_alive=5,
    )
    config.load()
    server = _NoSignalServer(config)
    loop = asyncio.get_running_loop()
    server_task = loop.create_task(server.serve(sockets=[sock]))
    shutdown_event = asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, shutdown_event.set)
    loop.add_signal_handler(signal.SIGTERM, shutdown_event.set)

    async def handle_shutdown() -> None:
        await shutdown_event.wait()
        await engine.stop(args.shutdown_timeout)
        server.should_exit = True
        server_task.cancel()

    async def nothing_more() -> None:
        pass

    shutdown_task = loop.create_task(handle_shutdown())
    try:
        await server_task
        return nothing_more()
    except asyncio.CancelledError:
        return server.shutdown()
    finally:
        shutdown_task.cancel()


async def run_server(sock: socket.socket, args: argparse.Namespace) -> None:
    """Run one API server."""
    adapters = dict(module.split("=", 1) for module in args.lora_modules)
    names = args.served_model_name or [args.model_tag or args.model]
    engine = Engine(names[0], adapters, token_seconds=args.token_seconds, hold_after=args.hold_after)
    shutdown = await serve_http(build_app(args, engine), engine, sock, args)
    try:
        await shutdown
    finally:
        sock.close()


def _worker(sock: socket.socket, args: argparse.Namespace) -> None:
    uvloop.run(run_server(sock, args))


def _run_several(sock: socket.socket, args: argparse.Namespace) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(sock, args)) for _ in range(args.api_server_count)]

    def stop(*_: object) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(timeout=10)
    raise SystemExit(max(abs(worker.exitcode or 0) for worker in workers))


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    sock = socket.create_server((args.host or "", args.port))
    if args.api_server_count > 1:
        _run_several(sock, args)
    else:
        uvloop.run(run_server(sock, args))


if __name__ == "__main__":
    main(sys.argv[1:])
