"""`ForwardedMiddleware`: who is calling, and under which URL, where a proxy stands before the app.

    uvicorn examples.trusted_proxies:app --no-proxy-headers

    curl localhost:8000 -H "X-Forwarded-For: 203.0.113.7" -H "X-Forwarded-Proto: https"

The headers count where the peer is on loopback or in 10.0.0.0/8; from anybody else they change nothing.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from maas_middleware import ForwardedMiddleware


async def tell(request: Request) -> JSONResponse:
    """Tells whom the app takes for its client, and itself for."""
    return JSONResponse({"client": request.client.host if request.client else None, "url": str(request.url)})


app = Starlette(
    routes=[Route("/", tell)],
    middleware=[Middleware(ForwardedMiddleware, trusted=["127.0.0.1", "::1", "10.0.0.0/8"])],
)
