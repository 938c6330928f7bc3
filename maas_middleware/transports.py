"""How upstreams and clusters are reached: httpx transports that may be used in any event loop."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from functools import partial
from typing import Literal

import httpx

logger = logging.getLogger("maas_middleware")

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
        """Close that of this event loop. Where that is cancelled, call it again."""
        loop = asyncio.get_running_loop()
        if (transport := self._transports.get(loop)) is not None:
            await transport.aclose()
            self._transports.pop(loop, None)  # not before, or nobody would know what is still open


def upstream_transport(kind: Literal["auto", "http11", "httpx"] = "auto", ca_file: str | None = None) -> LoopTransport:
    """Reach model servers: as many connections as there are requests, kept open for 3 idle seconds.

    Args:
        kind: `http11` is `HTTP11Transport`, `httpx` is `httpx.AsyncHTTPTransport`; `auto` the first where it can be,
            else one warning.
        ca_file: the certificate authorities of servers with https; None: those of the system.

    Raises:
        ValueError: `http11` is asked for, and httptools 0.6.4 is not installed.
        OSError: the file cannot be read, or holds no certificate.
    """
    trusted = ssl.create_default_context(cafile=ca_file)
    if kind == "httpx":
        return LoopTransport(partial(_httpx_transport, trusted))
    try:
        from .http11 import HTTP11Transport
    except ImportError:
        if kind == "http11":
            raise ValueError("httptools 0.6.4 is missing: pip install 'maas-middleware[gateway]'") from None
        logger.warning("httptools 0.6.4 is missing: model servers are reached over httpx, which takes more time")
        return LoopTransport(partial(_httpx_transport, trusted))
    return LoopTransport(
        partial(
            HTTP11Transport,
            ssl_context=trusted,
            max_keepalive_connections=None,
            keepalive_expiry=_KEEPALIVE_SECONDS,
        )
    )


def _httpx_transport(trusted: ssl.SSLContext) -> httpx.AsyncHTTPTransport:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEPALIVE_SECONDS)
    return httpx.AsyncHTTPTransport(verify=trusted, limits=limits, trust_env=False)
