"""Requests of tests, and servers that answer them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
from anyio.abc import TaskGroup

from maas_middleware.http11 import HTTP11Transport

from ..raw_upstream import answer
from ..transport.upstreams import Peer, PeerScript, Upstream, hostile, turns


class Pieces(httpx.AsyncByteStream):
    """A body that arrives piece by piece, as a client sends it; in chunks where it has no length.

    Attributes:
        read: how many pieces were taken.
        is_closed: the iteration has ended, in whatever way.
    """

    def __init__(
        self, *pieces: bytes, length: int | None = None, then: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        self.length = length
        self.read = 0
        self.is_closed = False
        self._pieces = pieces
        self._then = then

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for piece in self._pieces:
                self.read += 1
                yield piece
            if self._then is not None:
                await self._then()
        finally:
            self.is_closed = True


def request(url: str, body: Pieces | bytes | None = None, **timeouts: float) -> httpx.Request:
    """A POST, or a GET without a body; timeouts in seconds."""
    headers = [(b"host", httpx.URL(url).netloc)]
    length = body.length if isinstance(body, Pieces) else len(body or b"")
    if body is not None:
        headers.append(
            (b"content-length", b"%d" % length) if length is not None else (b"transfer-encoding", b"chunked")
        )
    stream = body if isinstance(body, Pieces) else httpx.ByteStream(body or b"")
    method = "GET" if body is None else "POST"
    return httpx.Request(method, url, headers=headers, stream=stream, extensions={"timeout": timeouts})


async def read(response: httpx.Response) -> bytes:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return b"".join([piece async for piece in response.stream])


async def ask(transport: HTTP11Transport, url: str, **timeouts: float) -> bytes:
    """The body of the answer to a GET."""
    return await read(await transport.handle_async_request(request(url, None, **timeouts)))


async def answering(peer: Peer) -> None:
    """Answer every request with its own first line."""
    while True:
        await peer.send(answer("200 OK", (await peer.read_request()).line))


@asynccontextmanager
async def reached(script: PeerScript, **options: Any) -> AsyncIterator[tuple[HTTP11Transport, Upstream]]:
    """A server, and a transport that may have reached it."""
    async with hostile(script) as upstream, HTTP11Transport(**options) as transport:
        yield transport, upstream


async def started(group: TaskGroup, work: Callable[[], Awaitable[object]]) -> anyio.CancelScope:
    """Start work that is cancelled by the scope, and let it go as far as it comes."""
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await work()

    group.start_soon(run)
    await turns(50)
    return scope
