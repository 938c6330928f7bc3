"""An upstream on a real socket that does what a test's script says, byte by byte."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream

Script = Callable[["Connection"], Awaitable[None]]


class Connection:
    """One connection from the server's side.

    Attributes:
        received: everything that was read.
        sent: how many bytes the socket took.
        client_left: set when the client closed the connection, as far as the script reads or writes.
    """

    def __init__(self, stream: ByteStream) -> None:
        self.stream: ByteStream = stream
        self.received = b""
        self.sent = 0
        self.client_left = anyio.Event()

    async def read(self) -> bytes:
        """Read what there is."""
        piece = await self.stream.receive()
        self.received += piece
        return piece

    async def read_until(self, ending: bytes) -> bytes:
        """Read on until something was received; returns all that was."""
        while ending not in self.received:
            await self.read()
        return self.received

    async def read_request(self) -> Request:
        """Read the next request with its body."""
        await self.read_until(b"\r\n\r\n")
        while (request := Request.parse(self.received)) is None:
            await self.read()
        self.received = b""
        return request

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            await self.stream.send(piece)
            self.sent += len(piece)

    async def until_client_left(self) -> None:
        """Read until the client closes, which also ends the script."""
        while True:
            await self.read()


@dataclass
class Request:
    """A request as it came over the wire."""

    line: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @classmethod
    def parse(cls, data: bytes) -> Request | None:
        head, _, rest = data.partition(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
        request = cls(line, headers, rest)
        if (length := request.values(b"content-length")) and len(rest) < int(length[0]):
            return None
        if request.values(b"transfer-encoding") and not rest.endswith(b"0\r\n\r\n"):
            return None
        return request

    def values(self, name: bytes) -> list[bytes]:
        """The values of a header, in their order."""
        return [value for key, value in self.headers if key.lower() == name]


@dataclass
class RawUpstream:
    url: str
    connections: list[Connection] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")


@asynccontextmanager
async def raw_upstream(script: Script) -> AsyncIterator[RawUpstream]:
    """Run a script for every connection, which is closed when it ends."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    upstream = RawUpstream(f"http://127.0.0.1:{port}")

    async def handle(stream: SocketStream) -> None:
        connection = Connection(stream)
        upstream.connections.append(connection)
        async with stream:
            try:
                await script(connection)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                connection.client_left.set()

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handle)
        yield upstream
        group.cancel_scope.cancel()


def stalling(*pieces: bytes) -> Script:
    """Read a request, send the pieces, and nothing more."""

    async def script(upstream: Connection) -> None:
        await upstream.read_request()
        await upstream.send(*pieces)
        await upstream.until_client_left()

    return script


def answer(status: str, body: bytes = b"", *headers: bytes) -> bytes:
    """A whole HTTP/1.1 answer with a content-length."""
    lines = [b"HTTP/1.1 " + status.encode(), b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked_head(content_type: str, *headers: bytes) -> bytes:
    """The head of an answer of which chunks follow."""
    lines = [b"HTTP/1.1 200 OK", b"Content-Type: " + content_type.encode(), b"Transfer-Encoding: chunked", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
