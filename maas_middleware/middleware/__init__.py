"""The shells: each is one middleware, usable by itself."""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp


def stack(app: ASGIApp, *middlewares: Middleware) -> ASGIApp:
    """Wrap an app in middlewares, outermost first: `stack(app, Middleware(A), Middleware(B))` is `A(B(app))`."""
    for middleware in reversed(middlewares):
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    return app
