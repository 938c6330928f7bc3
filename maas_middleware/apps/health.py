"""What anyone may ask: is it alive, can it serve, and which keys verify its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .._asgi import serve
from ..errors import MethodNotAllowed


class DocumentApp:
    """Answers GET with a JSON document that is made anew for every request."""

    def __init__(self, document: Callable[[], dict[str, Any]]) -> None:
        self._document = document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(scope, receive, send, self._respond)

    async def _respond(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed("GET", "HEAD")
        return JSONResponse(self._document())


def health_app() -> DocumentApp:
    """`{"status": "healthy"}`: the process answers."""
    return DocumentApp(lambda: {"status": "healthy"})


def ready_app(degraded: Callable[[], Sequence[str]]) -> DocumentApp:
    """`{"status": "ready"}`, with `"degraded": [...]` naming what works only in part, from what is known already."""

    def document() -> dict[str, Any]:
        troubles = list(degraded())
        return {"status": "ready", "degraded": troubles} if troubles else {"status": "ready"}

    return DocumentApp(document)
