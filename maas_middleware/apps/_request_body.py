"""The body of a request on its way to an upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

from ._vigil import Vigil


class RequestBody(httpx.AsyncByteStream):
    """The client's body, piece by piece as it comes. The first piece is held: often it is the whole, as servers see it.

    Attributes:
        can_be_sent_again: whether nothing of it is gone.
    """

    def __init__(self, vigil: Vigil) -> None:
        self.can_be_sent_again = True
        self._vigil = vigil
        self._first = b""
        self._has_more = True

    async def read_first(self) -> None:
        """Raise ClientLeft where the client did."""
        self._first = await self._next()

    def stream(self) -> httpx.AsyncByteStream:
        """What an upstream is to read."""
        return self if self._has_more else httpx.ByteStream(self._first)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.can_be_sent_again = False
        if self._first:
            yield self._first
        while self._has_more:
            if piece := await self._next():
                yield piece

    async def _next(self) -> bytes:
        message = await self._vigil.receive()
        self._has_more = message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body
