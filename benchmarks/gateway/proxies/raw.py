"""Our transport alone: an ASGI app that forwards, with nothing round it."""

from __future__ import annotations

import os

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from maas_middleware import upstream_transport


def app() -> ASGIApp:
    """Make the app."""
    transport = upstream_transport()
    upstream = httpx.URL(os.environ["BENCHMARK_UPSTREAM"])

    async def forward(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        url = upstream.copy_with(raw_path=scope["raw_path"])
        headers = [(b"host", url.netloc), *((name, value) for name, value in scope["headers"] if name != b"host")]
        request = httpx.Request(scope["method"], url, headers=headers, content=await _body(receive))
        response = await transport.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        try:
            given = [(name, value) for name, value in response.headers.raw if name != b"transfer-encoding"]
            await send({"type": "http.response.start", "status": response.status_code, "headers": given})
            async for chunk in response.stream:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.stream.aclose()

    return forward


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body
