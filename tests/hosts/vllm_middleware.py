"""What stands between `--middleware` and the routes in vLLM, outermost last, and how a `--middleware` is put there."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import secrets
import uuid
from collections import Counter
from collections.abc import Awaitable
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

GUARDED_PREFIX = ("/v1", "/v2", "/inference", "/cohere")


class AuthenticationMiddleware:
    """`--api-key`: only some prefixes, only Bearer, and an error that is no envelope."""

    def __init__(self, app: ASGIApp, tokens: list[str]) -> None:
        self.app = app
        self._digests = [_digest(token) for token in tokens]

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] not in ("http", "websocket") or scope.get("method") == "OPTIONS":
            return self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path.startswith(GUARDED_PREFIX) and not self._knows(Headers(scope=scope).get("Authorization", "")):
            return JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
        return self.app(scope, receive, send)

    def _knows(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        known = [secrets.compare_digest(_digest(token), digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(known)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class XRequestIdMiddleware:
    """`--enable-request-id-headers`: appends the request's own id, or a new one, to the app's list of headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] not in ("http", "websocket"):
            return self.app(scope, receive, send)
        asked = Headers(scope=scope)

        async def send_with_request_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                headers.append("X-Request-Id", asked.get("X-Request-Id", uuid.uuid4().hex))
            await send(message)

        return self.app(scope, receive, send_with_request_id)


class ScalingMiddleware:
    """Pauses everything while the engine is scaled; nothing scales here."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self.app(scope, receive, send)


class WebSocketMetricsMiddleware:
    """Counts WebSockets."""

    def __init__(self, app: ASGIApp, counts: Counter[str]) -> None:
        self.app = app
        self._counts = counts

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        self._counts["vllm:websocket_connections_total"] += scope["type"] == "websocket"
        return self.app(scope, receive, send)


class PrometheusMiddleware:
    """Counts answers by their status, as prometheus-fastapi-instrumentator does inside of all others."""

    def __init__(self, app: ASGIApp, counts: Counter[str]) -> None:
        self.app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counts[f'http_requests_total{{status="{message["status"] // 100}xx"}}'] += 1
            await send(message)

        await self.app(scope, receive, counting_send)


def add_middlewares(app: FastAPI, args: argparse.Namespace, counts: Counter[str]) -> None:
    """Add all of them in vLLM's order. What is added last is outermost.

    Raises:
        ValueError: a `--middleware` is neither a class nor a coroutine function.
    """
    app.add_middleware(PrometheusMiddleware, counts=counts)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=args.allowed_origins,
        allow_credentials=args.allow_credentials,
        allow_methods=["*"],
        allow_headers=["*"],
    )
    if args.api_key:
        app.add_middleware(AuthenticationMiddleware, tokens=args.api_key)
    if args.enable_request_id_headers:
        app.add_middleware(XRequestIdMiddleware)
    app.add_middleware(ScalingMiddleware)
    app.add_middleware(WebSocketMetricsMiddleware, counts=counts)
    for middleware in args.middleware:
        module_path, object_name = middleware.rsplit(".", 1)
        imported = getattr(importlib.import_module(module_path), object_name)
        if inspect.isclass(imported):
            add: Any = app.add_middleware  # of any class
            add(imported)
        elif inspect.iscoroutinefunction(imported):
            app.middleware("http")(imported)
        else:
            raise ValueError(f"Invalid middleware {middleware}. Must be a function or a class.")
