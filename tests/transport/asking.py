"""Both transports, opened the same way, and one whole exchange with either."""

from __future__ import annotations

import functools
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import httpx

from maas_middleware.http11 import HTTP11Transport

T = TypeVar("T")
Headers = Sequence[tuple[bytes, bytes]]


@functools.cache
def trusting() -> ssl.SSLContext:
    """What httpx makes for each transport by default, which takes longer than a test."""
    return httpx.create_ssl_context(trust_env=False)


@dataclass(frozen=True)
class Kind:
    """A transport, and the event loop that it runs in."""

    name: Literal["httpx", "http11"]
    uvloop: bool = False

    def of(self, *, http11: T, httpx: T) -> T:
        """What is expected of this transport where the two legitimately differ."""
        return http11 if self.name == "http11" else httpx

    @asynccontextmanager
    async def open(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        uds: str | None = None,
        max_connections: int | None = None,
        max_keepalive_connections: int | None = 100,
        keepalive_expiry: float = 60.0,
    ) -> AsyncIterator[httpx.AsyncBaseTransport]:
        limits = httpx.Limits(
            max_connections=max_connections,
            max_keepalive_connections=max_keepalive_connections,
            keepalive_expiry=keepalive_expiry,
        )
        transport = (
            HTTP11Transport(
                ssl_context=ssl_context,
                uds=uds,
                max_connections=max_connections,
                max_keepalive_connections=max_keepalive_connections,
                keepalive_expiry=keepalive_expiry,
            )
            if self.name == "http11"
            else httpx.AsyncHTTPTransport(verify=ssl_context or trusting(), trust_env=False, uds=uds, limits=limits)
        )
        async with transport:
            yield transport


@dataclass(frozen=True)
class Answer:
    """An answer as a caller got it: header names and values as they came."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    reason: bytes = b""

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]


def request(
    url: str,
    method: str = "GET",
    *,
    headers: Headers = (),
    content: bytes | AsyncIterator[bytes] | None = None,
    connect: float | None = None,
    read: float | None = None,
    write: float | None = None,
    pool: float | None = None,
) -> httpx.Request:
    """A request with the timeouts that are named, in seconds."""
    named = {"connect": connect, "read": read, "write": write, "pool": pool}
    return httpx.Request(method, url, headers=list(headers), content=content, extensions={"timeout": named})


def pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it arrives."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return aiter(response.stream)


async def read(response: httpx.Response) -> Answer:
    """Read an answer to its end, and give its connection back."""
    try:
        body = b"".join([piece async for piece in pieces(response)])
    finally:
        await response.aclose()
    return Answer(response.status_code, response.headers.raw, body, response.extensions["reason_phrase"])


async def exchange(transport: httpx.AsyncBaseTransport, asked: httpx.Request) -> Answer:
    return await read(await transport.handle_async_request(asked))


async def ask(
    transport: httpx.AsyncBaseTransport,
    url: str,
    *,
    connect: float | None = None,
    read: float | None = None,
    pool: float | None = None,
) -> Answer:
    """A GET and its whole answer."""
    return await exchange(transport, request(url, connect=connect, read=read, pool=pool))


async def post(
    transport: httpx.AsyncBaseTransport,
    url: str,
    content: bytes | AsyncIterator[bytes],
    *,
    read: float | None = None,
    write: float | None = None,
    pool: float | None = None,
) -> Answer:
    return await exchange(transport, request(url, "POST", content=content, read=read, write=write, pool=pool))
