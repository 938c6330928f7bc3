"""One connection to a server: a socket, and who receives what comes."""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import Callable
from typing import Protocol

import httpx

from ._waiting import until


class Receiver(Protocol):
    """Who receives what comes over a connection."""

    def received(self, data: bytes, /) -> None:
        """The server sent something."""

    def ended(self) -> None:
        """The server said that it sends no more."""

    def lost(self, error: Exception | None, /) -> None:
        """The connection is gone."""


class Connection(asyncio.BufferedProtocol):
    """A connection that belongs to one receiver at a time. It ends itself when something comes that nobody asked for.

    Args:
        lost: is called when the socket is closed.
        buffer: what comes is read into it, and copied out at once: connections of one event loop may share it.

    Attributes:
        receiver: None while no response is awaited.
        gone: set when the socket is closed.
    """

    __slots__ = ("_buffer", "_lost", "_poll", "_transport", "_writable", "gone", "receiver")

    def __init__(self, lost: Callable[[Connection], None], buffer: memoryview) -> None:
        self.receiver: Receiver | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lost = lost
        self._buffer = buffer
        self._poll = select.poll()
        self._transport: asyncio.Transport
        self._writable: asyncio.Future[None] | None = None

    @property
    def is_closing(self) -> bool:
        return self._transport.is_closing()

    @property
    def is_readable(self) -> bool:
        """Something came that the event loop has not seen yet, or the end."""
        return bool(self._poll.poll(0))

    @property
    def is_flushed(self) -> bool:
        """Everything that was written has left."""
        return self._transport.get_write_buffer_size() == 0

    def write(self, data: bytes | memoryview) -> None:
        self._transport.write(data)

    async def drained(self, seconds: float | None) -> None:
        """Wait until more may be written.

        Raises:
            httpx.WriteTimeout: not within so many seconds.
        """
        if self._writable is not None:
            await until(self._writable, seconds, httpx.WriteTimeout)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def close(self) -> None:
        """Close it politely: a TLS server is told."""
        self._transport.close()

    def abort(self) -> None:
        """Close it at once, whatever is on its way."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvloop's have no base
        self._transport = transport
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.receiver is None:
            self.abort()
        else:
            self.receiver.received(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> None:
        if self.receiver is not None and self._is_announced():
            self.receiver.ended()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set_result(None)
        self._lost(self)
        if self.receiver is not None:
            self.receiver.lost(error)

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        assert writable is not None
        if not writable.done():
            writable.set_result(None)

    def _is_announced(self) -> bool:
        # asyncio does not tell whether it was the server that ended TLS, or somebody between (RFC 9112, section 9.8)
        tls: ssl.SSLObject | None = self._transport.get_extra_info("ssl_object")
        try:
            return tls is None or not tls.read(1)
        except ssl.SSLError:
            return False
