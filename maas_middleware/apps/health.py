"""What anyone may ask: is it alive, can it serve, and which keys verify its tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .._asgi import serve
from ..errors import MethodNotAllowed, StoreUnavailable


class DocumentApp:
    """Answers GET with a JSON document that is made anew for every request."""

    def __init__(self, document: Callable[[], dict[str, Any]]) -> None:
        self._document = document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(scope, receive, send, self._respond)

    async def _respond(self, request: Request) -> Response:
        _check_method(request)
        return JSONResponse(self._document())


def health_app() -> DocumentApp:
    """`{"status": "healthy"}`: the process answers."""
    return DocumentApp(lambda: {"status": "healthy"})


class ReadyApp:
    """`{"status": "ready"}`, with `"degraded": [...]` naming what works only in part, from what is known already.

    503 `store_unavailable` while nobody can be served.

    Args:
        is_usable: whether anybody can be; default: always.
    """

    def __init__(
        self,
        *,
        degraded: Callable[[], Sequence[str]],
        is_usable: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._degraded = degraded
        self._is_usable = is_usable

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(scope, receive, send, self._respond)

    async def _respond(self, request: Request) -> Response:
        _check_method(request)
        if self._is_usable is not None and not await self._is_usable():
            raise StoreUnavailable("Nobody can be served until the store of tokens answers")
        troubles = list(self._degraded())
        return JSONResponse({"status": "ready", "degraded": troubles} if troubles else {"status": "ready"})


def _check_method(request: Request) -> None:
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed("GET", "HEAD")
