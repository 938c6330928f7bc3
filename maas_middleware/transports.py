"""How upstreams and clusters are reached: httpx transports that may be used in any event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

import httpx

# uvicorn, and so vLLM, closes idle connections after 5 seconds: whoever is earlier never writes into a closing one
_KEEPALIVE_SECONDS = 3.0


class LoopTransport(httpx.AsyncBaseTransport):
    """One transport for each running event loop, because a connection fails in any loop but its own.

    It may be used in many loops, one after the other or at once, and is closed in each.
    """

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport]) -> None:
        self._make = make
        self._transports: dict[asyncio.AbstractEventLoop, httpx.AsyncBaseTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        loop = asyncio.get_running_loop()
        if (transport := self._transports.get(loop)) is None:
            for ended in [other for other in self._transports if other.is_closed()]:
                del self._transports[ended]
            transport = self._transports[loop] = self._make()
        return await transport.handle_async_request(request)

    async def aclose(self) -> None:
        transport = self._transports.pop(asyncio.get_running_loop(), None)
        if transport is not None:
            await transport.aclose()


def upstream_transport(kind: Literal["auto", "http11", "httpx"] = "auto") -> LoopTransport:
    """Reach model servers: as many connections as there are requests, kept open for 3 idle seconds.

    Args:
        kind: `http11` is `HTTP11Transport`, `httpx` is `httpx.AsyncHTTPTransport`; `auto` the first where it can be.

    Raises:
        ValueError: `http11` is asked for, and httptools is not installed.
    """
    if kind == "httpx" or (kind == "auto" and find_spec("httptools") is None):
        return LoopTransport(_httpx_transport)
    try:
        from .http11 import HTTP11Transport
    except ImportError:
        raise ValueError("httptools is missing: pip install 'maas-middleware[gateway]'") from None
    return LoopTransport(lambda: HTTP11Transport(max_keepalive_connections=None, keepalive_expiry=_KEEPALIVE_SECONDS))


def _httpx_transport() -> httpx.AsyncHTTPTransport:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEPALIVE_SECONDS)
    return httpx.AsyncHTTPTransport(limits=limits, trust_env=False)
