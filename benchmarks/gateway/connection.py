"""One connection of the load generator."""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from httptools import HttpResponseParser

from .wire import DONE, Stream, text_events, whole_body

_SLOW_BUFFER_BYTES = 8192
_SLOW_PAUSE_SECONDS = 0.05
_TEXT = b'"content":'
_SOME_TEXT = re.compile(rb'"content": ?"[a-j]')


class Listener(Protocol):
    """Who is told how it goes."""

    def began(self) -> None: ...

    def ended(self, connection: Connection, /) -> None: ...

    def failed(self, error: BaseException, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Expectation:
    """What an answer has to be: the very bytes, or as much text where a gateway writes its own documents."""

    stream: Stream | None
    is_exact: bool

    def check(self, status: int, body: bytes) -> None:
        """Check a whole answer.

        Raises:
            ValueError: it is another one.
        """
        if status != 200 or not self._is_right(body):
            raise ValueError(f"answered {status}, {len(body)} bytes: {body[:300]!r}")

    def check_beginning(self, body: bytes) -> None:
        """Check what has come of a stream so far.

        Raises:
            ValueError: it is not how the answer begins.
        """
        assert self.stream is not None
        if self.is_exact and not text_events(self.stream, len(body) // self.stream.size + 1).startswith(body):
            raise ValueError(f"answered something else: {body[:300]!r}")

    def _is_right(self, body: bytes) -> bool:
        if self.is_exact:
            return body == whole_body(self.stream)
        if self.stream is None:
            return _SOME_TEXT.search(body) is not None and b'"usage":' in body
        return len(_SOME_TEXT.findall(body)) == self.stream.chunks and body.endswith(DONE)


class Connection(asyncio.Protocol):
    """Asks when it is told to, and measures what it is answered.

    Args:
        is_slow: a little is read at a time, and long pauses are made.
    """

    _transport: asyncio.Transport

    def __init__(self, listener: Listener, asked: bytes, expectation: Expectation, is_slow: bool) -> None:
        self.first_bytes: list[float] = []
        self.latencies: list[float] = []
        self.chunks = 0
        self._listener = listener
        self._request = asked
        self._expectation = expectation
        self._is_slow = is_slow
        self._is_waiting = False
        self._parser = HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    async def open(self, port: int) -> None:
        client = socket.socket()
        client.setblocking(False)
        if self._is_slow:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER_BYTES)
        await self._loop.sock_connect(client, ("127.0.0.1", port))
        await self._loop.create_connection(lambda: self, sock=client)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's, which inherits from nothing

    def ask(self) -> None:
        self._pieces.clear()
        self._is_waiting = True
        self._asked = perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self._is_slow and not self._transport.is_closing():
            self._transport.pause_reading()
            self._loop.call_later(_SLOW_PAUSE_SECONDS, self._resume)

    def on_body(self, data: bytes) -> None:
        if not self._pieces:
            self.first_bytes.append(perf_counter() - self._asked)
            self._listener.began()
        self._pieces.append(data)
        self.chunks += data.count(_TEXT)

    def on_message_complete(self) -> None:
        self.latencies.append(perf_counter() - self._asked)
        self._is_waiting = False
        self._expectation.check(self._parser.get_status_code(), b"".join(self._pieces))
        self._listener.ended(self)

    def check_beginning(self) -> None:
        self._expectation.check_beginning(b"".join(self._pieces))

    def close(self) -> None:
        self._is_waiting = False
        self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if self._is_waiting:  # what is idle may be closed: others may take long to end
            self._listener.failed(ConnectionError(f"the server closed the connection: {error}"))

    def _resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()
