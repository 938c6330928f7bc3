"""What a client is sent of an upstream's answer."""

from __future__ import annotations

from starlette.types import Message, Send

from .._asgi import ClientLeft, Headers
from .._event_streams import takes_events
from ._keepalive import KeepAlive
from ._vigil import Vigil


class Answer:
    """The answer to one request. It begins with its first byte, so that what fails before can be answered otherwise.

    All methods raise ClientLeft where the client did, and UpstreamTimeout where the whole exchange took too long.

    Attributes:
        started: whether the client was sent anything.
    """

    __slots__ = ("_keepalive", "_keepalive_interval", "_send", "_start", "_vigil", "started")

    def __init__(self, send: Send, vigil: Vigil, *, keepalive_interval: float | None) -> None:
        self.started = False
        self._send = send
        self._vigil = vigil
        self._keepalive_interval = keepalive_interval
        self._start: Message
        self._keepalive: KeepAlive | None = None

    def prepare(self, status: int, headers: Headers) -> None:
        """Take the head; where it is an event stream's, comments are sent from now on whenever it is silent."""
        self._start = {"type": "http.response.start", "status": status, "headers": headers}
        if self._keepalive_interval is not None and takes_events(headers):
            self._keepalive = KeepAlive(self._keepalive_interval, self._pass, self._vigil.stop)

    async def write(self, chunk: bytes) -> None:
        self._vigil.await_client()
        if self._keepalive is None:
            await self._pass(chunk)
        else:
            await self._keepalive.interrupt()
            await self._pass(chunk)
            self._keepalive.resume(chunk)
        self._vigil.await_upstream()

    async def end(self) -> None:
        self._vigil.await_client()
        if self._keepalive is not None:
            await self._keepalive.interrupt()
        await self._pass(b"", more=False)

    async def aclose(self) -> None:
        """Nothing is sent from here on, whether it has an end or not."""
        if self._keepalive is not None:
            await self._keepalive.aclose()

    async def _pass(self, body: bytes, *, more: bool = True) -> None:
        try:
            if not self.started:
                self.started = True
                await self._send(self._start)
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except OSError:  # since ASGI 2.4 a server raises it when the client is gone
            raise ClientLeft from None
