"""`UsageMiddleware` alone, round any inference app: usage in the headers of answers, and in the context for your code.

    uvicorn examples.usage_headers:app

    curl -i localhost:8000/v1/completions --json '{"model": "simulator", "prompt": "Hi"}'
    curl -N localhost:8000/v1/completions --json '{"model": "simulator", "prompt": "Hi", "stream": true}'
    curl localhost:8000/total

A stream cannot have the headers, for its usage comes last; and here its client did not even ask for it. Yet it counts.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from maas_middleware import UsageMiddleware, get_context
from maas_middleware.testing import SimulatedModel


class Total:
    """Adds up the tokens of all answers."""

    tokens = 0


class TotalMiddleware:
    """What the context holds once the answer is out can be billed, logged or measured."""

    def __init__(self, app: ASGIApp, *, total: Total) -> None:
        self.app = app
        self._total = total

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
        if scope["type"] == "http" and (usage := get_context(scope).usage) is not None:
            self._total.tokens += usage.total


total = Total()


async def show_total(request: Request) -> JSONResponse:
    return JSONResponse({"tokens": total.tokens})


app = Starlette(
    routes=[Route("/total", show_total), Mount("/", SimulatedModel())],
    middleware=[Middleware(TotalMiddleware, total=total), Middleware(UsageMiddleware)],
)
