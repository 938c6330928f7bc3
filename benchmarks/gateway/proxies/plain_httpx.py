"""A proxy with Starlette and httpx, as everybody writes it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

_NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)


def app() -> Starlette:
    """Make the app."""
    client = httpx.AsyncClient(
        base_url=os.environ["BENCHMARK_UPSTREAM"], timeout=None, limits=_NO_LIMITS, trust_env=False
    )

    async def forward(request: Request) -> StreamingResponse:
        headers = [(name, value) for name, value in request.headers.raw if name != b"host"]
        asked = client.build_request(request.method, request.url.path, headers=headers, content=request.stream())
        response = await client.send(asked, stream=True)
        return StreamingResponse(
            response.aiter_raw(),
            status_code=response.status_code,
            headers={name: value for name, value in response.headers.items() if name != "transfer-encoding"},
            background=BackgroundTask(response.aclose),
        )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])], lifespan=lifespan)
