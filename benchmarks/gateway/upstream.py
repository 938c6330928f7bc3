"""The model server that all sides are in front of: `python -m benchmarks.gateway.upstream` prints its port.

It has to be so fast that it does not count: bytes that were made before, on uvloop, without a framework.
"""

from __future__ import annotations

import asyncio
import re
import sys
from functools import cache

import uvloop

from .wire import Stream, answer, asks_for_usage, last_events, text_event, wanted

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD = b"HTTP/1.1 200 OK\r\nserver: upstream\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
_STREAM_HEAD = _HEAD + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


class Upstream(asyncio.Protocol):
    """One connection, on which one request follows the other."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._next: asyncio.Handle | None = None
        self._is_paused = False
        self._is_due = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's, which inherits from nothing

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not is_complete(self._received):
            return
        asked, self._received = self._received, b""
        stream = wanted(asked)
        if stream is None:
            self._transport.write(_single())
        else:
            self._begin(stream, asks_for_usage(asked))

    def _begin(self, stream: Stream, with_usage: bool) -> None:
        self._stream = stream
        self._sent = 0
        self._begun = self._loop.time()
        self._end = _chunk(last_events(with_usage)) + b"0\r\n\r\n"
        self._transport.write(_STREAM_HEAD)
        self._send()

    def _send(self) -> None:
        """Send the next chunk, unless whoever reads cannot follow."""
        self._is_due = self._is_paused
        if self._is_paused:
            return
        self._transport.write(_text_chunk(self._stream.size, self._sent % 10))
        self._sent += 1
        if self._sent == self._stream.chunks:
            self._transport.write(self._end)
        elif self._stream.every:
            self._next = self._loop.call_at(self._begun + self._sent * self._stream.every / 1000, self._send)
        else:
            self._next = self._loop.call_soon(self._send)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._is_due:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if self._next is not None:
            self._next.cancel()


def is_complete(received: bytes) -> bool:
    """Whether all of a request is there."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return False
    length = _LENGTH.search(received, 0, end)
    if length is not None:
        return len(received) >= end + 4 + int(length[1])
    return received.endswith(b"\r\n0\r\n\r\n")


@cache
def _single() -> bytes:
    return b"%scontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (_HEAD, len(answer()), answer())


@cache
def _text_chunk(size: int, number: int) -> bytes:
    return _chunk(text_event(size, number))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
