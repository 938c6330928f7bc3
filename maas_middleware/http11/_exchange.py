"""One request and its response on one connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import anyio
import httpx

from ._connection import Connection
from ._pool import Pool
from ._requests import RequestHead
from ._responses import ResponseHead, ResponseParser
from ._waiting import until

PIECE_BYTES = 64 * 1024
# above which the server has to wait until the reader has taken what is there
MAXIMUM_BUFFERED_BYTES = 64 * 1024


class Exchange(httpx.AsyncByteStream):
    """Sends a request, and is the stream of the response's body.

    It owns its connection until the last byte of the response was parsed. The connection goes back to the pool then,
    and is closed at once where the exchange ends in any other way.
    """

    def __init__(
        self, pool: Pool, connection: Connection, head: RequestHead, timeouts: Mapping[str, float | None]
    ) -> None:
        self._pool = pool
        self._connection: Connection | None = connection
        self._request_head = head
        self._unsent = head.length
        self._timeouts = timeouts
        self._parser = ResponseParser(has_body=head.method != "HEAD", keep_alive=head.keep_alive)
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sending: anyio.CancelScope | None = None
        self._is_sent = False
        self._is_paused = False

    async def perform(self, body: httpx.AsyncByteStream) -> ResponseHead:
        """Send the request, as far as the server wants it, and wait for the head of the response.

        Raises:
            httpx.TransportError: there is no response.
        """
        try:
            await self._send(aiter(body))
            while self._parser.head is None:
                await self._receive()
            return self._parser.head
        except BaseException:
            self._abort()
            raise

    def __aiter__(self) -> Exchange:
        return self

    async def __anext__(self) -> bytes:
        while not self._parser.pieces:
            if self._parser.is_complete:
                raise StopAsyncIteration
            await self._receive()
        piece = self._parser.take()
        if self._is_paused and self._connection is not None and not self._connection.is_closing:
            self._is_paused = False
            self._connection.resume_reading()
        return piece

    async def aclose(self) -> None:
        """Close the connection at once, unless the response is complete."""
        self._abort()

    def received(self, data: bytes) -> None:
        assert self._connection is not None
        try:
            self._parser.feed(data)
        except httpx.RemoteProtocolError as error:
            self._fail(error)
            return
        if self._parser.is_complete:
            self._leave(is_reusable=self._parser.keep_alive and self._is_sent and self._connection.is_flushed)
        elif self._parser.buffered > MAXIMUM_BUFFERED_BYTES and not self._is_paused:
            self._is_paused = True
            self._connection.pause_reading()
        self._wake()

    def ended(self) -> None:
        try:
            self._parser.feed_eof()
        except httpx.RemoteProtocolError as error:
            self._fail(error)
        else:
            self._leave(is_reusable=False)
            self._wake()

    def lost(self, error: Exception | None) -> None:
        # without an error: an end that TLS did not announce may be an attacker's (RFC 9112, section 9.8)
        failure = httpx.ReadError("Read failed.") if error else httpx.RemoteProtocolError("Server disconnected.")
        failure.__cause__ = error
        self._fail(failure)

    async def _send(self, pieces: AsyncIterator[bytes]) -> None:
        try:
            first = await anext(pieces, b"")
            self._count(first)
            connection = await self._attach()
            connection.write(self._request_head.encoded + self._request_head.frame(first[:PIECE_BYTES]))
            if self._unsent == 0 and len(first) <= PIECE_BYTES:
                async for piece in pieces:
                    self._count(piece)
                self._is_sent = True
            else:
                await self._send_rest(connection, first[PIECE_BYTES:], pieces)
        finally:
            if (aclose := getattr(pieces, "aclose", None)) is not None:
                await aclose()

    async def _attach(self) -> Connection:
        connection, self._connection = self._connection, None
        assert connection is not None
        # nothing was sent on it, so it may be replaced: it closed, or something came that nobody asked for
        if connection.is_closing or connection.is_readable:
            connection = await self._pool.replace(connection, self._timeouts.get("connect"))
        self._connection = connection
        connection.receiver = self
        return connection

    async def _send_rest(self, connection: Connection, piece: bytes, pieces: AsyncIterator[bytes]) -> None:
        """Send pieces until the server answers, which needs no more then."""
        try:
            with anyio.CancelScope() as self._sending:
                await self._send_piece(connection, piece)
                async for piece in pieces:
                    self._count(piece)
                    await self._send_piece(connection, piece)
                if self._unsent:
                    raise httpx.LocalProtocolError("Too little data for declared Content-Length")
                connection.write(self._request_head.ending)
                self._is_sent = True
        finally:
            self._sending = None

    async def _send_piece(self, connection: Connection, piece: bytes) -> None:
        view = memoryview(piece)
        for start in range(0, len(piece), PIECE_BYTES):
            if connection.is_readable:  # what came is lost if writing fails now
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            connection.write(self._request_head.frame(view[start : start + PIECE_BYTES]))
            await connection.drained(self._timeouts.get("write"))

    def _count(self, piece: bytes) -> None:
        if self._unsent is not None:
            self._unsent -= len(piece)
            if self._unsent < 0:
                raise httpx.LocalProtocolError("Too much data for declared Content-Length")

    async def _receive(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await until(self._waiter, self._timeouts.get("read"), httpx.ReadTimeout)
        except BaseException:
            self._abort()
            raise
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._sending is not None and (self._parser.head is not None or self._failure is not None):
            self._sending.cancel()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: Exception) -> None:
        self._failure = failure
        self._leave(is_reusable=False)
        self._wake()

    def _abort(self) -> None:
        if self._connection is not None:
            self._failure = httpx.StreamClosed()
            self._leave(is_reusable=False)

    def _leave(self, *, is_reusable: bool) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        connection.receiver = None
        if is_reusable:
            self._pool.release(connection)
        else:
            self._pool.discard(connection)
