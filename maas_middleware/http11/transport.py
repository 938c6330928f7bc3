"""The transport: which pool a request goes to."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from functools import cached_property

import httpx

from ._connecting import Origin
from ._exchange import Exchange
from ._pool import Pool
from ._requests import RequestHead

_PORTS = {b"http": 80, b"https": 443}


class HTTP11Transport(httpx.AsyncBaseTransport):
    """Speaks HTTP/1.1 to any server, at a fraction of the cost of httpx's own transport; for one event loop.

    Takes the timeouts of a request's extensions and raises what `httpx.AsyncHTTPTransport` raises. A response that
    could be read in two ways is a `RemoteProtocolError` (RFC 9112). When a server answers early, the rest of the
    request is not sent. A connection that broke before anything was sent on it is replaced; nothing is sent twice.
    Proxies, HTTP/2 and upgrades are not supported.

    Args:
        ssl_context: for https; by default servers are verified as httpx does.
        uds: path of a unix socket to which all requests go.
        max_connections: open connections to one origin; requests beyond wait in turn.
        max_keepalive_connections: idle connections to one origin.
        keepalive_expiry: seconds for which a connection may be idle, by `clock`.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        uds: str | None = None,
        max_connections: int | None = None,
        max_keepalive_connections: int | None = 100,
        keepalive_expiry: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._given_ssl_context = ssl_context
        self._uds = uds
        self._max_connections = max_connections
        self._max_keepalive_connections = max_keepalive_connections
        self._keepalive_expiry = keepalive_expiry
        self._clock = clock
        self._pools: dict[tuple[bytes, bytes, int | None], Pool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        pool = self._pool(request.url)
        head = RequestHead.of(request)
        timeouts = request.extensions.get("timeout", {})
        connection = await pool.acquire(timeouts.get("pool"), timeouts.get("connect"))
        exchange = Exchange(pool, connection, head, timeouts)
        response = await exchange.perform(request.stream)
        extensions = {"http_version": b"HTTP/" + response.version, "reason_phrase": response.reason}
        return httpx.Response(response.status, headers=response.fields, stream=exchange, extensions=extensions)

    async def aclose(self) -> None:
        """Close all connections, idle or not, and wait until they are. Where that is cancelled, call it again."""
        for origin, pool in list(self._pools.items()):
            await pool.aclose()
            self._pools.pop(origin, None)  # not before, or nobody would know what is still open

    def _pool(self, url: httpx.URL) -> Pool:
        key = (url.raw_scheme, url.raw_host, url.port)
        if (pool := self._pools.get(key)) is None:
            for other in [other for other, pool in self._pools.items() if pool.is_empty]:
                del self._pools[other]
            pool = self._pools[key] = self._new_pool(url)
        return pool

    def _new_pool(self, url: httpx.URL) -> Pool:
        if url.raw_scheme not in _PORTS or not url.raw_host:
            raise httpx.UnsupportedProtocol("A URL begins with http:// or https:// and a host.")
        context = self._ssl_context if url.raw_scheme == b"https" else None
        port = _PORTS[url.raw_scheme] if url.port is None else url.port
        origin = Origin(url.raw_host.decode("ascii"), port, self._uds, context)
        return Pool(
            origin.connect,
            maximum=self._max_connections,
            maximum_idle=self._max_keepalive_connections,
            idle_seconds=self._keepalive_expiry,
            clock=self._clock,
        )

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        return self._given_ssl_context or httpx.create_ssl_context(trust_env=False)
