"""The middlewares of others, as far as they are installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from fastapi import Depends, FastAPI, params
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..gateway.wire import PATH
from .contender import Contender

_LIMIT = 10**9  # so that nothing is refused


def theirs() -> Iterator[Contender]:
    """BaseHTTPMiddleware that only passes, and what others limit with: two limits in the memory of the process each."""
    yield Contender("BaseHTTPMiddleware", _passing)
    yield Contender("BaseHTTPMiddleware, three", lambda app: _passing(_passing(_passing(app))))
    if find_spec("slowapi") is not None:
        from slowapi.middleware import (  # type: ignore[import-not-found]  # only where it is measured
            SlowAPIASGIMiddleware,
            SlowAPIMiddleware,
        )

        for middleware in (SlowAPIMiddleware, SlowAPIASGIMiddleware):
            yield Contender(f"slowapi, {middleware.__name__}", _Slow(middleware), _routed)
    if find_spec("fastapi_limiter") is not None:
        yield Contender("fastapi-limiter, RateLimiter", _limited_by_dependency, _fast)


def installed() -> list[str]:
    return [name for name in ("slowapi", "fastapi-limiter") if find_spec(name.replace("-", "_")) is not None]


def _passing(app: ASGIApp) -> ASGIApp:
    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    return BaseHTTPMiddleware(app, dispatch=dispatch)


class _Through(Response):
    """Lets an app answer for a route."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _routed(app: ASGIApp) -> Starlette:
    async def endpoint(request: Request) -> Response:
        return _Through(app)

    return Starlette(routes=[Route(PATH, endpoint, methods=["POST"])])


class _Slow:
    def __init__(self, middleware: Any) -> None:
        self._middleware = middleware

    def __call__(self, app: ASGIApp) -> ASGIApp:
        from slowapi import Limiter  # type: ignore[import-not-found]  # only where it is measured
        from slowapi.util import get_remote_address  # type: ignore[import-not-found]  # only where it is measured

        made = _routed(app)
        limits = [f"{_LIMIT}/minute", f"{_LIMIT}/hour"]
        made.state.limiter = Limiter(key_func=get_remote_address, default_limits=limits, headers_enabled=True)
        made.add_middleware(self._middleware)
        return made


def _fast(app: ASGIApp, *dependencies: params.Depends) -> FastAPI:
    made = FastAPI()

    @made.post(PATH, dependencies=list(dependencies))
    async def endpoint() -> Response:
        return _Through(app)

    return made


def _limited_by_dependency(app: ASGIApp) -> ASGIApp:
    from fastapi_limiter.depends import RateLimiter  # type: ignore[import-not-found]  # only where it is measured
    from pyrate_limiter import Duration, Limiter, Rate

    limiter = Limiter([Rate(_LIMIT, Duration.MINUTE), Rate(2 * _LIMIT, Duration.HOUR)])
    return _fast(app, Depends(RateLimiter(limiter=limiter)))
